"""The modality table: which kinds of tokens there are, how their spans look, and what makes and reads their codes."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable
from typing import Any, Literal

from chameleon_jax.config_base import Config
from chameleon_jax.errors import ConfigError, did_you_mean

# What the device holds settings in: int32, and normal float32.
LARGEST_INT, SMALLEST_FLOAT = 2**31, 1.2e-38


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How one modality is sampled; temperature 0 is greedy. `generation.sampling` says in which order, and what comes of ties."""

    temperature: float = 0.7
    top_p: float = 0.9  # keep the smallest set of ids whose mass reaches it; 1 = all
    top_k: int = 0  # keep the k most likely ids; 0 = all
    repetition_penalty: float = 1.0  # of ids that the prompt or the output holds already; 1 = none

    def validate(self):
        self.require(
            self.temperature >= 0 and math.isfinite(self.temperature),
            f"temperature must be finite and >= 0, got {self.temperature}",
        )
        self.require(
            SMALLEST_FLOAT <= self.top_p <= 1,
            f"top_p must be in (0, 1] and no smaller than {SMALLEST_FLOAT}, got {self.top_p}",
        )
        self.require(0 <= self.top_k < LARGEST_INT, f"top_k must be in 0..{LARGEST_INT - 1}, got {self.top_k}")
        self.require(
            self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty),
            f"repetition_penalty must be finite and positive, got {self.repetition_penalty}",
        )


