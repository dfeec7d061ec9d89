// An engine's output as it comes. The failure's plain words stand above it, in the model's view.

import { noteScroll } from "../after.js";
import { follow } from "../api.js";
import { html, nothing } from "../lit.js";
import { change, state } from "../state.js";
import { t } from "../text.js";

const KEPT_LINES = 3000;
const RETRY_MS = 2000;

export function log(one) {
  if (state.log?.model !== one.name) open(one.name);
  const { lines, error } = state.log;
  return html`
    ${error ? html`<p class="note bad">${error}</p>` : nothing}
    <pre class="log tall" data-follow tabindex="0" aria-label=${t("model.log")} @scroll=${noteScroll}>${lines.length
      ? lines.join("\n")
      : t("log.empty")}</pre>
  `;
}

function open(name) {
  state.log?.reading.abort();
  const reading = new AbortController();
  state.log = { model: name, lines: [], error: null, after: 0, reading };
  read(name, reading.signal);
}

// The log that nobody looks at any more is let go.
export function closeLog() {
  state.log?.reading.abort();
  state.log = null;
}

async function read(name, signal) {
  while (!signal.aborted) {
    try {
      const path = `logs?model=${encodeURIComponent(name)}&follow=true&limit=500&after=${state.log.after}`;
      for await (const event of follow(path, signal)) {
        const told = JSON.parse(event.data);
        if (event.type === "error") throw new Error(told.error.message);
        change((s) => {
          if (signal.aborted) return;
          s.log.lines = [...s.log.lines, ...told.lines].slice(-KEPT_LINES);
          s.log.after = told.next;
          s.log.error = null;
        });
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status) change((s) => (s.log.error = error.message));
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
    // An engine that was started anew begins its lines anew.
    if (!signal.aborted && state.log) Object.assign(state.log, { after: 0, lines: [] });
  }
}
