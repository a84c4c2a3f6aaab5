"""Sources of raw documents, the tokenising run, and what training reads."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Literal

from chameleon_jax.config_base import Config
from chameleon_jax.configs.sound import SoundConfig, SoundTrainConfig
from chameleon_jax.configs.tokenizers import ImageConfig, VQConfig, VQTrainConfig
from chameleon_jax.configs.vocab import VocabConfig, text_and_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig(Config):
    """Where raw documents come from. docs/tokenize.md has the schema of each kind."""

    name: str
    kind: Literal[
        "tfds", "folder", "webdataset", "parquet", "jsonl", "csv", "pairs", "classes", "pictures", "huggingface"
    ]
    path: str  # a file or glob, of some kinds a folder; for tfds the builder name
    # Folder below which `path` is found; joined to `path` when the config is made, so that a macro can name it.
    root: str = ""
    split: str = ""  # tfds split, or the value of the record field `split`; empty = everything
    media_dir: str = ""  # files named in records are found below it; empty = beside the record file
    ignore_fields: tuple[str, ...] = ()  # of records: passed over, whatever they hold
    caption: str = ""  # of kind "pictures": the words that every one of them gets; empty = none

    def validate(self):
        self.require(
            not self.caption or self.kind == "pictures",
            f"source '{self.name}': caption is for kind 'pictures', not '{self.kind}'",
        )
        self.require(
            bool(self.name) and "/" not in self.name, f"name must be non-empty and without '/', got {self.name!r}"
        )
        self.require(bool(self.path), f"source '{self.name}' has no path")
        self.require(not self.root or self.kind != "tfds", f"source '{self.name}': root has no meaning for tfds")
        if self.root:
            object.__setattr__(self, "path", os.path.join(self.root, self.path))
            object.__setattr__(self, "root", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeConfig(Config):
    """One run of the tokenising pipeline: sources -> token store."""

    sources: tuple[SourceConfig, ...]
    tokenizer: str  # directory of the tokenizer bundle
    documents_per_shard: int = 1024
    # Of a pair, the segment of the later modality of the table comes first so often (Chameleon, section 2.2: half of the pairs
    # have the picture first).
    later_first_probability: float = 0.5
    max_reject_fraction: float = 0.01
    # Of a document, by modality; of one not named 64 if its spans have markers, else any number.
    max_spans: dict[str, int] = dataclasses.field(default_factory=dict)
    max_bytes: int = 10_000_000  # of a document's text
    # "patches": a picture that is not a document's last segment is perceived; the vocabulary has a row of patches then.
    image_input: Literal["codes", "patches"] = "codes"
    codec_batch: int = 16  # items that a codec encodes at one time
    seed: int = 0

    def validate(self):
        names = [s.name for s in self.sources]
        self.require(len(names) > 0, "sources is empty: name at least one SourceConfig")
        self.require(len(set(names)) == len(names), f"source names must differ, got {names}")
        for name in ("documents_per_shard", "codec_batch", "max_bytes"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name, most in self.max_spans.items():
            self.require(most >= 1, f"max_spans: that of '{name}' must be at least 1, got {most}")
        for name in ("later_first_probability", "max_reject_fraction"):
            self.require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Config):
    """Trains a tokenizer bundle: the byte-level BPE, and the codecs of the table, `vq` for pictures and `sound` for sounds."""

    sources: tuple[SourceConfig, ...]
    eval_sources: tuple[SourceConfig, ...] = ()
    vocab: VocabConfig = dataclasses.field(default_factory=text_and_image)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    vq: VQConfig = dataclasses.field(default_factory=VQConfig)
    vq_train: VQTrainConfig = dataclasses.field(default_factory=VQTrainConfig)
    sound: SoundConfig = dataclasses.field(default_factory=SoundConfig)
    sound_train: SoundTrainConfig = dataclasses.field(default_factory=SoundTrainConfig)
    parts: tuple[str, ...] = ()  # names of the modalities that this run trains; empty = all

    def validate(self):
        self.require(len(self.sources) > 0, "sources is empty: name at least one SourceConfig")
        shapes = {
            "vqgan": ("vq", self.vq.codes, "codes_per_image", self.vq.codes_per_image),
            "sound": ("sound", self.sound.codes, "codes_per_sound", self.sound.codes_per_sound),
        }
        for row in self.vocab.modalities:
            if row.codec not in shapes:
                continue
            config, codes, field, length = shapes[row.codec]
            for what, mine, theirs, name in (("ids", row.ids, codes, "codes"), ("length", row.length, length, field)):
                self.require(
                    mine == theirs, f"{what} {mine} of '{row.name}' in vocab differs from {config}.{name} {theirs}"
                )
        self.require(
            self.vocab.of_codec("vqgan") is None or self.image.resolution == self.vq.resolution,
            f"image.resolution {self.image.resolution} differs from vq.resolution {self.vq.resolution}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreConfig(Config):
    """A token store in a training mixture."""

    path: str
    weight: float = 1.0
    stage: Literal[1, 2] = 1  # stage 2 stores join when the second stage begins

    def validate(self):
        self.require(bool(self.path), "path is empty")
        self.require(
            self.weight > 0 and math.isfinite(self.weight), f"weight must be positive and finite, got {self.weight}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What training reads: a staged, weighted mixture of packed token stores."""

    stores: tuple[StoreConfig, ...]
    eval_stores: tuple[StoreConfig, ...] = ()
    seq_len: int = 4096
    stage2_start: float = 0.8  # fraction of the run (Chameleon, section 2.2)
    stage1_weight_in_stage2: float = 0.5  # stage 1 weights are halved in stage 2
    max_segments_per_row: int = 256
    cache_bytes: int = 2 << 30  # shards held decoded in memory by one process
    prefetch: int = 2  # batches made ahead
    seed: int = 0

    def validate(self):
        self.require(len(self.stores) > 0, "stores is empty: name at least one StoreConfig")
        self.require(any(s.stage == 1 for s in self.stores), "no store of stage 1")
        self.require(self.seq_len >= 2, f"seq_len must be at least 2, got {self.seq_len}")
        self.require(0 < self.stage2_start <= 1, f"stage2_start must be in (0, 1], got {self.stage2_start}")
        self.require(
            0 <= self.stage1_weight_in_stage2 <= 1,
            f"stage1_weight_in_stage2 must be in [0, 1], got {self.stage1_weight_in_stage2}",
        )
        self.require(
            self.max_segments_per_row >= 1, f"max_segments_per_row must be at least 1, got {self.max_segments_per_row}"
        )
        self.require(self.prefetch >= 1, f"prefetch must be at least 1, got {self.prefetch}")
