// Data that are numbers: what people write, and how it looks.

import { el } from "./dom.js";

/** The numbers of a text like "0, 1 1"; what is no whole number is NaN. */
export const parseCodes = (text) => text.split(/[\s,]+/).filter(Boolean).map((word) => (/^\d+$/.test(word) ? Number(word) : NaN));

/** What is wrong with the numbers of `modality` (as the server describes it); empty if nothing is. */
export function problem(codes, { name, ids, span, length }) {
  const wrong = codes.find((code) => !(code < ids));
  if (wrong !== undefined || !codes.length) return `${name}: write whole numbers from 0 to ${ids - 1}, with commas between them.`;
  return span === "fixed" && codes.length !== length ? `${name}: ${codes.length} numbers, there must be ${length}.` : "";
}

export const codesBox = (codes) => el("div", { className: "numbers", textContent: codes.join(" ") });
