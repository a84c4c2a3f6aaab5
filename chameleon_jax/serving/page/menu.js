// A menu under a button: opens on click, moves with the arrow keys, closes with Escape or a choice.

import { button, el } from "./dom.js";

let open = null;

/** Open a menu of `items`, [label, act, className?] each, under `anchor`; at once closed by the next call for the same anchor. */
export function openMenu(anchor, items) {
  if (open?.anchor === anchor) return open.close();
  open?.close();
  const choices = items.map(([label, act, className = ""]) =>
    button(
      label,
      () => {
        close();
        act();
      },
      { className, tabIndex: -1, attributes: { role: "menuitem" } },
    ),
  );
  const menu = el("div", { className: "menu", popover: "manual", ariaLabel: anchor.ariaLabel, attributes: { role: "menu" } }, ...choices);
  const ending = new AbortController();
  function close() {
    if (menu.contains(document.activeElement)) anchor.focus();
    ending.abort();
    menu.remove();
    anchor.ariaExpanded = "false";
    open = null;
  }
  menu.addEventListener("keydown", (event) => {
    const at = choices.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) choices.at(to % choices.length).focus();
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const leave = (event) => !menu.contains(event.target) && !anchor.contains(event.target) && close();
  document.addEventListener("pointerdown", leave, { signal: ending.signal, capture: true });
  addEventListener("resize", close, { signal: ending.signal });
  (anchor.closest("nav, main, aside") ?? document.body).append(menu); // in a landmark
  menu.showPopover();
  const [box, size] = [anchor.getBoundingClientRect(), menu.getBoundingClientRect()];
  menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
  menu.style.top = `${box.bottom + size.height + 8 < innerHeight ? box.bottom + 4 : Math.max(8, box.top - size.height - 4)}px`;
  anchor.ariaExpanded = "true";
  open = { anchor, close };
  choices[0].focus();
}
