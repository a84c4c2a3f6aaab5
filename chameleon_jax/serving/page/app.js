// The page: binds prompt, settings, chats and server together.

import { fill, newAnswers } from "./asking.js";
import { forgetKey, getModels, hasKey, setKeyAsker } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { byId, el } from "./dom.js";
import { keepDraft, readDraft, rememberChat, rememberedChat } from "./drafts.js";
import { pngSize } from "./files.js";
import { showExamples } from "./examples.js";
import { Keeper } from "./keeper.js";
import { askKey } from "./keydialog.js";
import { Library } from "./library.js";
import { showMeter, usedBy } from "./meter.js";
import { clearNotices, notice } from "./notices.js";
import { closeOverlay, connectPanels, setPanel } from "./panels.js";
import { connectPreference, preference } from "./preferences.js";
import { gridOf, openRedraw } from "./redraw.js";
import { connectScrolling, follow, keepUp } from "./scrolling.js";
import { newSeed, Settings } from "./settings.js";
import { watchServer } from "./status.js";
import { deleteChat } from "./store.js";
import { connectTheme } from "./theme.js";
import { exportChats, importChats } from "./transfer.js";

const composer = new Composer();
const settings = new Settings(byId("settings"));
const conversation = new Conversation({ edit, again, proceed, use, turned, explain, canExplain, redraw, canRedraw });
const library = new Library({ open: openChat, rename, save, remove });
const keeper = new Keeper((head) => library.put(head));
const live = new Map(); // by id, chats with answers under way: they go on when another is in sight
let chat = new Chat();
const LIKELIHOODS = { logprobs: true, top_logprobs: 5 };
let editing = null; // the number of the exchange that the prompt will replace
let models = [];

// --- asking -------------------------------------------------------------------------------------------------------------------

async function run() {
  if (!models.length) await loadModels(); // no server or no key when the page came
  await restored;
  if (!models.length) return;
  const request = settings.request();
  const content = composer.content();
  if (chat.running || !request) return;
  if (preference("likelihoods")) Object.assign(request, LIKELIHOODS);
  const wrong = composer.check();
  if (wrong) return notice(wrong);
  if (!content.length && request.format !== "completion" && settings.kinds(request.mode).includes("text")) {
    composer.focus();
    notice("Write something or add a picture first.", { kind: "hint" });
    return;
  }
  const [asked, before, place] = [chat, chat.snapshot(), editing];
  if (editing !== null) asked.truncate(editing);
  stopEditing();
  asked.add(content);
  asked.settings = settings.changed;
  const isTyping = byId("cards").contains(document.activeElement);
  composer.set([]);
  if (isTyping) composer.focus(); // the card with the focus is gone
  if (await generate(asked, chosenModels(), request, run)) return;
  asked.restore(before); // nothing came: all is as it was, to be put right and sent again
  keeper.keep(asked);
  if (!asked.length) forget(asked);
  if (asked !== chat) return keepDraft(asked.id, content);
  conversation.refresh();
  if (!composer.content().length) composer.set(content);
  if (place !== null) startEditing(place);
}

async function again(i, { newSeed: isNewSeed = false, instead = false, fields = {} }) {
  const asked = chat;
  if (asked.running) return;
  const before = asked.snapshot();
  const answers = asked.shown(i);
  const request = { ...answers[0].request, ...(isNewSeed && { seed: newSeed() }), ...fields };
  const names = [...new Set(answers.map(({ model }) => model))];
  const retry = () => again(i, { newSeed: isNewSeed, instead, fields });
  if (await generate(asked, names, request, retry, instead)) return;
  asked.restore(before);
  keeper.keep(asked);
  if (asked === chat) conversation.refresh();
}

/** Answer the last exchange of a chat; false if nothing came of it. `retry` does what led here once more. */
async function generate(asked, names, request, retry, instead = false) {
  clearNotices();
  const groups = newAnswers(names, request);
  const answers = groups.flatMap((group) => group.answers);
  const messages = asked.messages(request);
  asked.addTry(answers, instead);
  Object.assign(asked, { updated: Date.now(), models: names, running: new AbortController() });
  live.set(asked.id, asked);
  for (const answer of answers) answer.onkeep = () => keeper.keep(asked);
  keeper.keep(asked);
  showChat();
  follow();
  const { signal } = asked.running;
  const errors = (await Promise.all(groups.map((group) => fill(group, messages, request, signal)))).filter(Boolean);
  Object.assign(asked, { running: null, updated: Date.now() });
  live.delete(asked.id);
  keeper.keep(asked);
  keeper.flush();
  if (errors.length) complain(errors[0], asked === chat ? retry : null);
  if (asked === chat) showRunning();
  if (asked === chat) keepUp();
  return answers.some((answer) => answer.state === "done" || !answer.isEmpty);
}

