// A modest Markdown, safe by its make: words become elements of a short list, never HTML. Paragraphs, headings, lists, quotes, tables,
// code, emphasis and links to the web; what is none of these stays as it was written, line ends and spaces too.

import { copyButton } from "./copying.js";
import { el } from "./dom.js";

const DEPTH = 6; // of blocks in blocks, and of emphasis in emphasis

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(?=\S)/;
const DIVIDER = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

/** Show `text` in `node`. Blocks that did not change since the last call stay: a selection in them too. */
export function showMarkdown(node, text) {
  const found = blocks(text.split("\n"), 0);
  const shown = [...node.children];
  for (const [i, block] of found.entries()) {
    if (shown[i]?.dataset.source === block.source) continue;
    const made = block.make();
    made.dataset.source = block.source;
    if (shown[i]) shown[i].replaceWith(made);
    else node.append(made);
  }
  for (const rest of shown.slice(found.length)) rest.remove();
}

/** [{source, make}]: what a block was read from, and what makes its element. */
function blocks(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [length, make] = block(lines, at, depth);
    found.push({ source: lines.slice(at, at + length).join("\n"), make });
    at += length;
  }
  // Spaces at the very end of a text that grows are of its last paragraph.
  return found;
}

// [number of lines, function that makes the element] of the block that begins at line `at`.
function block(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [1, () => el(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2]))];
  if (RULE.test(line)) return [1, () => el("hr")];
  if (depth < DEPTH && QUOTE.test(line)) {
    const length = runLength(lines, at, (each) => QUOTE.test(each));
    const inner = lines.slice(at, at + length).map((each) => each.replace(QUOTE, ""));
    return [length, () => el("blockquote", {}, ...blocks(inner, depth + 1).map(({ make }) => make()))];
  }
  if (depth < DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && lines[at + 1]?.includes("|") && DIVIDER.test(lines[at + 1])) return table(lines, at);
  const length = 1 + runLength(lines, at + 1, (each) => each.trim() && !begins(each));
  return [length, () => el("p", {}, ...inline(lines.slice(at, at + length).join("\n")))];
}

const begins = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

function runLength(lines, from, holds) {
  let at = from;
  while (at < lines.length && holds(lines[at])) at += 1;
  return at - from;
}

function code(lines, at, [, marks, language]) {
  const closes = (line) => line.trim().startsWith(marks) && !line.trim().replaceAll(marks[0], "");
  const length = runLength(lines, at + 1, (line) => !closes(line));
  const text = lines.slice(at + 1, at + 1 + length).join("\n");
  const make = () =>
    el(
      "div",
      { className: "code" },
      el("div", { className: "code-head" }, el("span", { textContent: language || "code" }), copyButton("Copy the code", () => text)),
      el("pre", { tabIndex: 0, ariaLabel: "Code", attributes: { role: "region" } }, el("code", { textContent: text })),
    );
  return [1 + length + (at + 1 + length < lines.length), make];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark);
  const items = []; // lines of each, without the indentation
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== isOrdered) break;
    const width = item[0].length;
    const length = 1 + runLength(lines, end + 1, (line) => isInside(line, indent.length + 1));
    items.push([lines[end].slice(width), ...lines.slice(end + 1, end + length).map((line) => outdent(line, width))]);
    end += length;
    const blank = runLength(lines, end, (line) => !line.trim());
    const after = lines[end + blank];
    if (blank && after !== undefined && isInside(after, indent.length + 1)) {
      const more = runLength(lines, end + blank, (line) => !line.trim() || isInside(line, indent.length + 1));
      items.at(-1).push(...lines.slice(end, end + blank + more).map((line) => outdent(line, width)));
      end += blank + more;
    } else if (blank && after !== undefined && ITEM.test(after)) end += blank;
  }
  const make = () =>
    el(
      isOrdered ? "ol" : "ul",
      isOrdered ? { start: parseInt(mark, 10) } : {},
      ...items.map((inner) => el("li", {}, ...itemChildren(blocks(inner, depth + 1)))),
    );
  return [end - at, make];
}

// The words of an item need no paragraph of their own.
const itemChildren = (inner) =>
  inner.flatMap(({ make }) => {
    const node = make();
    return node.tagName === "P" ? [el("span", { className: "line" }, ...node.childNodes)] : [node];
  });

