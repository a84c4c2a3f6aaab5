// A chat as it is seen: its exchanges, the tries at each, and the answers of a try, side by side where they are several.

import { AnswerView } from "./answerview.js";
import { codesBox } from "./codes.js";
import { button, byId, el, iconButton } from "./dom.js";
import { openLightbox } from "./lightbox.js";
import { player } from "./sounds.js";

export class Conversation {
  #chat = null;
  #actions;
  #views = new WeakMap(); // answer -> its view

  /** `actions`: edit(i), again(i, {newSeed, instead, fields}), proceed(i), each with the number of an exchange, turned() after another answer
   *  was chosen, and those of an AnswerView. */
  constructor(actions) {
    this.#actions = actions;
  }

  show(chat) {
    this.#chat = chat;
    this.refresh();
  }

  /** Dim what an edit of exchange `i` will replace; null: nothing. */
  dim(i) {
    for (const [at, node] of [...byId("exchanges").children].entries()) node.classList.toggle("dimmed", i !== null && at >= i);
  }

  refresh() {
    byId("welcome").hidden = this.#chat.length > 0;
    const place = focusPlace();
    byId("exchanges").replaceChildren(...this.#chat.exchanges.map((exchange, i) => this.#show(exchange, i)));
    restoreFocus(place);
  }

  /** Show the words of all answers anew. */
  redraw() {
    for (const answer of this.#chat.answers) this.#views.get(answer)?.refresh();
  }

  /** Offer what can be done with the last answers, which may have ended. */
  showEnds() {
    const exchange = this.#chat.length ? this.#chat.at(-1) : null;
    const answer = exchange?.tries[exchange.shown]?.at(-1);
    if (answer) this.#view(answer).controls.replaceChildren(...this.#controls(exchange, true, this.#chat.length - 1));
    for (const each of this.#chat.answers) this.#views.get(each)?.refresh(); // what can be done depends on what runs and what is last
  }

  #view(answer) {
    if (!this.#views.has(answer)) this.#views.set(answer, new AnswerView(answer, this.#actions));
    return this.#views.get(answer);
  }

  #show(exchange, i) {
    const { content, tries, shown } = exchange;
    const isLast = i === this.#chat.length - 1;
    const answers = tries[shown] ?? [];
    const asked = el(
      "section",
      { className: "asked", ariaLabel: `Prompt ${i + 1}` },
      el("div", { className: "bubble" }, ...(content.length ? content.map(show) : [el("p", { className: "nothing", textContent: "(empty prompt)" })])),
      el("div", { className: "foot" }, iconButton("edit", `Edit prompt ${i + 1}`, () => this.#actions.edit(i))),
    );
    const given = el("section", { className: `given${answers.length > 1 ? " many" : ""}`, ariaLabel: `Answer ${i + 1}` });
    for (const [at, answer] of answers.entries()) {
      const view = this.#view(answer);
      view.controls.replaceChildren(...(at === answers.length - 1 ? this.#controls(exchange, isLast, i) : []));
      given.append(answers.length > 1 ? this.#beside(exchange, answers, at, view, i) : view.node);
    }
    return el("article", { className: "exchange" }, el("h2", { className: "hidden", textContent: `Exchange ${i + 1}` }), asked, given);
  }

  // One of several answers, with what tells it from the others, and the choice with which the chat goes on.
  #beside(exchange, answers, at, view, i) {
    const isOther = answers.some(({ model }) => model !== answers[0].model);
    const name = isOther ? answers[at].model : `Answer ${at + 1} of ${answers.length}`;
    const chosen = el("input", { type: "radio", name: `chosen-${i}`, checked: exchange.chosen === at, ariaLabel: `Go on with: ${name}` });
    chosen.onchange = () => {
      exchange.chosen = at;
      this.#actions.turned();
      for (const [n, node] of [...card.parentElement.children].entries()) node.classList.toggle("chosen", n === at);
    };
    const head = el("label", { className: "choose" }, chosen, el("span", { textContent: name }));
    const card = el("div", { className: `beside${exchange.chosen === at ? " chosen" : ""}` }, head, view.node);
    return card;
  }

  #controls(exchange, isLast, i) {
    const { tries, shown } = exchange;
    const answers = tries[shown];
    const controls = [];
    const turn = (to) => {
      Object.assign(exchange, { shown: to, chosen: 0 });
      this.#actions.turned();
      this.refresh();
    };
    if (tries.length > 1) {
      controls.push(
        button("‹", () => turn(shown - 1), { disabled: shown === 0, ariaLabel: "Answer before", className: "rerun" }),
        el("span", { className: "place", textContent: `${shown + 1} / ${tries.length}` }),
        button("›", () => turn(shown + 1), { disabled: shown === tries.length - 1, ariaLabel: "Answer after", className: "rerun" }),
      );
    }
    if (isLast) {
      const isCut = answers.some(({ state }) => ["cut", "stopped", "failed"].includes(state));
      if (isCut) {
        const finish = () => this.#actions.again(i, { instead: true });
        controls.push(button("Finish", finish, { title: "The same settings and seed give the same answer, to its end", className: "rerun" }));
      } else controls.push(button("Same again", () => this.#actions.again(i, {}), { title: "The same settings and seed", className: "rerun" }));
      controls.push(button("Another", () => this.#actions.again(i, { newSeed: true }), { title: "The same settings, a new seed", className: "rerun" }));
    }
    if (answers[0].request.format === "completion") {
      controls.push(button("Go on", () => this.#actions.proceed(i), { title: "Prompt and answer become the next prompt", className: "rerun" }));
    }
    return controls;
  }
}

// Elements are made anew; the focus goes to the one of the same name.
function focusPlace() {
  const { activeElement } = document;
  if (!byId("exchanges").contains(activeElement)) return null;
  const name = (each) => each.ariaLabel || each.textContent;
  return [name(activeElement), [...byId("exchanges").querySelectorAll("button, input")].filter((each) => name(each) === name(activeElement)).indexOf(activeElement)];
}

function restoreFocus(place) {
  if (!place || byId("exchanges").contains(document.activeElement)) return;
  const same = [...byId("exchanges").querySelectorAll("button, input")].filter((each) => (each.ariaLabel || each.textContent) === place[0]);
  const to = same[place[1]] ?? same.at(-1);
  if (to && !to.disabled) to.focus();
  else byId("conversation").focus();
}

const show = (part, at) =>
  ({
    text: () => el("p", { className: "text", textContent: part.text }),
    image: () => {
      const alt = part.alt || "Picture of the prompt";
      const zoom = () => openLightbox({ url: part.url, alt, name: `picture-${at + 1}` });
      return el("button", { type: "button", className: "zoom", ariaLabel: `Enlarge: ${alt}`, onclick: zoom }, el("img", { src: part.url, alt }));
    },
    audio: () => player(part.url, part.name || "Sound of the prompt"),
    codes: () => el("div", { className: "given-codes" }, el("small", { textContent: part.modality }), codesBox(part.codes)),
  })[part.type]();
