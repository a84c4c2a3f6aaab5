// The page: binds prompt, settings, conversation and server together.

import { Answer } from "./answer.js";
import { ApiError, forgetKey, getModels, hasKey, setKeyAsker, streamChat } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { button, byId, el } from "./dom.js";
import { clearNotices, notice } from "./notices.js";
import { Settings } from "./settings.js";
import { watchServer } from "./status.js";
import { connectTheme } from "./theme.js";

const EXAMPLES = [
  ["Draw a picture", "image", "A red fox asleep in fresh snow."],
  ["Tell with pictures", "interleaved", "How do I fold a paper crane? Show each step."],
  ["Ask about a picture", "text", "What is in this picture?"],
];

const composer = new Composer();
const settings = new Settings(byId("settings"));
const conversation = new Conversation({ edit, again, proceed });
let running = null; // the AbortController of the answer under way
let editing = null; // the number of the exchange that the prompt will replace
let models = [];

// --- asking -------------------------------------------------------------------------------------------------------------------

async function run() {
  if (!models.length) await loadModels(); // no server or no key when the page came
  if (!models.length) return;
  const chosen = settings.request();
  const content = composer.content();
  if (running || !chosen) return;
  const wrong = composer.check();
  if (wrong) return notice(wrong);
  if (!content.length && chosen.format !== "completion" && settings.kinds(chosen.mode).includes("text")) {
    composer.focus();
    notice("Write something or add a picture first.", { kind: "hint" });
    return;
  }
  const [before, place] = [conversation.snapshot(), editing];
  if (editing !== null) conversation.truncate(editing);
  stopEditing();
  conversation.add(content);
  const isTyping = byId("cards").contains(document.activeElement);
  composer.set([]);
  if (isTyping) composer.focus(); // the card with the focus is gone
  const isAnswered = await generate(chosen, run);
  if (isAnswered) return;
  conversation.restore(before); // nothing came: all is as it was, to be put right and sent again
  if (!composer.content().length) composer.set(content);
  if (place !== null) startEditing(place);
}

async function again(i, isNewSeed) {
  if (running) return;
  const before = conversation.snapshot();
  const { answers, shown } = conversation.at(i);
  const seed = isNewSeed ? Math.floor(Math.random() * 2 ** 31) : answers[shown].settings.seed;
  const retry = () => again(i, isNewSeed);
  if (!(await generate({ ...answers[shown].settings, seed }, retry))) conversation.restore(before);
}

/** Answer the last exchange; false if nothing came of it. `retry` does what led here once more. */
async function generate(chosen, retry) {
  clearNotices();
  const answer = new Answer(chosen, { use });
  const messages = conversation.messages(chosen.format);
  conversation.addAnswer(answer);
  setRunning(new AbortController());
  follow();
  try {
    const body = { model: byId("model").value, messages, ...chosen, stream: true, stream_options: { include_usage: true }, return_token_ids: true };
    for await (const chunk of streamChat(body, running.signal)) answer.take(chunk);
    answer.end("done");
  } catch (error) {
    if (error.name === "AbortError") answer.end("stopped");
    else {
      answer.end("failed", error.message);
      complain(error, retry);
    }
  } finally {
    setRunning(null);
  }
  return answer.state === "done" || !answer.isEmpty;
}

function setRunning(controller) {
  running = controller;
  const [pressed, next] = controller ? [byId("run"), byId("stop")] : [byId("stop"), byId("run")];
  const isPressed = document.activeElement === pressed;
  next.disabled = false;
  if (isPressed) next.focus(); // a button that is disabled would lose the focus to nowhere
  pressed.disabled = true;
  byId("new-chat").disabled = controller !== null;
  document.body.classList.toggle("running", controller !== null);
  byId("forget-key").hidden = !hasKey();
  askServer();
}

const stop = () => running?.abort();

function complain(error, retry = null) {
  if (!(error instanceof ApiError)) console.error(error); // a mistake of this page
  const actions = [];
  const seconds = error.retryAfter && Math.ceil(error.retryAfter);
  if (error.status === 429 && retry) actions.push(["Try again", retry]);
  const wait = seconds ? ` Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.` : "";
  notice(error.message + wait, { actions });
  if (error.param) settings.blame(error.param);
}

