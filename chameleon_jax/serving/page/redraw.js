// Choose codes of a picture to have drawn anew, on the grid in which they lie; the others are kept.

import { button, byId, el, iconButton } from "./dom.js";

/** [columns, rows] of so many codes in a picture of this size; null if they make no grid. */
export function gridOf(count, width, height) {
  const columns = Math.round(Math.sqrt((count * width) / height));
  return columns > 0 && count % columns === 0 ? [columns, count / columns] : null;
}

/** Ask which of the `codes` to redraw; `act(kept)` gets them all, with null in the place of those. */
export function openRedraw({ url, alt, codes, columns, act }) {
  const dialog = byId("redraw");
  const rows = codes.length / columns;
  const cells = codes.map((_, at) =>
    el("div", {
      className: "cell",
      tabIndex: at ? -1 : 0,
      ariaSelected: "false",
      ariaLabel: `Row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}`,
      dataset: { at },
      attributes: { role: "gridcell" },
    }),
  );
  const chosen = new Set();
  const go = button("", () => {
    dialog.close();
    act(codes.map((code, at) => (chosen.has(at) ? null : code)));
  }, { className: "primary" });
  const set = (at, isChosen) => {
    if (isChosen) chosen.add(at);
    else chosen.delete(at);
    cells[at].ariaSelected = String(isChosen);
    go.textContent = `Redraw ${chosen.size} of ${codes.length} codes`;
    go.disabled = !chosen.size;
  };
  const setAll = (holds) => cells.forEach((_, at) => set(at, holds(at)));
  const lines = Array.from({ length: rows }, (_, row) =>
    el("div", { className: "row", attributes: { role: "row" } }, ...cells.slice(row * columns, (row + 1) * columns)),
  );
  const grid = el("div", { className: "redraw-grid", ariaLabel: "Codes to redraw", attributes: { role: "grid", "aria-multiselectable": true } }, ...lines);
  grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;

  const focus = (at) => {
    for (const cell of cells) cell.tabIndex = -1;
    cells[at].tabIndex = 0;
    cells[at].focus();
  };
  grid.addEventListener("keydown", (event) => {
    const at = Number(event.target.dataset.at);
    const steps = { ArrowLeft: at % columns ? -1 : 0, ArrowRight: (at + 1) % columns ? 1 : 0, ArrowUp: -columns, ArrowDown: columns };
    const to = { Home: 0, End: codes.length - 1 }[event.key] ?? at + (steps[event.key] ?? NaN);
    if (event.key === " " || event.key === "Enter") set(at, !chosen.has(at));
    else if (Number.isNaN(to)) return;
    else if (to >= 0 && to < codes.length) {
      if (event.shiftKey) [at, to].forEach((each) => set(each, true)); // Shift paints along the way
      focus(to);
    }
    event.preventDefault();
  });

  // A pointer that is held down paints what its first cell became.
  let brush = null;
  const paint = (event) => {
    const at = document.elementFromPoint(event.clientX, event.clientY)?.dataset?.at;
    if (at !== undefined && brush !== null && grid.contains(cells[at])) set(Number(at), brush);
  };
  grid.addEventListener("pointerdown", (event) => {
    if (event.target.dataset.at === undefined) return;
    event.preventDefault();
    grid.setPointerCapture(event.pointerId);
    brush = !chosen.has(Number(event.target.dataset.at));
    focus(Number(event.target.dataset.at));
    paint(event);
  });
  grid.addEventListener("pointermove", paint);
  for (const type of ["pointerup", "pointercancel"]) grid.addEventListener(type, () => (brush = null));

  const tools = el(
    "div",
    { className: "tools" },
    button("Lower half", () => setAll((at) => at >= Math.floor(rows / 2) * columns)),
    button("All", () => setAll(() => true)),
    button("None", () => setAll(() => false)),
  );
  const head = el("div", { className: "panel-head" }, el("h2", { textContent: "Redraw parts", id: "redraw-title" }), iconButton("close", "Close", () => dialog.close()));
  const help = el("p", {
    textContent: "Choose what to draw anew; the rest is kept. The model writes row by row and sees only what stands before: the lower part of a picture is continued best.",
  });
  dialog.replaceChildren(head, help, el("div", { className: "redraw-frame" }, el("img", { src: url, alt }), grid), el("div", { className: "actions" }, tools, go));
  setAll(() => false);
  dialog.showModal();
  focus(0);
}
