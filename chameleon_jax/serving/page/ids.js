// Names for what is kept.

/** A new random name; crypto.randomUUID is missing on plain http. */
export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
