// The prompt as a list of cards, words or a picture each. The list in the page is the state: a card that moves is an element that moves.

import { button, byId, el } from "./dom.js";
import { notice, say } from "./notices.js";
import { readPicture } from "./pictures.js";

export class Composer {
  #list = byId("cards");

  constructor() {
    byId("add-text").onclick = () => this.#addText("").querySelector("textarea").focus();
    byId("add-picture").onclick = () => byId("file").click();
    byId("file").onchange = async (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // so that the same file can be picked again
      await this.addFiles(files);
    };
    document.addEventListener("paste", (event) => this.#paste(event));
    document.addEventListener("dragover", (event) => this.#fileOver(event));
    document.addEventListener("drop", (event) => this.#fileDrop(event));
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? this.#unmark());
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    this.set([]);
  }

  /** The parts, in order: {type: "text", text} or {type: "image", url, alt}. Empty words are left out. */
  content() {
    const parts = [...this.#list.children].map((card) =>
      card.dataset.kind === "text"
        ? { type: "text", text: card.querySelector("textarea").value }
        : { type: "image", url: card.querySelector("img").src, alt: card.querySelector("input").value },
    );
    return parts.filter((part) => part.type === "image" || part.text.trim());
  }

  set(parts) {
    this.#list.replaceChildren();
    for (const part of parts) part.type === "text" ? this.#addText(part.text) : this.#addPicture(part.url, part.alt);
    if (!this.#list.querySelector("textarea")) this.#addText("");
  }

  focus() {
    this.#list.querySelector("li:last-child textarea, li:last-child input, textarea")?.focus();
  }

  /** Add the pictures in `files` before the element `next`, or at the end; what is no picture is named in a notice. */
  async addFiles(files, next = this.#place()) {
    for (const file of files) {
      try {
        this.addPicture(await readPicture(file), file.name?.replace(/\.\w+$/, "") ?? "", next);
      } catch (error) {
        notice(error.message);
      }
    }
  }

  addPicture(url, alt = "", next = this.#place()) {
    this.#addPicture(url, alt, next?.isConnected ? next : null);
    say("Picture added. ");
  }

  // Pictures go before an empty text at the end: one goes on writing below them.
  #place() {
    const last = this.#list.lastElementChild;
    return last?.querySelector("textarea")?.value === "" ? last : null;
  }

  #addText(text, next = null) {
    const area = el("textarea", { value: text, rows: 1, placeholder: "Write here", spellcheck: true });
    area.setAttribute("aria-describedby", "cards-help");
    return this.#card("text", area, next);
  }

  #addPicture(url, alt, next = null) {
    const picture = el("img", { src: url, alt });
    const input = el("input", { value: alt, placeholder: "Describe it for those who cannot see it" });
    input.addEventListener("input", () => (picture.alt = input.value));
    const hint = el("small", { textContent: "Stays on this page; the model does not get it." });
    const label = el("label", { className: "alt" }, el("span", { textContent: "Description" }), input, hint);
    return this.#card("image", el("div", { className: "picture" }, picture, label), next);
  }

  #card(kind, body, next) {
    const grip = el("span", { className: "grip", textContent: "⠿", title: "Drag to move", ariaHidden: "true" });
    const card = el("li", { className: "card", dataset: { kind } }, grip, body);
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
    (neighbour ?? this.#list.firstElementChild).querySelector("textarea, input").focus();
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
      const name = `${card.dataset.kind === "text" ? "Text" : "Picture"}, part ${i + 1} of ${cards.length}`;
      card.querySelector("textarea, .alt input").ariaLabel = card.dataset.kind === "text" ? name : `${name}: description`;
      card.querySelector(".up").ariaLabel = `Move up: ${name}`;
      card.querySelector(".down").ariaLabel = `Move down: ${name}`;
      card.querySelector(".remove").ariaLabel = `Remove: ${name}`;
      card.querySelector(".up").disabled = i === 0;
      card.querySelector(".down").disabled = i === cards.length - 1;
    }
    this.#list.classList.toggle("alone", cards.length === 1 && cards[0].dataset.kind === "text");
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
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (!files.length) return;
    event.preventDefault();
    const card = event.target.closest?.("#cards .card");
    this.addFiles(files, card ? this.#split(card) : undefined);
  }

  /** Where a picture pasted into `card` goes: at the caret, so words behind it become a card of their own. */
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
