"""The transformer and the mesh it lies on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from chameleon_jax.config_base import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumericsConfig(Config):
    """Where the released implementations lose precision that need not be lost; the defaults keep it.

    `convert.releases.NUMERICS` names what each release does. Only fields that are set change anything.
    """

    round_logits: bool = False  # logits to the compute dtype, which makes ties common (Meta, Hugging Face)
    round_norms: bool = False  # norms to the compute dtype before scale and bias, not after (Hugging Face)
    masked_ids: tuple[int, ...] = ()  # (start, stop): their logits become the least number (Hugging Face: image codes)

    def validate(self):
        bounds = self.masked_ids
        self.require(
            bounds == () or (len(bounds) == 2 and 0 <= bounds[0] < bounds[1]),
            f"masked_ids must be empty or (start, stop) with start < stop, got {bounds}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchEncoderConfig(Config):
    """The encoder of pictures that are perceived, not generated: patches of pixels to vectors in the decoder's width."""

    patch_size: int = 16  # pixels; sides of pictures are multiples of it
    width: int = 256
    n_layers: int = 2  # 0: a linear projection of the pixels
    n_heads: int = 4
    d_ff: int = 1024

    def validate(self):
        for name in ("patch_size", "width", "n_heads", "d_ff"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(self.n_layers >= 0, f"n_layers must be at least 0, got {self.n_layers}")
        self.require(self.width % self.n_heads == 0, f"width {self.width} is not a multiple of n_heads {self.n_heads}")
        self.require(self.width % 4 == 0, f"width must be a multiple of 4 for positions in two axes, got {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """The decoder. Dimension letters: D d_model, L n_layers, N n_heads, K n_kv_heads, H head_dim, F d_ff, V vocab_size.

    E modalities, for parts that are untied (mixture-of-transformers, Liang et al. 2024).
    """

    vocab_size: int = 0  # 0: a pretraining run takes what its token stores need, a multiple of 128
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
    qk_norm_groups: int = 1  # of query heads that share QK-norm parameters; keys have as many, at most n_kv_heads
    norm_order: Literal["pre", "swin"] = "pre"
    dropout: float = 0.0
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["auto", "splash", "triton", "chunked", "reference"] = "auto"
    attention_chunk: int = 512  # queries per block of the chunked backend
    remat: Literal["none", "full", "dots", "attention"] = "none"
    scan_unroll: int = 1
    init_std: float = 0.02
    scale_residual_init: bool = True  # wo and down are divided by sqrt(2 L)
    # Parts with parameters for each modality of the input.
    untied: tuple[Literal["mlp", "norms", "attention"], ...] = ()
    modalities: int = 2  # rows of the vocabulary's modality table, which untied parts have parameters for
    # Encoder of the pictures that prompts hold as vectors; None: ids alone.
    perception: PatchEncoderConfig | None = None
    numerics: NumericsConfig = dataclasses.field(default_factory=NumericsConfig)

    @property
    def k_norm_groups(self) -> int:
        """Groups of key heads that share QK-norm parameters."""
        return min(self.qk_norm_groups, self.n_kv_heads)

    def validate(self):
        self.require(self.vocab_size >= 0, f"vocab_size must not be negative, got {self.vocab_size}")
        for name in (
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "max_seq_len",
            "attention_chunk",
            "qk_norm_groups",
        ):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}",
        )
        self.require(self.head_dim % 2 == 0, f"head_dim must be even for RoPE, got {self.head_dim}")
        for name, groups in (("n_heads", self.qk_norm_groups), ("n_kv_heads", self.k_norm_groups)):
            heads = getattr(self, name)
            self.require(heads % groups == 0, f"{name} {heads} is not a multiple of qk_norm_groups {groups}")
        self.require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        self.require(
            self.n_layers % self.scan_unroll == 0,
            f"n_layers {self.n_layers} is not a multiple of scan_unroll {self.scan_unroll}",
        )
        self.require(len(set(self.untied)) == len(self.untied), f"untied names a part twice: {self.untied}")
        self.require(self.modalities >= 1, f"modalities must be at least 1, got {self.modalities}")


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
