// Asks for the server's key.

import { byId } from "./dom.js";

/** The key that a person gives, or null; `isRefused` tells that the last one was wrong. */
export function askKey(isRefused) {
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
