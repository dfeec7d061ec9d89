// What the deploy dialog has been told, as the body of a load; and the plan that the server makes of it.

import { ask, order } from "./api.js";
import { go } from "./route.js";
import { change, notify, state } from "./state.js";
import { t } from "./text.js";

const TYPING_MS = 350;
const LOOK_AGAIN_MS = 2000;
const LOOKS = 30;

// What is wrong in the form itself: the server never sees it.
const TYPES = {
  integer: (text) => (/^\d+$/.test(text) ? Number(text) : undefined),
  number: (text) => (text.trim() !== "" && !Number.isNaN(Number(text)) ? Number(text) : undefined),
  boolean: (text) => text === "true",
  choice: (text) => text,
  text: (text) => text,
  list: (text) => text.split(/\s+/).filter(Boolean),
};

// Opened: the GPUs, the models that lie about and the options are those of now.
export async function openDeploy() {
  const form = {
    source: "local",
    local: "",
    hub: "",
    path: "",
    name: "",
    replicas: "1",
    backend: "",
    gpus: [],
    options: {},
    faults: {},
    plan: null,
    planning: false,
    error: null,
    known: null,
  };
  change((s) => (s.deploy = form));
  try {
    const [options, local, gpus] = await Promise.all([ask("options"), ask("local-models"), ask("gpus")]);
    change((s) => {
      if (s.deploy !== form) return;
      form.known = { options, local, gpus };
      if (!local.models.length && !local.incomplete.length) form.source = "hub";
    });
    await lookAgain(form);
  } catch (error) {
    change(() => (form.error = error.message));
  }
}

// A node that has just started answers soon.
async function lookAgain(form) {
  for (let tries = 0; tries < LOOKS && form.known?.local.incomplete.length; tries += 1) {
    await new Promise((done) => setTimeout(done, LOOK_AGAIN_MS));
    if (state.deploy !== form) return;
    const [local, gpus] = await Promise.all([ask("local-models"), ask("gpus")]);
    change(() => Object.assign(form.known, { local, gpus }));
  }
}

export const closeDeploy = () => {
  clearTimeout(typing);
  planning?.abort();
  change((s) => (s.deploy = null));
};

export function sourceOf(form) {
  if (form.source === "local") return form.local;
  if (form.source === "path") return form.path.trim();
  const name = form.hub.trim();
  return name && !name.startsWith("hf:") ? `hf:${name}` : name;
}

// The backend whose fields are shown: the one that was chosen, or that the server would choose.
export const backendOf = (form) => form.backend || form.plan?.backend || null;

// The options that the form has fields for now. Before a backend is known, those that every backend has.
export function fieldsOf(form) {
  const { options } = form.known;
  const wanted = backendOf(form);
  const rows = wanted
    ? options.backends.filter((row) => row.backend === wanted)
    : options.backends.filter((row) => !form.plan?.format || row.formats.includes(form.plan.format));
  return options.options.filter((option) => rows.length && rows.every((row) => row.options.includes(option.name)));
}

export const backendsOf = (form) =>
  form.known.options.backends.filter((row) => !form.plan?.format || row.formats.includes(form.plan.format));

export const usesGpus = (form) =>
  form.known.gpus.gpus.length > 0 &&
  form.known.options.backends.some((row) => row.uses_gpus && (!backendOf(form) || row.backend === backendOf(form)));

// The body of a load, and what is wrong with single fields before anybody is asked.
function bodyOf(form) {
  const faults = {};
  const options = {};
  const shown = new Set(fieldsOf(form).map((option) => option.name));
  for (const option of form.known.options.options) {
    const text = form.options[option.name] ?? "";
    if (!shown.has(option.name) || text === "") continue;
    const value = TYPES[option.type](text);
    if (value === undefined) faults[option.name] = t(`deploy.not.${option.type}`);
    else options[option.name] = value;
  }
  if (form.backend) options.backend = form.backend;
  const body = { model: sourceOf(form), options };
  if (form.name.trim()) body.name = form.name.trim();
  const replicas = TYPES.integer(form.replicas);
  if (replicas === undefined) faults.replicas = t("deploy.not.integer");
  else body.replicas = replicas;
  if (form.gpus.length && usesGpus(form)) {
    options.gpus = form.gpus.map((gpu) => gpu.id);
    body.nodes = [form.gpus[0].node];
  }
  return { body, faults };
}

let typing = 0;
let planning = null;

// Something was typed or chosen: the server says what would come of it, once the typing rests.
export function edit(alter) {
  change((s) => {
    alter(s.deploy);
    s.deploy.error = null;
  });
  clearTimeout(typing);
  planning?.abort();
  const form = state.deploy;
  if (!form.known || !sourceOf(form)) {
    change(() => Object.assign(form, { plan: null, planning: false, faults: {} }));
    return;
  }
  change(() => (form.planning = true));
  typing = setTimeout(() => plan(form), TYPING_MS);
}

async function plan(form) {
  const { body, faults } = bodyOf(form);
  change(() => (form.faults = faults));
  if (Object.keys(faults).length) {
    change(() => (form.planning = false));
    return;
  }
  const mine = (planning = new AbortController());
  try {
    const told = await order("plan", body, { signal: mine.signal });
    change(() => {
      const before = backendOf(form);
      Object.assign(form, { plan: told, planning: false, faults: faultsOf(told) });
      // What the newly chosen backend does not have is not asked of it.
      if (before !== backendOf(form)) form.gpus = usesGpus(form) ? form.gpus : [];
    });
  } catch (error) {
    if (mine.signal.aborted) return;
    change(() => Object.assign(form, { plan: null, planning: false }, blame(error)));
  }
}

const faultsOf = (told) => Object.fromEntries(told.faults.map((fault) => [fault.option, fault.message]));

// The field that the server says is at fault; without one the whole form is.
function blame(error) {
  const field = error.param?.replace(/^options\./, "").split(".")[0];
  return field ? { faults: { [field]: error.message }, error: null } : { faults: {}, error: error.message };
}

export async function submit() {
  const form = state.deploy;
  const { body, faults } = bodyOf(form);
  if (Object.keys(faults).length) {
    change(() => (form.faults = faults));
    return;
  }
  change(() => (form.sending = true));
  try {
    const told = await order("load?wait=false", body);
    closeDeploy();
    notify(t("deploy.begun", { name: told.name }));
    go("models", told.name);
  } catch (error) {
    change(() => Object.assign(form, { sending: false }, blame(error)));
  }
}
