// What a request asks for. Only what a person changed is kept: with the chat, and in this browser for the next new one.

import { button, byId, el } from "./dom.js";
import { FORMATS, GROUPS } from "./fields.js";

const KEY = "chameleon.settings";

// Of a server that does not describe its model.
const MODALITIES = [
  { name: "text", media: "text", reads: true, writes: true },
  { name: "image", media: "image", reads: true, writes: true },
];
const NOUNS = { text: "Words", image: "Pictures", audio: "Sounds" };
const CHOICES = { mode: "interleaved", format: "chat" }; // name: what it is where the server says nothing
const OF_ONE_CHAT = ["system", "seed"]; // not carried over to the next new one
const PREVIEWS = 16; // of a picture, however many codes it has
const SEEDS = 2 ** 31;

export const newSeed = () => Math.floor(Math.random() * SEEDS);

export class Settings {
  onchange = () => {};
  #form;
  #defaults = {}; // of fields, the words in one that is empty
  #previewEvery = 64;
  #modalities = MODALITIES;
  #inputs = { mode: byId("mode") }; // by name
  #kept = {}; // what a person changed, also of fields that this model lacks

  constructor(form) {
    this.#form = form;
    const format = this.#add("format", el("select"));
    const system = this.#add("system", el("textarea", { rows: 2, placeholder: "Goes before the chat" }));
    const size = this.#input("image_size", { type: "text", pattern: "[1-9][0-9]*x[1-9][0-9]*", title: "as in 768x512" });
    size.setAttribute("list", "sizes");
    const sizeField = field("Size of pictures", size, "width x height");
    sizeField.dataset.kinds = "image";
    const seed = this.#input("seed", { type: "number", min: 0, max: SEEDS - 1, step: 1 });
    const count = this.#input("n", { type: "number", min: 1, max: 8, step: 1 });
    form.append(
      field("Form of the prompt", format, " "),
      field("System prompt", system),
      el("div", { className: "fields" }, field("Seed", seed, "empty: always new"), field("Answers", count, "side by side"), sizeField),
      el("datalist", { id: "sizes" }),
    );
    const advanced = el("details", { className: "advanced" }, el("summary", { textContent: "Advanced" }));
    for (const group of GROUPS) advanced.append(this.#group(group));
    form.append(advanced, button("Back to defaults", () => this.#reset(), { className: "quiet" }));
    for (const source of [form, byId("mode")]) source.addEventListener("input", () => this.#save());
    form.addEventListener("submit", (event) => event.preventDefault());
    this.#offer();
    this.use(this.ofNewChat());
  }

  /** `model`: as the server lists it. All but its id is this server's own, and may be missing. */
  useModel({ defaults = {}, image_sizes: sizes = [], chameleon = {} } = {}) {
    const { modes, formats, modalities = MODALITIES, limits = {} } = chameleon;
    this.#modalities = modalities;
    const codes = Math.max(0, ...modalities.filter(({ media }) => media === "image").map(({ length }) => length ?? 0));
    this.#previewEvery = Math.ceil((codes || 1024) / PREVIEWS);
    this.#offer(modes, formats);
    const isMore = modalities.some(({ media }) => media === "audio" || media === "codes");
    this.#form.querySelector("[data-kinds^=text] legend").textContent = isMore ? "Words and other data" : "Words";
    this.#defaults = { seed: "random", image_size: "the model's", ...defaults, n: 1, partial_every: this.#previewEvery };
    this.#inputs.n.max = limits.choices ?? 8;
    this.#form.querySelector("#sizes").replaceChildren(...sizes.map((value) => el("option", { value })));
    this.use(this.#kept);
  }

  /** Show what was changed in a chat. */
  use(kept) {
    this.#kept = kept;
    for (const [name, input] of Object.entries(this.#inputs)) {
      if (!(name in CHOICES)) input.value = kept[name] ?? "";
      else input.value = [...input.options].some(({ value }) => value === kept[name]) ? kept[name] : this.#default(name);
    }
    this.#fit();
  }

  get changed() {
    return this.#kept;
  }

  ofNewChat() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch {
      localStorage.removeItem(KEY); // written by something else
      return {};
    }
  }

  /** Choose the mode of the first modality of a kind of data, or `interleaved`; one that the model does not have is left alone. */
  setMode(kind) {
    const mode = this.#modalities.find(({ media }) => media === kind)?.name ?? kind;
    if (![...this.#inputs.mode.options].some(({ value }) => value === mode)) return;
    this.#inputs.mode.value = mode;
    this.#save();
  }

  /** The kinds of data that a mode may write. */
  kinds(mode) {
    const named = this.#modalities.filter(({ name }) => name === mode);
    return (named.length ? named : this.#modalities).map(({ media }) => media);
  }

  /** The fields of a request and the system prompt, with a seed, so that an answer can be had again. Null, and shown, if one is wrong. */
  request() {
    const wrong = [...this.#form.elements].find((input) => !this.#idle(input) && !input.checkValidity());
    if (wrong) {
      this.#open(wrong);
      wrong.reportValidity();
      return null;
    }
    const request = { partial_every: this.#previewEvery, seed: newSeed() };
    for (const [name, value] of Object.entries(this.#values())) {
      if (value !== "" && !this.#idle(this.#inputs[name])) request[name] = value;
    }
    return request;
  }

  /** Mark the field of which the server complained and go to it; false if there is none of that name. */
  blame(name) {
    const input = this.#inputs[name];
    if (!input) return false;
    input.setAttribute("aria-invalid", "true");
    this.#open(input);
    return true;
  }

  onopen = () => {}; // the panel has to be seen before a field in it can be

  #open(input) {
    this.onopen();
    for (let fold = input.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    input.focus();
  }

  // The panel may be closed; what is hidden in it is idle.
  #idle = (input) => Boolean(input.closest("#settings [hidden]"));

  #values() {
    const values = {};
    for (const [name, input] of Object.entries(this.#inputs)) {
      values[name] = input.type === "number" && input.value !== "" ? Number(input.value) : input.value.trim();
    }
    return values;
  }

  #save() {
    for (const input of this.#form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    const values = this.#values();
    const isDefault = (name, value) => value === (name in CHOICES ? this.#default(name) : "");
    this.#kept = Object.fromEntries(Object.entries(values).filter(([name, value]) => !isDefault(name, value)));
    const shared = Object.entries(this.#kept).filter(([name]) => !OF_ONE_CHAT.includes(name));
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(shared)));
    this.#fit();
    this.onchange();
  }

  #reset() {
    localStorage.removeItem(KEY);
    this.use({});
    this.onchange();
  }

  #default = (name) => this.#defaults[name] ?? CHOICES[name];

  // Groups that do not matter in this mode are hidden; under the form of the prompt stands what the chosen one means.
  #fit() {
    const kinds = this.kinds(this.#inputs.mode.value);
    for (const part of this.#form.querySelectorAll("[data-kinds]")) {
      part.hidden = !part.dataset.kinds.split(" ").some((kind) => kinds.includes(kind));
    }
    const { format, mode } = this.#inputs;
    format.closest("label").querySelector("small").textContent = FORMATS.find(([value]) => value === format.value)?.[2] ?? "";
    mode.title = mode.selectedOptions[0]?.title ?? "";
    for (const [name, input] of Object.entries(this.#inputs)) {
      // The server samples pictures as it was told to sample words, where it was told nothing about pictures.
      const words = this.#inputs[name.replace(/^image_/, "")];
      const shared = words && words !== input && !this.#idle(words) && words.value;
      if (input.tagName === "INPUT") input.placeholder = shared || (this.#defaults[name] ?? "default");
    }
  }

  // One mode for each modality that the model writes, one for all of them and one for whatever comes; formats that make sense.
  #offer(modes, formats) {
    const nouns = this.#modalities.map(({ name, media }) => (name === media && NOUNS[media]) || name[0].toUpperCase() + name.slice(1).replaceAll("_", " "));
    const two = nouns.length === 2 ? `${nouns[0]} and ${nouns[1].toLowerCase()}` : "All kinds";
    const offered = [
      ...this.#modalities.map(({ name }, i) => [name, nouns[i], `Answer with ${nouns[i].toLowerCase()} only`]),
      ...(this.#modalities.length > 1 ? [["interleaved", two, `${nouns.join(", ")}, each whole`]] : []),
      ["unrestricted", "Anything", "Whatever the model chooses"],
    ].filter(([value]) => !modes || modes.includes(value));
    const hasGrid = this.#modalities.some(({ span }) => span === "grid");
    const forms = FORMATS.filter(([value]) => (value !== "lumina" || hasGrid) && (!formats || formats.includes(value)));
    const options = (list) => list.map(([value, textContent, title]) => el("option", { value, textContent, title }));
    this.#inputs.mode.replaceChildren(...options(offered));
    this.#inputs.mode.closest("label").hidden = offered.length < 2;
    this.#inputs.format.replaceChildren(...options(forms));
  }

  #group({ title, kinds, fields }) {
    const inputs = Object.entries(fields).map(([name, [label, min, max, step, hint]]) =>
      field(label, this.#input(name, { type: "number", min, max, step }), hint),
    );
    return el(
      "fieldset",
      { dataset: { kinds: kinds.join(" ") } },
      el("legend", { textContent: title }),
      el("div", { className: "fields" }, ...inputs),
    );
  }

  #input = (name, properties) => this.#add(name, el("input", { autocomplete: "off", ...properties }));

  #add(name, input) {
    input.name = name;
    this.#inputs[name] = input;
    return input;
  }
}

function field(label, input, hint) {
  return el(
    "label",
    { className: "field" },
    el("span", { textContent: label }),
    input,
    ...(hint ? [el("small", { textContent: hint })] : []),
  );
}
