// How an answer looks: its parts, what can be done with them, its facts and its tokens.

import { NOUNS } from "./answer.js";
import { codesBox } from "./codes.js";
import { copyButton, copyPictureButton } from "./copying.js";
import { button, el, iconButton } from "./dom.js";
import { download, pngSize } from "./files.js";
import { openLightbox } from "./lightbox.js";
import { showMarkdown } from "./markdown.js";
import { preference } from "./preferences.js";
import { player } from "./sounds.js";
import { TokenView } from "./tokens.js";

// Pictures of small models are shown larger, but not so large that only blur is seen.
const [LEAST_WIDTH, ENLARGED] = [220, 3];

export class AnswerView {
  controls = el("span", { className: "tools" }); // the conversation's own
  #answer;
  #actions;
  #shown = []; // elements of the parts
  #drawn = []; // URLs in them: reading a long one back from the page takes time
  #body = el("div", { className: "body" });
  #meta = el("span", { className: "meta" });
  #notes = el("ul", { className: "notes", ariaLabel: "Notes of the server" });
  #tools = el("span", { className: "tools" });
  #tokens;
  #isWaiting = false;

  /** `actions`: use(part) puts a part into the prompt, redraw(answer, part) has parts of a picture drawn anew,
   *  explain(answer) asks how likely its tokens were; canRedraw and canExplain tell whether these can be done. */
  constructor(answer, actions) {
    [this.#answer, this.#actions] = [answer, actions];
    this.#tokens = new TokenView({ explain: () => actions.explain(answer), canExplain: () => actions.canExplain(answer) });
    const foot = el("div", { className: "foot" }, this.#tools, this.#meta, this.controls);
    this.node = el("div", { className: "answer" }, this.#body, this.#notes, foot, this.#tokens.node);
    const tokens = button("Tokens", async () => {
      this.#tokens.node.hidden = !this.#tokens.node.hidden;
      tokens.ariaExpanded = String(!this.#tokens.node.hidden);
      await this.#tokens.update(answer); // which gives it its height
      this.#tokens.node.scrollIntoView({ block: "nearest" });
    });
    tokens.ariaExpanded = "false";
    tokens.setAttribute("aria-controls", this.#tokens.node.id);
    this.#tools.append(copyButton("Copy the words", () => answer.text), tokens);
    answer.onchange = () => this.#later();
    this.refresh();
  }

  // Chunks may come faster than frames: each frame shows what has come.
  #later() {
    if (this.#isWaiting && this.#answer.isOpen) return;
    this.#isWaiting = true;
    const show = () => {
      if (!this.#isWaiting) return;
      this.#isWaiting = false;
      this.refresh();
    };
    if (this.#answer.isOpen && !document.hidden) requestAnimationFrame(show);
    else show(); // there are no frames in a hidden tab
  }

  refresh() {
    const answer = this.#answer;
    for (const [i, part] of answer.parts.entries()) {
      this.#shown[i] ??= this.#body.appendChild(part.type === "text" ? el("div", { className: "text" }) : this.#figure(i));
      if (part.type === "text") this.#showText(this.#shown[i], part.text);
      else this.#showPart(this.#shown[i], part, i);
    }
    this.node.dataset.state = answer.state;
    this.#body.ariaBusy = String(answer.isOpen);
    this.#tools.classList.toggle("unseen", answer.isOpen && !answer.ids.length);
    this.#meta.textContent = this.#facts().join(" · ");
    this.#notes.hidden = !answer.notes.length;
    if (this.#notes.childElementCount !== answer.notes.length) {
      this.#notes.replaceChildren(...answer.notes.map((note) => el("li", { textContent: note })));
    }
    this.#tokens.update(answer);
  }

  #facts() {
    const { state, queue, ids, request, rate, note, usage } = this.#answer;
    const count = (request.n ?? 1) === 1 ? (usage?.completion_tokens ?? ids.length) : ids.length; // usage is that of all
    if (state === "waiting") return [queue ? `Waiting; ${queue} in the queue` : "Waiting for the first token"];
    return [
      ...(state === "stopped" ? ["stopped"] : []),
      ...(state === "cut" ? ["cut off when the page was left"] : []),
      ...(note ? [note] : []),
      `${count.toLocaleString("en")} tokens`,
      ...(rate ? [`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`] : []),
      `seed ${request.seed}`,
    ];
  }

  #showText(node, text) {
    const isMarkdown = preference("markdown");
    if (node.dataset.markdown !== String(isMarkdown)) node.replaceChildren();
    node.dataset.markdown = isMarkdown;
    if (isMarkdown) return showMarkdown(node, text);
    // Appended to and not replaced: a selection that someone is making stays.
    const shown = node.firstChild ?? node.appendChild(document.createTextNode(""));
    if (text.length > shown.length) shown.appendData(text.slice(shown.length));
  }

  #figure(i) {
    const part = this.#answer.parts[i];
    const number = this.#number(i);
    const name = `${NOUNS[part.type]} ${number}`;
    const file = `chameleon-${this.#answer.request.seed}-${number}`;
    const bar = el("progress", { max: 1, value: 0, ariaLabel: `Codes of ${name}` });
    const url = () => part.url;
    const tools = el("span", { className: "tools" });
    if (part.type === "image") tools.append(copyPictureButton(`Copy ${name}`, url));
    if (part.type !== "codes") tools.append(iconButton("download", `Download ${name}`, () => download(part.url, file)));
    tools.append(iconButton("use", `Use ${name} in the prompt`, () => this.#actions.use(asGiven(part))));
    if (part.type === "image") tools.append(this.#redraw(part, name));
    const caption = el("figcaption", {}, tools, el("span", { className: "progress" }));
    const shown = {
      image: () => this.#zoomable(part, name, file),
      audio: () => player(null, `Sound ${number} of the answer`),
      codes: () => codesBox([]),
    }[part.type]();
    return el("figure", { className: part.type }, el("div", { className: "frame" }, shown), bar, caption);
  }

  #redraw(part, name) {
    return iconButton("brush", `Redraw parts of ${name}`, () => this.#actions.redraw(this.#answer, part), { className: "bare redraw" });
  }

  #zoomable(part, name, file) {
    const picture = el("img", { alt: `${name[0].toUpperCase()}${name.slice(1)} of the answer` });
    const zoom = () => {
      const canRedraw = this.#actions.canRedraw(this.#answer, part);
      const actions = [
        ["use", "Use in the prompt", () => this.#actions.use(asGiven(part))],
        ...(canRedraw ? [["brush", "Redraw parts", () => this.#actions.redraw(this.#answer, part)]] : []),
      ];
      openLightbox({ url: part.url, alt: picture.alt, name: file, actions });
    };
    return el("button", { type: "button", className: "zoom", ariaLabel: `Enlarge ${name}`, onclick: zoom, hidden: true }, picture);
  }

  #number = (i) => this.#answer.parts.slice(0, i + 1).filter((part) => part.type === this.#answer.parts[i].type).length;

  #showPart(figure, part, i) {
    const { type, modality, url, codes, partial, done, of } = part;
    const shown = figure.querySelector(".frame").firstChild;
    if (type === "codes") shown.textContent = codes.join(" ");
    else {
      const isReady = url && (type === "image" || !partial); // a sound that changes while it is played is no use
      if (isReady && this.#drawn[i] !== url) {
        this.#drawn[i] = url;
        if (type === "image") setPicture(figure, shown.firstChild, url);
        else shown.src = url;
      }
      shown.hidden = !isReady;
    }
    figure.classList.toggle("partial", Boolean(partial));
    const bar = figure.querySelector("progress");
    if (of) Object.assign(bar, { max: of, value: done });
    const count = partial ? (of ? `${done} of ${of} codes` : `${done ?? "some"} codes`) : "";
    figure.querySelector(".progress").textContent = type === "codes" ? [modality, count].filter(Boolean).join(": ") : count;
    figure.querySelector(".tools").classList.toggle("unseen", Boolean(partial) || !(url || codes));
    const redraw = figure.querySelector(".redraw");
    if (redraw) redraw.hidden = !this.#actions.canRedraw(this.#answer, part);
  }
}

// The size is there before the picture is decoded, so that nothing moves when it is.
function setPicture(figure, picture, url) {
  const fit = (width, height) => {
    [picture.width, picture.height] = [width, height];
    figure.style.maxWidth = `${Math.max(LEAST_WIDTH, ENLARGED * width)}px`;
  };
  const size = pngSize(url);
  if (size) fit(...size);
  else picture.onload = () => fit(picture.naturalWidth, picture.naturalHeight);
  picture.src = url;
}

const asGiven = ({ type, text, url, codes, modality }) => ({ type, text, url, codes: type === "codes" ? codes : undefined, modality });
