"""The one id space: special ids, the ids of every modality, and the grammar of its spans.

A modality is a row of a table (`configs.VocabConfig`): id range, markers, span grammar. Nothing else in the package knows which
modalities there are. The layout is Chameleon's (facebookresearch/chameleon, `inference/vocab.py`) at any size: `<s> <pad> </s>
<unk>`, the codes of the first row with markers, `<eoss>`, `<racm3:break>`, reserved ids, text pieces; behind them stand further
rows and control ids that an extension has added.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import ModalityConfig, SamplingConfig, VocabConfig
from chameleon_jax.errors import ChameleonError, TokenizerError, did_you_mean

_DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

TEXT = 0  # row of text, to which special ids count

Ids = TypeVar("Ids")  # a NumPy or a JAX array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSpan:
    """BEGIN, exactly `length` content ids, END: Chameleon's image span."""

    length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSpan:
    """BEGIN, id of the height, id of the width, rows that each end in `newline`, END: Lumina-mGPT's image span.

    A side of n units is `n * unit` content ids long and its id is `size_base + n`, n in 1..max_units. A span has at most
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
        """Why a grid of `height` x `width` content ids has no span; empty if it has one."""
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
    output: bool = True  # False: only taken in, neither learned nor generated
    perceived: bool = False  # its content ids are places of vectors of `models.perception`
    # Where a request does not say otherwise.
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    @property
    def marked(self) -> bool:
        """Whether spans stand between markers."""
        return not isinstance(self.grammar, FreeSpan)

    @property
    def end(self) -> int:
        """Behind the last of a later row's ids: content, markers, and of a grid row end and sizes."""
        grid = self.grammar
        last = grid.size_base + grid.max_units if isinstance(grid, GridSpan) else self.begin_marker
        return self.stop if last is None else last + 1

    def holds(self, ids: Ids) -> Ids:
        """Which ids are content, NumPy or JAX."""
        return (ids >= self.start) & (ids < self.stop)

    def counts(self, ids: Ids) -> Ids:
        """Which ids count as this modality: content and, of a grid, sizes and row ends.

        Those stand nowhere else, and a row end is certain, so that one id in every few would pull the loss of text down.
        """
        held = self.holds(ids)
        if isinstance(grid := self.grammar, GridSpan):
            held |= (ids >= grid.newline) & (ids <= grid.size_base + grid.max_units)
        return held

    def ids(self, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Codes 0..C-1 to ids. Raises TokenizerError for a code outside the codebook."""
        codes = np.asarray(codes, np.int64)
        count = self.stop - self.start
        if codes.size and (codes.min() < 0 or codes.max() >= count):
            outside = int(codes.min() if codes.min() < 0 else codes.max())
            raise TokenizerError(f"code {outside} of '{self.name}' is outside 0..{count - 1}")
        return (codes + self.start).astype(np.int32)

    def codes(self, ids: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Inverse of `ids`; raises TokenizerError for an id that is not content."""
        ids = np.asarray(ids, np.int64)
        if not self.holds(ids).all():
            raise TokenizerError(f"ids {int(ids.min())}..{int(ids.max())} are not all codes of '{self.name}'")
        return (ids - self.start).astype(np.int32)

    def span(self, codes: Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]) -> Int[np.ndarray, "m"]:
        """Ids of a whole span: markers around its codes, and for a grid sizes and row ends.

        Raises TokenizerError for codes of another shape than the grammar has ([length] of a fixed span, [height, width] of a
        grid, [n] of a free one), and for a code outside the codebook.
        """
        codes, grammar = np.asarray(codes), self.grammar
        if isinstance(grammar, GridSpan):
            if codes.ndim != 2:
                raise TokenizerError(
                    f"a span of '{self.name}' has codes of shape {codes.shape} instead of [height, width]"
                )
            if problem := grammar.problem(*codes.shape):
                raise TokenizerError(f"a span of '{self.name}' has {problem}")
            sizes = [grammar.size_base + side // grammar.unit for side in codes.shape]
            rows = np.pad(self.ids(codes), ((0, 0), (0, 1)), constant_values=grammar.newline)
            body = np.concatenate([sizes, rows.reshape(-1)])
        else:
            wanted = (grammar.length,) if isinstance(grammar, FixedSpan) else (codes.size,)
            if codes.shape != wanted:
                raise TokenizerError(f"a span of '{self.name}' has codes of shape {codes.shape} instead of {wanted}")
            body = self.ids(codes)
        if not self.marked:
            return body
        return np.concatenate([[self.begin_marker], body, [self.end_marker]]).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocab:
    """Roles and ranges of ids. Made from a VocabConfig; equal layouts have equal fingerprints."""

    size: int
    bos: int
    pad: int
    eos: int
    unk: int
    end_of_turn: int
    placeholder: int  # that other programs put where a picture belongs; no prompt of ours holds it
    modalities: tuple[Modality, ...]

    @classmethod
    @functools.lru_cache(maxsize=64)  # bundles ask for theirs with every id of a stream
    def from_config(cls, config: VocabConfig) -> Vocab:
        at = len(_SPECIAL)
        made: dict[str, Modality] = {}
        first = next((row for row in config.modalities if row.marked), None)
        codes_end = at + (first.ids + 2 if first else 0)
        text_start = codes_end + config.reserved
        # Chameleon ends a turn with the 513th reserved id; smaller layouts use the last pair that fits.
        turn = codes_end + min(512, config.reserved - 2)
        if first is not None:
            # Lumina-mGPT's row end is the 606th reserved id, behind it size 0 and up; smaller layouts put them before the turn's.
            newline = codes_end + 605
            if newline + 2 + first.max_grids > text_start:
                newline = turn - 2 - first.max_grids
            made[first.name] = _modality(first, at, newline)
        at = text_start
        for row in config.modalities:
            if row is first:
                continue
            made[row.name] = _modality(row, at, at + row.ids + 2)
            at += row.ids + (2 if row.marked else 0) + (2 + row.max_grids if row.span == "grid" else 0)
        return cls(
            size=at + len(config.added),
            bos=0,
            pad=1,
            eos=2,
            unk=3,
            end_of_turn=turn,
            placeholder=turn + 1,
            modalities=tuple(made[row.name] for row in config.modalities),
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(modality.name for modality in self.modalities)

    @property
    def text(self) -> Modality:
        """The row of text."""
        return self.modalities[TEXT]

    @property
    def marked(self) -> dict[int, Modality]:
        """The rows whose spans have markers, by number."""
        return {row: modality for row, modality in enumerate(self.modalities) if modality.marked}

    @property
    def perceived(self) -> Modality | None:
        """The row whose spans hold vectors of pictures; None where pictures are codes alone."""
        return next((modality for modality in self.modalities if modality.perceived), None)

    def begun(self, name: str, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "n"]:
        """int32 ids of a document that begins with one span of this modality: `[bos] span`, as a prompt to continue."""
        return np.concatenate([[self.bos], self.modalities[self.row(name)].span(codes)]).astype(np.int32)

    def row(self, name: str, error: type[ChameleonError] = TokenizerError) -> int:
        """Number of the row of this name. Raises `error`, naming the nearest, if there is none."""
        if name not in self.names:
            raise error(
                f"this model has no modality '{name}'{did_you_mean(name, list(self.names))}; it has {', '.join(self.names)}"
            )
        return self.names.index(name)

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the layout."""
        values = dataclasses.asdict(self)
        for modality in values["modalities"]:
            del modality["sampling"], modality["output"], modality["perceived"]
        layout = json.dumps(values, sort_keys=True)
        return hashlib.sha256(layout.encode()).hexdigest()[:16]

    def modality_of(self, ids: Ids) -> Ids:
        """int8 row number of each id, NumPy or JAX; special ids, markers among them, count as text."""
        rows = (np.int8(row) * modality.counts(ids).astype(np.int8) for row, modality in enumerate(self.modalities))
        return functools.reduce(operator.add, rows)

    def special_names(self) -> list[str]:
        """Names of the ids below the text pieces, in order of id, spelled as in Chameleon's tokenizer file."""
        names = list(_SPECIAL)
        if first := next(iter(self.marked.values()), None):
            names += [code_name(code) for code in range(first.stop - first.start)] + ["<eoss>", "<racm3:break>"]
        return names + [f"<reserved{i - 4:05d}>" for i in range(len(names), self.text.start)]

    def id_names(self) -> dict[int, str]:
        """What people read of ids that are no text: `[bos]`, `[begin image]`, `[image 12]`, `[row]`, `[size 3]`."""
        names = dict(enumerate(self.special_names()))
        names |= {self.bos: "[bos]", self.pad: "[pad]", self.eos: "[eos]", self.unk: "[unk]", self.end_of_turn: "[eot]"}
        for modality in self.marked.values():
            names |= {modality.begin_marker: f"[begin {modality.name}]", modality.end_marker: f"[end {modality.name}]"}
            if isinstance(grid := modality.grammar, GridSpan):
                names[grid.newline] = "[row]"
                names |= {grid.size_base + n: f"[size {n}]" for n in range(grid.max_units + 1)}
        for modality in self.modalities[1:]:
            names |= {modality.start + code: str(code) for code in range(modality.stop - modality.start)}
        return names

    def store_dtype(self) -> np.dtype:
        """Smallest unsigned type that holds every id."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)


def _modality(row: ModalityConfig, start: int, newline: int) -> Modality:
    """The row's content ids from `start` on, its markers behind them, and the ids of its grid from `newline` on."""
    stop = start + row.ids
    grammar: SpanGrammar = FreeSpan()
    if row.span == "fixed":
        grammar = FixedSpan(length=row.length)
    elif row.span == "grid":
        grammar = GridSpan(
            newline=newline, size_base=newline + 1, unit=row.grid_unit, max_units=row.max_grids, max_codes=row.length
        )
    return Modality(
        name=row.name,
        start=start,
        stop=stop,
        begin_marker=stop + 1 if row.marked else None,
        end_marker=stop if row.marked else None,
        grammar=grammar,
        output=row.output,
        perceived=row.codec == "patches",
        sampling=row.sampling,
    )


def code_name(code: int) -> str:
    """Chameleon's name of an image code: decimal digits spelled A..J, so 53 is `IMGIMGFDZ`."""
    return "IMGIMG" + str(code).translate(_DIGITS) + "Z"
