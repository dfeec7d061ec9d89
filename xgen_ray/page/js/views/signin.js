// Signing in with a key. It is kept for as long as the tab is open, and nowhere else.

import { signIn } from "../feed.js";
import { html, nothing } from "../lit.js";
import { state } from "../state.js";
import { t } from "../text.js";

export const signInView = () => html`
  <main class="signin">
    <img src="icon.svg" alt="" width="40" height="40" />
    <h1 tabindex="-1">xgen-ray</h1>
    <form @submit=${submit}>
      <label for="key">${t("signin.key")}</label>
      <input id="key" name="key" type="password" autocomplete="current-password" required autofocus />
      ${state.refused ? html`<p class="note bad" role="alert">${t("signin.refused")}</p>` : nothing}
      <p class="hint">${t("signin.hint")}</p>
      <button class="primary">${t("signin")}</button>
    </form>
  </main>
`;

function submit(event) {
  event.preventDefault();
  signIn(new FormData(event.target).get("key").trim());
}
