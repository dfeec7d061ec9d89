// Rates and latencies out of the server's steps. A step in which nothing happened is not told: it is a zero.

import { state } from "./state.js";

const RECENT_S = 30;
const LAG_S = 6;

const rate = (points, step, of) => {
  const since = now() - RECENT_S - LAG_S;
  const recent = points.filter((point) => point.at > since);
  return recent.reduce((sum, point) => sum + of(point), 0) / Math.max(RECENT_S, step);
};

export const now = () => Math.max(state.figures?.now ?? 0, Date.now() / 1000 - LAG_S);

export const requests = (point) => Object.values(point.ended).reduce((sum, count) => sum + count, 0);

// What a model does now; null where nothing is known.
export function lately(name) {
  const points = state.figures?.models[name];
  if (!points?.length) return null;
  const last = points[points.length - 1];
  const fresh = now() - last.at < state.figures.step_s * 2 + LAG_S;
  const timed = points.findLast((point) => point.first_p50_s !== null);
  return {
    tokens: rate(points, state.figures.step_s, (point) => point.tokens),
    requests: rate(points, state.figures.step_s, requests),
    first: timed?.first_p50_s ?? null,
    inFlight: fresh ? last.in_flight : 0,
    waiting: fresh ? last.waiting : 0,
  };
}

// A line of `of(point)` from `from` on, with a zero for every step that is not there.
export function filled(points, step, from, to, of) {
  const known = new Map(points.map((point) => [point.at, point]));
  const line = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    const point = known.get(at);
    line.push([at, point ? of(point) : 0]);
  }
  return line;
}
