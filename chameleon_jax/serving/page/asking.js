// Requests for answers: one stream for each model, whose choices fill the answers of that model.

import { Answer } from "./answer.js";
import { ApiError, streamChat } from "./api.js";

// A page that goes breaks its streams off before it is gone: that is no failure of theirs.
let isLeaving = false;
addEventListener("beforeunload", () => {
  isLeaving = true;
  setTimeout(() => (isLeaving = false), 3000); // if it stays after all
});

/** New answers to a request: [{model, answers}], as many for each model as the request wants. */
export function newAnswers(models, request) {
  const groups = models.map((model) => ({ model, answers: Array.from({ length: request.n ?? 1 }, () => new Answer({ model, request })) }));
  for (const [i, answer] of groups.flatMap(({ answers }) => answers).entries()) answer.isSpoken = i === 0;
  return groups;
}

/** Fill the answers of a group; the error that ended them, or null. A stop by `signal` is none. */
export async function fill({ model, answers }, messages, { system: _, ...fields }, signal) {
  const body = { model, messages, ...fields, stream: true, stream_options: { include_usage: true }, return_token_ids: true };
  try {
    for await (const chunk of streamChat(body, signal)) {
      for (const answer of answers) answer.takeCommon(chunk);
      for (const choice of chunk.choices ?? []) answers[choice.index ?? 0]?.take(choice);
    }
    for (const answer of answers) answer.end("done");
    return null;
  } catch (error) {
    const isStop = error.name === "AbortError" || isLeaving;
    for (const answer of answers) {
      if (isLeaving) answer.end("cut");
      else isStop ? answer.end("stopped") : answer.end("failed", error.message);
    }
    if (!isStop && !(error instanceof ApiError)) console.error(error); // a mistake of this page
    return isStop ? null : error;
  }
}
