// Numbers, sizes and times as people of the chosen language read them. What is not known is a dash.

import { currentLanguage } from "./text.js";

export const NONE = "–";
const GB = 2 ** 30;
const MB = 2 ** 20;

export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  return value.toLocaleString(currentLanguage(), { maximumFractionDigits: digits, minimumFractionDigits: 0 });
}

// As the API has it, 1 GB is 2^30 bytes.
export function size(bytes) {
  if (bytes === null || bytes === undefined) return NONE;
  if (bytes < 10 * MB) return `${number(bytes / MB, 1)} MB`;
  if (bytes < GB) return `${number(bytes / MB)} MB`;
  return `${number(bytes / GB, bytes < 100 * GB ? 1 : 0)} GB`;
}

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 1) return `${number(value * 1000)} ms`;
  return `${number(value, value < 10 ? 2 : 1)} s`;
}

export const perSecond = (value) => number(value, value !== null && value < 10 ? 1 : 0);

export const percent = (value) => (value === null || value === undefined ? NONE : `${number(value)} %`);

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString(currentLanguage(), { hour12: false });
}

export function moment(at) {
  const date = new Date(at * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const day = today ? "" : `${date.toLocaleDateString(currentLanguage(), { month: "short", day: "numeric" })} `;
  return day + clock(at);
}

// How long ago, in the largest unit that says enough.
export function age(at) {
  const passed = Math.max(0, Date.now() / 1000 - at);
  const units = [
    [86400, "day"],
    [3600, "hour"],
    [60, "minute"],
  ];
  const words = new Intl.RelativeTimeFormat(currentLanguage(), { numeric: "always", style: "short" });
  for (const [length, unit] of units) {
    if (passed >= length) return words.format(-Math.floor(passed / length), unit);
  }
  return words.format(-Math.floor(passed), "second");
}
