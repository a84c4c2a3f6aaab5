// Buttons that put words or pictures on the clipboard.

import { iconButton } from "./dom.js";
import { toBlob } from "./files.js";
import { say } from "./notices.js";

const SHOWN = 1500; // milliseconds that a button tells how it went

/** A button that copies the words that `words()` gives. */
export const copyButton = (label, words) => copying(label, () => navigator.clipboard.writeText(words()));

/** A button that copies the picture in the data: URL that `url()` gives. Clipboards take PNG files only. */
export const copyPictureButton = (label, url) =>
  copying(label, () => navigator.clipboard.write([new ClipboardItem({ "image/png": asPng(url()) })]));

function copying(label, act) {
  const control = iconButton("copy", label, async () => {
    let said = "Copied";
    try {
      await act();
    } catch {
      said = "Not allowed"; // browsers give the clipboard to https and localhost only
    }
    control.dataset.said = said;
    say(`${said}. `);
    setTimeout(() => delete control.dataset.said, SHOWN);
  });
  return control;
}

async function asPng(url) {
  const blob = toBlob(url);
  if (blob.type === "image/png") return blob;
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