# Names that mean something else: of ids, of modes, and of fields of records.
_TAKEN = (
    "added", "interleaved", "unrestricted", "id", "split", "loss", "segments", "conversations", "texts", "images", "text_list",
    "image_info", "caption", "captions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityConfig(Config):
    """One row of the modality table.

    A `free` span is any number of content ids, without markers. A `fixed` span has `length` content ids between two markers, a
    `grid` span (Lumina-mGPT's) says its height and width and has rows that end in a newline id, of `length` content ids at most.

    `codec` is the kind of codec that turns data into content ids: "bpe" text, "vqgan" picture files, "sound" WAV files; without
    one the data are the numbers 0..ids-1 themselves. "patches" are picture files that are perceived: a span has `length` times one
    id, a placeholder, and the model sees vectors of `models.perception` there.
    """

    name: str
    ids: int  # content ids; for "bpe" the most that training makes, 256 bytes among them
    span: Literal["free", "fixed", "grid"] = "fixed"
    length: int = 0
    # Of a grid: the largest height or width in units, and the codes of a unit, of which sides are multiples.
    max_grids: int = 64
    grid_unit: int = 2
    codec: Literal["", "bpe", "vqgan", "sound", "patches"] = ""
    output: bool = True  # False: only taken in, neither learned nor generated
    may_cut: bool = False  # a span that is longer than what is left of a row of training is cut there
    loss_weight: float = 1.0  # in training, unless LossConfig.weights says otherwise
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)  # unless a request says otherwise

    @property
    def marked(self) -> bool:
        """Whether spans stand between markers."""
        return self.span != "free"

    def layout(self) -> dict[str, Any]:
        """What decides tokens, for fingerprints: a field that is not named here may come without ending old stores."""
        fields = ["name", "ids", "span", "codec"] + ["length"] * self.marked + ["output"] * (not self.output)
        fields += ["max_grids", "grid_unit"] * (self.span == "grid")
        return {field: getattr(self, field) for field in fields}

    def validate(self):
        name = self.name
        self.require(
            name.isidentifier(), f"the name of a modality is letters, digits and _, no digit first, got {name!r}"
        )
        self.require(name not in _TAKEN, f"a modality cannot be called {name!r}: it is taken")
        self.require(self.ids >= 1, f"'{name}': ids must be at least 1, got {self.ids}")
        self.require(
            self.loss_weight >= 0 and math.isfinite(self.loss_weight),
            f"'{name}': loss_weight must be finite and not negative, got {self.loss_weight}",
        )
        if self.codec == "patches":
            self._validate_patches()
        if self.codec == "bpe":
            self.require(self.output, f"'{name}': text is always generated: leave out output=False")
            self.require(self.span == "free", f"'{name}': text has free spans, not '{self.span}' ones")
            self.require(
                self.ids >= 256,
                f"'{name}': codec 'bpe' is of text, at least 256 ids (all bytes), got {self.ids}",
            )
        if self.span == "free":
            self.require(self.length == 0, f"'{name}': a free span has no length, got {self.length}")
            return
        self.require(self.length >= 1, f"'{name}': the length of a span must be at least 1, got {self.length}")
        if self.span == "grid":
            self.require(
                self.codec != "", f"'{name}': a grid span needs a codec: numbers alone have no height and width"
            )
            # The ids of a small layout stand before the end-of-turn id, which is at most the 513th reserved one.
            self.require(1 <= self.max_grids <= 510, f"'{name}': max_grids must be in 1..510, got {self.max_grids}")
            self.require(self.grid_unit >= 1, f"'{name}': grid_unit must be at least 1, got {self.grid_unit}")
            self.require(
                self.length >= self.grid_unit**2,
                f"'{name}': length {self.length} is less than the smallest grid of {self.grid_unit}x{self.grid_unit}",
            )

    def _validate_patches(self):
        name = self.name
        self.require(self.span == "fixed", f"'{name}': patches have fixed spans, not '{self.span}' ones")
        self.require(self.ids == 1, f"'{name}': patches have one id, the placeholder, not {self.ids}")
        self.require(
            math.isqrt(self.length) ** 2 == self.length,
            f"'{name}': the length of a span of patches is a square number, got {self.length}",
        )
        self.require(not self.output, f"'{name}': patches are only taken in: set output=False")
        self.require(not self.may_cut, f"'{name}': a span of patches cannot be cut: leave out may_cut=True")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabConfig(Config):
    """The one id space, as a table of modalities; `text_and_image` makes that of the Chameleon family.

    The first row is text: special ids count as its own. In order of ids: `<s> <pad> </s> <unk>`, the first row with markers
    (content ids, end marker, begin marker), reserved ids, text pieces, every further row (content ids, markers, for a grid its
    row end and sizes), added control ids. So another row, at the end, moves no id but the added ones; only the first row with
    markers moves those behind it.
    """

    modalities: tuple[ModalityConfig, ...]
    reserved: int = 8186
    added: tuple[
        str, ...
    ] = ()  # names of control ids, at the end so that adding one moves no other; no text becomes one

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.modalities)

    @property
    def text(self) -> ModalityConfig:
        """The row of text."""
        return self.modalities[0]

    def row(self, name: str) -> int:
        """Number of the row of this name. Raises ConfigError, naming the nearest."""
        if name not in self.names:
            raise ConfigError(
                f"there is no modality '{name}'{did_you_mean(name, list(self.names))}; there are {', '.join(self.names)}"
            )
        return self.names.index(name)

    def of_codec(self, kind: str) -> ModalityConfig | None:
        """The first row whose codes are made by this kind of codec, or None."""
        return next((row for row in self.modalities if row.codec == kind), None)

    def with_row(self, name: str, **changes: Any) -> VocabConfig:
        """The same table with changed fields of one row. Raises ConfigError for a name that no row has."""
        rows = list(self.modalities)
        at = self.row(name)
        rows[at] = dataclasses.replace(rows[at], **changes)
        return dataclasses.replace(self, modalities=tuple(rows))

    def by_row(self, values: dict[str, Any], default: Iterable[Any]) -> tuple[Any, ...]:
        """A value for each row: that of `values` by name, else that of `default` by row.

        Raises ConfigError for a foreign name, and for the row of what is only taken in, which has no output to say anything of.
        """
        for name in values:
            self.require(self.modalities[self.row(name)].output, f"'{name}' is only taken in: leave it out")
        return tuple(values.get(name, other) for name, other in zip(self.names, default, strict=True))

    def layout(self) -> dict[str, Any]:
        """What decides tokens, for fingerprints."""
        return {
            "modalities": [row.layout() for row in self.modalities],
            "reserved": self.reserved,
            "added": list(self.added),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """Inverse of `to_dict`; also reads the fixed pair of text and image that older stores and tokenizers have."""
        return text_and_image(**values) if "image_codes" in values else super().from_dict(values)

    def validate(self):
        self.require(len(self.modalities) > 0, "modalities is empty: name at least the row of text")
        self.require(
            self.text.codec == "bpe", f"the first modality is that of text, with codec 'bpe'; got '{self.text.codec}'"
        )
        for kind in ("bpe", "patches"):
            rows = [row.name for row in self.modalities if row.codec == kind]
            self.require(len(rows) < 2, f"{', '.join(rows)} all have codec '{kind}'; one row has it")
        self.require(len(set(self.names)) == len(self.names), f"two modalities have one name: {', '.join(self.names)}")
        for name in self.added:
            self.require(
                name.isprintable() and name != "" and " " not in name,
                f"names of added ids are printable, without spaces and not empty, got {name!r}",
            )
            self.require(
                name not in (*self.names, "added"),
                f"an added id cannot be called {name!r}, which names a group of ids in TrainableConfig.rows",
            )
        self.require(len(set(self.added)) == len(self.added), f"added has a name twice: {self.added}")
        total = sum(row.ids for row in self.modalities) + self.reserved + len(self.added)
        self.require(total < LARGEST_INT - 2**16, f"{total} ids are too many: they are 32-bit numbers")
        self.require(self.reserved >= 2, f"reserved must be at least 2 (end of turn, placeholder), got {self.reserved}")
        first = next((row for row in self.modalities if row.marked), None)
        if first is not None and first.span == "grid":
            least = first.max_grids + 4
            self.require(
                self.reserved >= least,
                f"a grid of up to {first.max_grids} units needs {least} reserved ids (sizes from 0, row end, end of turn, "
                f"placeholder), got {self.reserved}",
            )


def text_and_image(
    *,
    image_codes: int = 8192,
    reserved: int = 8186,
    text_tokens: int = 49152,
    codes_per_image: int = 1024,
    image_span: Literal["fixed", "grid"] = "fixed",
    max_grids: int = 64,
    grid_unit: int = 2,
    patches: int = 0,
    added: tuple[str, ...] | list[str] = (),
) -> VocabConfig:
    """The table of the Chameleon family: text, and images in codes of a VQGAN. The defaults give the released 65,536 ids.

    `text_tokens` bounds a trained BPE, `codes_per_image` is the length of a fixed span and the most codes of a grid span, with
    `max_grids` and `grid_unit` as in `ModalityConfig`. With `patches` there is a third row, `seen`: pictures that are perceived,
    each in so many patches.
    """
    seen = ModalityConfig(name="seen", ids=1, length=patches, codec="patches", output=False) if patches else None
    return VocabConfig(
        modalities=(
            ModalityConfig(name="text", ids=text_tokens, span="free", codec="bpe", may_cut=True),
            ModalityConfig(
                name="image",
                ids=image_codes,
                span=image_span,
                length=codes_per_image,
                max_grids=max_grids,
                grid_unit=grid_unit,
                codec="vqgan",
            ),
            *([seen] if seen else []),
        ),
        reserved=reserved,
        added=tuple(added),
    )