// Run and stop change places with what the chat in sight does.
function showRunning() {
  const isRunning = chat.running !== null;
  const [pressed, next] = isRunning ? [byId("run"), byId("stop")] : [byId("stop"), byId("run")];
  const isPressed = document.activeElement === pressed;
  next.disabled = false;
  document.body.classList.toggle("running", isRunning);
  if (isPressed) next.focus(); // a button that is gone would lose the focus to nowhere
  pressed.disabled = true;
  byId("forget-key").hidden = !hasKey();
  conversation.showEnds();
  showMeter(usedBy(chat), model()?.chameleon?.context);
  askServer();
}

const stop = () => chat.running?.abort();

function complain(error, retry = null) {
  const actions = [];
  const seconds = error.retryAfter && Math.ceil(error.retryAfter);
  if ([429, 503].includes(error.status) && retry) actions.push(["Try again", retry]);
  const wait = seconds ? ` Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.` : "";
  notice(error.message + wait, { actions });
  if (error.param) settings.blame(error.param);
}

// --- the chat in sight ----------------------------------------------------------------------------------------------------------

function showChat() {
  conversation.show(chat);
  library.mark(chat.id);
  rememberChat(chat.id);
  byId("chat-title").textContent = chat.title;
  document.title = chat.length ? `${chat.title} · chameleon_jax` : "chameleon_jax";
  showRunning();
}

function startEditing(i) {
  editing = i;
  byId("editing").hidden = false;
  byId("editing-text").textContent = `Editing prompt ${i + 1}: sending replaces it and what follows.`;
  conversation.dim(i);
}

function stopEditing() {
  editing = null;
  byId("editing").hidden = true;
  conversation.dim(null);
}

function edit(i) {
  if (chat.running) return;
  composer.set(chat.at(i).content);
  startEditing(i);
  composer.focus();
}

