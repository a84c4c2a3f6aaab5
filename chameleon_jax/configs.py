"""Every setting of every run, as frozen keyword-only dataclasses that check themselves.

The one idea: a config is made once, on the main thread, by gin or by Python alike, and is complete and valid from then on.
Types are checked when the object is made, then `validate` checks the rules of fields and between fields. Nothing below the
entry points reads gin, flags or the environment.
"""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from typing import Literal

from chameleon_jax.config_base import Config

# --- vocabulary and tokenizers ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabConfig(Config):
    """Sizes of the parts of the one id space, in Chameleon's order.

    `<s> <pad> </s> <unk>`, image codes, end-of-image, begin-of-image, reserved ids, text pieces. The defaults give the released
    65,536 ids.
    """

    image_codes: int = 8192
    reserved: int = 8186
    text_tokens: int = 49152  # upper bound for a trained BPE; 256 bytes are the least
    codes_per_image: int = 1024

    @property
    def size(self) -> int:
        return 4 + self.image_codes + 2 + self.reserved + self.text_tokens

    def validate(self):
        self.require(self.image_codes >= 1, f"image_codes must be at least 1, got {self.image_codes}")
        self.require(
            self.reserved >= 2, f"reserved must be at least 2 (end of turn, image placeholder), got {self.reserved}"
        )
        self.require(self.text_tokens >= 256, f"text_tokens must be at least 256 (all bytes), got {self.text_tokens}")
        self.require(self.codes_per_image >= 1, f"codes_per_image must be at least 1, got {self.codes_per_image}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """How a picture file becomes a square array of pixels (Chameleon's preprocessing)."""

    resolution: int = 512
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")

    def validate(self):
        self.require(self.resolution >= 1, f"resolution must be positive, got {self.resolution}")
        self.require(self.max_pixels >= 1, f"max_pixels must be positive, got {self.max_pixels}")
        self.require(len(self.formats) > 0, "formats must name at least one image format")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQConfig(Config):
    """Shape of the VQGAN image codec; the defaults are Chameleon's.

    `patch_size` > 1 folds pixels into channels before the first convolution and unfolds them after the last: the same net at a
    fraction of the cost, for small budgets.
    """

    resolution: int = 512
    in_channels: int = 3
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 256
    embed_dim: int = 256
    codes: int = 8192
    attention_resolutions: tuple[int, ...] = ()
    norm_groups: int = 32
    dropout: float = 0.0
    patch_size: int = 1

    @property
    def downsampling(self) -> int:
        """Pixels per code along one side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side of a picture at the trained resolution."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    def validate(self):
        self.require(
            self.resolution % self.downsampling == 0,
            f"resolution {self.resolution} is not a multiple of the downsampling {self.downsampling}",
        )
        for multiplier in self.channel_multipliers:
            width = self.channels * multiplier
            self.require(
                width % self.norm_groups == 0,
                f"channels*{multiplier} = {width} is not a multiple of norm_groups {self.norm_groups}",
            )
        self.require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQTrainConfig(Config):
    """Training of the image codec: reconstruction + commitment (+ codebook) loss, van den Oord 2017 and Razavi 2019."""

    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 3e-4
    warmup_steps: int = 500
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    commitment_weight: float = 0.25
    codebook: Literal["ema", "gradient"] = "ema"
    ema_decay: float = 0.99
    dead_code_steps: int = 200  # a code unused for so many steps is restarted from the batch; 0 = never
    flip: bool = False  # random left-right flips
    jitter: int = 0  # random shifts of up to so many pixels
    eval_images: int = 512
    eval_every: int = 1000
    log_every: int = 50
    seed: int = 0

    def validate(self):
        for name in ("steps", "batch_size", "eval_images", "eval_every", "log_every"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        self.require(0 < self.ema_decay < 1, f"ema_decay must be in (0, 1), got {self.ema_decay}")
        self.require(self.l1_weight + self.l2_weight > 0, "l1_weight and l2_weight are both 0: nothing to reconstruct")


# --- data ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig(Config):
    """Where raw documents come from. docs/tokenize.md has the schema of each kind."""

    name: str
    kind: Literal["tfds", "folder", "webdataset", "parquet", "jsonl"]
    path: str  # a file or glob; for tfds the builder name
    root: str = (
        ""  # folder below which `path` is found; joined to `path` when the config is made, so that a macro can name it
    )
    split: str = ""  # tfds split, or the value of the record field `split`; empty = everything
    image_dir: str = ""  # images named in records are found below it; empty = beside the record file

    def validate(self):
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
    image_first_probability: float = 0.5  # Chameleon, section 2.2: half of the pairs have the picture first
    max_reject_fraction: float = 0.01
    max_images_per_document: int = 64
    max_text_bytes: int = 10_000_000
    image_batch: int = 16
    seed: int = 0

    def validate(self):
        names = [s.name for s in self.sources]
        self.require(len(names) > 0, "sources is empty: name at least one SourceConfig")
        self.require(len(set(names)) == len(names), f"source names must differ, got {names}")
        for name in ("documents_per_shard", "image_batch", "max_images_per_document", "max_text_bytes"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("image_first_probability", "max_reject_fraction"):
            self.require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Config):
    """Trains the two halves of a tokenizer bundle: the image codec and the byte-level BPE."""

    sources: tuple[SourceConfig, ...]
    eval_sources: tuple[SourceConfig, ...] = ()
    vocab: VocabConfig = dataclasses.field(default_factory=VocabConfig)
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    vq: VQConfig = dataclasses.field(default_factory=VQConfig)
    vq_train: VQTrainConfig = dataclasses.field(default_factory=VQTrainConfig)
    parts: Literal["both", "image", "text"] = "both"

    def validate(self):
        self.require(len(self.sources) > 0, "sources is empty: name at least one SourceConfig")
        self.require(
            self.vocab.image_codes == self.vq.codes,
            f"vocab.image_codes {self.vocab.image_codes} differs from vq.codes {self.vq.codes}",
        )
        self.require(
            self.vocab.codes_per_image == self.vq.codes_per_image,
            f"vocab.codes_per_image {self.vocab.codes_per_image} differs from vq.codes_per_image {self.vq.codes_per_image}",
        )
        self.require(
            self.image.resolution == self.vq.resolution,
            f"image.resolution {self.image.resolution} differs from vq.resolution {self.vq.resolution}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreConfig(Config):
    """A token store in a training mixture."""

    path: str  # `{workdir}` stands for the run's workdir
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


# --- model -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """The decoder. Dimension letters: D d_model, L n_layers, N n_heads, K n_kv_heads, H head_dim, F d_ff, V vocab_size."""

    vocab_size: int = 65536
    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 32
    head_dim: int = 128
    d_ff: int = 11008
    max_seq_len: int = 4096
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    qk_norm: bool = True
    qk_norm_groups: int = 1  # groups of heads that share q/k norm parameters; 4 in the released 34B
    norm_order: Literal["pre", "swin"] = "pre"
    dropout: float = 0.0
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["auto", "reference", "chunked"] = "auto"
    attention_chunk: int = 512  # queries per block of the chunked backend
    remat: Literal["none", "full", "dots", "attention"] = "none"
    scan_unroll: int = 1
    init_std: float = 0.02
    scale_residual_init: bool = True  # wo and down are divided by sqrt(2 L)

    def validate(self):
        for name in (
            "vocab_size",
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "max_seq_len",
            "attention_chunk",
        ):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}",
        )
        self.require(self.head_dim % 2 == 0, f"head_dim must be even for RoPE, got {self.head_dim}")
        self.require(
            self.n_kv_heads % self.qk_norm_groups == 0,
            f"n_kv_heads {self.n_kv_heads} is not a multiple of qk_norm_groups {self.qk_norm_groups}",
        )
        self.require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        self.require(
            self.n_layers % self.scan_unroll == 0,
            f"n_layers {self.n_layers} is not a multiple of scan_unroll {self.scan_unroll}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Config):
    """Sizes of the mesh axes; one of them may be -1 and takes what is left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def validate(self):
        sizes = (self.data, self.fsdp, self.tensor)
        self.require(all(s == -1 or s >= 1 for s in sizes), f"axes must be positive or -1, got {sizes}")
        self.require(sizes.count(-1) <= 1, f"only one axis may be -1, got {sizes}")


# --- training --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """Cross-entropy per modality with z-loss (Chameleon, section 2.3.2: 1e-5 log^2 Z)."""

    z_loss: float = 1e-5
    text_weight: float = 1.0
    image_weight: float = 1.0
    chunk: int = 1024  # tokens whose logits exist at one time on a device

    def validate(self):
        for name in ("z_loss", "text_weight", "image_weight"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        self.require(
            self.text_weight + self.image_weight > 0, "text_weight and image_weight are both 0: nothing to learn"
        )
        self.require(self.chunk >= 1, f"chunk must be at least 1, got {self.chunk}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW as in the Chameleon paper, section 2.3.1."""

    learning_rate: float = 1e-4
    warmup_steps: int = 4000
    schedule: Literal["exponential", "cosine", "constant"] = "exponential"
    exponential_rate: float = 0.01  # curve of the exponential decay; the schedule itself ends at exactly 0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    skip_nonfinite: bool = True  # a step whose loss or gradient is not finite changes nothing and is counted

    def validate(self):
        self.require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        self.require(self.warmup_steps >= 0, f"warmup_steps must not be negative, got {self.warmup_steps}")
        self.require(0 < self.exponential_rate < 1, f"exponential_rate must be in (0, 1), got {self.exponential_rate}")
        self.require(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, f"betas must be in [0, 1), got {self.beta1}, {self.beta2}"
        )
        self.require(self.eps > 0, f"eps must be positive, got {self.eps}")
        self.require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        self.require(self.clip_norm > 0, f"clip_norm must be positive, got {self.clip_norm}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """When to save and what to keep."""

    every_steps: int = 1000
    keep: int = 3  # newest verified steps that stay; at least 2
    keep_every: int = 0  # steps divisible by it are never deleted; 0 = none

    def validate(self):
        self.require(self.every_steps >= 1, f"every_steps must be at least 1, got {self.every_steps}")
        self.require(self.keep >= 2, f"keep must be at least 2 (one may be damaged), got {self.keep}")
        self.require(self.keep_every >= 0, f"keep_every must not be negative, got {self.keep_every}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Length, batch and rhythm of a run."""

    steps: int
    batch_size: int  # rows of seq_len tokens in one optimiser step, over all devices
    microbatches: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int = 8
    peak_flops: float = 0.0  # FLOP/s of one device for MFU; 0 = from the table of known devices, else measured

    def validate(self):
        for name in (
            "steps",
            "batch_size",
            "microbatches",
            "log_every",
            "eval_every",
            "eval_batches",
        ):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            self.batch_size % self.microbatches == 0,
            f"batch_size {self.batch_size} is not a multiple of microbatches {self.microbatches}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """A whole pretraining run."""

    model: TransformerConfig
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    prepare: Literal["nothing", "digits"] = "nothing"  # digits: make the token stores in the workdir, for smoke runs

    # Fields that may differ between a run and its resumption; a change anywhere else is refused.
    FREE_ON_RESUME: typing.ClassVar[tuple[str, ...]] = (
        "mesh.", "checkpoint.", "train.log_every", "train.eval_every", "train.eval_batches", "train.peak_flops",
        "data.cache_bytes", "data.prefetch", "model.remat", "model.scan_unroll", "data.eval_stores",
    )  # fmt: skip

    def validate(self):
        self.require(
            self.data.seq_len <= self.model.max_seq_len,
            f"data.seq_len {self.data.seq_len} exceeds model.max_seq_len {self.model.max_seq_len}",
        )


# --- evaluation and generation ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionEvalConfig(Config):
    """Choice of a picture's caption among others, by likelihood, on documents of one picture and one text."""

    source: SourceConfig
    pictures: int = 500  # evenly spaced over the source
    choices: int = 10
    seed: int = 0

    def validate(self):
        self.require(self.pictures >= 2, f"pictures must be at least 2, got {self.pictures}")
        self.require(self.choices >= 2, f"choices must be at least 2, got {self.choices}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How one modality is sampled; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.9

    def validate(self):
        self.require(
            self.temperature >= 0 and math.isfinite(self.temperature),
            f"temperature must be finite and >= 0, got {self.temperature}",
        )
        self.require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Config):
    """One generation request; `mode` masks the modalities that may come out."""

    mode: Literal["text", "image", "interleaved"] = "interleaved"
    max_tokens: int = 4096  # the model's context is the other limit
    max_images: int = 4
    text: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    image: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    seed: int = 0

    def validate(self):
        self.require(self.max_tokens >= 1, f"max_tokens must be at least 1, got {self.max_tokens}")
        self.require(self.max_images >= 1, f"max_images must be at least 1, got {self.max_images}")
