// Where the reader is, kept in the address: `#/models/NAME`, so that a view can be linked to and gone back to.

import { change, state } from "./state.js";

// Dialogs belong to where they were opened.
const CLOSED = { deploy: null, confirm: null };

export const VIEWS = ["models", "environment", "playground", "live", "events"];

export function readAddress() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  change((s) => {
    Object.assign(s, CLOSED);
    s.view = VIEWS.includes(view) ? view : "models";
    s.detail = rest.length ? decoded(rest.join("/")) : null;
  });
}

// An address typed by hand may have a % that stands for itself.
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const address = (view, detail = null) =>
  `#/${view}${detail === null ? "" : `/${encodeURIComponent(detail)}`}`;

export function go(view, detail = null) {
  location.hash = address(view, detail);
}

let shown = "";

// After another view has been drawn, the keyboard and the screen reader begin at its heading.
export function focusNewView() {
  const now = `${state.view}/${state.detail ?? ""}`;
  if (shown && shown !== now) {
    document.querySelector("main h1")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  shown = now;
}