function proceed(i) {
  const { content, tries, shown, chosen } = chat.at(i);
  composer.set(joined([...content, ...tries[shown][chosen].content()]));
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

// Only the last exchange can be answered anew: what follows the others was said after their answers.
const isLast = (answer) => !chat.running && chat.length > 0 && chat.shown(-1).includes(answer);

function canExplain(answer) {
  return isLast(answer) && !answer.isOpen;
}

function explain() {
  again(chat.length - 1, { instead: true, fields: LIKELIHOODS });
}

// A server that tells the codes of a picture also takes them back.
function gridOfPart({ type, url, codes, partial }) {
  const size = type === "image" && !partial && codes && pngSize(url);
  return size ? gridOf(codes.length, ...size) : null;
}

function canRedraw(answer, part) {
  return isLast(answer) && !answer.isOpen && gridOfPart(part) !== null;
}

function redraw({ request }, part) {
  const { url, codes, modality = "image" } = part;
  const [columns] = gridOfPart(part);
  const act = (kept) => {
    const fields = { mode: modality, max_images: 1, keep: { modality, codes: kept } };
    if (request.image_size) fields.image_size = pngSize(url).join("x");
    again(chat.length - 1, { newSeed: true, fields });
  };
  openRedraw({ url, alt: "The picture", codes, columns, act });
}

function turned() {
  keeper.keep(chat);
  showMeter(usedBy(chat), model()?.chameleon?.context);
}

// --- chats ----------------------------------------------------------------------------------------------------------------------

/** Put a chat in sight, with what was being written in it. */
function enter(next) {
  keepDraft(chat.id, composer.content());
  stopEditing();
  clearNotices();
  chat = next;
  settings.use(chat.length ? chat.settings : settings.ofNewChat());
  useModelsOf(chat);
  composer.set(readDraft(chat.id));
  showChat();
  follow();
}

async function openChat(id) {
  const found = live.get(id) ?? (id === chat.id ? chat : await keeper.read(id).catch(() => null));
  if (!found) return library.load(); // deleted in another tab
  if (found !== chat) enter(found);
  closeOverlay();
  composer.focus();
}

function newChat() {
  if (chat.length) enter(new Chat());
  closeOverlay();
  composer.focus();
}

async function rename(id, name) {
  const found = await kept(id);
  if (!found) return;
  found.name = name;
  keeper.keep(found);
  if (found === chat) showChat();
}

const kept = async (id) => (id === chat.id ? chat : (live.get(id) ?? (await keeper.read(id))));

async function save(id) {
  const found = await kept(id);
  if (found) exportChats([found], fileName(found.title));
}

const fileName = (title) => `chameleon-${title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "chat"}`;

async function remove(id) {
  const gone = await kept(id);
  if (!gone) return library.load();
  gone.running?.abort();
  gone.isGone = true;
  await forget(gone);
  const isShown = gone === chat;
  if (isShown) enter(new Chat());
  const undo = () => {
    gone.isGone = false;
    keeper.keep(gone);
    if (isShown && !chat.length) enter(gone);
  };
  notice(`“${gone.title}” was deleted.`, { kind: "hint", actions: [["Undo", undo]] });
}

async function forget(gone) {
  keeper.drop(gone);
  try {
    await deleteChat(gone.id);
    library.drop(gone.id); // not before: what the list lacks does not come back
  } catch (error) {
    notice(`The chat could not be deleted: ${error.message}`);
  }
}

async function bringIn(file) {
  try {
    const brought = await importChats(file);
    for (const each of brought) keeper.keep(each);
    notice(`${brought.length} ${brought.length === 1 ? "chat" : "chats"} imported.`, { kind: "hint" });
  } catch (error) {
    notice(error.message);
  }
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
  const options = () => models.map(({ id }) => el("option", { value: id, textContent: id }));
  byId("model").replaceChildren(...options());
  byId("other").replaceChildren(el("option", { value: "", textContent: "Compare with…" }), ...options());
  byId("other-label").hidden = models.length < 2;
  useModel();
}

const model = () => models[byId("model").selectedIndex];

function chosenModels() {
  const [first, second] = [byId("model").value, byId("other").value];
  return second && second !== first ? [first, second] : [first];
}

function useModelsOf({ models: names }) {
  const known = names.filter((name) => models.some(({ id }) => id === name));
  if (!known.length) return;
  byId("model").value = known[0];
  byId("other").value = known[1] ?? "";
  useModel();
}

function useModel() {
  settings.useModel(model());
  composer.useModel(model());
  showMeter(usedBy(chat), model()?.chameleon?.context);
  showExamples(model(), (kind, text) => {
    settings.setMode(kind);
    const given = composer.content().filter((part) => part.type !== "text");
    composer.set([...given, { type: "text", text }]);
    composer.focus();
  });
}

// --- start --------------------------------------------------------------------------------------------------------------------

setKeyAsker(askKey);
connectTheme(byId("theme"));
connectPanels();
connectScrolling(() => chat.running !== null);
connectPreference("enter", byId("enter-sends"), () => {});
connectPreference("likelihoods", byId("ask-likelihoods"), () => {});
connectPreference("markdown", byId("show-markdown"), () => conversation.redraw());
const askServer = watchServer(
  () => live.size > 0,
  (queued) => chat.running && chat.shown(-1).forEach((answer) => answer.waitFor(queued)),
);
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
byId("import").onclick = () => byId("import-file").click();
byId("import-file").onchange = async (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // so that the same file can be picked again
  if (file) await bringIn(file);
};
byId("export-all").onclick = async () => exportChats((await Promise.all(library.ids.map(kept))).filter(Boolean), "chameleon-chats");
byId("forget-key").onclick = () => {
  forgetKey();
  byId("forget-key").hidden = true;
};
byId("model").onchange = useModel;
settings.onopen = () => setPanel("controls", true);
settings.onchange = () => {
  chat.settings = settings.changed;
  keeper.keep(chat);
};
addEventListener("pagehide", () => keepDraft(chat.id, composer.content()));
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const isSent = event.ctrlKey || event.metaKey || (preference("enter") && !event.shiftKey && event.target.closest("#cards textarea"));
  if (event.key === "Enter" && isSent && !event.altKey && !event.isComposing) {
    event.preventDefault();
    run();
  }
  if (event.key === "Escape" && !closeOverlay()) stop();
});

// What was being written is there at once; the chat of before comes from the store a little later.
async function restore() {
  const id = rememberedChat();
  if (!id) return;
  chat.id = id;
  composer.set(readDraft(id));
  const found = await keeper.read(id).catch(() => null);
  if (!found) return;
  chat = found;
  settings.use(chat.settings);
}

const restored = restore();
composer.focus();
library.load();
await Promise.all([loadModels(), restored]);
useModelsOf(chat);
showChat();
follow();
