// One model in full: where it runs and why there, its memory, its failures, its log.

import { mayManage } from "../feed.js";
import { age, number, size } from "../format.js";
import { html, nothing } from "../lit.js";
import { lift, restart, scale, unload } from "../orders.js";
import { bar, empty, facts, list, page, phase, progress } from "../parts.js";
import { address, go } from "../route.js";
import { change, state } from "../state.js";
import { t } from "../text.js";
import { forensics } from "./events.js";
import { log } from "./log.js";
import { busy, figures } from "./models.js";

export function model(name) {
  const one = state.models.get(name);
  if (!one) {
    const back = html`<a class="button" href=${address("models")}>${t("view.models")}</a>`;
    return page(name, empty(t("model.gone"), t("model.gone.text"), back));
  }
  return html`
    <p class="crumbs"><a href=${address("models")}>${t("view.models")}</a></p>
    ${page(name, body(one), actions(one))}
  `;
}

function actions(one) {
  const chat = () => {
    change((s) => (s.chat = { ...(s.chat ?? {}), model: one.name.split("@")[0] }));
    go("playground");
  };
  return html`
    ${one.endpoint && one.task === "generate"
      ? html`<button type="button" @click=${chat}>${t("model.chat")}</button>`
      : nothing}
    ${mayManage() ? replicas(one) : nothing}
    ${mayManage()
      ? html`<button type="button" @click=${() => restart(one.name)}>${t("restart")}</button>
          <button type="button" class="danger" @click=${() => unload(one.name)}>${t("unload")}</button>`
      : nothing}
  `;
}

const replicas = (one) => html`
  <div class="stepper" role="group" aria-label=${t("figure.replicas")}>
    <button
      type="button"
      aria-label=${t("scale.fewer")}
      ?disabled=${one.wanted_replicas <= 1}
      @click=${() => scale(one.name, one.wanted_replicas - 1)}
    >
      −
    </button>
    <span>${t("scale.count", { count: one.wanted_replicas })}</span>
    <button type="button" aria-label=${t("scale.more")} @click=${() => scale(one.name, one.wanted_replicas + 1)}>+</button>
  </div>
`;

const body = (one) => html`
  <section class="card lead">
    <p class="state">
      ${phase(one.phase)} <span>${one.reason}</span> <span class="hint">${age(one.since)}</span>
    </p>
    ${busy(one) ? progress(busy(one)) : nothing}
    ${one.shortfall ? html`<p class="note bad">${one.shortfall}</p>` : nothing}
    ${figures(one)}
  </section>
  ${one.failures.length ? failures(one) : nothing}
  ${one.exclusions.length ? exclusions(one) : nothing}
  <div class="columns">
    <section class="card">
      <h2>${t("model.engines")}</h2>
      ${one.engines.length ? engines(one) : html`<p class="hint">${t("model.engines.none")}</p>`}
      ${why(one)}
    </section>
    <section class="card">
      <h2>${t("model.memory")}</h2>
      ${memory(one)}
    </section>
  </div>
  <section class="card">
    <h2>${t("model.log")}</h2>
    ${log(one)}
  </section>
  <details class="card">
    <summary>${t("model.facts")}</summary>
    ${facts([
      [t("model.source"), one.model],
      [t("model.format"), one.format ?? nothing],
      [t("model.task"), one.task ? t(`task.${one.task}`) : nothing],
      [t("model.origin"), t(`origin.${one.origin}`)],
      [t("model.endpoint"), one.endpoint ?? nothing],
      ...Object.entries(one.plan?.options ?? {}).map(([name, value]) => [t(`option.${name}`), String(value)]),
    ])}
    ${list(one.plan?.notes ?? [])} ${list(one.plan?.warnings ?? [], "notes warn")}
  </details>
`;

const failures = (one) => html`
  <section class="card failures">
    <h2>${t("model.failures")}</h2>
    ${one.failures.map(
      (failure) => html`
        <div class="failure">
          <p><strong>${failure.message}</strong> <span class="hint">${age(failure.at)}</span></p>
          ${forensics(failure)}
        </div>
      `,
    )}
  </section>
`;

const exclusions = (one) => html`
  <section class="card">
    <h2>${t("model.exclusions")}</h2>
    <ul class="rows">
      ${one.exclusions.map(
        (exclusion) => html`
          <li>
            <div>
              <strong>${exclusion.backend}</strong> <span class="tag">${exclusion.node_kind}</span>
              <p class="hint">${exclusion.reason}</p>
            </div>
            ${mayManage()
              ? html`<button type="button" class="small" @click=${() => lift(one.name, exclusion.backend)}>
                  ${t("lift")}
                </button>`
              : nothing}
          </li>
        `,
      )}
    </ul>
  </section>
`;

