// Orders about models and nodes, with what the server says to them.

import { order } from "./api.js";
import { go } from "./route.js";
import { notify } from "./state.js";
import { t } from "./text.js";
import { askFirst } from "./views/confirm.js";

async function give(path, body, done) {
  try {
    await order(path, body);
    notify(done);
  } catch (error) {
    notify(error.message, "error");
  }
}

export function unload(name) {
  askFirst(t("unload.ask", { name }), t("unload"), () => {
    go("models");
    give("unload", { name }, t("unload.done", { name }));
  });
}

export function restart(name) {
  askFirst(t("restart.ask", { name }), t("restart"), () => give("restart", { name }, t("restart.done", { name })));
}

export const lift = (name, backend) => give("lift", { model: name, backend }, t("lift.done", { backend }));

export const scale = (name, replicas) => give("scale", { name, replicas }, t("scale.done", { name, replicas }));

export function drain(node) {
  askFirst(t("drain.ask", { node }), t("drain"), () => give("drain", { node }, t("drain.done", { node })));
}

export const reopen = (node) => give("drain", { node, lift: true }, t("reopen.done", { node }));
