"""The one id space: special ids, image codes and text pieces, and the grammar of a span of each modality.

The one idea: a modality is a row of a table (id range, markers, span grammar), not a special case in code. The layout is
Chameleon's (facebookresearch/chameleon, `inference/vocab.py`) at any size: `<s> <pad> </s> <unk>`, image codes, `<eoss>`,
`<racm3:break>`, reserved ids, text pieces; behind them stand control ids that an extension has added.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import VocabConfig
from chameleon_jax.errors import TokenizerError

_DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")


class ModalityId(enum.IntEnum):
    """Row number in the modality table, and the number written into `Batch.modality`."""

    TEXT = 0  # text pieces and the special ids, markers among them
    IMAGE = 1  # image codes and, of a grid vocabulary, the ids of sizes and of row ends


MODALITY_NAMES = ("text", "image")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSpan:
    """BEGIN, exactly `length` content ids, END: Chameleon's image span."""

    length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSpan:
    """BEGIN, id of the height, id of the width, rows that each end in `newline`, END: Lumina-mGPT's image span.

    A side of n units is `n * unit` content ids long and its id is `size_base + n`, n in 1..max_units. An image has at most
    `max_codes` content ids. Source: Alpha-VLLM/Lumina-mGPT, `data/item_processor.py`.
    """

    newline: int
    size_base: int
    unit: int
    max_units: int
    max_codes: int

    def length(self, height: int, width: int) -> int:
        """Ids of a whole span of `height` x `width` content ids, markers included."""
        return 4 + height * (width + 1)

    def problem(self, height: int, width: int) -> str:
        """Why an image of `height` x `width` content ids has no span; empty if it has one."""
        longest = self.max_units * self.unit
        if height % self.unit or width % self.unit or not (0 < height <= longest and 0 < width <= longest):
            return f"{height}x{width} codes (height x width): sides are multiples of {self.unit} up to {longest}"
        if height * width > self.max_codes:
            return f"{height}x{width} = {height * width} codes, {self.max_codes} are the most"
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeSpan:
    """Any number of content ids, ended by a marker of another modality or the end of the sequence."""


