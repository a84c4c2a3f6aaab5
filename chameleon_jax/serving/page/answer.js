// One answer: its parts in order, grown from the chunks of a stream, and how they look.

import { codesBox } from "./codes.js";
import { button, el } from "./dom.js";
import { download, isDataOf } from "./files.js";
import { say, speak } from "./notices.js";
import { player } from "./sounds.js";
import { TokenView } from "./tokens.js";

const ENDS = {
  stop: "",
  eos: "",
  length: "no room for more",
  content_filter: "filtered",
};

// By kind of data: how it is called, and what the number of its parts counts.
const NOUNS = { image: "picture", audio: "sound", codes: "row of numbers" };

// Pictures of small models are shown larger, but not so large that only blur is seen.
const [LEAST_WIDTH, ENLARGED] = [220, 3];

export class Answer {
  parts = []; // {type: "text", text} or {type: "image" | "audio" | "codes", modality, index, url | codes, partial, done, of}
  ids = [];
  promptIds = []; // where the server tells them
  state = "waiting"; // then "running", then "done", "stopped" or "failed"
  note = ""; // why it ended, where that is not plain
  #settings;
  #queue = null;
  #usage = null;
  #firstAt = null; // when the first ids came, and how many: the rate is that of those behind them
  #firstCount = 0;
  #lastAt = null;
  #shown = []; // elements of the parts
  #drawn = []; // URLs in them: reading a long one back from the page takes time
  controls = el("span", { className: "tools" }); // the conversation's own
  #body = el("div", { className: "body" });
  #meta = el("span", { className: "meta" });
  #tools = el("span", { className: "tools" });
  #tokens = new TokenView();

