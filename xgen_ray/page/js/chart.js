// Lines over time, drawn as SVG. Gaps in the data are gaps in the line.

import { clock, NONE } from "./format.js";
import { html, nothing, svg } from "./lit.js";
import { t } from "./text.js";

const WIDTH = 600;
const HEIGHT = 120;

// `series` are {name, points: [[at, value or null]]}; `from` and `to` bound the time, `gap` is the longest step that
// a line bridges, `show` words a value.
export function chart({ title, series, from, to, gap, show, most = null, note = nothing }) {
  const values = series.flatMap((one) => one.points.map(([, value]) => value)).filter((value) => value !== null);
  const top = most ?? ceiling(Math.max(0, ...values));
  const x = (at) => (WIDTH * (at - from)) / (to - from);
  const y = (value) => HEIGHT - (HEIGHT * Math.min(value, top)) / (top || 1);
  const last = (one) => one.points.findLast(([, value]) => value !== null);
  const now = (one) => {
    const point = last(one);
    return point && to - point[0] < gap * 3 ? show(point[1]) : NONE;
  };
  const peak = values.length ? show(Math.max(...values)) : NONE;
  return html`
    <figure class="chart">
      <figcaption>
        <span class="title">${title}</span>
        <span class="legend">
          ${series.map(
            (one, index) =>
              html`<span class="key k${index % 6}"><i aria-hidden="true"></i>${one.name} <b>${now(one)}</b></span>`,
          )}
        </span>
      </figcaption>
      <div class="plot">
        <span class="top" aria-hidden="true">${values.length ? show(top) : ""}</span>
        <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img"
          aria-label=${`${title}. ${t("live.peak")}: ${peak}. ${series.map((one) => `${one.name}: ${now(one)}`).join(", ")}`}>
          ${[0.25, 0.5, 0.75].map((part) => svg`<line class="grid" x1="0" x2=${WIDTH} y1=${HEIGHT * part} y2=${HEIGHT * part} />`)}
          ${series.map((one, index) => svg`<path class="line k${index % 6}" d=${path(one.points, x, y, gap)} />`)}
        </svg>
        ${values.length ? nothing : html`<span class="nothing">${t("live.nothing")}</span>`}
      </div>
      <div class="times" aria-hidden="true"><span>${clock(from)}</span><span>${clock((from + to) / 2)}</span><span>${clock(to)}</span></div>
      ${note}
    </figure>
  `;
}

function path(points, x, y, gap) {
  let drawn = "";
  let before = null;
  for (const [at, value] of points) {
    if (value === null) {
      before = null;
      continue;
    }
    const joined = before !== null && at - before <= gap;
    // A point by itself would be nothing: give it a width.
    drawn += joined ? `L${x(at).toFixed(1)} ${y(value).toFixed(1)}` : `M${(x(at) - 2).toFixed(1)} ${y(value).toFixed(1)}h2`;
    before = at;
  }
  return drawn;
}

// The next of 1, 2 and 5 times a power of ten.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => value <= step * power);
}
