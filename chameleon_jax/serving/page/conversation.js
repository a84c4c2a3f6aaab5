// Exchanges: what was asked, and the answers to it, of which one is shown and goes into the next request.

import { codesBox } from "./codes.js";
import { button, byId, el } from "./dom.js";
import { player } from "./sounds.js";

export class Conversation {
  #exchanges = []; // {content, answers, shown, node}
  #actions;

  /** `actions`: edit(i), again(i, newSeed), proceed(i), each with the number of an exchange. */
  constructor(actions) {
    this.#actions = actions;
  }

  get length() {
    return this.#exchanges.length;
  }

  at = (i) => this.#exchanges.at(i);

  /** All exchanges as they are now, for `restore`. */
  snapshot = () => this.#exchanges.map((each) => ({ ...each, answers: [...each.answers] }));

  restore(exchanges) {
    this.#exchanges = exchanges.map((each) => ({ ...each, answers: [...each.answers], node: el("article", { className: "exchange" }) }));
    this.refresh();
  }

  /** Forget exchange `i` and all after it. */
  truncate(i) {
    this.#exchanges.length = Math.min(i, this.#exchanges.length);
    this.refresh();
  }

  add(content) {
    this.#exchanges.push({ content, answers: [], shown: -1, node: el("article", { className: "exchange" }) });
    this.refresh();
  }

  /** One more answer to the last exchange; it is the one shown. */
  addAnswer(answer) {
    const last = this.#exchanges.at(-1);
    last.answers.push(answer);
    last.shown = last.answers.length - 1;
    this.refresh();
  }

  /** The `messages` of a request for an answer to the last exchange. A completion has no turns: only its own words go. */
  messages(format) {
    const sent = format === "completion" ? this.#exchanges.slice(-1) : this.#exchanges;
    return sent.flatMap((exchange, i) => {
      const user = { role: "user", content: exchange.content.map(asPart) };
      if (i === sent.length - 1) return [user];
      const said = exchange.answers[exchange.shown].content();
      return [user, { role: "assistant", content: said.length ? said.map(asPart) : "" }];
    });
  }

  /** Dim what an edit of exchange `i` will replace; null: nothing. */
  dim(i) {
    for (const [at, { node }] of this.#exchanges.entries()) node.classList.toggle("dimmed", i !== null && at >= i);
  }

  refresh() {
    byId("welcome").hidden = this.#exchanges.length > 0;
    byId("exchanges").replaceChildren(...this.#exchanges.map((exchange, i) => this.#show(exchange, i)));
  }

  #show(exchange, i) {
    const { content, answers, shown, node } = exchange;
    const isLast = i === this.#exchanges.length - 1;
    const answer = answers[shown];
    const asked = el(
      "section",
      { className: "asked", ariaLabel: `Prompt ${i + 1}` },
      ...content.map(show),
      ...(content.length ? [] : [el("p", { className: "text nothing", textContent: "(empty prompt)" })]),
      el("div", { className: "foot" }, button("Edit", () => this.#actions.edit(i), { ariaLabel: `Edit prompt ${i + 1}` })),
    );
    const given = el("section", { className: "given", ariaLabel: `Answer ${i + 1}` });
    if (answer) {
      answer.controls.replaceChildren(...this.#controls(exchange, isLast, i));
      given.append(answer.node);
    }
    node.replaceChildren(asked, given);
    return node;
  }

  #controls(exchange, isLast, i) {
    const { answers, shown } = exchange;
    const controls = [];
    const turn = (to) => {
      exchange.shown = to;
      this.refresh();
    };
    if (answers.length > 1) {
      controls.push(
        button("‹", () => turn(shown - 1), { disabled: shown === 0, ariaLabel: "Answer before" }),
        el("span", { textContent: `${shown + 1} / ${answers.length}` }),
        button("›", () => turn(shown + 1), { disabled: shown === answers.length - 1, ariaLabel: "Answer after" }),
      );
    }
    if (isLast) {
      controls.push(
        button("Same again", () => this.#actions.again(i, false), { title: "The same settings and seed", className: "rerun" }),
        button("Another", () => this.#actions.again(i, true), { title: "The same settings, a new seed", className: "rerun" }),
      );
    }
    if (answers[shown].settings.format === "completion") {
      controls.push(button("Go on", () => this.#actions.proceed(i), { title: "Prompt and answer become the next prompt", className: "rerun" }));
    }
    return controls;
  }
}

const show = (part) =>
  ({
    text: () => el("p", { className: "text", textContent: part.text }),
    image: () => el("img", { src: part.url, alt: part.alt || "Picture of the prompt" }),
    audio: () => player(part.url, part.name || "Sound of the prompt"),
    codes: () => el("div", { className: "given-codes" }, el("small", { textContent: part.modality }), codesBox(part.codes)),
  })[part.type]();

function asPart({ type, text, url, codes, modality }) {
  if (type === "text") return { type, text };
  return type === "codes" ? { type, modality, codes } : { type: `${type}_url`, modality, [`${type}_url`]: { url } };
}
