// Dark or light: as the system has it, or as the reader chose.

const CHOICE = "xgen-ray-theme";
export const THEMES = ["auto", "light", "dark"];

export const theme = () => localStorage.getItem(CHOICE) ?? "auto";

export function applyTheme(chosen) {
  if (chosen) localStorage.setItem(CHOICE, chosen);
  document.documentElement.dataset.theme = theme();
}
