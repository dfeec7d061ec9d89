// The last hour: requests, tokens, latencies, queue, memory.

import { filled, now, requests } from "../figures.js";
import { number, perSecond, seconds, size } from "../format.js";
import { chart } from "../chart.js";
import { html, nothing } from "../lit.js";
import { page } from "../parts.js";
import { change, state } from "../state.js";
import { t } from "../text.js";

const SPANS = [
  [900, "live.15m"],
  [3600, "live.60m"],
];

// Requests that ended by their client's doing: it left, or asked for what cannot be.
const clients = (point) => (point.ended.cancelled ?? 0) + (point.ended.client_error ?? 0);

export function live() {
  const figures = state.figures;
  const choice = html`<div class="actions">${modelChoice(figures)}${spanChoice()}</div>`;
  if (!figures) return page(t("view.live"), html`<p class="waiting">${t("waiting")}</p>`, choice);
  const points = state.liveModel ? (figures.models[state.liveModel] ?? []) : figures.fleet;
  const step = figures.step_s;
  const to = now();
  const from = to - state.span;
  const line = (of) => filled(points, step, from, to, of);
  const timed = (of) => points.filter((point) => point.at >= from).map((point) => [point.at, of(point)]);
  const common = { from, to, gap: step * 1.5 };
  const sparse = { ...common, gap: step * 6 };
  return page(
    t("view.live"),
    html`<div class="charts">
      ${chart({
        ...common,
        title: t("live.requests"),
        show: perSecond,
        series: [
          { name: t("live.ok"), points: line((point) => (point.ended.ok ?? 0) / step) },
          { name: t("live.client"), points: line((point) => clients(point) / step) },
          { name: t("live.failed"), points: line((point) => (requests(point) - (point.ended.ok ?? 0) - clients(point)) / step) },
        ],
      })}
      ${chart({
        ...common,
        title: t("live.tokens"),
        show: perSecond,
        series: [{ name: t("live.persecond"), points: line((point) => point.tokens / step) }],
      })}
      ${chart({
        ...sparse,
        title: t("live.first"),
        show: seconds,
        series: [
          { name: "p50", points: timed((point) => point.first_p50_s) },
          { name: "p95", points: timed((point) => point.first_p95_s) },
        ],
      })}
      ${chart({
        ...sparse,
        title: t("live.between"),
        show: seconds,
        series: [
          { name: "p50", points: timed((point) => point.between_p50_s) },
          { name: "p95", points: timed((point) => point.between_p95_s) },
        ],
      })}
      ${chart({
        ...common,
        title: t("live.queue"),
        show: (value) => number(value),
        series: [
          { name: t("live.inflight"), points: line((point) => point.in_flight) },
          { name: t("live.waiting"), points: line((point) => point.waiting) },
        ],
      })}
      ${memory(from, to)}
    </div>`,
    choice,
  );
}

// GPUs in one picture and RAM in another: their sizes are too unlike.
function memory(from, to) {
  const picture = (title, lines, name) =>
    lines.length
      ? chart({
          from,
          to,
          gap: 90,
          most: Math.max(...lines.map((one) => one.total_bytes)),
          title,
          show: size,
          series: lines.map((one) => ({ name: name(one), points: one.points.filter(([at]) => at >= from) })),
        })
      : nothing;
  const lines = state.memory ?? [];
  return html`
    ${picture(t("live.memory"), lines.filter((one) => one.gpu !== null), (one) => `${one.node} [${one.gpu}]`)}
    ${picture(t("live.ram"), lines.filter((one) => one.gpu === null), (one) => one.node)}
  `;
}

const modelChoice = (figures) => html`
  <label class="inline">
    <span class="hidden">${t("live.model")}</span>
    <select @change=${(event) => change((s) => (s.liveModel = event.target.value || null))}>
      <option value="">${t("live.fleet")}</option>
      ${Object.keys(figures?.models ?? {}).map(
        (name) => html`<option value=${name} ?selected=${name === state.liveModel}>${name}</option>`,
      )}
    </select>
  </label>
`;

const spanChoice = () => html`
  <div class="segments" role="group" aria-label=${t("live.span")}>
    ${SPANS.map(
      ([span, name]) => html`
        <button type="button" aria-pressed=${state.span === span} @click=${() => change((s) => (s.span = span))}>
          ${t(name)}
        </button>
      `,
    )}
  </div>
`;
