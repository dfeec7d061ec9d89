// The models: all at a glance, or one in full.

import { openDeploy } from "../deploy.js";
import { mayManage } from "../feed.js";
import { lately } from "../figures.js";
import { NONE, number, percent, perSecond, seconds } from "../format.js";
import { html, nothing, repeat } from "../lit.js";
import { empty, page, phase, progress } from "../parts.js";
import { address } from "../route.js";
import { state } from "../state.js";
import { t } from "../text.js";
import { closeLog } from "./log.js";
import { model } from "./model.js";

export function models() {
  if (state.detail !== null) return model(state.detail);
  closeLog();
  const all = [...state.models.values()].sort((one, other) => one.name.localeCompare(other.name));
  const body = all.length
    ? html`<div class="cards wide">${repeat(all, (one) => one.name, card)}</div>`
    : empty(t("models.none"), mayManage() ? t("models.none.text") : t("models.none.infer"), deployButton());
  return page(t("view.models"), body, all.length ? deployButton() : nothing);
}

export const deployButton = () =>
  mayManage()
    ? html`<button type="button" class="primary" @click=${openDeploy}>${t("deploy")}</button>`
    : nothing;

const card = (one) => html`
  <article class="card model">
    <header>
      <h2><a href=${address("models", one.name)}>${one.name}</a></h2>
      ${phase(one.phase)}
    </header>
    ${one.phase === "ready" ? where(one) : html`<p class="note ${one.phase === "failed" ? "bad" : ""}">${one.reason}</p>`}
    ${busy(one) ? progress(busy(one)) : nothing}
    ${figures(one)}
  </article>
`;

const where = (one) => {
  const nodes = [...new Set(one.engines.map((engine) => engine.node))];
  return html`<p class="note">${[one.backend, nodes.join(", ")].filter(Boolean).join(" · ")}</p>`;
};

// The progress that is worth a bar: that of whoever is furthest behind.
export function busy(one) {
  if (one.progress) return one.progress;
  return one.replicas.find((replica) => replica.progress)?.progress ?? null;
}

export function figures(one) {
  const now = lately(one.name.split("@")[0]);
  const ready = one.replicas.filter((replica) => replica.state === "ready").length;
  const rows = [
    [t("figure.replicas"), `${ready} / ${one.wanted_replicas}`],
    [t("figure.tokens"), now ? perSecond(now.tokens) : NONE],
    [t("figure.first"), now ? seconds(now.first) : NONE],
    [t("figure.queue"), queue(one, now)],
    ...cache(one),
  ];
  return html`<dl class="figures">
    ${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

// The fullest cache, where engines tell: it is the one that makes requests wait.
function cache(one) {
  const known = one.replicas.map((replica) => replica.cache_used).filter((used) => used !== null);
  return known.length ? [[t("figure.cache"), percent(100 * Math.max(...known))]] : [];
}

// What engines say of themselves and what waits in routers for one.
function queue(one, now) {
  const known = one.replicas.filter((replica) => replica.running !== null);
  if (!known.length && !now?.waiting) return NONE;
  const running = known.reduce((sum, replica) => sum + replica.running, 0);
  const waiting = known.reduce((sum, replica) => sum + (replica.waiting ?? 0), 0) + (now?.waiting ?? 0);
  return t("figure.queue.value", { running: number(running), waiting: number(waiting) });
}
