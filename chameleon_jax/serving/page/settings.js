// What a request asks for. An empty field leaves the matter to the server; only what a person changed is kept, in this browser.

import { button, el } from "./dom.js";

const KEY = "chameleon.settings";

// Of a server that does not describe its model.
const MODALITIES = [
  { name: "text", media: "text" },
  { name: "image", media: "image" },
];
const NOUNS = { text: "Words", image: "Pictures", audio: "Sounds" };

const CHOICES = {
  mode: {
    label: "Answer with",
    fallback: "interleaved",
    options: [], // of the model
  },
  format: {
    label: "Form of the prompt",
    fallback: "chat",
    options: [
      ["chat", "Chat", "Turns; the model may end its own"],
      ["completion", "Continue", "The prompt alone is continued; earlier turns are not sent"],
      ["lumina", "Lumina", "Lumina-mGPT: words ask for a picture of the size given"],
    ],
  },
};

// name: [label, least, most, step, hint]. `kinds` of a group are the kinds of data for which it matters.
const GROUPS = [
  {
    title: "Words",
    kinds: ["text", "audio", "codes"],
    fields: {
      temperature: ["Temperature", 0, 10, "any", "0 takes the likeliest"],
      top_p: ["Top p", 0.000001, 1, "any", "1 keeps all"],
      top_k: ["Top k", 0, 1000000, 1, "0 keeps all"],
      repetition_penalty: ["Repetition penalty", 0.01, 10, "any", "1 is none"],
    },
  },
  {
    title: "Pictures",
    kinds: ["image"],
    fields: {
      image_temperature: ["Temperature", 0, 10, "any", "0 takes the likeliest"],
      image_top_p: ["Top p", 0.000001, 1, "any", "1 keeps all"],
      image_top_k: ["Top k", 0, 1000000, 1, "0 keeps all"],
      guidance_text: ["Guidance by words", 0, 100, "any", "1 is none"],
      guidance_image: ["Guidance by pictures", 0, 100, "any", "1 is none"],
      max_images: ["Most pictures", 1, 1000, 1, ""],
      partial_every: ["Preview every", 1, 100000, 1, "codes"],
    },
  },
  {
    title: "Length",
    kinds: ["text", "image", "audio", "codes"],
    fields: { max_tokens: ["Most tokens", 1, 10000000, 1, "words and codes"] },
  },
];

const PREVIEWS = 16; // of a picture, however many codes it has
const SEEDS = 2 ** 31;

export class Settings {
  #form;
  #defaults = {}; // of fields, the words in one that is empty
  #previewEvery = 64;
  #modalities = MODALITIES;
  #inputs = {}; // by name; of choices, the radio buttons

