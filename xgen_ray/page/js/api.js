// Calls to the server. Addresses are relative to the page, so that they hold behind any proxy.

import { sseEvents } from "./sse.js";

const KEY = "xgen-ray-key";

// A key lives as long as its tab.
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

// An error as the server worded it; `param` names the field that is to blame, if one is.
export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.details = error.details ?? null;
  }
}

export function headers(more = {}) {
  const sent = key.get();
  return sent ? { ...more, authorization: `Bearer ${sent}` } : more;
}

export async function refusal(reply) {
  const text = await reply.text();
  try {
    const error = JSON.parse(text).error;
    return new ApiError(reply.status, typeof error === "object" ? error : { message: String(error) });
  } catch {
    return new ApiError(reply.status, { message: `${reply.status} ${reply.statusText}`.trim() });
  }
}

async function send(path, options = {}) {
  const reply = await fetch(`management/${path}`, { ...options, headers: headers(options.headers), cache: "no-store" });
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

export async function ask(path, options) {
  return (await send(path, options)).json();
}

export async function order(path, body, options = {}) {
  const asked = { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const reply = await send(path, { ...asked, ...options });
  return reply.status === 204 ? null : reply.json();
}

// The events of a stream, until it ends or `signal` says so.
export async function* follow(path, signal, onBytes) {
  const reply = await send(path, { signal });
  yield* sseEvents(reply.body, onBytes);
}

export const openai = () => new URL("../v1", document.baseURI).href;
