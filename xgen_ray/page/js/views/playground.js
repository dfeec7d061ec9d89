// A chat with any model, and the same as a program.

import { bodyOf, chatState, curl, newChat, python, say, stop } from "../chat.js";
import { number, seconds } from "../format.js";
import { noteScroll } from "../after.js";
import { html, live, nothing } from "../lit.js";
import { empty, page, snippet } from "../parts.js";
import { change, state } from "../state.js";
import { t } from "../text.js";
import { deployButton } from "./models.js";

export function playground() {
  const names = models();
  if (!names.length) return page(t("view.playground"), empty(t("chat.none"), t("chat.none.text"), deployButton()));
  const chat = chatState();
  if (!names.includes(chat.model)) chat.model = names[0];
  const clear = html`
    <button type="button" ?disabled=${!chat.messages.length || chat.running} @click=${() => change((s) => (s.chat = { ...newChat(chat.model), system: chat.system }))}>
      ${t("chat.clear")}
    </button>
  `;
  return page(
    t("view.playground"),
    html`<div class="chat">
      <section class="talk" aria-label=${t("chat.talk")}>
        <div class="messages" data-follow tabindex="0" role="log" aria-label=${t("chat.talk")} @scroll=${noteScroll}>
          ${chat.messages.length ? chat.messages.map(message) : html`<p class="waiting">${t("chat.begin", { model: chat.model })}</p>`}
        </div>
        ${composer(chat)}
      </section>
      <aside>${settings(chat, names)}${snippets(chat)}</aside>
    </div>`,
    clear,
  );
}

// Whoever can be asked, also a model that has to be woken for it.
const models = () => [
  ...new Set(
    [...state.models.values()]
      .filter((model) => model.endpoint && model.task !== "embed" && model.task !== "rerank")
      .map((model) => model.name.split("@")[0]),
  ),
];

function message(one) {
  const mine = one.role === "user";
  return html`
    <article class="message ${one.role}">
      <h2>${mine ? t("chat.you") : t("chat.model")}</h2>
      <div class="text">${one.content}${!mine && !one.content && !one.error && !one.stopped ? html`<span class="typing" aria-label=${t("chat.thinking")}></span>` : nothing}</div>
      ${one.error ? html`<p class="note bad" role="alert">${one.error}</p>` : nothing}
      ${one.figures || one.stopped ? footer(one) : nothing}
    </article>
  `;
}

const footer = (one) => html`
  <p class="figures" data-figures>
    ${[
      ...(one.figures ? speeds(one.figures) : []),
      one.stopped ? t("chat.stopped") : one.finish === "length" ? t("chat.cut") : null,
    ]
      .filter(Boolean)
      .join(" · ")}
  </p>
`;

const speeds = (figures) => [
  figures.rate === null ? null : t("chat.rate", { rate: number(figures.rate, 1) }),
  t("chat.first", { time: seconds(figures.first) }),
  t("chat.tokens", { count: number(figures.tokens) }),
];

function composer(chat) {
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      say();
    }
  };
  const send = (event) => {
    event.preventDefault();
    say();
  };
  return html`
    <form class="composer" @submit=${send}>
      <label class="hidden" for="chat-draft">${t("chat.draft")}</label>
      <textarea
        id="chat-draft"
        rows="2"
        placeholder=${t("chat.draft.hint")}
        .value=${live(chat.draft)}
        @input=${(event) => change(() => (chat.draft = event.target.value))}
        @keydown=${keys}
      ></textarea>
      ${chat.running
        ? html`<button type="button" @click=${stop}>${t("chat.stop")}</button>`
        : html`<button class="primary" ?disabled=${!chat.draft.trim()}>${t("chat.send")}</button>`}
    </form>
  `;
}

function settings(chat, names) {
  const set = (name) => (event) => change(() => (chat[name] = event.target.value));
  return html`
    <section class="card">
      <div class="field">
        <label for="chat-model">${t("chat.which")}</label>
        <select id="chat-model" @change=${set("model")}>
          ${names.map((name) => html`<option value=${name} ?selected=${name === chat.model}>${name}</option>`)}
        </select>
      </div>
      <div class="field">
        <label for="chat-system">${t("chat.system")}</label>
        <textarea id="chat-system" rows="3" .value=${live(chat.system)} @input=${set("system")}></textarea>
      </div>
      <div class="pair">
        <div class="field">
          <label for="chat-temperature">${t("chat.temperature")}</label>
          <input id="chat-temperature" inputmode="decimal" .value=${live(chat.temperature)} @input=${set("temperature")} />
        </div>
        <div class="field">
          <label for="chat-length">${t("chat.length")}</label>
          <input id="chat-length" inputmode="numeric" .value=${live(chat.length)} @input=${set("length")} />
        </div>
      </div>
    </section>
  `;
}

function snippets(chat) {
  const said = chat.messages.filter((one) => one.role === "user");
  const words = chat.draft.trim() || said.at(-1)?.content || t("chat.hello");
  const body = bodyOf(chat, [{ role: "user", content: words }]);
  const withKey = state.session.key !== null;
  return html`
    <details class="card">
      <summary>${t("chat.snippets")}</summary>
      ${snippet("curl", curl(body, withKey))} ${snippet("Python", python(body, withKey))}
    </details>
  `;
}
