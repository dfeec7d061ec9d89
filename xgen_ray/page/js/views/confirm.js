// Asks before an order that ends something.

import { html, nothing } from "../lit.js";
import { change, state } from "../state.js";
import { t } from "../text.js";

export const askFirst = (text, action, run) => change((s) => (s.confirm = { text, action, run }));

const close = () => change((s) => (s.confirm = null));

export function confirmation() {
  if (!state.confirm) return nothing;
  const { text, action, run } = state.confirm;
  const go = () => {
    close();
    run();
  };
  return html`
    <dialog class="confirm" @close=${close} aria-labelledby="confirm-text">
      <p id="confirm-text">${text}</p>
      <div class="actions">
        <button type="button" @click=${close}>${t("cancel")}</button>
        <button type="button" class="danger" @click=${go}>${action}</button>
      </div>
    </dialog>
  `;
}
