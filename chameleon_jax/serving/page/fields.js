// The settings of a request as a table. An empty field leaves the matter to the server.

// [value, words, what it means]
export const FORMATS = [
  ["chat", "Chat", "Turns; the model may end its own"],
  ["completion", "Continue", "The prompt alone is continued; earlier turns are not sent"],
  ["lumina", "Lumina", "Lumina-mGPT: words ask for a picture of the size given"],
];

// name: [label, least, most, step, hint]. `kinds` of a group are the kinds of data for which it matters.
export const GROUPS = [
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