const engines = (one) => html`
  <div class="scroll" tabindex="0" role="region" aria-label=${t("model.engines")}>
    <table>
      <thead>
        <tr>
          <th scope="col">${t("engine.node")}</th>
          <th scope="col">${t("engine.backend")}</th>
          <th scope="col">${t("engine.state")}</th>
          <th scope="col">${t("engine.gpus")}</th>
          <th scope="col" class="num">${t("engine.context")}</th>
          <th scope="col" class="num">${t("engine.slots")}</th>
        </tr>
      </thead>
      <tbody>
        ${one.engines.map(
          (engine) => html`
            <tr title=${engine.why}>
              <th scope="row">${engine.node}</th>
              <td>${engine.backend}</td>
              <td>${phase(engine.phase)}</td>
              <td>${engine.gpus.join(", ") || t("engine.cpu")}</td>
              <td class="num">${number(engine.context)}</td>
              <td class="num">${number(engine.slots)}</td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  </div>
`;

function why(one) {
  const verdicts = one.plan?.nodes ?? [];
  const reasons = [...new Set(one.engines.map((engine) => engine.why).filter(Boolean))];
  return html`
    ${list(reasons)}
    ${verdicts.length
      ? html`<details>
          <summary>${t("model.why")}</summary>
          ${verdictList(verdicts)}
        </details>`
      : nothing}
  `;
}

export const verdictList = (verdicts) => html`
  <ul class="verdicts">
    ${verdicts.map(
      (verdict) => html`
        <li class=${verdict.fits === null ? "" : verdict.fits ? "yes" : "no"}>
          <p>
            <strong>${verdict.node}</strong>
            ${verdict.fits === false && verdict.candidates.length ? nothing : verdict.reasons.join("; ")}
          </p>
          ${verdict.candidates.length
            ? html`<ul>
                ${verdict.candidates.map(
                  (candidate) => html`<li class=${candidate.fits ? "yes" : "no"}>
                    <b>${candidate.backend}</b>
                    <span>${candidate.fits ? size(candidate.needs_bytes) : candidate.reasons.join("; ")}</span>
                    ${candidate.gpus.length > 1 ? gpuList(candidate.gpus) : nothing}
                  </li>`,
                )}
              </ul>`
            : nothing}
        </li>
      `,
    )}
  </ul>
`;

// Of one GPU alone the backend has said it all.
const gpuList = (gpus) => html`
  <ul>
    ${gpus.map((gpu) => html`<li class=${gpu.fits ? "yes" : "no"}>[${gpu.id}] ${gpu.name}: ${gpu.reason}</li>`)}
  </ul>
`;

// The bill that the plan was made by, and what the engines were seen to take.
function memory(one) {
  const lines = one.plan?.footprint ?? [];
  if (!lines.length) return html`<p class="hint">${t("model.memory.none")}</p>`;
  const total = one.plan.footprint_bytes;
  return html`
    ${footprint(lines, total)} ${real(one)}
  `;
}

export const footprint = (lines, total) => html`
  <ul class="bill">
    ${lines.map(
      (line) => html`
        <li title=${line.detail}>
          <div class="row">
            <span>${line.name} <span class="hint">${t(line.on_gpu ? "memory.gpu" : "memory.ram")}</span></span>
            <span class="figures">${size(line.size_bytes)}</span>
          </div>
          ${bar(line.name, line.size_bytes, total, size(line.size_bytes))}
        </li>
      `,
    )}
    <li class="total"><div class="row"><span>${t("memory.planned")}</span><span class="figures">${size(total)}</span></div></li>
  </ul>
`;

function real(one) {
  const leases = [...(state.nodes?.values() ?? [])].flatMap((node) =>
    node.leases.filter((lease) => lease.model === one.name).map((lease) => [node, lease]),
  );
  const sum = (devices) => Object.values(devices).reduce((all, bytes) => all + bytes, 0);
  const rows = leases.filter(([, lease]) => Object.keys(lease.used ?? {}).length);
  if (!rows.length) return nothing;
  return html`<ul class="bill">
    ${rows.map(
      ([node, lease]) => html`
        <li>
          <div class="row">
            <span>${t("memory.real")} <span class="hint">${node.node}</span></span>
            <span class="figures">${size(sum(lease.used))} <span class="hint">/ ${size(sum(lease.devices))}</span></span>
          </div>
          ${bar(t("memory.real"), sum(lease.used), sum(lease.devices), size(sum(lease.used)))}
        </li>
      `,
    )}
  </ul>`;
}
