// What the server is doing: asked now and then, oftener while an answer is awaited, not at all in a hidden tab.

import { getHealth } from "./api.js";
import { byId } from "./dom.js";

const CALM = 5000;
const BUSY = 1000;

export function watchServer(isBusy, onQueue) {
  let timer = null;
  let isStarting = false;
  const ask = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const health = await getHealth();
      isStarting = health.status === "compiling";
      show(isStarting || health.running ? "busy" : health.status === "failed" ? "gone" : "ready", words(health));
      onQueue(health.queued ?? 0);
    } catch {
      show("gone", "Server not reachable");
    }
    clearTimeout(timer); // two may have been on their way
    timer = setTimeout(ask, isStarting || isBusy() ? BUSY : CALM);
  };
  document.addEventListener("visibilitychange", ask);
  ask();
  return ask;
}

const STATES = { compiling: "Compiling; answers wait", draining: "Shutting down", failed: "The engine has failed" };

function words({ status, running = 0, queued = 0, slots, tokens_per_second: rate }) {
  if (Object.hasOwn(STATES, status)) return STATES[status];
  if (!["ok", "ready", "healthy"].includes(status)) return String(status);
  if (!running && !queued) return "Ready";
  return [
    slots ? `${running} of ${slots} running` : `${running} running`,
    ...(queued ? [`${queued} waiting`] : []),
    ...(rate ? [`${Math.round(rate).toLocaleString("en")} tokens/s`] : []),
  ].join(" · ");
}

function show(state, text) {
  byId("server").dataset.state = state;
  if (byId("server-text").textContent !== text) byId("server-text").textContent = text;
}
