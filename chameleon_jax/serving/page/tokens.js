// The ids of an answer and of its prompt, coloured by what they are; of a chosen one its likelihood and what else it could have been,
// where the server told. Thousands of them: only the rows in sight exist in the page.

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
  #likelihoods = []; // of the answer's
  #which = "answer";
  #chosen = 0;
  #columns = 1;
  #busy = false;
  #name = `tokens-${views++}`;
  #counts = el("p", { className: "counts" });
  #space = el("div", { className: "space" });
  #detail = el("p", { className: "detail", ariaLive: "off" });
  #ask; // offers to ask for likelihoods, where there are none
  #why = el("ol", { className: "why", ariaLabel: "What it could have been" });
  #scroller = el("div", {
    className: "scroller",
    tabIndex: 0,
    attributes: { role: "listbox" },
  });
  #switch;
  #canExplain;

  /** `explain()` asks for likelihoods; `canExplain()` tells whether it can. */
  constructor({ explain, canExplain }) {
    this.#canExplain = canExplain;
    this.#ask = button("How likely?", explain, { title: "The same answer once more, with the likelihood of each token" });
    this.#scroller.append(this.#space);
    this.#switch = button("", () => this.#turn());
    const head = el("div", { className: "head" }, this.#counts, el("span", { className: "tools" }, this.#ask, this.#switch));
    this.node = el("div", { className: "tokens", hidden: true, id: this.#name }, head, this.#scroller, this.#detail, this.#why);
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

  /** Show the ids of an answer, the same as before with more after them; free of cost while the view is closed. */
  async update({ ids, promptIds, likelihoods }) {
    this.#sets = { answer: ids, prompt: promptIds };
    this.#likelihoods = likelihoods;
    const other = this.#which === "answer" ? "prompt" : "answer";
    this.#switch.textContent = `Show the ${other}'s`;
    this.#switch.hidden = !promptIds.length;
    this.#ask.hidden = likelihoods.length > 0 || !this.#canExplain();
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
    this.update({ ids: this.#sets.answer, promptIds: this.#sets.prompt, likelihoods: this.#likelihoods });
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
    const likely = this.#likelihood(at);
    // The less likely, the shorter the line under it.
    if (likely) cell.style.setProperty("--likely", `${(100 * Math.exp(likely.logprob)).toFixed(1)}%`);
    return cell;
  }

  #describe(at) {
    const { kind, modality = kind, piece } = known.get(this.#ids[at]) ?? { kind: "unknown", piece: "" };
    const what = kind === "image" ? "picture code" : `${kind === "text" ? "text" : modality} “${visible(piece)}”`;
    const likely = this.#likelihood(at);
    return `${at + 1} of ${this.#ids.length}: id ${this.#ids[at]}, ${what}${likely ? `, likelihood ${share(likely.logprob)}` : ""}`;
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
    this.#explain(this.#likelihood(this.#chosen));
  }

  #likelihood(at) {
    const found = this.#which === "answer" ? this.#likelihoods[at] : undefined;
    return found?.id === this.#ids[at] ? found : undefined;
  }

  // The chosen id among the likeliest ones, each with its share.
  #explain(likely) {
    this.#why.hidden = !likely;
    if (!likely || this.#why.dataset.at === `${this.#chosen} ${this.#ids.length}`) return;
    this.#why.dataset.at = `${this.#chosen} ${this.#ids.length}`;
    const own = { token: likely.token, logprob: likely.logprob };
    const isAmong = likely.top.some(({ token, logprob }) => token === own.token && logprob === own.logprob);
    const rows = isAmong ? likely.top : [...likely.top, own];
    this.#why.replaceChildren(
      ...rows.map(({ token, logprob }) => {
        const isOwn = token === own.token && logprob === own.logprob;
        const bar = el("span", { className: "bar" });
        bar.style.width = `${100 * Math.exp(logprob)}%`;
        return el(
          "li",
          { className: isOwn ? "own" : "" },
          el("code", { textContent: visible(token) }),
          el("span", { className: "track" }, bar),
          el("span", { textContent: `${share(logprob)}${isOwn ? " · chosen" : ""}` }),
        );
      }),
    );
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

const share = (logprob) => {
  const percent = 100 * Math.exp(logprob);
  return `${percent >= 10 ? percent.toFixed(0) : percent >= 0.1 ? percent.toFixed(1) : percent.toPrecision(1)} %`;
};
