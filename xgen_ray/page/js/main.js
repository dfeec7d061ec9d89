// The page's beginning: language and theme, the address, the stream.

import { start } from "./feed.js";
import { render } from "./lit.js";
import { focusNewView, readAddress } from "./route.js";
import { app } from "./shell.js";
import { afterDrawing } from "./after.js";
import { onChange, redraw } from "./state.js";
import { chooseLanguage } from "./text.js";
import { applyTheme } from "./theme.js";

const root = document.getElementById("app");

onChange(() => {
  render(app(), root);
  focusNewView();
  afterDrawing();
});

applyTheme();
chooseLanguage();
addEventListener("hashchange", readAddress);
readAddress();
// Ages grow by themselves.
setInterval(redraw, 15000);
start();
