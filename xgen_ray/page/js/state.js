// What the page knows, in one place. `change` alters it and has the page drawn anew, once a frame.

export const state = {
  session: null, // who is asking, and what the key is good for; null until the server has said
  asking: false, // a key is needed
  refused: false, // and the one that was given is none
  connection: "connecting", // connecting, live or lost
  life: null,
  models: new Map(), // by name
  nodes: null, // by id; null until the server has looked
  events: [], // newest first
  figures: null, // of the last hour, as are the lines of `memory`
  memory: null,
  options: null, // what a load can be told
  view: "models",
  detail: null, // the model of which more is shown
  deploy: null, // the dialog's own state, while it is open
  confirm: null, // an order that is to be confirmed
  chat: null,
  log: null,
  notice: null, // said once, at the bottom
  level: "all", // which events are shown
  span: 900, // how much of the last hour is shown, in seconds
  liveModel: null, // and of which model; null is all of them
};

let draw = () => {};
let pending = false;

export function onChange(drawn) {
  draw = drawn;
}

export function change(alter) {
  alter(state);
  redraw();
}

export function redraw() {
  if (pending) return;
  pending = true;
  // A page in the background is drawn no frames; it must still be right when somebody looks.
  const later = document.hidden ? (run) => setTimeout(run, 50) : requestAnimationFrame;
  later(() => {
    pending = false;
    draw();
  });
}

let silence = 0;

export function notify(text, level = "info") {
  clearTimeout(silence);
  silence = setTimeout(() => change((s) => (s.notice = null)), level === "error" ? 12000 : 5000);
  change((s) => (s.notice = { text, level }));
}
