// The chats at the left and the settings at the right: beside the conversation where there is room, else over it, one at a time.

import { byId } from "./dom.js";

const KEY = "chameleon.panels";
const isWide = matchMedia("(min-width: 60rem)");
const PANELS = { sidebar: "show-sidebar", controls: "show-controls" }; // panel: what opens it
const CLOSERS = { sidebar: "hide-sidebar", controls: "hide-controls" };

let open = {};

const remembered = () => {
  try {
    return { sidebar: true, controls: false, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return { sidebar: true, controls: false };
  }
};

function show() {
  const over = isWide.matches ? null : Object.keys(PANELS).find((name) => open[name]);
  for (const [name, control] of Object.entries(PANELS)) {
    document.body.classList.toggle(`has-${name}`, Boolean(open[name]));
    byId(name).hidden = !open[name];
    byId(control).ariaExpanded = String(Boolean(open[name]));
  }
  byId("stage").inert = over !== undefined && over !== null;
  byId("veil").hidden = !over;
}

/** Open or close a panel. */
export function setPanel(name, isOpen) {
  const isChanged = open[name] !== isOpen;
  open = isWide.matches ? { ...open, [name]: isOpen } : { [name]: isOpen };
  if (isWide.matches) localStorage.setItem(KEY, JSON.stringify(open));
  show();
  if (!isChanged) return;
  if (isOpen) byId(CLOSERS[name]).focus();
  else byId(PANELS[name]).focus();
}

/** Close what lies over the conversation; false if nothing does. */
export function closeOverlay() {
  const name = !isWide.matches && Object.keys(PANELS).find((each) => open[each]);
  if (name) setPanel(name, false);
  return Boolean(name);
}

export function connectPanels() {
  const start = () => {
    open = isWide.matches ? remembered() : {};
    show();
  };
  for (const [name, control] of Object.entries(PANELS)) byId(control).onclick = () => setPanel(name, !open[name]);
  for (const [name, control] of Object.entries(CLOSERS)) byId(control).onclick = () => setPanel(name, false);
  byId("veil").onclick = closeOverlay;
  isWide.onchange = start;
  start();
}
