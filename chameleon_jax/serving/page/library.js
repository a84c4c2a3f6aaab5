// The list of kept chats: search, open, rename, export, delete.

import { button, byId, el, iconButton } from "./dom.js";
import { openMenu } from "./menu.js";
import { listHeads } from "./store.js";

const DAY = 24 * 3600 * 1000;

export class Library {
  #heads = [];
  #current = null;
  #seen = ""; // what the rows show
  #actions;

  /** `actions`: open(id), rename(id, name), save(id), remove(id). */
  constructor(actions) {
    this.#actions = actions;
    byId("search").addEventListener("input", () => this.#show());
    byId("search").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !byId("search").value) return;
      event.stopPropagation();
      byId("search").value = "";
      this.#show();
    });
    byId("chats").addEventListener("keydown", (event) => this.#key(event));
  }

  /** Read the list anew; without a store it stays empty. */
  async load() {
    this.#heads = await listHeads().catch(() => []);
    this.#show();
  }

  get ids() {
    return this.#heads.map(({ id }) => id);
  }

  /** A chat was written: the newest is the first. */
  put(head) {
    this.#heads = [head, ...this.#heads.filter(({ id }) => id !== head.id)].sort((a, b) => b.updated - a.updated);
    this.#show();
  }

  drop(id) {
    this.#heads = this.#heads.filter((head) => head.id !== id);
    this.#show();
  }

  mark(id) {
    this.#current = id;
    this.#show();
  }

  #show() {
    if (byId("chats").querySelector("input")) return; // a name is being written
    byId("no-chats").textContent = this.#heads.length ? "No chat has these words." : "Chats are kept in this browser.";
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.#heads.filter(({ title, text }) => words.every((word) => title.toLowerCase().includes(word) || text.includes(word)));
    byId("no-chats").hidden = found.length > 0;
    const seen = JSON.stringify([this.#current, ...found.map(({ id, title, updated }) => [id, title, age(updated)])]);
    if (seen === this.#seen) return; // a row that is made anew under a finger is not pressed
    this.#seen = seen;
    const focused = document.activeElement?.closest?.("#chats li")?.dataset.id;
    let last = null;
    const rows = found.flatMap((head) => {
      const when = age(head.updated);
      const row = this.#row(head);
      if (when === last) return [row];
      last = when;
      return [el("li", { className: "when", textContent: when }), row];
    });
    byId("chats").replaceChildren(...rows);
    if (focused) byId("chats").querySelector(`[data-id="${focused}"] .open`)?.focus();
  }

  #row({ id, title }) {
    const open = button(title, () => this.#actions.open(id), { className: "open", title });
    if (id === this.#current) open.setAttribute("aria-current", "page");
    const more = iconButton("more", `More for: ${title}`, () =>
      openMenu(more, [
        ["Rename", () => this.#rename(id, title)],
        ["Export", () => this.#actions.save(id)],
        ["Delete", () => this.#actions.remove(id), "danger"],
      ]),
    );
    more.setAttribute("aria-haspopup", "menu");
    more.ariaExpanded = "false";
    return el("li", { dataset: { id } }, open, more);
  }

  #rename(id, title) {
    const row = byId("chats").querySelector(`[data-id="${id}"]`);
    const input = el("input", { value: title, ariaLabel: "Name of the chat", maxLength: 200 });
    let isOpen = true;
    const end = (name) => {
      if (!isOpen) return;
      isOpen = false;
      const hadFocus = row.contains(document.activeElement);
      row.replaceChildren();
      this.#seen = "";
      if (name && name !== title) this.#actions.rename(id, name);
      this.#show();
      if (hadFocus) byId("chats").querySelector(`[data-id="${id}"] .open`)?.focus();
    };
    input.onkeydown = (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault(); // or it would press the button that gets the focus
      end(event.key === "Enter" ? input.value.trim() : null);
    };
    input.onblur = () => end(input.value.trim());
    row.replaceChildren(input);
    input.select();
  }

  // Up and down move through the list, Delete deletes.
  #key(event) {
    const here = event.target.closest("li");
    if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
    const rows = [...byId("chats").querySelectorAll("li[data-id]")];
    const at = rows.indexOf(here);
    const to = { ArrowDown: rows[at + 1], ArrowUp: rows[at - 1], Home: rows[0], End: rows.at(-1) }[event.key];
    if (to) to.querySelector(".open")?.focus();
    else if (event.key === "Delete") {
      this.#actions.remove(here.dataset.id);
      (byId("chats").querySelectorAll(".open")[Math.min(at, rows.length - 2)] ?? byId("new-chat")).focus();
    } else return;
    event.preventDefault();
  }
}

function age(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "Last 7 days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