  constructor(form) {
    this.#form = form;
    for (const [name, choice] of Object.entries(CHOICES)) form.append(this.#choice(name, choice));
    const size = this.#input("image_size", { type: "text", pattern: "[1-9][0-9]*x[1-9][0-9]*", title: "as in 768x512" });
    size.setAttribute("list", "sizes");
    const seed = this.#input("seed", { type: "number", min: 0, max: SEEDS - 1, step: 1 });
    const sizeField = field("Size of pictures", size, "width x height");
    sizeField.dataset.kinds = "image";
    form.append(
      el("div", { className: "fields" }, field("Seed", seed, "empty: always new"), sizeField),
      el("datalist", { id: "sizes" }),
    );
    const advanced = el("details", { className: "advanced" }, el("summary", { textContent: "Advanced" }));
    for (const group of GROUPS) advanced.append(this.#group(group));
    form.append(advanced, button("Back to defaults", () => this.#reset(), { className: "quiet" }));
    form.addEventListener("input", () => this.#save());
    form.addEventListener("submit", (event) => event.preventDefault());
    this.#offerModes();
    this.#load();
  }

  /** `model`: as the server lists it. All but its id is this server's own, and may be missing. */
  useModel({ defaults = {}, image_sizes: sizes = [], chameleon = {} } = {}) {
    const { modes, modalities = MODALITIES } = chameleon;
    this.#modalities = modalities;
    const codes = Math.max(0, ...modalities.filter(({ media }) => media === "image").map(({ length }) => length ?? 0));
    this.#previewEvery = Math.ceil((codes || 1024) / PREVIEWS);
    this.#offerModes(modes);
    const isMore = modalities.some(({ media }) => media === "audio" || media === "codes");
    this.#form.querySelector("[data-kinds^=text] legend").textContent = isMore ? "Words and other data" : "Words";
    this.#defaults = { seed: "random", image_size: "the model's", ...defaults, partial_every: this.#previewEvery };
    this.#form.querySelector("#sizes").replaceChildren(...sizes.map((value) => el("option", { value })));
    this.#load();
  }

  /** Choose the mode of the first modality of a kind of data, or `interleaved`; one that the model does not have is left alone. */
  setMode(kind) {
    const mode = this.#modalities.find(({ media }) => media === kind)?.name ?? kind;
    const radio = this.#inputs.mode.find((each) => each.value === mode);
    if (radio && !radio.disabled) radio.checked = true;
    this.#save();
  }

  /** The kinds of data that a mode may write. */
  kinds(mode) {
    const named = this.#modalities.filter(({ name }) => name === mode);
    return (named.length ? named : this.#modalities).map(({ media }) => media);
  }

  /** The fields of a request; a seed is always among them, so that an answer can be had again. Null, and shown, if one is wrong. */
  request() {
    const wrong = [...this.#form.elements].find((input) => !this.#idle(input) && !input.checkValidity());
    if (wrong) {
      this.#open(wrong);
      wrong.reportValidity();
      return null;
    }
    const request = { partial_every: this.#previewEvery, seed: Math.floor(Math.random() * SEEDS) };
    for (const [name, value] of Object.entries(this.#values())) {
      if (value !== "" && !this.#idle([this.#inputs[name]].flat()[0])) request[name] = value;
    }
    return request;
  }

  /** Mark the field of which the server complained and go to it; false if there is none of that name. */
  blame(name) {
    const input = [this.#inputs[name] ?? []].flat()[0];
    if (!input) return false;
    input.setAttribute("aria-invalid", "true");
    this.#open(input);
    return true;
  }

  #open(input) {
    for (let fold = input.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    input.focus();
  }

  #idle = (input) => Boolean(input.closest("[hidden]"));

  #values() {
    const values = {};
    for (const [name, input] of Object.entries(this.#inputs)) {
      if (name in CHOICES) values[name] = input.find((radio) => radio.checked).value;
      else values[name] = input.type === "number" && input.value !== "" ? Number(input.value) : input.value.trim();
    }
    return values;
  }

  #save() {
    for (const input of this.#form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    const values = this.#values();
    const changed = Object.entries(values).filter(([name, value]) => value !== (name in CHOICES ? this.#default(name) : ""));
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(changed)));
    this.#fit(values.mode);
  }

  #load() {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch {
      localStorage.removeItem(KEY); // written by something else
    }
    for (const [name, input] of Object.entries(this.#inputs)) {
      if (!(name in CHOICES)) input.value = kept[name] ?? "";
      else {
        const value = input.some((radio) => radio.value === kept[name] && !radio.disabled) ? kept[name] : this.#default(name);
        for (const radio of input) radio.checked = radio.value === value;
      }
    }
    this.#fit(this.#values().mode);
  }

  #reset() {
    localStorage.removeItem(KEY);
    this.#load();
  }

  #default = (name) => this.#defaults[name] ?? CHOICES[name].fallback;

  // Groups that do not matter in this mode are hidden; under each choice stands what the chosen one means.
  #fit(mode) {
    const kinds = this.kinds(mode);
    for (const part of this.#form.querySelectorAll("[data-kinds]")) {
      part.hidden = !part.dataset.kinds.split(" ").some((kind) => kinds.includes(kind));
    }
    for (const hint of this.#form.querySelectorAll("[data-hints]")) {
      const chosen = this.#inputs[hint.dataset.hints].find((radio) => radio.checked);
      hint.textContent = chosen.getAttribute("aria-description");
    }
    for (const [name, input] of Object.entries(this.#inputs)) {
      // The server samples pictures as it was told to sample words, where it was told nothing about pictures.
      const words = this.#inputs[name.replace(/^image_/, "")];
      const shared = words && words !== input && !this.#idle(words) && words.value;
      if (!(name in CHOICES)) input.placeholder = shared || (this.#defaults[name] ?? "default");
    }
  }

  #choice(name, { label, options }) {
    const hint = el("small", { className: "hint", dataset: { hints: name } });
    const segments = el("div", { className: "segments" });
    this.#fill(name, segments, options);
    return el("fieldset", { className: "choice" }, el("legend", { textContent: label }), segments, hint);
  }

  // `options`: [value, words, what it means, whether the model lacks it].
  #fill(name, segments, options) {
    this.#inputs[name] = options.map(([value, , title, isMissing = false]) =>
      el("input", { type: "radio", name, value, disabled: isMissing, attributes: { "aria-description": title } }),
    );
    const labels = options.map(([, text, title], i) => el("label", { title }, this.#inputs[name][i], el("span", { textContent: text })));
    segments.replaceChildren(...labels);
  }

  // A button for each modality, one for all of them and one for whatever comes; `modes` are those that the server has.
  #offerModes(modes) {
    const nouns = this.#modalities.map(({ name, media }) => (name === media && NOUNS[media]) || name[0].toUpperCase() + name.slice(1).replaceAll("_", " "));
    const all = this.#modalities.length > 1 ? [["interleaved", nouns.length === 2 ? "Both" : "All", `${nouns.join(", ")}, each whole`]] : [];
    const options = [
      ...this.#modalities.map(({ name }, i) => [name, nouns[i], `${nouns[i]} only`]),
      ...all,
      ["unrestricted", "Anything", "Whatever the model chooses"],
    ];
    const segments = this.#form.querySelector(".segments");
    this.#fill("mode", segments, options.map((option) => [...option, modes ? !modes.includes(option[0]) : false]));
    segments.classList.toggle("many", options.length > 4);
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

  #input(name, properties) {
    this.#inputs[name] = el("input", { name, autocomplete: "off", ...properties });
    return this.#inputs[name];
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
