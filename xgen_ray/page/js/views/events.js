// What has happened, newest first, with the forensics of deaths.

import { age, moment } from "../format.js";
import { html, nothing, repeat } from "../lit.js";
import { empty, page } from "../parts.js";
import { change, state } from "../state.js";
import { address } from "../route.js";
import { t } from "../text.js";

export function events() {
  const wanted = state.level;
  const shown = state.events.filter((event) => wanted === "all" || event.level !== "info");
  const choice = html`
    <div class="segments" role="group" aria-label=${t("events.show")}>
      ${["all", "trouble"].map(
        (one) => html`
          <button type="button" aria-pressed=${wanted === one} @click=${() => change((s) => (s.level = one))}>
            ${t(`events.${one}`)}
          </button>
        `,
      )}
    </div>
  `;
  const body = shown.length
    ? html`<ol class="events">${repeat(shown, (event) => event.id, line)}</ol>`
    : empty(t("events.none"), t("events.none.text"));
  return page(t("view.events"), body, choice);
}

export const line = (event) => html`
  <li class=${event.level}>
    <time datetime=${new Date(event.at * 1000).toISOString()} title=${age(event.at)}>${moment(event.at)}</time>
    <span class="kind">${t(`event.${event.kind}`)}</span>
    <div class="what">
      <p>
        ${event.model ? html`<a href=${address("models", event.model)}>${event.model}</a>` : nothing}
        <span>${event.message}</span>
      </p>
      ${event.failure ? forensics(event.failure) : nothing}
    </div>
  </li>
`;

// The plain words first, then what to do, then the evidence.
export const forensics = (failure) => html`
  <div class="forensics">
    <p class="where">
      ${[failure.failure, failure.backend, failure.node, failure.exit_code === null ? null : t("failure.exit", { code: failure.exit_code })]
        .filter(Boolean)
        .map((word) => html`<span class="tag">${word}</span>`)}
    </p>
    ${failure.advice ? html`<p class="advice">${failure.advice}</p>` : nothing}
    ${failure.evidence ? html`<p class="evidence"><code>${failure.evidence}</code></p>` : nothing}
    ${failure.log_tail.length
      ? html`<details>
          <summary>${t("failure.log", { count: failure.log_tail.length })}</summary>
          <pre class="log" tabindex="0">${failure.log_tail.join("\n")}</pre>
        </details>`
      : nothing}
  </div>
`;