// --- the conversation ---------------------------------------------------------------------------------------------------------

function startEditing(i) {
  editing = i;
  byId("editing").hidden = false;
  byId("editing-text").textContent = `Editing prompt ${i + 1}: Run replaces it and what follows.`;
  conversation.dim(i);
}

function stopEditing() {
  editing = null;
  byId("editing").hidden = true;
  conversation.dim(null);
}

function edit(i) {
  if (running) return;
  composer.set(conversation.at(i).content);
  startEditing(i);
  composer.focus();
}

function proceed(i) {
  const { content, answers, shown } = conversation.at(i);
  composer.set(joined([...content, ...answers[shown].content()]));
  stopEditing();
  composer.focus();
}

// The answer goes on in the middle of a line: two texts in a row are one.
function joined(parts) {
  return parts.reduce((all, part) => {
    const last = all.at(-1);
    if (part.type !== "text" || last?.type !== "text") return [...all, part];
    return [...all.slice(0, -1), { type: "text", text: last.text + part.text }];
  }, []);
}

function use(part) {
  composer.add(part);
  composer.focus();
}

function newChat() {
  stopEditing();
  const before = conversation.snapshot();
  conversation.truncate(0);
  composer.focus();
  if (before.length) notice("Conversation cleared.", { kind: "hint", actions: [["Undo", () => conversation.restore(before)]] });
}

// The end stays in sight while the conversation grows, unless someone has scrolled up to read.
const isWide = matchMedia("(min-width: 60rem)");
const scroller = () => (isWide.matches ? byId("conversation") : document.scrollingElement);
let isFollowing = true;

function follow() {
  isFollowing = true;
  scroller().scrollTop = scroller().scrollHeight;
}

function noteScroll() {
  const { scrollHeight, scrollTop, clientHeight } = scroller();
  isFollowing = scrollHeight - scrollTop - clientHeight < 80;
}

// --- the server ---------------------------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    models = await getModels();
  } catch (error) {
    complain(error);
    return;
  }
  byId("forget-key").hidden = !hasKey();
  byId("model").replaceChildren(...models.map(({ id }) => el("option", { value: id, textContent: id })));
  useModel();
}

function useModel() {
  const model = models[byId("model").selectedIndex];
  settings.useModel(model);
  composer.useModel(model);
}

function askKey(isRefused) {
  const [dialog, input] = [byId("key-dialog"), byId("key")];
  byId("key-why").textContent = isRefused
    ? "The server refused this key."
    : "This server asks for a key. It is kept until this tab is closed.";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      resolve(input.value.trim());
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(null);
  });
}

// --- start --------------------------------------------------------------------------------------------------------------------

setKeyAsker(askKey);
connectTheme(byId("theme"));
const askServer = watchServer(
  () => running !== null,
  (queued) => conversation.length && running && conversation.at(-1).answers.at(-1)?.queue(queued),
);
for (const [title, kind, text] of EXAMPLES) {
  const fill = () => {
    settings.setMode(kind);
    const given = composer.content().filter((part) => part.type !== "text");
    composer.set([...given, { type: "text", text }]);
    composer.focus();
  };
  byId("examples").append(el("li", {}, button(title, fill)));
}
byId("composer").onsubmit = (event) => {
  event.preventDefault();
  run();
};
byId("stop").onclick = stop;
byId("cancel-edit").onclick = () => {
  composer.set([]);
  stopEditing();
};
byId("new-chat").onclick = newChat;
byId("forget-key").onclick = () => {
  forgetKey();
  byId("forget-key").hidden = true;
};
byId("model").onchange = useModel;
byId("settings-fold").open = isWide.matches;
isWide.onchange = () => (byId("settings-fold").open = isWide.matches);
for (const target of [document, byId("conversation")]) target.addEventListener("scroll", noteScroll, { passive: true });
new ResizeObserver(() => running && isFollowing && follow()).observe(byId("exchanges")); // pictures grow when they are decoded
document.addEventListener("keydown", (event) => {
  if (byId("key-dialog").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
  if (event.key === "Escape") stop();
});
loadModels();
composer.focus();
