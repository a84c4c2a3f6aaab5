// Picture files as data: URLs that a server takes, and data: URLs as files.

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

const readUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${blob.name || "The picture"} could not be read.`));
    reader.readAsDataURL(blob);
  });

/** Offer the picture of a data: URL as a file called `name` and the ending of its kind. */
export function download(url, name) {
  const [, type, base64] = /^data:(image\/[\w.+-]+);base64,(.*)$/s.exec(url);
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = `${name}.${type.slice("image/".length).replace("jpeg", "jpg")}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Only pictures that came with the answer are shown: a URL of anything else could call elsewhere. */
export const isPictureUrl = (url) => typeof url === "string" && /^data:image\/[\w.+-]+;base64,/.test(url);
