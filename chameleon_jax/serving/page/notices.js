// Banners for what went wrong, and a voice for screen readers.

import { button, byId, el } from "./dom.js";

/** A banner that stays until it is closed or `dismiss` is called; `actions` are [label, function] pairs. */
export function notice(text, { kind = "error", actions = [] } = {}) {
  const banner = el("div", { className: `notice ${kind}` }, el("p", { textContent: text }));
  const dismiss = () => banner.remove();
  for (const [label, act] of actions) {
    banner.append(
      button(label, () => {
        dismiss();
        act();
      }),
    );
  }
  banner.append(button("×", dismiss, { ariaLabel: "Close this message", className: "close" }));
  byId("notices").replaceChildren(banner); // one at a time: the newest is the one that matters
  return dismiss;
}

export const clearNotices = () => byId("notices").replaceChildren();

const SPOKEN_LINES = 20;
const PAUSE = 2000;
let pending = "";
let timer = null;

/** Say `text` soon, together with what else came meanwhile: a voice that is interrupted at every token says nothing. */
export function say(text) {
  pending += text;
  timer ??= setTimeout(speak, PAUSE);
}

/** Say what is left at once. */
export function speak() {
  clearTimeout(timer);
  timer = null;
  const log = byId("spoken");
  if (pending.trim()) log.append(el("p", { textContent: pending }));
  pending = "";
  while (log.childElementCount > SPOKEN_LINES) log.firstChild.remove();
}
