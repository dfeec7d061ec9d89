// The deploy dialog: what to load and how on the left, what the server would do with it on the right.

import {
  backendsOf,
  closeDeploy,
  edit,
  fieldsOf,
  sourceOf,
  submit,
  usesGpus,
} from "../deploy.js";
import { size } from "../format.js";
import { html, live, nothing } from "../lit.js";
import { list } from "../parts.js";
import { state } from "../state.js";
import { hasText, t } from "../text.js";
import { footprint, verdictList } from "./model.js";

export function deployDialog() {
  const form = state.deploy;
  if (!form) return nothing;
  return html`
    <dialog class="deploy" @close=${closeDeploy} aria-labelledby="deploy-title">
      <form @submit=${send} novalidate>
        <header>
          <h2 id="deploy-title">${t("deploy.title")}</h2>
          <button type="button" class="quiet close" aria-label=${t("close")} @click=${closeDeploy}>×</button>
        </header>
        <div class="split">
          <div class="form">${form.known ? fields(form) : html`<p class="waiting">${form.error ?? t("deploy.looking")}</p>`}</div>
          <section class="plan" aria-live="polite" aria-busy=${form.planning} aria-label=${t("plan")}>${plan(form)}</section>
        </div>
        <footer>
          ${form.error ? html`<p class="note bad" role="alert">${form.error}</p>` : nothing}
          <button type="button" @click=${closeDeploy}>${t("cancel")}</button>
          <button class="primary" ?disabled=${!sourceOf(form) || form.sending}>${t("deploy.load")}</button>
        </footer>
      </form>
    </dialog>
  `;
}

function send(event) {
  event.preventDefault();
  submit();
}

const fields = (form) => html`
  ${source(form)}
  ${text(form, "name", t("deploy.name"), { hint: t("deploy.name.hint"), placeholder: placeholder(form) })}
  ${backend(form)} ${usesGpus(form) ? gpus(form) : nothing}
  <div class="pair">
    ${text(form, "replicas", t("deploy.replicas"), { mode: "numeric" })}
    ${fieldsOf(form).filter((option) => option.essential).map((option) => field(form, option))}
  </div>
  <details>
    <summary>${t("deploy.more")}</summary>
    <div class="pair">${fieldsOf(form).filter((option) => !option.essential).map((option) => field(form, option))}</div>
  </details>
`;

const placeholder = (form) =>
  form.known.local.models.find((one) => form.source === "local" && one.model === form.local)?.name ?? "";

function source(form) {
  const kinds = ["local", "hub", "path"];
  return html`
    <fieldset>
      <legend>${t("deploy.source")}</legend>
      <div class="segments">
        ${kinds.map(
          (kind) => html`
            <label>
              <input type="radio" name="source" .checked=${form.source === kind} @change=${() => edit((f) => (f.source = kind))} />
              ${t(`deploy.source.${kind}`)}
            </label>
          `,
        )}
      </div>
      ${form.source === "local" ? localModels(form) : nothing}
      ${form.source === "hub" ? written(form, "hub", "org/name, org/name:file.gguf") : nothing}
      ${form.source === "path" ? written(form, "path", "/models/model.gguf") : nothing}
      ${fault(form, "model")}
    </fieldset>
  `;
}

function localModels(form) {
  const { models, incomplete } = form.known.local;
  const label = (one) => `${one.name} — ${one.format}, ${size(one.size_bytes)} — ${one.nodes.join(", ")}`;
  return html`
    <select
      id="deploy-model"
      aria-label=${t("deploy.source.local")}
      aria-describedby="fault-model"
      @change=${(event) => edit((f) => (f.local = event.target.value))}
    >
      <option value="">${models.length ? t("deploy.choose") : t("deploy.local.none")}</option>
      ${models.map((one) => html`<option value=${one.model} ?selected=${form.local === one.model}>${label(one)}</option>`)}
    </select>
    ${list(incomplete, "notes hint")}
  `;
}

const written = (form, kind, example) => html`
  <input
    id="deploy-model"
    aria-label=${t(`deploy.source.${kind}`)}
    aria-describedby="fault-model"
    placeholder=${example}
    autocomplete="off"
    spellcheck="false"
    .value=${live(form[kind])}
    @input=${(event) => edit((f) => (f[kind] = event.target.value))}
  />
`;

function text(form, name, label, { hint = null, mode = "text", placeholder = "" } = {}) {
  return html`
    <div class="field">
      <label for=${`deploy-${name}`}>${label}</label>
      <input
        id=${`deploy-${name}`}
        inputmode=${mode}
        placeholder=${placeholder}
        autocomplete="off"
        aria-describedby=${`fault-${name}`}
        aria-invalid=${name in form.faults}
        .value=${live(form[name])}
        @input=${(event) => edit((f) => (f[name] = event.target.value))}
      />
      ${fault(form, name)} ${hint && !(name in form.faults) ? html`<p class="hint">${hint}</p>` : nothing}
    </div>
  `;
}

function backend(form) {
  const rows = backendsOf(form);
  const engines = [...new Set(rows.map((row) => row.engine))];
  const device = (row) => `${t(`device.${row.device}`)} (${row.backend})`;
  return html`
    <div class="field">
      <label for="deploy-backend">${t("deploy.device")}</label>
      <select
        id="deploy-backend"
        aria-describedby="fault-backend"
        aria-invalid=${"backend" in form.faults}
        @change=${(event) => edit((f) => (f.backend = event.target.value))}
      >
        <option value="">${form.plan?.backend && !form.backend ? t("deploy.auto.is", { backend: form.plan.backend }) : t("deploy.auto")}</option>
        ${engines.map(
          (engine) => html`<optgroup label=${engine}>
            ${rows
              .filter((row) => row.engine === engine)
              .map((row) => html`<option value=${row.backend} ?selected=${form.backend === row.backend}>${device(row)}</option>`)}
          </optgroup>`,
        )}
      </select>
      ${fault(form, "backend")}
    </div>
  `;
}

