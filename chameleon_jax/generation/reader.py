"""Ids as they come, to words and pictures as they come.

The one idea: text is bytes until they are whole characters. A piece of the vocabulary may end in the middle of one; what is handed
out is whole, and joined it is what `TextTokenizer.decode` makes of the run at once. Stop strings are looked for in what is whole,
and so much of it is held back as may be the beginning of one.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.vocab import GridSpan


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPiece:
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePiece:
    """A picture, or with `partial` the front of one. `codes` are those that came, in order; `of` is how many it has.

    `grid` is its (height, width) in codes for a grid vocabulary, else None.
    """

    index: int
    codes: Int[np.ndarray, "n"]
    of: int
    grid: tuple[int, int] | None
    partial: bool


class Pieces:
    """The bytes of each id, read once of a tokenizer, and what an id is."""

    def __init__(self, bundle: TokenizerBundle):
        self.bundle, self.vocab = bundle, bundle.vocab
        names = json.loads(bundle.text.to_json())["model"]["vocab"]
        characters = _byte_of_character()
        start = self.vocab.text.start
        self._bytes = [b""] * (self.vocab.size - start)
        for name, i in names.items():
            if (
                start <= i < self.vocab.size
            ):  # as the library's decoder: a piece with a foreign character is taken as it is
                known = all(character in characters for character in name)
                self._bytes[i - start] = bytes(map(characters.get, name)) if known else name.encode()
        self.longest = max(map(len, self._bytes))

    def text_bytes(self, id: int) -> bytes:
        return self._bytes[id - self.vocab.text.start]

    def kind(self, id: int) -> Literal["text", "image", "marker"]:
        """A code is `image`; sizes and row ends of a grid are markers, as all other ids that are no text."""
        if self.vocab.text.start <= id < self.vocab.text.stop:
            return "text"
        return "image" if self.vocab.image.start <= id < self.vocab.image.stop else "marker"

    def describe(self, ids: Iterable[int]) -> list[dict[str, object]]:
        """What a token view shows. Bytes that are no whole character are U+FFFD; markers and codes have their names."""
        names = dict(enumerate(self.vocab.special_names()))
        names |= {id: name for name, id in self.bundle.added_ids.items()}
        markers = _marker_names(self.vocab)
        shown = []
        for id in ids:
            kind = self.kind(id)
            piece = self.text_bytes(id).decode(errors="replace") if kind == "text" else markers.get(id) or names[id]
            shown.append(
                {"id": id, "kind": kind, "piece": str(id - self.vocab.image.start) if kind == "image" else piece}
            )
        return shown


def _marker_names(vocab) -> dict[int, str]:
    names = {
        vocab.bos: "[bos]", vocab.pad: "[pad]", vocab.eos: "[eos]", vocab.unk: "[unk]",
        vocab.begin_of_image: "[boi]", vocab.end_of_image: "[eoi]", vocab.end_of_turn: "[eot]",
    }  # fmt: skip
    if isinstance(grid := vocab.image.grammar, GridSpan):
        names[grid.newline] = "[row]"
        names |= {grid.size_base + n: f"[size {n}]" for n in range(grid.max_units + 1)}
    return names


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins of bytes, in which byte-level BPE writes its pieces."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class OutputReader:
    """Reads one output. `stopped` says that a stop string came: what follows it is not to be read."""

    def __init__(self, pieces: Pieces, *, stop: Sequence[str] = (), partial_every: int = 0):
        self._pieces, self._vocab = pieces, pieces.vocab
        self._stop, self._every = tuple(stop), partial_every
        self._decoder = _new_decoder()
        self._held = ""  # whole characters that may begin a stop string
        self._span: list[int] | None = None  # ids of the picture under way, its begin marker included
        self._codes = 0
        self.pictures = 0
        self.stopped = False
        self.tokens = {"text": 0, "image": 0}

    def feed(self, ids: Iterable[int]) -> list[TextPiece | ImagePiece]:
        """What these ids add, in order; ids behind a stop string add nothing."""
        out: list[TextPiece | ImagePiece] = []
        for id in map(int, ids):
            if self.stopped:
                break
            if self._span is not None and self._continue_picture(id, out):
                self.tokens["image"] += 1
                continue
            self.tokens["text"] += 1
            if self._pieces.kind(id) == "text":
                self._add_text(self._decoder.decode(self._pieces.text_bytes(id)), out)
            elif id == self._vocab.begin_of_image:
                self._end_text(out)
                self._span, self._codes = [id], 0
        return out

    def finish(self) -> list[TextPiece | ImagePiece]:
        """What was held back. A picture that is not whole is left out."""
        out: list[TextPiece | ImagePiece] = []
        if not self.stopped:
            self._end_text(out)
        return out

    def _add_text(self, text: str, out: list[TextPiece | ImagePiece]) -> None:
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

    def _end_text(self, out: list[TextPiece | ImagePiece]) -> None:
        """The run of text is over: what was cut is U+FFFD, and a stop string goes no further."""
        self._add_text(self._decoder.decode(b"", final=True), out)
        self._decoder = _new_decoder()
        if self._held:
            held, self._held = self._held, ""
            out.append(TextPiece(text=held))

    def _continue_picture(self, id: int, out: list[TextPiece | ImagePiece]) -> bool:
        """Whether the id belongs to the picture under way, which without restrictions may break off."""
        vocab, span = self._vocab, self._span
        grid = vocab.image.grammar if isinstance(vocab.image.grammar, GridSpan) else None
        if vocab.image.start <= id < vocab.image.stop:
            span.append(id)
            self._codes += 1
            of, size = self._expected()
            if self._every and self._codes % self._every == 0 and self._codes < of:
                codes = np.array([i for i in span if vocab.image.start <= i < vocab.image.stop])
                codes = vocab.ids_to_codes(codes)
                out.append(ImagePiece(index=self.pictures, codes=codes, of=of, grid=size, partial=True))
            return True
        if id == vocab.end_of_image:
            (read, *_), self._span = split_spans(np.array([*span, id], np.int32), vocab), None
            if read.complete:
                codes, size = vocab.ids_to_codes(read.content), read.grid if grid else None
                out.append(ImagePiece(index=self.pictures, codes=codes, of=len(codes), grid=size, partial=False))
                self.pictures += 1
            return True
        if grid and grid.newline <= id <= grid.size_base + grid.max_units:
            span.append(id)
            return True
        self._span = None
        return False

    def _expected(self) -> tuple[int, tuple[int, int] | None]:
        """Codes of the picture under way, 0 where they are not known, and its grid."""
        grammar = self._vocab.image.grammar
        if not isinstance(grammar, GridSpan):
            return grammar.length, None
        height, width = ((id - grammar.size_base) * grammar.unit for id in (*self._span[1:3], 0, 0)[:2])
        return (0, None) if grammar.problem(height, width) else (height * width, (height, width))


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _beginning_of(stops: Sequence[str], text: str) -> int:
    """Length of the longest end of the text that a stop string begins with."""
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def padded_codes(piece: ImagePiece) -> Int[np.ndarray, "n"]:
    """Codes of a whole picture: those that came, and the first one in place of the others, as Meta's viewer shows it."""
    return np.concatenate([piece.codes, np.full(piece.of - len(piece.codes), piece.codes[0])])
