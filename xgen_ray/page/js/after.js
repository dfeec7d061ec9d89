// What must be done once something is in the document: dialogs are opened, logs stay at their end.

const dialogs = new WeakSet();

export function afterDrawing() {
  for (const dialog of document.querySelectorAll("dialog")) {
    if (!dialogs.has(dialog)) {
      dialogs.add(dialog);
      dialog.showModal();
    }
  }
  for (const box of document.querySelectorAll("[data-follow]")) {
    if (box.dataset.loose !== "yes") box.scrollTop = box.scrollHeight;
  }
}

// Whoever scrolls up reads; whoever is at the end follows.
export function noteScroll(event) {
  const box = event.currentTarget;
  box.dataset.loose = box.scrollHeight - box.scrollTop - box.clientHeight > 24 ? "yes" : "no";
}
