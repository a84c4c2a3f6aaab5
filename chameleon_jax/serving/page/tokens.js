// The ids of an answer and of its prompt, coloured by what they are. Thousands of them: only the rows in sight exist in the page.

import { getTokens } from "./api.js";
import { button, el } from "./dom.js";

const CELL = { width: 84, height: 30 }; // as in style.css
const ASKED = 1024; // ids of one request
// The legend has the first three always, the others where they occur.
const KINDS = { text: "words", image: "picture codes", marker: "markers", audio: "sound codes", codes: "other codes" };
const ALWAYS = ["text", "image", "marker"];

const known = new Map(); // id -> {kind, modality, piece}: what an id is does not change while the server runs

async function look(ids) {
  const missing = [...new Set(ids)].filter((id) => !known.has(id));
  for (let i = 0; i < missing.length; i += ASKED) {
    for (const { id, ...what } of await getTokens(missing.slice(i, i + ASKED))) known.set(id, what);
  }
}

let views = 0;

export class TokenView {
  #sets = { answer: [], prompt: [] };
  #which = "answer";
  #chosen = 0;
  #columns = 1;
  #busy = false;
  #name = `tokens-${views++}`;
  #counts = el("p", { className: "counts" });
  #space = el("div", { className: "space" });
  #detail = el("p", { className: "detail", ariaLive: "off" });
  #scroller = el("div", {
    className: "scroller",
    tabIndex: 0,
    attributes: { role: "listbox" },
  });
  #switch;

  constructor() {
    this.#scroller.append(this.#space);
    this.#switch = button("", () => this.#turn());
    const head = el("div", { className: "head" }, this.#counts, this.#switch);
    this.node = el("div", { className: "tokens", hidden: true, id: this.#name }, head, this.#scroller, this.#detail);
    this.#scroller.addEventListener("scroll", () => requestAnimationFrame(() => this.#draw()), { passive: true });
    this.#scroller.addEventListener("keydown", (event) => this.#key(event));
    this.#space.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-at]");
      if (cell) this.#choose(Number(cell.dataset.at));
    });
    new ResizeObserver(() => this.#draw()).observe(this.#scroller);
  }

  get #ids() {
    return this.#sets[this.#which];
  }

  /** Show the ids, the same as before with more behind them; free of cost while the view is closed. */
  async update(answer, prompt) {
    this.#sets = { answer, prompt };
    const other = this.#which === "answer" ? "prompt" : "answer";
    this.#switch.textContent = `Show the ${other}'s`;
    this.#switch.hidden = !prompt.length;
    this.#scroller.ariaLabel = `Tokens of the ${this.#which}`;
    if (this.node.hidden || this.#busy) return;
    this.#busy = true; // what comes meanwhile is drawn by the loop below
    try {
      for (let seen = null, length = -1; seen !== this.#ids || length !== seen.length; ) {
        [seen, length] = [this.#ids, this.#ids.length];
        await look(seen);
        this.#count();
        this.#draw();
      }
    } catch (error) {
      this.#counts.textContent = `The tokens cannot be shown: ${error.message}`;
    } finally {
      this.#busy = false;
    }
  }

  #turn() {
    this.#which = this.#which === "answer" ? "prompt" : "answer";
    this.#chosen = 0;
    this.#scroller.scrollTop = 0;
    this.update(this.#sets.answer, this.#sets.prompt);
  }

  #count() {
    const counts = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
    for (const id of this.#ids) counts[known.get(id)?.kind] += 1;
    const shown = Object.entries(KINDS).filter(([kind]) => ALWAYS.includes(kind) || counts[kind]);
    const legend = shown.map(([kind, name]) =>
      el("span", { className: `legend ${kind}`, textContent: `${counts[kind].toLocaleString("en")} ${name}`, dataset: { count: counts[kind] } }),
    );
    this.#counts.replaceChildren(`${this.#ids.length.toLocaleString("en")} tokens: `, ...legend);
  }

  #draw() {
    const { clientWidth, clientHeight, scrollTop } = this.#scroller;
    if (!clientWidth) return;
    this.#columns = Math.max(1, Math.floor(clientWidth / CELL.width));
    this.#space.style.height = `${Math.ceil(this.#ids.length / this.#columns) * CELL.height}px`;
    const from = Math.max(0, Math.floor(scrollTop / CELL.height) - 2) * this.#columns;
    const to = Math.min(this.#ids.length, (Math.ceil((scrollTop + clientHeight) / CELL.height) + 2) * this.#columns);
    const cells = [];
    for (let at = from; at < to; at++) cells.push(this.#cell(at));
    this.#space.replaceChildren(...cells);
    this.#point();
  }

  #cell(at) {
    const { kind, piece } = known.get(this.#ids[at]) ?? { kind: "unknown", piece: "" };
    const cell = el("div", {
      className: `token ${kind}`,
      id: `${this.#name}-${at}`,
      textContent: kind === "image" ? this.#ids[at] : visible(piece),
      title: this.#describe(at),
      dataset: { at },
      attributes: { role: "option", "aria-setsize": this.#ids.length, "aria-posinset": at + 1, "aria-label": this.#describe(at) },
    });
    cell.style.left = `${(at % this.#columns) * CELL.width}px`;
    cell.style.top = `${Math.floor(at / this.#columns) * CELL.height}px`;
    cell.ariaSelected = String(at === this.#chosen);
    return cell;
  }

  #describe(at) {
    const { kind, modality = kind, piece } = known.get(this.#ids[at]) ?? { kind: "unknown", piece: "" };
    const what = kind === "image" ? "picture code" : `${kind === "text" ? "text" : modality} “${visible(piece)}”`;
    return `${at + 1} of ${this.#ids.length}: id ${this.#ids[at]}, ${what}`;
  }

  #choose(at) {
    this.#chosen = Math.min(Math.max(at, 0), this.#ids.length - 1);
    const top = Math.floor(this.#chosen / this.#columns) * CELL.height;
    const { scrollTop, clientHeight } = this.#scroller;
    if (top < scrollTop) this.#scroller.scrollTop = top;
    if (top + CELL.height > scrollTop + clientHeight) this.#scroller.scrollTop = top + CELL.height - clientHeight;
    this.#draw();
  }

  #point() {
    if (!this.#ids.length) return this.#scroller.removeAttribute("aria-activedescendant");
    this.#scroller.setAttribute("aria-activedescendant", `${this.#name}-${this.#chosen}`);
    this.#detail.textContent = this.#describe(this.#chosen);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.#scroller.clientHeight / CELL.height)) * this.#columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#columns, ArrowDown: this.#columns, PageUp: -page, PageDown: page };
    const ends = { Home: 0, End: this.#ids.length - 1 };
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in steps) this.#choose(this.#chosen + steps[event.key]);
    else if (event.key in ends) this.#choose(ends[event.key]);
    else return;
    event.preventDefault();
  }
}

// Spaces and line ends are pieces like others; unseen they could not be told from nothing.
const visible = (piece) => piece.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
