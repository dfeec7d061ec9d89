// Follows the server's stream and keeps the state as it says. Comes back by itself, whatever happens to control.

import { ask, follow, key } from "./api.js";
import { change, state } from "./state.js";

const FIRST_PAUSE_MS = 400;
const LONGEST_PAUSE_MS = 5000;
// The server beats every ten seconds; who hears nothing for longer talks to nobody.
const SILENCE_MS = 25000;
const KEPT_EVENTS = 300;
const KEPT_S = 3600;

let running = null;
let wake = () => {};

// Somebody looks again, or the network is back: try at once.
for (const [target, event] of [[document, "visibilitychange"], [window, "online"]]) {
  target.addEventListener(event, () => wake());
}

export async function start() {
  running?.abort();
  const mine = (running = new AbortController());
  let pause = FIRST_PAUSE_MS;
  while (!mine.signal.aborted) {
    try {
      const session = await ask("session");
      change((s) => {
        s.session = session;
        s.asking = false;
      });
      await read(mine.signal, () => (pause = FIRST_PAUSE_MS));
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) {
        const refused = key.get() !== null;
        key.forget();
        change((s) => Object.assign(s, { asking: true, refused, session: null }));
        return;
      }
    }
    if (mine.signal.aborted) return;
    change((s) => (s.connection = s.connection === "connecting" ? "connecting" : "lost"));
    await Promise.race([
      new Promise((done) => setTimeout(done, pause)),
      new Promise((done) => (wake = done)),
    ]);
    pause = Math.min(LONGEST_PAUSE_MS, pause * 1.6);
  }
}

async function read(signal, onSnapshot) {
  const attempt = new AbortController();
  const end = () => attempt.abort();
  signal.addEventListener("abort", end);
  let watchdog = setTimeout(end, SILENCE_MS);
  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(end, SILENCE_MS);
  };
  try {
    for await (const event of follow("stream", attempt.signal, heard)) {
      apply(event.type, JSON.parse(event.data));
      if (event.type === "snapshot") {
        onSnapshot();
        loadFigures();
      }
    }
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", end);
  }
}

function apply(type, told) {
  change((s) => {
    switch (type) {
      case "snapshot":
        s.connection = "live";
        s.life = told.life;
        s.models = new Map(told.models.map((model) => [model.name, model]));
        if (told.nodes) s.nodes = new Map(told.nodes.map((node) => [idOf(node), node]));
        s.events = told.events;
        break;
      case "model":
        s.models.set(told.name, told);
        break;
      case "node":
        s.nodes = new Map(s.nodes ?? []).set(idOf(told), told);
        s.memory = grown(s.memory, told);
        break;
      case "gone":
        if (told.model !== undefined) s.models.delete(told.model);
        if (told.node !== undefined) s.nodes?.delete(told.node);
        break;
      case "event":
        s.events = [told, ...s.events].slice(0, KEPT_EVENTS);
        break;
      case "figures":
        s.figures = merged(s.figures, told);
        break;
    }
  });
}

const idOf = (node) => node.node_id || node.node;

// What was before the stream began. Steps that come twice are one.
async function loadFigures() {
  try {
    const [told, memory] = await Promise.all([ask("figures"), ask("memory")]);
    change((s) => {
      s.figures = merged(told, s.figures);
      s.memory = memory.lines;
    });
  } catch {
    // The stream is told when the server is away.
  }
}

function merged(old, late) {
  if (!old || !late) return late ?? old;
  const since = Math.max(old.now, late.now) - KEPT_S;
  const join = (a = [], b = []) =>
    [...new Map([...a, ...b].map((point) => [point.at, point])).values()]
      .filter((point) => point.at > since)
      .sort((one, other) => one.at - other.at);
  const names = new Set([...Object.keys(old.models), ...Object.keys(late.models)]);
  const models = {};
  for (const name of names) models[name] = join(old.models[name], late.models[name]);
  return { ...late, now: Math.max(old.now, late.now), fleet: join(old.fleet, late.fleet), models };
}

// The history of memory with what a node tells now.
function grown(lines, node) {
  if (!lines) return lines;
  const now = Date.now() / 1000;
  const all = [...lines];
  for (const one of memoriesOf(node)) {
    const at = all.findIndex((line) => line.node === node.node && line.gpu === one.gpu);
    const before = at < 0 ? [] : all[at].points.filter(([moment]) => moment > now - KEPT_S);
    const line = { node: node.node, gpu: one.gpu, total_bytes: one.total, points: [...before, [now, one.used]] };
    if (at < 0) all.push(line);
    else all[at] = line;
  }
  return all;
}

function memoriesOf(node) {
  const known = node.gpus.filter((gpu) => gpu.memory_gb !== null && gpu.memory_used_bytes !== null);
  const gpus = known.map((gpu) => ({ gpu: gpu.id, total: gpu.memory_gb * 2 ** 30, used: gpu.memory_used_bytes }));
  const total = node.memory_total_bytes;
  return total ? [...gpus, { gpu: null, total, used: total - node.memory_available_bytes }] : gpus;
}

export function signIn(value) {
  key.set(value);
  change((s) => Object.assign(s, { asking: false, refused: false, connection: "connecting" }));
  return start();
}

export function signOut() {
  key.forget();
  running?.abort();
  change((s) =>
    Object.assign(s, { asking: true, session: null, models: new Map(), nodes: null, events: [], figures: null }),
  );
}

export const mayManage = () => state.session?.role === "manage";
