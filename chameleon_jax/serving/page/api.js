// The server's HTTP interface: JSON, keys, errors in words, and the stream of an answer.

import { readEvents } from "./events.js";

const KEY = "chameleon.key";

/** What the server (or the network) said against a request. `param` names the setting at fault, `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, retryAfter });
  }
}

let askKey = async () => null;

/** `ask(refused)` gives a key, or null if there is none; `refused` tells that the last one was wrong. */
export const setKeyAsker = (ask) => (askKey = ask);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

// Relative to the page, so that all works behind a proxy that serves it under a path.
const address = (path) => new URL(path, document.baseURI);

async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
    const options = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
    const response = await fetch(address(path), options).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached. Is it still running?");
    });
    if (response.ok) return response;
    if (response.status !== 401) throw await asError(response);
    const given = await sharedKey(key);
    if (given === null) throw await asError(response);
  }
}

// Requests that are refused together ask once; one that was sent before a key came just tries it.
let asking = null;
async function sharedKey(tried) {
  const present = sessionStorage.getItem(KEY);
  if (present !== tried) return present;
  asking ??= askKey(tried !== null).finally(() => (asking = null));
  const given = await asking;
  if (given !== null) sessionStorage.setItem(KEY, given);
  return given;
}

async function asError(response) {
  const told = await response.json().then((body) => body.error, () => null);
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const message = typeof told?.message === "string" ? told.message : `The server answered ${response.status} ${response.statusText}`;
  return new ApiError(message, { status: response.status, param: told?.param, retryAfter });
}

export const getModels = async () => (await (await request("v1/models")).json()).data;
export const getTokens = async (ids) => (await (await request("v1/tokens", { body: { ids } })).json()).tokens;

/** Without a key and without questions: it is asked for every few seconds. */
export async function getHealth() {
  const response = await fetch(address("health"), { cache: "no-store" });
  if (!response.ok && response.status !== 503) throw new ApiError("not healthy");
  return response.json();
}

/** The chunks of an answer as they come. Raises ApiError for a refusal, an error on the way, or an end without `[DONE]`. */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { body, signal });
  const events = readEvents(response.body);
  try {
    for await (const data of events) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, { param: chunk.error.param });
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke off.");
  }
  throw new ApiError("The server ended the answer before it was complete.");
}
