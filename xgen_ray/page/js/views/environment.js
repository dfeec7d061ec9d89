// A card for each node: what it has, what can run on it, and how that was found out.

import { mayManage } from "../feed.js";
import { age, number, percent, size } from "../format.js";
import { html, nothing, repeat } from "../lit.js";
import { drain, reopen } from "../orders.js";
import { badge, bar, empty, facts, list, page } from "../parts.js";
import { state } from "../state.js";
import { t } from "../text.js";

export function environment() {
  if (!state.nodes) return page(t("view.environment"), html`<p class="waiting">${t("env.looking")}</p>`);
  const nodes = [...state.nodes.values()].sort((one, other) => one.node.localeCompare(other.node));
  const body = nodes.length
    ? html`<div class="cards">${repeat(nodes, (node) => node.node_id || node.node, card)}</div>`
    : empty(t("env.none"), t("env.none.text"));
  return page(t("view.environment"), body, html`<p class="sum">${summary(nodes)}</p>`);
}

function summary(nodes) {
  const gpus = nodes.reduce((sum, node) => sum + node.gpus.length, 0);
  return t("env.sum", { nodes: nodes.length, gpus });
}

const card = (node) => html`
  <article class="card node" aria-labelledby=${`node-${node.node_id}`}>
    <header>
      <h2 id=${`node-${node.node_id}`}>${node.node}</h2>
      <div class="badges">
        ${node.badges.map(badge)}
        ${node.schedulable ? nothing : html`<span class="pill bad"><i aria-hidden="true"></i>${t("env.closed")}</span>`}
      </div>
    </header>
    ${node.reason ? html`<p class="note ${node.schedulable ? "" : "bad"}">
          ${node.reason} ${node.drained_since ? html`<span class="hint">· ${age(node.drained_since)}</span>` : nothing}
        </p>` : nothing}
    ${node.gpus.length ? html`<ul class="gpus">${node.gpus.map(gpu)}</ul>` : nothing}
    ${node.memory_total_bytes ? host(node) : nothing}
    ${node.backends.length ? backends(node) : nothing}
    ${node.models.length ? html`<p class="chips"><span class="hint">${t("env.models")}</span> ${node.models.map((name) => html`<a class="chip" href=${`#/models/${encodeURIComponent(name)}`}>${name}</a>`)}</p>` : nothing}
    ${more(node)}
    ${mayManage() ? service(node) : nothing}
  </article>
`;

const service = (node) => html`
  <div class="actions">
    ${node.drained_since
      ? html`<button type="button" class="small" @click=${() => reopen(node.node)}>${t("reopen")}</button>`
      : html`<button type="button" class="small" @click=${() => drain(node.node)}>${t("drain")}</button>`}
  </div>
`;

function gpu(one) {
  const total = one.memory_gb === null ? null : one.memory_gb * 2 ** 30;
  const used = one.memory_used_bytes;
  const words = total === null ? t("env.memory.unknown") : `${size(used)} / ${size(total)}`;
  const live = [
    one.utilization_percent === null ? null : percent(one.utilization_percent),
    one.temperature_celsius === null ? null : `${number(one.temperature_celsius)} °C`,
    one.power_watts === null ? null : `${number(one.power_watts)} W`,
  ].filter(Boolean);
  return html`
    <li>
      <div class="row">
        <span class="name">${one.label}</span>
        ${one.unified_memory ? html`<span class="tag">
            ${one.shared_memory_bytes ? t("env.unified.size", { size: size(one.shared_memory_bytes) }) : t("env.unified")}
          </span>` : nothing}
        <span class="figures">${live.join(" · ")}</span>
      </div>
      ${bar(`${t("env.memory")} ${one.label}`, used, total, words, one.leased_bytes)}
      <div class="row small">
        <span>${words}</span>
        ${one.leased_bytes ? html`<span class="hint">${t("env.leased", { size: size(one.leased_bytes) })}</span>` : nothing}
      </div>
    </li>
  `;
}

function host(node) {
  const used = node.memory_total_bytes - node.memory_available_bytes;
  const words = `${size(used)} / ${size(node.memory_total_bytes)}`;
  return html`
    <div class="host">
      <div class="row">
        <span class="name">${node.cpu ?? t("env.cpu")} <span class="hint">${t("env.cores", { count: node.cpu_count })}</span></span>
        <span class="figures">${node.cpu_percent === null ? "" : percent(node.cpu_percent)}</span>
      </div>
      ${bar(t("env.ram"), used, node.memory_total_bytes, words)}
      <div class="row small"><span>${t("env.ram")} ${words}</span></div>
    </div>
  `;
}

function backends(node) {
  const there = node.backends.filter((one) => one.available);
  const not = node.backends.filter((one) => !one.available);
  return html`
    <div class="backends">
      <p class="chips">
        <span class="hint">${t("env.backends")}</span>
        ${there.map((one) => html`<span class="chip good" title=${one.reason}>${one.backend}</span>`)}
        ${there.length ? nothing : html`<span class="chip">${t("env.backends.none")}</span>`}
      </p>
      ${not.length
        ? html`<details>
            <summary>${t("env.unavailable", { count: not.length })}</summary>
            <dl class="reasons">${not.map((one) => html`<dt>${one.backend}</dt><dd>${one.reason}</dd>`)}</dl>
          </details>`
        : nothing}
    </div>
  `;
}

const more = (node) => html`
  <details>
    <summary>${t("env.how")}</summary>
    ${facts([
      [t("env.recommended"), node.recommended_backend],
      [t("env.method"), node.detection_method],
      ...node.detectors.map((one) => [one.detector, one.reason ?? t("env.found", { count: one.found })]),
      ...Object.entries(node.versions),
    ])}
    ${Object.keys(node.labels).length
      ? html`<h3>${t("env.tags")}</h3>
          ${list(Object.entries(node.labels).map(([name, value]) => html`<code>${name}=${value}</code>`), "tags")}`
      : nothing}
  </details>
`;