SpanGrammar = FixedSpan | GridSpan | FreeSpan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
    """One row of the modality table; content ids are `start <= id < stop`."""

    name: str
    start: int
    stop: int
    begin_marker: int | None
    end_marker: int | None
    grammar: SpanGrammar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocab:
    """Roles and ranges of ids. Made from a VocabConfig; equal layouts have equal fingerprints."""

    size: int
    bos: int
    pad: int
    eos: int
    unk: int
    end_of_image: int
    begin_of_image: int
    end_of_turn: int
    image_placeholder: int
    modalities: tuple[Modality, ...]  # indexed by ModalityId

    @classmethod
    def from_config(cls, config: VocabConfig) -> Vocab:
        image_start = 4
        end_of_image = image_start + config.image_codes
        reserved_start = end_of_image + 2
        text_start = reserved_start + config.reserved
        # Chameleon ends a turn with the 513th reserved id; smaller layouts use the last pair that fits.
        turn = reserved_start + min(512, config.reserved - 2)
        image_grammar = FixedSpan(length=config.codes_per_image)
        if config.image_span == "grid":
            # Lumina-mGPT's row end is the 606th reserved id, behind it size 0 and up; smaller layouts put them before the turn's.
            newline = reserved_start + 605
            if newline + 2 + config.max_grids > text_start:
                newline = turn - 2 - config.max_grids
            image_grammar = GridSpan(
                newline=newline,
                size_base=newline + 1,
                unit=config.grid_unit,
                max_units=config.max_grids,
                max_codes=config.codes_per_image,
            )
        return cls(
            size=config.size,
            bos=0,
            pad=1,
            eos=2,
            unk=3,
            end_of_image=end_of_image,
            begin_of_image=end_of_image + 1,
            end_of_turn=turn,
            image_placeholder=turn + 1,
            modalities=(
                Modality(
                    name="text",
                    start=text_start,
                    stop=text_start + config.text_tokens,
                    begin_marker=None,
                    end_marker=None,
                    grammar=FreeSpan(),
                ),
                Modality(
                    name="image",
                    start=image_start,
                    stop=end_of_image,
                    begin_marker=end_of_image + 1,
                    end_marker=end_of_image,
                    grammar=image_grammar,
                ),
            ),
        )

    @property
    def text(self) -> Modality:
        return self.modalities[ModalityId.TEXT]

    @property
    def image(self) -> Modality:
        return self.modalities[ModalityId.IMAGE]

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the layout."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def modality_of(self, ids: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """int8 row number of the modality table for each id, of the host or traced; special ids and markers count as text.

        Sizes and row ends of a grid count as image: they stand nowhere else, and a row end is certain, so that one id in every
        few would pull the text loss down.
        """
        image = (ids >= self.image.start) & (ids < self.image.stop)
        if isinstance(grid := self.image.grammar, GridSpan):
            image = image | (ids >= grid.newline) & (ids <= grid.size_base + grid.max_units)
        return image.astype(np.int8) * np.int8(ModalityId.IMAGE)

    def codes_to_ids(self, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Image codes 0..C-1 to ids.

        Raises TokenizerError for a code outside the codebook.
        """
        codes = np.asarray(codes, np.int64)
        count = self.image.stop - self.image.start
        if codes.size and (codes.min() < 0 or codes.max() >= count):
            raise TokenizerError(f"image code {int(codes.min())}..{int(codes.max())} is outside 0..{count - 1}")
        return (codes + self.image.start).astype(np.int32)

    def ids_to_codes(self, ids: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Inverse of `codes_to_ids`; raises TokenizerError for an id that is not an image code."""
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < self.image.start or ids.max() >= self.image.stop):
            raise TokenizerError(f"ids {int(ids.min())}..{int(ids.max())} are not all image codes")
        return (ids - self.image.start).astype(np.int32)

    def image_span(self, codes: Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]) -> Int[np.ndarray, "m"]:
        """Ids of a whole image: markers around its codes, and for a grid sizes and row ends.

        Raises TokenizerError for codes of another shape than [codes_per_image], or [height, width] of a grid vocabulary, and for
        a code outside the codebook.
        """
        codes, grammar = np.asarray(codes), self.image.grammar
        if isinstance(grammar, GridSpan):
            if codes.ndim != 2:
                raise TokenizerError(f"an image has codes of shape {codes.shape} instead of [height, width]")
            if problem := grammar.problem(*codes.shape):
                raise TokenizerError(f"an image has {problem}")
            sizes = [grammar.size_base + side // grammar.unit for side in codes.shape]
            rows = np.pad(self.codes_to_ids(codes), ((0, 0), (0, 1)), constant_values=grammar.newline)
            body = [*sizes, *rows.reshape(-1)]
        else:
            if codes.shape != (grammar.length,):
                raise TokenizerError(f"an image has codes of shape {codes.shape} instead of ({grammar.length},)")
            body = self.codes_to_ids(codes)
        return np.concatenate([[self.begin_of_image], body, [self.end_of_image]]).astype(np.int32)

    def special_names(self) -> list[str]:
        """Names of the ids below the text pieces, in order of id, spelled as in Chameleon's tokenizer file."""
        codes = self.image.stop - self.image.start
        names = ["<s>", "<pad>", "</s>", "<unk>"]
        names += [code_name(code) for code in range(codes)]
        names += ["<eoss>", "<racm3:break>"]
        names += [f"<reserved{i - 4:05d}>" for i in range(self.begin_of_image + 1, self.text.start)]
        return names

    def store_dtype(self) -> np.dtype:
        """Smallest unsigned type that holds every id."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)


def code_name(code: int) -> str:
    """Chameleon's name of an image code: decimal digits spelled A..J, so 53 is `IMGIMGFDZ`."""
    return "IMGIMG" + str(code).translate(_DIGITS) + "Z"