function gpus(form) {
  const chosen = (gpu) => form.gpus.some((one) => one.node === gpu.node && one.id === gpu.id);
  const toggle = (gpu) =>
    edit((f) => {
      // A model's GPUs are of one node.
      const others = f.gpus.filter((one) => one.node === gpu.node && one.id !== gpu.id);
      f.gpus = chosen(gpu) ? others : [...others, gpu].sort((one, other) => one.id - other.id);
    });
  const nodes = [...new Set(form.known.gpus.gpus.map((gpu) => gpu.node))];
  return html`
    <fieldset aria-describedby="fault-gpus">
      <legend>${t("deploy.gpus")}</legend>
      <p class="hint">${t("deploy.gpus.hint")}</p>
      ${nodes.map(
        (node) => html`
          <div class="choices" role="group" aria-label=${node}>
            <span class="hint">${node}</span>
            ${form.known.gpus.gpus
              .filter((gpu) => gpu.node === node)
              .map(
                (gpu) => html`<label>
                  <input type="checkbox" .checked=${live(chosen(gpu))} @change=${() => toggle(gpu)} />
                  ${gpu.label}
                  ${gpu.memory_free_bytes === null ? nothing : html`<span class="hint">${t("deploy.free", { size: size(gpu.memory_free_bytes) })}</span>`}
                </label>`,
              )}
          </div>
        `,
      )}
      ${fault(form, "gpus")} ${fault(form, "nodes")}
    </fieldset>
  `;
}

function field(form, option) {
  const id = `deploy-${option.name}`;
  const value = form.options[option.name] ?? "";
  const set = (event) => edit((f) => (f.options = { ...f.options, [option.name]: event.target.value }));
  const choices = option.type === "boolean" ? ["true", "false"] : option.choices;
  const automatic = form.plan?.options?.[option.name];
  const shown = automatic === undefined ? t("deploy.auto") : t("deploy.auto.is", { backend: String(automatic) });
  const described = hasText(`${option.label}.hint`) ? t(`${option.label}.hint`) : option.description;
  return html`
    <div class="field">
      <label for=${id}>${t(option.label)}</label>
      ${choices.length
        ? html`<select id=${id} aria-describedby=${`fault-${option.name}`} aria-invalid=${option.name in form.faults} @change=${set}>
            <option value="">${shown}</option>
            ${choices.map(
              (choice) => html`<option value=${choice} ?selected=${choice === value}>${hasText(`choice.${choice}`) ? t(`choice.${choice}`) : choice}</option>`,
            )}
          </select>`
        : html`<input
            id=${id}
            inputmode=${option.type === "integer" ? "numeric" : option.type === "number" ? "decimal" : "text"}
            placeholder=${shown}
            autocomplete="off"
            spellcheck="false"
            aria-describedby=${`fault-${option.name}`}
            aria-invalid=${option.name in form.faults}
            .value=${live(value)}
            @input=${set}
          />`}
      ${fault(form, option.name)}
      ${described && !(option.name in form.faults) ? html`<p class="hint">${described}</p>` : nothing}
    </div>
  `;
}

const fault = (form, name) =>
  html`<p class="fault" id=${`fault-${name}`}>${form.faults[name] ?? nothing}</p>`;

function plan(form) {
  const told = form.plan;
  if (!told) {
    const words = form.planning ? t("plan.asking") : t("plan.nothing");
    return html`<h3>${t("plan")}</h3><p class="waiting">${words}</p>`;
  }
  const short = told.missing > 0;
  return html`
    <h3>${t("plan")}</h3>
    <p tabindex="0" class="verdict ${told.accepted ? (short ? "short" : "yes") : "no"}">${told.message}</p>
    ${told.evict.length ? html`<p class="note">${t("plan.evict", { names: told.evict.join(", ") })}</p>` : nothing}
    ${told.assignments.length ? assignments(told.assignments) : nothing}
    ${told.footprint.length ? html`<h4>${t("plan.needs")}</h4>${footprint(told.footprint, told.footprint_bytes)}` : nothing}
    ${told.nodes.length
      ? html`<details ?open=${!told.accepted}><summary>${t("plan.nodes", { count: told.nodes.length })}</summary>${verdictList(told.nodes)}</details>`
      : nothing}
    ${list(told.warnings, "notes warn")}
    ${told.notes.length ? html`<details><summary>${t("plan.notes", { count: told.notes.length })}</summary>${list(told.notes)}</details>` : nothing}
    ${told.argv.length ? html`<details><summary>${t("plan.command")}</summary><pre class="log" tabindex="0">${told.argv.join(" ")}</pre></details>` : nothing}
  `;
}

const assignments = (all) => html`
  <ul class="rows">
    ${all.map(
      (one) => html`<li>
        <div>
          <strong>${one.node}</strong> <span class="tag">${one.backend}</span>
          <p class="hint">${one.gpus.join(", ") || t("engine.cpu")}</p>
        </div>
        <span class="figures">${size(one.footprint_bytes)}</span>
      </li>`,
    )}
  </ul>
`;
