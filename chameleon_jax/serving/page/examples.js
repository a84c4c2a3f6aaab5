// Prompts to begin with, those that fit what the model reads and writes.

import { button, byId, el } from "./dom.js";

// [title, hint, kind of data to answer with, words, what the model has to read and write]
const EXAMPLES = [
  ["Draw a picture", "A red heart", "image", "A red heart", ["writes image"]],
  ["Tell with pictures", "How to fold a paper crane", "interleaved", "How do I fold a paper crane? Show each step.", ["writes image", "writes text"]],
  ["Ask about a picture", "Drop one here first", "text", "What is in this picture?", ["reads image", "writes text"]],
  ["Say it", "Words become sound", "audio", "Good morning.", ["writes audio"]],
  ["Write it down", "Sound becomes words", "text", "What is said here?", ["reads audio", "writes text"]],
  ["Act", "Words become numbers", "codes", "Go to the door.", ["writes codes"]],
  ["Continue a text", "Once upon a time", "text", "Once upon a time", ["writes text"]],
  ["Explain", "Why the sky is blue", "text", "Why is the sky blue?", ["writes text"]],
];
const MOST = 4;

/** Show those for this model; `choose(kind, words)` takes one. */
export function showExamples({ chameleon: { modalities, modes } = {} } = {}, choose) {
  const can = new Set(
    (modalities ?? []).flatMap(({ name, media, reads, writes }) => [
      ...(reads ? [`reads ${media}`] : []),
      ...(writes && (!modes || modes.includes(name)) ? [`writes ${media}`] : []),
    ]),
  );
  const hasMode = (kind) => kind !== "interleaved" || !modes || modes.includes(kind);
  const fit = EXAMPLES.filter(([, , kind, , needs]) => hasMode(kind) && (!modalities || needs.every((need) => can.has(need))));
  const known = modalities ? fit : EXAMPLES.slice(0, 3);
  byId("examples").replaceChildren(
    ...known.slice(0, MOST).map(([title, hint, kind, words]) => {
      const example = button("", () => choose(kind, words), { ariaLabel: title });
      example.append(el("strong", { textContent: title }), el("span", { textContent: hint }));
      return el("li", {}, example);
    }),
  );
  const media = new Set((modalities ?? []).map((each) => each.media));
  const isPlain = modalities && media.size === 1;
  byId("welcome-title").textContent = isPlain ? "What shall we write?" : media.has("audio") || media.has("codes") ? "Words, pictures and more, in any order" : "Words and pictures, in any order";
  byId("welcome-text").textContent = isPlain
    ? "Write below. Chats are kept in this browser only."
    : "Write below, or drop, paste or pick files. Chats are kept in this browser only.";
}
