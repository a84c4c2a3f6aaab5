// A chat as data: exchanges, each what was asked and the answers to it, and the settings with which one goes on.

import { Answer } from "./answer.js";
import { newId } from "./ids.js";

const TITLE = 60; // characters

export class Chat {
  id = newId();
  name = ""; // given by a person
  created = Date.now();
  updated = Date.now();
  models = []; // names of those that are asked
  settings = {}; // what a person changed
  // {content, tries: [[Answer, ...], ...], shown, chosen}: a try has one answer, or several side by side; `shown` is the number of a
  // try, `chosen` that of its answer which goes into the next request.
  exchanges = [];
  running = null; // the AbortController of the answers under way
  isGone = false; // deleted: not kept any more

  /** A chat that was kept. `answer(ref)` is the record of an answer; one that is missing is left out. */
  static from(kept, answer) {
    const chat = new Chat();
    for (const name of ["id", "name", "created", "updated", "models", "settings"]) chat[name] = kept[name] ?? chat[name];
    chat.exchanges = kept.exchanges.map(({ content, tries, shown, chosen }) => {
      const found = tries.map((refs) => refs.map(answer).filter(Boolean).map(Answer.from)).filter((each) => each.length);
      const at = Math.min(shown, found.length - 1);
      return { content, tries: found, shown: at, chosen: Math.min(chosen, Math.max(0, (found[at]?.length ?? 0) - 1)) };
    });
    return chat;
  }

  /** Plain data; `answer(each)` is what stands for an answer. */
  record(answer) {
    const { id, name, created, updated, models, settings } = this;
    const exchanges = this.exchanges.map(({ content, tries, shown, chosen }) => ({
      content,
      tries: tries.map((answers) => answers.map(answer)),
      shown,
      chosen,
    }));
    return { id, name, created, updated, models, settings, exchanges };
  }

  get length() {
    return this.exchanges.length;
  }

  at = (i) => this.exchanges.at(i);

  get answers() {
    return this.exchanges.flatMap(({ tries }) => tries.flat());
  }

  /** The answers of exchange `i` in sight. */
  shown = (i) => this.at(i).tries[this.at(i).shown] ?? [];

  get title() {
    const words = this.name || textOf(this.exchanges[0]?.content ?? []).trim().replace(/\s+/g, " ");
    return words.length > TITLE ? `${words.slice(0, TITLE)}…` : words || (this.length ? "Pictures" : "New chat");
  }

  /** What the list shows and a search looks at. */
  get head() {
    const { id, title, created, updated } = this;
    const text = this.exchanges.flatMap(({ content, tries }) => [textOf(content), ...tries.flat().map((answer) => answer.text)]);
    return { id, title, created, updated, text: text.join("\n").toLowerCase() };
  }

  snapshot = () => this.exchanges.map((each) => ({ ...each, tries: [...each.tries] }));

  restore(exchanges) {
    this.exchanges = exchanges.map((each) => ({ ...each, tries: [...each.tries] }));
  }

  /** Forget exchange `i` and all after it. */
  truncate(i) {
    this.exchanges.length = Math.min(i, this.length);
  }

  add(content) {
    this.exchanges.push({ content, tries: [], shown: -1, chosen: 0 });
  }

  /** One more try at the last exchange, which is shown; in the place of the one in sight if `isInstead`. */
  addTry(answers, isInstead = false) {
    const last = this.exchanges.at(-1);
    if (isInstead) last.tries.splice(last.shown, 1);
    last.tries.push(answers);
    Object.assign(last, { shown: last.tries.length - 1, chosen: 0 });
  }

  /** The `messages` of a request for an answer to the last exchange. A completion has no turns: only its own words go. */
  messages({ format, system }) {
    const sent = format === "completion" ? this.exchanges.slice(-1) : this.exchanges;
    const turns = sent.flatMap(({ content, tries, shown, chosen }, i) => {
      const user = { role: "user", content: content.map(asPart) };
      if (i === sent.length - 1) return [user];
      const said = tries[shown]?.[chosen]?.content() ?? [];
      return [user, { role: "assistant", content: said.length ? said.map(asPart) : "" }];
    });
    return [...(system ? [{ role: "system", content: system }] : []), ...turns];
  }
}

const textOf = (content) => content.map((part) => (part.type === "text" ? part.text : "")).join(" ");

function asPart({ type, text, url, codes, modality }) {
  if (type === "text") return { type, text };
  return type === "codes" ? { type, modality, codes } : { type: `${type}_url`, modality, [`${type}_url`]: { url } };
}
