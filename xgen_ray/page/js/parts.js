// Small pieces that several views are made of.

import { html, nothing } from "./lit.js";
import { notify } from "./state.js";
import { t } from "./text.js";

const PHASE_TONES = {
  ready: "good",
  resolving: "busy",
  loading: "busy",
  recovering: "warn",
  unloading: "busy",
  sleeping: "calm",
  failed: "bad",
  serving: "good",
  starting: "busy",
  preparing: "busy",
  stopping: "busy",
};

export const phase = (name) =>
  html`<span class="pill ${PHASE_TONES[name] ?? "calm"}"><i aria-hidden="true"></i>${t(`phase.${name}`)}</span>`;

export const badge = (text) => html`<span class="badge">${text}</span>`;

export const page = (title, body, aside = nothing) => html`
  <div class="head">
    <h1 tabindex="-1">${title}</h1>
    <div class="actions">${aside}</div>
  </div>
  ${body}
`;

export const empty = (title, text, action = nothing) => html`
  <div class="empty">
    <h2>${title}</h2>
    <p>${text}</p>
    ${action}
  </div>
`;

// A share of something, with its numbers beside it. `mark` is a second share, laid over the first.
export function bar(label, value, total, words, mark = null) {
  const share = (part) => (total ? Math.min(100, Math.max(0, (100 * part) / total)) : 0);
  return html`
    <div
      class="bar"
      role="meter"
      aria-label=${label}
      aria-valuemin="0"
      aria-valuemax="100"
      aria-valuenow=${Math.round(share(value ?? 0))}
      aria-valuetext=${words}
    >
      <span class=${share(value ?? 0) > 92 ? "full" : ""} .style=${`width: ${share(value ?? 0)}%`}></span>
      ${mark ? html`<b .style=${`inset-inline-start: ${share(mark)}%`}></b>` : nothing}
    </div>
  `;
}

export function progress(report) {
  const { done_bytes: done, total_bytes: total, message } = report;
  const known = done !== null && total;
  return html`
    <div class="progress">
      <progress max="1" .value=${known ? done / total : 0} ?data-endless=${!known} aria-label=${message}></progress>
      <span>${message}</span>
    </div>
  `;
}

export const facts = (rows) => html`
  <dl class="facts">
    ${rows.filter((row) => row && row[1] !== nothing).map(
      ([name, value]) =>
        html`<div>
          <dt>${name}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>
`;

export const list = (items, className = "notes") =>
  items.length ? html`<ul class=${className}>${items.map((item) => html`<li>${item}</li>`)}</ul>` : nothing;

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    notify(t("copied"));
  } catch {
    // A browser keeps the clipboard from pages that came by plain HTTP from another machine.
    notify(t("copy.refused"), "error");
  }
}

export const snippet = (name, text) => html`
  <figure class="snippet">
    <figcaption>
      <span>${name}</span>
      <button type="button" class="quiet small" @click=${() => copy(text)}>${t("copy")}</button>
    </figcaption>
    <pre tabindex="0" aria-label=${name}>${text}</pre>
  </figure>
`;
