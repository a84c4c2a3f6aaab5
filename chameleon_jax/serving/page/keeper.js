// Keeps chats as they change: at once, then at most every half second while an answer grows, and when the page goes.

import { Chat } from "./chat.js";
import { notice } from "./notices.js";
import { readChat, writeChat } from "./store.js";

const PAUSE = 400;

export class Keeper {
  #waiting = new Map(); // chat -> timer
  #again = new Set(); // chats that changed while their timer ran
  #written = new WeakMap(); // answer -> its revision
  #ids = new WeakMap(); // chat -> ids of its written answers
  #hasComplained = false;
  #onwrite;

  /** `onwrite(head)` is called after each write. */
  constructor(onwrite) {
    this.#onwrite = onwrite;
    addEventListener("pagehide", () => this.flush());
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
  }

  /** Write the chat soon; one without exchanges is nothing to keep. */
  keep(chat) {
    if (!chat.length || chat.isGone) return;
    if (this.#waiting.has(chat)) {
      this.#again.add(chat);
      return;
    }
    this.#write(chat);
    this.#waiting.set(chat, setTimeout(() => this.#rest(chat), PAUSE));
  }

  flush() {
    for (const chat of this.#again) this.#write(chat);
    this.#again.clear();
  }

  /** What was not written yet of a chat that goes is not. */
  drop(chat) {
    clearTimeout(this.#waiting.get(chat));
    this.#waiting.delete(chat);
    this.#again.delete(chat);
    for (const answer of chat.answers) this.#written.delete(answer); // it may come back
  }

  /** The kept chat, or null. */
  async read(id) {
    this.flush();
    const found = await readChat(id);
    if (!found) return null;
    const chat = Chat.from(found.chat, (ref) => found.answers.get(ref));
    for (const answer of chat.answers) this.#written.set(answer, answer.revision);
    this.#ids.set(chat, [...found.answers.keys()]);
    return chat;
  }

  #rest(chat) {
    this.#waiting.delete(chat);
    if (this.#again.delete(chat)) this.keep(chat);
  }

  async #write(chat) {
    const ids = chat.answers.map(({ id }) => id);
    const gone = (this.#ids.get(chat) ?? []).filter((id) => !ids.includes(id));
    this.#ids.set(chat, ids);
    const changed = chat.answers.filter((answer) => this.#written.get(answer) !== answer.revision);
    for (const answer of changed) this.#written.set(answer, answer.revision);
    const head = chat.head;
    try {
      await writeChat(head, chat.record(({ id }) => id), changed.map((answer) => answer.record()), gone);
      if (chat.length && !chat.isGone) this.#onwrite(head); // it may have gone meanwhile
    } catch (error) {
      for (const answer of changed) this.#written.delete(answer);
      if (!this.#hasComplained) notice(`This browser does not keep the chat: ${error?.message ?? error}. Export it to be safe.`);
      this.#hasComplained = true;
    }
  }
}
