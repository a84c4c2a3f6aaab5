// Chats as a file: all of them or one, and back. A file is not trusted: only what a chat can hold is read, and only data is shown.

import { Chat } from "./chat.js";
import { isDataOf, offer } from "./files.js";
import { newId } from "./ids.js";

const FORMAT = "chameleon_jax chats";

/** Offer the chats as a JSON file called `name`. */
export function exportChats(chats, name) {
  const content = { format: FORMAT, version: 1, chats: chats.map((chat) => chat.record((answer) => answer.record())) };
  offer(new Blob([JSON.stringify(content)], { type: "application/json" }), name);
}

/** The chats in a file, each with a new id: nothing that is here is replaced. Raises Error for a file that holds none. */
export async function importChats(file) {
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not a JSON file.`);
  }
  if (content?.format !== FORMAT || !Array.isArray(content.chats)) throw new Error(`${file.name} holds no chats of this page.`);
  try {
    return content.chats.map(readChat);
  } catch (error) {
    throw new Error(`${file.name} is damaged: ${error.message}`);
  }
}

function readChat(given) {
  const kept = {
    id: newId(),
    name: text(given.name),
    created: number(given.created),
    updated: number(given.updated),
    models: list(given.models).map(text),
    settings: plain(given.settings),
    exchanges: list(given.exchanges).map(({ content, tries, shown, chosen }) => ({
      content: list(content).map(readPart),
      tries: list(tries).map((answers) => list(answers).map(readAnswer)),
      shown: number(shown),
      chosen: number(chosen),
    })),
  };
  return Chat.from(kept, (answer) => answer);
}

const STATES = ["waiting", "running", "done", "stopped", "failed", "cut"];

function readAnswer(given) {
  if (!STATES.includes(given.state)) throw new Error("an answer has no state");
  return {
    id: newId(),
    model: text(given.model),
    request: { ...plain(given.request), seed: number(given.request?.seed) },
    parts: list(given.parts).map(readPart),
    ids: list(given.ids).map(number),
    promptIds: list(given.promptIds).map(number),
    likelihoods: list(given.likelihoods).map(({ id, token, logprob, top }) => ({
      id: number(id),
      token: text(token),
      logprob: number(logprob),
      top: list(top).map((each) => ({ token: text(each.token), logprob: number(each.logprob) })),
    })),
    usage: given.usage ? Object.fromEntries(Object.entries(plain(given.usage)).filter(([, value]) => Number.isFinite(value))) : null,
    state: given.state,
    note: text(given.note),
    notes: list(given.notes).map(text),
    rate: given.rate === null ? null : number(given.rate),
  };
}

function readPart({ type, text: words, url, alt, name, modality, codes, index, partial, done, of }) {
  if (type === "text") return { type, text: text(words) };
  if (!["image", "audio", "codes"].includes(type)) throw new Error(`a part is of no known kind`);
  const common = { type, modality: modality === undefined ? undefined : text(modality), index, partial: Boolean(partial), done, of };
  if (type === "codes") return { ...common, codes: list(codes).map(number) };
  if (url !== undefined && !isDataOf(type, url)) throw new Error("a picture or sound is not held in the file");
  return { ...common, url, alt: text(alt ?? ""), name: text(name ?? ""), ...(codes && { codes: list(codes).map(number) }) };
}

function wrong(what) {
  throw new Error(`there is ${what} where another thing should be`);
}
const text = (value) => (typeof value === "string" ? value : wrong(typeof value));
const number = (value) => (Number.isFinite(value) ? value : wrong(typeof value));
const list = (value) => (Array.isArray(value) ? value : wrong(typeof value));
const plain = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : wrong(typeof value));
