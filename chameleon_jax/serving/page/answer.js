// One answer as data: its parts in order, grown from the chunks of a stream, as they are kept and sent again.

import { isDataOf } from "./files.js";
import { newId } from "./ids.js";
import { say, speak } from "./notices.js";

const ENDS = {
  stop: "",
  eos: "",
  length: "no room for more",
  content_filter: "filtered",
};

// By kind of data: how it is called, and what the number of its parts counts.
export const NOUNS = { image: "picture", audio: "sound", codes: "row of numbers" };

const KEPT = ["id", "model", "request", "parts", "ids", "promptIds", "likelihoods", "usage", "state", "note", "notes", "rate"];

export class Answer {
  id = newId();
  parts = []; // {type: "text", text} or {type: "image" | "audio" | "codes", modality, index, url | codes, partial, done, of}
  ids = [];
  promptIds = []; // where the server tells them
  likelihoods = []; // of ids, in their order: {logprob, top: [{token, logprob}]}, where the server tells them
  usage = null;
  state = "waiting"; // then "running", then "done", "stopped", "failed", or "cut": the page went before the end
  note = ""; // why it ended, where that is not plain
  notes = []; // what the server did otherwise than it was asked
  queue = null;
  rate = null; // tokens per second, as soon as that means something
  isSpoken = true; // of answers side by side only the first one is read aloud
  revision = 0; // counts changes
  onchange = () => {}; // to show it
  onkeep = () => {}; // to keep it
  #firstAt = null; // when the first ids came, and how many: the rate is that of those after them
  #firstCount = 0;

  /** `request` has the settings of the request, `model` the name of the model that was asked. */
  constructor({ model, request }) {
    Object.assign(this, { model, request });
  }

  /** An answer that was kept; one that had not ended when it was written is cut. */
  static from(record) {
    const answer = new Answer(record);
    for (const name of KEPT) if (record[name] !== undefined) answer[name] = record[name];
    if (answer.isOpen) answer.state = "cut";
    return answer;
  }

  record = () => Object.fromEntries(KEPT.map((name) => [name, this[name]]));

  get isOpen() {
    return this.state === "waiting" || this.state === "running";
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
      .map(({ type, text, url, codes, modality }) => ({ type, text, url, codes: type === "codes" ? codes : undefined, modality }));
  }

  waitFor(queue) {
    this.queue = queue;
    if (this.state === "waiting") this.onchange();
  }

  /** Take one choice of a chunk. */
  take({ delta = {}, logprobs, finish_reason: reason }) {
    const { content, images = [], media = [], token_ids: ids } = delta;
    if (content) this.#takeText(content);
    for (const part of [...images, ...media]) this.#takePart(part);
    for (const { id, token, logprob, top_logprobs: top = [] } of logprobs?.content ?? []) {
      this.likelihoods.push({ id, token, logprob, top: top.map(({ token, logprob }) => ({ token, logprob })) });
    }
    if (ids?.length) this.#takeIds(ids);
    if (reason) this.note = ENDS[reason] ?? reason;
    this.changed();
  }

  /** Take what a chunk says of all its choices. */
  takeCommon({ usage, prompt_token_ids: promptIds, notes }) {
    this.usage = usage ?? this.usage;
    this.promptIds = promptIds ?? this.promptIds;
    if (Array.isArray(notes)) this.notes = notes.map(String);
    if (usage || promptIds || notes) this.changed();
  }

  end(state, note = this.note) {
    this.state = state;
    this.note = note;
    if (this.isSpoken) {
      speak();
      say({ done: "Answer complete. ", stopped: "Stopped. ", failed: "The answer failed. " }[state] ?? "");
    }
    this.changed();
  }

  changed() {
    this.revision += 1;
    this.onchange();
    this.onkeep();
  }

  #say(text) {
    if (this.isSpoken) say(text);
  }

  #takeText(text) {
    this.#begin();
    const last = this.parts.at(-1);
    if (last?.type === "text") last.text += text;
    else this.parts.push({ type: "text", text });
    this.#say(text);
  }

  // What is not whole is replaced by what comes next; of numbers those from `done` on are replaced.
  #takePart({ type, modality, index, partial = false, codes, done, of, ...rest }) {
    const kind = type.replace("_url", "");
    if (!(kind in NOUNS)) return; // of a newer server
    this.#begin();
    let part = this.parts.find((each) => each.type === kind && each.modality === modality && each.index === index);
    if (!part) {
      part = { type: kind, modality, index };
      this.parts.push(part);
      this.#say(` A ${NOUNS[kind]} begins. `);
    }
    const url = rest[type]?.url;
    Object.assign(part, { partial, done, of }, isDataOf(kind, url) && { url });
    if (kind === "codes") part.codes = [...(part.codes ?? []).slice(0, (done ?? codes.length) - codes.length), ...codes];
    else if (codes) part.codes = codes; // of a picture, where they were asked for
    if (!partial) this.#say(` The ${NOUNS[kind]} is complete. `);
  }

  #takeIds(ids) {
    this.#begin();
    this.ids.push(...ids);
    const now = performance.now();
    if (this.#firstAt === null) [this.#firstAt, this.#firstCount] = [now, ids.length];
    const seconds = (now - this.#firstAt) / 1000;
    if (seconds > 0.05) this.rate = (this.ids.length - this.#firstCount) / seconds;
  }

  #begin() {
    if (this.state === "waiting") this.state = "running";
  }
}
