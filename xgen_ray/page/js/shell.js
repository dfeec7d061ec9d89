// The frame around every view: where one can go, whether what is shown is still so, and who is asking.

import { signOut } from "./feed.js";
import { html, nothing } from "./lit.js";
import { address, VIEWS } from "./route.js";
import { redraw, state } from "./state.js";
import { chooseLanguage, currentLanguage, LANGUAGES, t } from "./text.js";
import { applyTheme, theme, THEMES } from "./theme.js";
import { confirmation } from "./views/confirm.js";
import { deployDialog } from "./views/deploy.js";
import { environment } from "./views/environment.js";
import { events } from "./views/events.js";
import { live } from "./views/live.js";
import { models } from "./views/models.js";
import { playground } from "./views/playground.js";
import { signInView } from "./views/signin.js";

const DRAWN = { environment, models, playground, live, events };

export function app() {
  if (state.asking) return html`<div class="alone">${settings()}${signInView()}</div>`;
  return html`
    <a class="skip" href="#main" @click=${skip}>${t("skip")}</a>
    <div class="frame">
      <header>
        <a class="brand" href=${address("models")}><img src="icon.svg" alt="" width="22" height="22" />xgen-ray</a>
        <nav aria-label=${t("nav")}>
          ${VIEWS.map(
            (view) => html`
              <a href=${address(view)} aria-current=${state.view === view ? "page" : "false"}>
                ${t(`view.${view}`)}${count(view)}
              </a>
            `,
          )}
        </nav>
        <div class="below">${links()}${settings()}${who()}</div>
      </header>
      <main id="main" tabindex="-1">
        ${connection()}${state.session ? DRAWN[state.view]() : html`<p class="waiting">${t("waiting")}</p>`}
      </main>
    </div>
    ${deployDialog()}${confirmation()}
    <div class="notices" role="status" aria-live="polite">
      ${state.notice ? html`<p class=${state.notice.level}>${state.notice.text}</p>` : nothing}
    </div>
  `;
}

function skip(event) {
  // The address is where the view is kept.
  event.preventDefault();
  document.getElementById("main").focus();
}

function count(view) {
  const failed = [...state.models.values()].filter((model) => model.phase === "failed").length;
  if (view === "models" && failed) return html`<span class="count" title=${t("models.failed", { count: failed })}>${failed}</span>`;
  return nothing;
}

const connection = () =>
  state.connection === "lost"
    ? html`<p class="banner" role="alert"><i aria-hidden="true"></i>${t("connection.lost")}</p>`
    : nothing;

function links() {
  const known = Object.entries(state.session?.links ?? {});
  if (!known.length) return nothing;
  return html`<ul class="links">
    ${known.map(
      ([name, url]) => html`<li><a href=${url} target="_blank" rel="noreferrer noopener">${t(`link.${name}`)}</a></li>`,
    )}
  </ul>`;
}

const settings = () => html`
  <div class="settings">
    <label>
      <span class="hidden">${t("language")}</span>
      <select @change=${(event) => chooseLanguage(event.target.value)}>
        ${LANGUAGES.map(
          ([code, name]) => html`<option value=${code} ?selected=${code === currentLanguage()}>${name}</option>`,
        )}
      </select>
    </label>
    <label>
      <span class="hidden">${t("theme")}</span>
      <select
        @change=${(event) => {
          applyTheme(event.target.value);
          redraw();
        }}
      >
        ${THEMES.map((one) => html`<option value=${one} ?selected=${one === theme()}>${t(`theme.${one}`)}</option>`)}
      </select>
    </label>
  </div>
`;

function who() {
  const session = state.session;
  if (!session) return nothing;
  return html`
    <p class="who">
      <span class="dot ${state.connection}" title=${t(`connection.${state.connection}`)}></span>
      ${session.key === null ? t("who.open") : html`${session.key} · ${t(`role.${session.role}`)}`}
      <span class="version">${session.version}</span>
    </p>
    ${session.key === null
      ? nothing
      : html`<button type="button" class="quiet small" @click=${signOut}>${t("signout")}</button>`}
  `;
}
