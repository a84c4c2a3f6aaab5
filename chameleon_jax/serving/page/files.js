// Files as data: URLs and back.

/** The data: URL of a file. Raises Error if the browser cannot read it. */
export const readUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${blob.name || "The file"} could not be read.`));
    reader.readAsDataURL(blob);
  });

/** What a data: URL holds. Decoded here: the page's policy lets fetch reach the server only. */
export function toBlob(url) {
  const [, type, base64] = /^data:([a-z]+\/[\w.+-]+);base64,(.*)$/s.exec(url);
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}

/** Offer a Blob as a file called `name` and the ending of its kind. */
export function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name}.${blob.type.split("/")[1].replace("jpeg", "jpg")}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const download = (url, name) => offer(toBlob(url), name);

/** Only what came with the answer is shown: a URL of anything else could call elsewhere. `media` is "image" or "audio". */
export const isDataOf = (media, url) => typeof url === "string" && new RegExp(`^data:${media}/[\\w.+-]+;base64,`).test(url);

/** [width, height] of the PNG file in a data: URL, which its first bytes tell; null of any other. */
export function pngSize(url) {
  if (!url.startsWith("data:image/png;base64,iVBORw0KGgo")) return null;
  const head = atob(url.slice(22, 22 + 32));
  const number = (at) => [0, 1, 2, 3].reduce((sum, i) => sum * 256 + head.charCodeAt(at + i), 0);
  return [number(16), number(20)];
}
