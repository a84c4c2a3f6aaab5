// Sounds: WAV files as data: URLs, and how they are played.

import { el } from "./dom.js";
import { readUrl } from "./files.js";

export const isSoundFile = (file) => file.type.startsWith("audio/") || /\.wav$/i.test(file.name ?? "");

/** A data: URL of a WAV file. Raises Error for any other. */
export async function readSound(file) {
  const head = new TextDecoder("latin1").decode(await file.slice(0, 12).arrayBuffer());
  if (!/^RIF[FX].{4}WAVE$/s.test(head)) throw new Error(`${file.name || "This file"} is not a WAV file, which sounds have to be.`);
  return (await readUrl(file)).replace(/^data:[^,]*,/, "data:audio/wav;base64,"); // systems name the type in several ways
}

export const player = (url, ariaLabel) => el("audio", { controls: true, preload: "metadata", ariaLabel, ...(url && { src: url }) });
