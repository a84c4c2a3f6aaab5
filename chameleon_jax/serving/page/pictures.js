// Picture files as data: URLs that a server takes.

import { readUrl } from "./files.js";

const SIDE = 2048; // models see some 512 pixels a side; camera files would only fill the server's limit on bodies
const BYTES = 1_500_000;
const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];

/** A data: URL of the picture in `file`, smaller or in another format where it must be. Raises Error for what is no picture. */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name || "This file"} is not a picture that this browser can read.`);
  });
  const { width, height } = bitmap;
  if (AS_THEY_ARE.includes(file.type) && file.size <= BYTES && Math.max(width, height) <= SIDE) {
    bitmap.close();
    return readUrl(file);
  }
  const scale = Math.min(1, SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent: JPEG has no alpha
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const png = canvas.toDataURL("image/png");
  return png.length <= BYTES ? png : canvas.toDataURL("image/jpeg", 0.92);
}
