"""Ids as they come, to words and data as they come.

Text is bytes until they are whole characters. A piece of the vocabulary may end in the middle of one; what is handed out is
whole, and joined it is what `TextTokenizer.decode` makes of the run at once. Stop strings are looked for in what is whole, and
so much of it is held back as may be the beginning of one.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.generation.prompt import span_codes
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.vocab import GridSpan, Modality

MARKER = "marker"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPiece:
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanPiece:
    """A span of another modality, or with `partial` the front of one; `index` counts the whole ones of its modality.

    `codes` are in the shape that the codec gave them; in the front of a span the first stands in place of those to come, as in
    Meta's viewer. `done` of `of` have come. A run of a modality without markers comes in pieces of one index: `codes` are those
    since the last piece, and `of` is what there is so far.
    """

    modality: str
    index: int
    codes: Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]
    done: int
    of: int
    partial: bool


class Pieces:
    """The bytes of each id, read once of a tokenizer, and what an id is."""

    def __init__(self, bundle: TokenizerBundle):
        self.bundle, self.vocab = bundle, bundle.vocab
        names = json.loads(bundle.text.to_json())["model"]["vocab"]
        characters = _byte_of_character()
        text = self.vocab.text
        self._bytes = [b""] * (text.stop - text.start)
        for name, i in names.items():
            if text.start <= i < text.stop:
                # As the library's decoder: a piece with a foreign character is taken as it is.
                known = all(character in characters for character in name)
                self._bytes[i - text.start] = bytes(map(characters.get, name)) if known else name.encode()
        self.longest = max(map(len, self._bytes))
        self.begins = {modality.begin_marker: modality for modality in self.vocab.marked.values()}
        self._names = self.vocab.id_names() | {id: name for name, id in bundle.added_ids.items()}

    def text_bytes(self, id: int) -> bytes:
        return self._bytes[id - self.vocab.text.start]

    def owner(self, id: int) -> Modality | None:
        """The modality of which the id is content; None for sizes and row ends of a grid and all other special ids."""
        return next((modality for modality in self.vocab.modalities if modality.start <= id < modality.stop), None)

    def name(self, id: int) -> str:
        """What people call an id that is no text."""
        return self._names[id]

    def describe(self, ids: Iterable[int]) -> list[dict[str, object]]:
        """What a token view shows: of each id its modality, or `marker`, what kind of data that is, and its name.

        Bytes that are no whole character are U+FFFD.
        """
        shown = []
        for id in ids:
            owner = self.owner(id)
            is_text = owner is self.vocab.text
            piece = self.text_bytes(id).decode(errors="replace") if is_text else self.name(id)
            codec = owner and self.bundle.codecs.get(owner.name)
            media = MARKER if owner is None else "text" if is_text else codec.media if codec else "codes"
            shown.append({"id": id, "kind": media, "modality": owner.name if owner else MARKER, "piece": piece})
        return shown


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins of bytes, in which byte-level BPE writes its pieces."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class OutputReader:
    """Reads one output. `stopped` says that a stop string came: what follows it is not to be read.

    `partial_every` is how many codes of a span with markers there are between two looks at it; 0 for none. `tokens` counts ids by
    modality; special ids outside of spans count as text.
    """

    def __init__(self, pieces: Pieces, *, stop: Sequence[str] = (), partial_every: int = 0):
        self._pieces, self._vocab = pieces, pieces.vocab
        self._stop, self._every = tuple(stop), partial_every
        self._decoder = _new_decoder()
        self._held = ""  # whole characters that may begin a stop string
        self._span: list[int] | None = None  # ids of the span under way, its begin marker included
        self._modality = self._vocab.text  # of the span under way
        self._codes = 0  # of the span under way, or of the run without markers
        self._run: Modality | None = None  # without markers, other than text, that has come last
        self.spans = dict.fromkeys(self._vocab.names, 0)  # whole ones
        self.stopped = False
        self.tokens = dict.fromkeys(self._vocab.names, 0)

    def feed(self, ids: Iterable[int]) -> list[TextPiece | SpanPiece]:
        """What these ids add, in order; ids behind a stop string add nothing."""
        out: list[TextPiece | SpanPiece] = []
        for id in map(int, ids):
            if self.stopped:
                break
            if self._span is not None and self._continue_span(id, out):
                self.tokens[self._modality.name] += 1
                continue
            owner = self._pieces.owner(id)
            begun = self._pieces.begins.get(id)
            free = owner is not None and not owner.marked and owner is not self._vocab.text
            self.tokens[owner.name if free else self._vocab.text.name] += 1
            if self._run is not None and owner is not self._run:
                self.spans[self._run.name] += 1
                self._run = None
            if owner is self._vocab.text:
                self._add_text(self._decoder.decode(self._pieces.text_bytes(id)), out)
            elif free:
                self._end_text(out)
                self._add_code(owner, id, out)
            elif begun:
                self._end_text(out)
                self._span, self._modality, self._codes = [id], begun, 0
            elif any(m.counts(np.array(id)) or id == m.end_marker for m in self._vocab.marked.values()):
                self._end_text(out)  # of a span that has not begun, as may come without restrictions
        return out

    def finish(self) -> list[TextPiece | SpanPiece]:
        """What was held back. A span that is not whole is left out."""
        out: list[TextPiece | SpanPiece] = []
        if not self.stopped:
            self._end_text(out)
        return out

    def _add_text(self, text: str, out: list[TextPiece | SpanPiece]) -> None:
        text = self._held + text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)]
        else:
            keep = _beginning_of(self._stop, text)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if text and out and isinstance(out[-1], TextPiece):
            out[-1] = TextPiece(text=out[-1].text + text)
        elif text:
            out.append(TextPiece(text=text))

    def _end_text(self, out: list[TextPiece | SpanPiece]) -> None:
        """The run of text is over: what was cut is U+FFFD, and a stop string goes no further."""
        self._add_text(self._decoder.decode(b"", final=True), out)
        self._decoder = _new_decoder()
        if self._held:
            held, self._held = self._held, ""
            out.append(TextPiece(text=held))

    def _add_code(self, modality: Modality, id: int, out: list[TextPiece | SpanPiece]) -> None:
        """An id of a modality without markers, other than text: the first of a run, or a further one."""
        name, code, last = modality.name, modality.codes(np.array([id])), out[-1] if out else None
        self._codes = self._codes + 1 if self._run is modality else 1
        if self._run is modality and isinstance(last, SpanPiece):
            code = np.concatenate([last.codes, code])
            out.pop()
        self._run = modality
        count = self._codes
        out.append(SpanPiece(modality=name, index=self.spans[name], codes=code, done=count, of=count, partial=False))

    def _continue_span(self, id: int, out: list[TextPiece | SpanPiece]) -> bool:
        """Whether the id belongs to the span under way, which without restrictions may break off."""
        modality, span = self._modality, self._span
        if modality.start <= id < modality.stop:
            span.append(id)
            self._codes += 1
            if not self._every or self._codes % self._every:
                return True
            shape = self._shape()
            of = math.prod(shape) if shape else 0
            if self._codes < of:
                came = np.array(span)
                codes = modality.codes(came[modality.holds(came)])
                padded = np.concatenate([codes, np.full(of - len(codes), codes[0])]).reshape(shape)
                out.append(self._piece(padded, len(codes), of, partial=True))
            return True
        if id == modality.end_marker:
            (read, *_), self._span = split_spans(np.array([*span, id], np.int32), self._vocab), None
            if read.complete:
                codes = span_codes(read, self._pieces.bundle)
                out.append(self._piece(codes, codes.size, codes.size, partial=False))
                self.spans[modality.name] += 1
            return True
        if bool(modality.counts(np.array(id))):  # a size or a row end
            span.append(id)
            return True
        self._span = None
        return False

    def _piece(self, codes: np.ndarray, done: int, of: int, *, partial: bool) -> SpanPiece:
        name = self._modality.name
        return SpanPiece(modality=name, index=self.spans[name], codes=codes, done=done, of=of, partial=partial)

    def _shape(self) -> tuple[int, ...] | None:
        """Of the codes of the span under way; None where it is not known."""
        grammar = self._modality.grammar
        if not isinstance(grammar, GridSpan):
            return (grammar.length,)
        height, width = ((id - grammar.size_base) * grammar.unit for id in (*self._span[1:3], 0, 0)[:2])
        return None if grammar.problem(height, width) else (height, width)


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _beginning_of(stops: Sequence[str], text: str) -> int:
    """Length of the longest end of the text that a stop string begins with."""
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
