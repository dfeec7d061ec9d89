// The page's words, by key, in the reader's language. One file of texts per language.

import en from "../texts/en.js";
import ko from "../texts/ko.js";
import { redraw } from "./state.js";

const TEXTS = { en, ko };
export const LANGUAGES = [
  ["en", "English"],
  ["ko", "한국어"],
];
const CHOICE = "xgen-ray-language";

let language = "en";

export function chooseLanguage(wanted) {
  const asked = [wanted, localStorage.getItem(CHOICE), ...navigator.languages];
  const known = asked.filter(Boolean).map((one) => one.slice(0, 2));
  language = known.find((one) => one in TEXTS) ?? "en";
  if (wanted) localStorage.setItem(CHOICE, language);
  document.documentElement.lang = language;
  redraw();
}

export const currentLanguage = () => language;

// A text with its `{values}` filled in. A key that has none is its own text: the server may know more than we do.
export function t(key, values = {}) {
  const text = TEXTS[language][key] ?? TEXTS.en[key] ?? key.slice(key.indexOf(".") + 1);
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const hasText = (key) => key in TEXTS.en;