const isInside = (line, least) => line.trim() !== "" && line.length - line.trimStart().length >= least;
const outdent = (line, width) => line.slice(Math.min(width, line.length - line.trimStart().length));

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const length = 2 + runLength(lines, at + 2, (line) => line.includes("|"));
  const [head, ...rows] = [lines[at], ...lines.slice(at + 2, at + length)].map(cells);
  const row = (each, tag) => el("tr", {}, ...head.map((_, i) => el(tag, {}, ...inline(each[i] ?? ""))));
  const make = () =>
    el(
      "div",
      { className: "table", tabIndex: 0, ariaLabel: "Table", attributes: { role: "region" } },
      el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, ...rows.map((each) => row(each, "td")))),
    );
  return [length, make];
}

// --- within a line --------------------------------------------------------------------------------------------------------------

const LINK = /\[([^[\]\n]{1,500})\]\(([^\s()<>]{1,2000})\)/y;
const ADDRESS = /https?:\/\/[^\s<>()[\]"'`*]{1,2000}/y;
const MARKS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/** Text and elements of a run of words. */
function inline(text, depth = 0) {
  const nodes = [];
  const unclosed = new Set(); // marks that have no end from here on: looked for once
  let plain = "";
  const put = (node) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
  };
  for (let at = 0; at < text.length; ) {
    const found = depth < DEPTH ? special(text, at, depth, unclosed) : null;
    if (found?.node) put(found.node);
    else plain += found?.text ?? text[at];
    at += found?.length ?? 1;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function special(text, at, depth, unclosed) {
  const letter = text[at];
  if (letter === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) return { text: text[at + 1], length: 2 };
  if (letter === "`") return codeSpan(text, at, unclosed);
  if (letter === "[") return link(text, at);
  if (letter === "h" && !/\w/.test(text[at - 1] ?? "")) return address(text, at);
  const mark = [text.slice(at, at + 2), letter].find((each) => Object.hasOwn(MARKS, each));
  if (!mark) return null;
  const end = closing(text, at, mark, unclosed);
  if (end === -1) return { text: mark, length: mark.length };
  const inner = text.slice(at + mark.length, end);
  return { node: el(MARKS[mark], {}, ...inline(inner, depth + 1)), length: end + mark.length - at };
}

function codeSpan(text, at, unclosed) {
  let end = at;
  while (text[end] === "`") end += 1;
  const marks = text.slice(at, end);
  for (let next = unclosed.has(marks) ? -1 : text.indexOf(marks, end); next !== -1; next = text.indexOf(marks, next)) {
    let after = next;
    while (text[after] === "`") after += 1;
    if (after - next === marks.length) return { node: el("code", { textContent: text.slice(end, next) }), length: after - at };
    next = after;
  }
  unclosed.add(marks);
  return { text: marks, length: marks.length };
}

// Where `mark` ends what it begins at `at`, or -1.
function closing(text, at, mark, unclosed) {
  const from = at + mark.length;
  const isWord = mark[0] === "_"; // snake_case is no emphasis
  if (unclosed.has(mark) || !/\S/.test(text[from] ?? "") || (isWord && /\w/.test(text[at - 1] ?? ""))) return -1;
  for (let next = text.indexOf(mark, from); next !== -1; next = text.indexOf(mark, next)) {
    let after = next;
    while (text[after] === mark[0]) after += 1;
    const length = after - next;
    const isOwn = mark.length === 2 ? length >= 2 : length % 2 === 1;
    const end = after - mark.length;
    if (isOwn && end > from && /\S/.test(text[next - 1]) && !(isWord && /\w/.test(text[after] ?? ""))) return end;
    next = after;
  }
  unclosed.add(mark);
  return -1;
}

function link(text, at) {
  LINK.lastIndex = at;
  const found = LINK.exec(text);
  if (!found || !/^(https?:\/\/|mailto:)/i.test(found[2])) return null;
  return { node: anchor(found[2], found[1]), length: found[0].length };
}

function address(text, at) {
  ADDRESS.lastIndex = at;
  const found = ADDRESS.exec(text)?.[0].replace(/[.,;:!?]+$/, "");
  return found ? { node: anchor(found, found), length: found.length } : null;
}

const anchor = (href, words) => el("a", { href, title: href, target: "_blank", rel: "noopener noreferrer", textContent: words });
