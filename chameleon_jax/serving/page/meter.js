// How much of the model's context the chat in sight fills.

import { byId } from "./dom.js";

/** `used` ids of `context`, both as the server counts; without either nothing is shown. */
export function showMeter(used, context) {
  const isKnown = Boolean(used && context);
  byId("meter").classList.toggle("unseen", !isKnown);
  if (!isKnown) return;
  byId("meter-text").textContent = `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
  Object.assign(byId("meter-bar"), { max: context, high: 0.9 * context, low: 0.75 * context, optimum: 0, value: used });
}

/** Ids that the last answer of the chat ended with: its prompt and its own. */
export function usedBy(chat) {
  const exchange = chat.length ? chat.at(-1) : null;
  const answer = exchange?.tries[exchange.shown]?.[exchange.chosen];
  if (!answer) return 0;
  return (answer.promptIds.length || answer.usage?.prompt_tokens || 0) + answer.ids.length;
}
