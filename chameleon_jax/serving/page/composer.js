// The prompt as a list of cards, words, a picture, a sound or numbers each. The list in the page is the state: a card that moves is an element that moves.

import { parseCodes, problem } from "./codes.js";
import { button, byId, el } from "./dom.js";
import { notice, say } from "./notices.js";
import { readPicture } from "./pictures.js";
import { isSoundFile, player, readSound } from "./sounds.js";

const KINDS = { text: "Text", image: "Picture", audio: "Sound", codes: "Numbers" };
const FIELDS = "textarea, input, audio"; // of a card, what takes the focus

export class Composer {
  onchange = () => {}; // what would be sent is another
  #list = byId("cards");
  #modalities = []; // as the server describes them; none where it does not

  constructor() {
    byId("add-text").onclick = () => this.#addText("").querySelector("textarea").focus();
    for (const [control, id] of Object.entries({ "add-picture": "file", "add-sound": "sound-file" })) {
      byId(control).onclick = () => byId(id).click();
      byId(id).onchange = async (event) => {
        const files = [...event.target.files];
        event.target.value = ""; // so that the same file can be picked again
        await this.addFiles(files);
      };
    }
    document.addEventListener("paste", (event) => this.#paste(event));
    document.addEventListener("dragover", (event) => this.#fileOver(event));
    document.addEventListener("drop", (event) => this.#fileDrop(event));
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? this.#unmark());
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("input", () => this.onchange());
    this.set([]);
  }

  /** Offer what this model reads. */
  useModel({ chameleon: { modalities = [] } = {} } = {}) {
    this.#modalities = modalities;
    const reads = (media) => modalities.filter((each) => each.media === media && each.reads);
    byId("add-picture").hidden = modalities.length > 0 && !reads("image").length;
    byId("add-sound").hidden = !reads("audio").length;
    const offers = reads("codes").map(({ name }) =>
      button(`+ ${name}`, () => this.#addCodes(name, []).querySelector("input").focus(), { className: "add-codes" }),
    );
    byId("add-codes").replaceChildren(...offers);
  }

  /** The parts, in order, as `set` takes them: {type: "text", text}, {type: "image", url, alt}, {type: "audio", url, name} or
   *  {type: "codes", modality, codes}; `modality` of a picture or a sound where it is known. Empty words are left out. */
  content() {
    const parts = [...this.#list.children].map(({ given }) => given());
    return parts.filter((part) => part.type !== "text" || part.text.trim());
  }

  /** What is wrong with the first part that cannot be sent, which gets the focus; empty if all can. */
  check() {
    for (const card of this.#list.children) {
      const part = card.given();
      const modality = this.#modalities.find(({ name }) => name === part.modality);
      const wrong = part.type === "codes" && modality ? problem(part.codes, modality) : "";
      const input = card.querySelector("input");
      if (wrong) input.setAttribute("aria-invalid", "true");
      else input?.removeAttribute("aria-invalid");
      if (wrong) input.focus();
      if (wrong) return wrong;
    }
    return "";
  }

  set(parts) {
    this.#list.replaceChildren();
    for (const part of parts) this.#addPart(part, null);
    if (!this.#list.querySelector("textarea")) this.#addText("");
  }

  focus() {
    this.#list.querySelector("li:last-child textarea, li:last-child input, textarea")?.focus();
  }

  /** Add the pictures and sounds in `files` before the element `next`, or at the end; what is neither is named in a notice. */
  async addFiles(files, next = this.#place()) {
    for (const file of files) {
      try {
        const name = file.name?.replace(/\.\w+$/, "") ?? "";
        if (!isSoundFile(file)) this.add({ type: "image", url: await readPicture(file), alt: name }, next);
        else if (byId("add-sound").hidden) throw new Error(`${file.name}: this model reads no sounds.`);
        else this.add({ type: "audio", url: await readSound(file), name }, next);
      } catch (error) {
        notice(error.message);
      }
    }
  }

  /** Add a part before the element `next`, or at the end. */
  add(part, next = this.#place()) {
    this.#addPart(part, next?.isConnected ? next : null);
    say(`${KINDS[part.type]} added. `);
  }

  // They go before an empty text at the end: one goes on writing below them.
  #place() {
    const last = this.#list.lastElementChild;
    return last?.querySelector("textarea")?.value === "" ? last : null;
  }

  #addPart({ type, text, url, alt, name, codes, modality }, next) {
    if (type === "text") return this.#addText(text, next);
    if (type === "image") return this.#addPicture(url, alt, modality, next);
    return type === "audio" ? this.#addSound(url, name, modality, next) : this.#addCodes(modality, codes, next);
  }

  #addText(text, next = null) {
    const area = el("textarea", { value: text, rows: 1, placeholder: "Send a message", spellcheck: true });
    area.setAttribute("aria-describedby", "cards-help");
    return this.#card("text", area, next, () => ({ type: "text", text: area.value }));
  }

  #addPicture(url, alt = "", modality = undefined, next = null) {
    const picture = el("img", { src: url, alt });
    const input = el("input", { value: alt, placeholder: "Describe it for those who cannot see it" });
    input.addEventListener("input", () => (picture.alt = input.value));
    const hint = el("small", { textContent: "Stays on this page; the model does not get it." });
    const label = el("label", { className: "alt" }, el("span", { textContent: "Description" }), input, hint);
    const body = el("div", { className: "picture" }, picture, label);
    return this.#card("image", body, next, () => ({ type: "image", url: picture.src, alt: input.value, modality }));
  }

  #addSound(url, name = "", modality = undefined, next = null) {
    const body = el("div", { className: "sound" }, player(url), el("small", { textContent: name }));
    return this.#card("audio", body, next, () => ({ type: "audio", url, name, modality }));
  }

  #addCodes(modality, codes, next = null) {
    const known = this.#modalities.find(({ name }) => name === modality);
    const count = known?.span === "fixed" ? `${known.length} numbers` : "Numbers";
    const placeholder = known ? `${count} from 0 to ${known.ids - 1}, with commas` : "Numbers, with commas";
    const input = el("input", { value: codes.join(", "), placeholder, inputMode: "numeric", autocomplete: "off" });
    const label = el("label", { className: "codes-input" }, el("span", { textContent: modality }), input);
    return this.#card("codes", label, next, () => ({ type: "codes", modality, codes: parseCodes(input.value) }));
  }