  /** `settings` are those of the request; `actions` may hold `use(part)`, which puts a part into the prompt. */
  constructor(settings, actions) {
    this.#settings = settings;
    this.actions = actions;
    const foot = el("div", { className: "foot" }, this.#meta, this.#tools, this.controls);
    this.node = el("div", { className: "answer" }, this.#body, foot, this.#tokens.node);
    const tokens = button("Tokens", async () => {
      this.#tokens.node.hidden = !this.#tokens.node.hidden;
      tokens.ariaExpanded = String(!this.#tokens.node.hidden);
      await this.#tokens.update(this.ids, this.promptIds); // which gives it its height
      this.#tokens.node.scrollIntoView({ block: "nearest" });
    });
    tokens.ariaExpanded = "false";
    tokens.setAttribute("aria-controls", this.#tokens.node.id);
    this.#tools.append(button("Copy", (event) => this.#copy(event.target), { ariaLabel: "Copy the words" }), tokens);
    this.refresh();
  }

  get settings() {
    return this.#settings;
  }

  get isEmpty() {
    return this.parts.length === 0;
  }

  get text() {
    return this.parts.map((part) => (part.type === "text" ? part.text : "\n")).join("");
  }

  /** What is whole, as parts of a prompt. */
  content() {
    return this.parts
      .filter((part) => part.type === "text" || (!part.partial && (part.url || part.codes)))
      .map(asGiven);
  }

  queue(length) {
    this.#queue = length;
    if (this.state === "waiting") this.refresh();
  }

  take(chunk) {
    this.#usage = chunk.usage ?? this.#usage;
    this.promptIds = chunk.prompt_token_ids ?? this.promptIds;
    const choice = chunk.choices?.[0];
    if (choice) {
      const { content, images = [], media = [], token_ids: ids } = choice.delta ?? {};
      if (content) this.#takeText(content);
      for (const part of [...images, ...media]) this.#takePart(part);
      if (ids?.length) this.#takeIds(ids);
      if (choice.finish_reason) this.note = ENDS[choice.finish_reason] ?? choice.finish_reason;
    }
    this.refresh();
  }

  end(state, note = this.note) {
    this.state = state;
    this.note = note;
    speak();
    say({ done: "Answer complete. ", stopped: "Stopped. ", failed: "The answer failed. " }[state]);
    this.refresh();
  }

  #takeText(text) {
    this.#begin();
    const last = this.parts.at(-1);
    if (last?.type === "text") last.text += text;
    else this.parts.push({ type: "text", text });
    say(text);
  }

  // What is not whole is replaced by what comes next; of numbers those behind `done` are replaced.
  #takePart({ type, modality, index, partial = false, codes, done, of, ...rest }) {
    const kind = type.replace("_url", "");
    if (!(kind in NOUNS)) return; // of a newer server
    this.#begin();
    let part = this.parts.find((each) => each.type === kind && each.modality === modality && each.index === index);
    if (!part) {
      part = { type: kind, modality, index };
      this.parts.push(part);
      say(` A ${NOUNS[kind]} begins. `);
    }
    const url = rest[type]?.url;
    Object.assign(part, { partial, done, of }, isDataOf(kind, url) && { url });
    if (kind === "codes") part.codes = [...(part.codes ?? []).slice(0, (done ?? codes.length) - codes.length), ...codes];
    if (!partial) say(` The ${NOUNS[kind]} is complete. `);
  }

  #takeIds(ids) {
    this.#begin();
    this.ids.push(...ids);
    this.#lastAt = performance.now();
    if (this.#firstAt === null) [this.#firstAt, this.#firstCount] = [this.#lastAt, ids.length];
    this.#tokens.update(this.ids, this.promptIds);
  }

  #begin() {
    if (this.state === "waiting") this.state = "running";
  }

  /** Tokens per second, as soon as that means something. */
  get rate() {
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    return seconds > 0.05 ? (this.ids.length - this.#firstCount) / seconds : null;
  }

  refresh() {
    for (const [i, part] of this.parts.entries()) {
      this.#shown[i] ??= this.#body.appendChild(part.type === "text" ? el("div", { className: "text" }) : this.#figure(i));
      if (part.type === "text") showText(this.#shown[i], part.text);
      else this.#showPart(this.#shown[i], part, i);
    }
    const isOpen = this.state === "waiting" || this.state === "running";
    this.node.dataset.state = this.state;
    this.#body.ariaBusy = String(isOpen);
    this.#tools.hidden = isOpen && !this.ids.length;
    this.#meta.textContent = this.#facts().join(" · ");
  }

  #facts() {
    if (this.state === "waiting") return [this.#queue ? `Waiting; ${this.#queue} in the queue` : "Waiting for the first token"];
    const count = this.#usage?.completion_tokens ?? this.ids.length;
    return [
      ...(this.state === "stopped" ? ["stopped"] : []),
      ...(this.note ? [this.note] : []),
      `${count.toLocaleString("en")} tokens`,
      ...(this.rate ? [`${this.rate.toFixed(this.rate < 10 ? 1 : 0)} tokens/s`] : []),
      `seed ${this.#settings.seed}`,
    ];
  }

  #figure(i) {
    const part = this.parts[i];
    const number = this.#number(i);
    const name = `${NOUNS[part.type]} ${number}`;
    const bar = el("progress", { max: 1, value: 0, ariaLabel: `Codes of ${name}` });
    const tools = el("span", { className: "tools", hidden: true });
    if (part.type !== "codes") tools.append(button("Download", () => download(part.url, `chameleon-${this.#settings.seed}-${number}`)));
    tools.append(button("Use in prompt", () => this.actions.use(asGiven(part))));
    const caption = el("figcaption", {}, el("span", { className: "progress" }), tools);
    const shown = {
      image: () => el("img", { alt: `Picture ${number} of the answer`, hidden: true }),
      audio: () => player(null, `Sound ${number} of the answer`),
      codes: () => codesBox([]),
    }[part.type]();
    const figure = el("figure", { className: part.type }, el("div", { className: "frame" }, shown), bar, caption);
    shown.onload = () => (figure.style.maxWidth = `${Math.max(LEAST_WIDTH, ENLARGED * shown.naturalWidth)}px`);
    return figure;
  }

  #number = (i) => this.parts.slice(0, i + 1).filter((part) => part.type === this.parts[i].type).length;

  #showPart(figure, { type, modality, url, codes, partial, done, of }, i) {
    const shown = figure.querySelector(".frame").firstChild;
    if (type === "codes") shown.textContent = codes.join(" ");
    else {
      const isReady = url && (type === "image" || !partial); // a sound that changes while it is played is no use
      if (isReady && this.#drawn[i] !== url) shown.src = this.#drawn[i] = url;
      shown.hidden = !isReady;
    }
    figure.classList.toggle("partial", partial);
    const bar = figure.querySelector("progress");
    bar.hidden = !partial;
    if (of) Object.assign(bar, { max: of, value: done });
    const count = partial ? (of ? `${done} of ${of} codes` : `${done ?? "some"} codes`) : "";
    figure.querySelector(".progress").textContent = type === "codes" ? [modality, count].filter(Boolean).join(": ") : count;
    figure.querySelector(".tools").hidden = partial || !(url || codes);
  }

  async #copy(control) {
    try {
      await navigator.clipboard.writeText(this.text);
      control.textContent = "Copied";
    } catch {
      control.textContent = "Not allowed"; // browsers give the clipboard to https and localhost only
    }
    setTimeout(() => (control.textContent = "Copy"), 1500);
  }
}

// Appended to and not replaced: a selection that someone is making stays.
function showText(node, text) {
  const shown = node.firstChild ?? node.appendChild(document.createTextNode(""));
  if (text.length > shown.length) shown.appendData(text.slice(shown.length));
}

const asGiven = ({ type, text, url, codes, modality }) => ({ type, text, url, codes, modality });