  // `given` tells the part that the card stands for.
  #card(kind, body, next, given) {
    const grip = el("span", { className: "grip", textContent: "⠿", title: "Drag to move", ariaHidden: "true" });
    const card = el("li", { className: "card", dataset: { kind }, given }, grip, body);
    card.append(
      el(
        "div",
        { className: "card-buttons" },
        button("↑", () => this.#move(card, -1), { className: "up" }),
        button("↓", () => this.#move(card, 1), { className: "down" }),
        button("×", () => this.#remove(card), { className: "remove" }),
      ),
    );
    grip.addEventListener("pointerdown", (event) => this.#grab(event, card, grip));
    this.#list.insertBefore(card, next);
    this.#name();
    return card;
  }

  #remove(card) {
    const neighbour = card.nextElementSibling ?? card.previousElementSibling;
    card.remove();
    if (!this.#list.childElementCount) this.#addText("");
    this.#name();
    (neighbour ?? this.#list.firstElementChild).querySelector(FIELDS).focus();
    say("Part removed. ");
  }

  #move(card, step) {
    const cards = [...this.#list.children];
    const at = cards.indexOf(card) + step;
    if (at < 0 || at >= cards.length) return;
    const focused = document.activeElement;
    this.#list.insertBefore(card, step < 0 ? cards[at] : cards[at].nextElementSibling);
    focused.focus(); // an element that moves in the page loses it
    this.#name();
    say(`Moved to position ${at + 1} of ${cards.length}. `);
  }

  // Names tell place and kind, so they change whenever the order does.
  #name() {
    const cards = [...this.#list.children];
    for (const [i, card] of cards.entries()) {
      const name = `${KINDS[card.dataset.kind]}, part ${i + 1} of ${cards.length}`;
      card.querySelector(FIELDS).ariaLabel = card.dataset.kind === "image" ? `${name}: description` : name;
      card.querySelector(".up").ariaLabel = `Move up: ${name}`;
      card.querySelector(".down").ariaLabel = `Move down: ${name}`;
      card.querySelector(".remove").ariaLabel = `Remove: ${name}`;
      card.querySelector(".up").disabled = i === 0;
      card.querySelector(".down").disabled = i === cards.length - 1;
    }
    this.#list.classList.toggle("alone", cards.length === 1 && cards[0].dataset.kind === "text");
    this.onchange();
  }

  #key(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const card = event.target.closest(".card");
    if (!event.altKey || !step || !card) return;
    event.preventDefault();
    this.#move(card, step);
  }

  // Pointer events and not drag-and-drop: they also come from fingers. Cards change places while the pointer moves.
  #grab(event, card, grip) {
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
    const home = card.nextElementSibling;
    card.classList.add("held");
    const drag = (moved) => {
      const other = [...this.#list.children].find((each) => {
        const box = each.getBoundingClientRect();
        return each !== card && moved.clientY > box.top && moved.clientY < box.bottom;
      });
      if (!other) return;
      const box = other.getBoundingClientRect();
      const below = card.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING;
      // Past the middle only, or cards of unlike heights would change places for ever.
      if (below && moved.clientY > box.top + box.height / 2) other.after(card);
      if (!below && moved.clientY < box.top + box.height / 2) other.before(card);
    };
    const end = (ended) => {
      if (ended.type === "keydown" && ended.key !== "Escape") return;
      if (ended.type === "keydown") {
        ended.stopPropagation(); // this Escape is not the one that stops an answer
        this.#list.insertBefore(card, home);
      }
      ending.abort();
      card.classList.remove("held");
      this.#name();
    };
    // On the document: the grip leaves the page for an instant whenever its card moves, and with it the capture.
    const ending = new AbortController();
    const options = { signal: ending.signal, capture: true };
    document.addEventListener("pointermove", drag, options);
    for (const type of ["pointerup", "pointercancel", "keydown"]) document.addEventListener(type, end, options);
  }

  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/") || isSoundFile(file));
    if (!files.length) return;
    event.preventDefault();
    const card = event.target.closest?.("#cards .card");
    this.addFiles(files, card ? this.#split(card) : undefined);
  }

  /** Where a file pasted into `card` goes: at the caret, so words behind it become a card of their own. */
  #split(card) {
    const area = card.querySelector("textarea");
    if (!area) return card.nextElementSibling;
    const after = area.value.slice(area.selectionEnd);
    if (!area.value.slice(0, area.selectionStart).trim()) return card;
    area.setRangeText("", area.selectionStart, area.value.length, "end");
    return this.#addText(after.replace(/^\n/, ""), card.nextElementSibling);
  }

  #fileOver(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    document.body.classList.add("dropping");
    const next = this.#dropPlace(event);
    this.#unmark(true);
    next?.classList.add("before");
  }

  #dropPlace(event) {
    const card = event.target.closest?.("#cards .card");
    if (!card) return this.#place();
    const box = card.getBoundingClientRect();
    return event.clientY < box.top + box.height / 2 ? card : card.nextElementSibling;
  }

  #fileDrop(event) {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault(); // else the browser leaves the page for the file
    const next = this.#dropPlace(event);
    this.#unmark();
    this.addFiles([...event.dataTransfer.files], next);
  }

  #unmark(still = false) {
    for (const card of this.#list.querySelectorAll(".before")) card.classList.remove("before");
    if (!still) document.body.classList.remove("dropping");
  }
}
