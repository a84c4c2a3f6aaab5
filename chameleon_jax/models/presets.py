"""Named models: the released ones, with everything their weights need around them, and small ones for one's own runs.

The one idea: a release is more than a shape. Its id space, its pictures, its prompts and the rounding of its code belong to it, and
`Release` keeps them together. Sizes: Chameleon (arXiv 2405.09818), table 1 and section 2.3, and the shapes of the published
weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeVar

from chameleon_jax.configs import ImageConfig, NumericsConfig, TransformerConfig, VocabConfig, text_and_image
from chameleon_jax.errors import ConfigError, did_you_mean

_T = TypeVar("_T")

# Rounding and masking of the released implementations. "best" is ours; the others are for comparing with them.
NUMERICS: dict[str, NumericsConfig] = {
    "best": NumericsConfig(),
    "meta": NumericsConfig(round_logits=True),
    "hf": NumericsConfig(round_logits=True, round_norms=True, masked_ids=(4, 8196)),
    "lumina": NumericsConfig(round_logits=True, round_norms=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """One released model.

    `numerics` names what its own code does (NUMERICS); `prompt` the format that its weights were tuned on (generation.prompt).
    """

    model: TransformerConfig
    vocab: VocabConfig
    image: ImageConfig
    numerics: Literal["meta", "lumina"]
    prompt: Literal["chat", "lumina"]


_7B = TransformerConfig(remat="attention")
_34B = TransformerConfig(
    d_model=8192,
    n_layers=48,
    n_heads=64,
    n_kv_heads=8,
    d_ff=22016,
    qk_norm_groups=4,
    norm_order="swin",
    remat="attention",
)
# Images of any size up to 1024 x 1024 pixels: 64 x 64 codes.
_GRIDS = text_and_image(image_span="grid", codes_per_image=4096)


def _chameleon(model: TransformerConfig, dropout: float) -> Release:
    model = dataclasses.replace(model, dropout=dropout)
    return Release(model=model, vocab=text_and_image(), image=ImageConfig(), numerics="meta", prompt="chat")


def _lumina(model: TransformerConfig) -> Release:
    return Release(
        # A picture of 1024 x 1024 pixels is 4,164 ids, and there is a prompt before it.
        model=dataclasses.replace(model, dropout=0.05, max_seq_len=5120),
        vocab=_GRIDS,
        image=ImageConfig(preprocessing="lumina"),
        numerics="lumina",
        prompt="lumina",
    )


RELEASES: dict[str, Release] = {
    "chameleon-7b": _chameleon(_7B, dropout=0.1),
    "chameleon-34b": _chameleon(_34B, dropout=0.0),
    "anole-7b": _chameleon(_7B, dropout=0.0),
    "lumina-mgpt-7b": _lumina(_7B),
    "lumina-mgpt-34b": _lumina(_34B),
}

PRESETS: dict[str, TransformerConfig] = {
    "tiny": TransformerConfig(
        vocab_size=1024,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        head_dim=16,
        d_ff=176,
        max_seq_len=512,
        compute_dtype="float32",
    ),
    "34m": TransformerConfig(
        vocab_size=8192, d_model=512, n_layers=8, n_heads=8, n_kv_heads=8, head_dim=64, d_ff=1376, max_seq_len=2048
    ),
    "100m": TransformerConfig(
        vocab_size=16384, d_model=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, d_ff=2048, max_seq_len=4096
    ),
    "1b": TransformerConfig(d_model=2048, n_layers=18, n_heads=16, n_kv_heads=16, d_ff=5632, remat="attention"),
    **{name: release.model for name, release in RELEASES.items()},
}


def preset(name: str) -> TransformerConfig:
    """The config of that name; raises ConfigError with the nearest name for an unknown one."""
    return _named("model preset", name, PRESETS)


def release(name: str) -> Release:
    """The released model of that name; raises ConfigError with the nearest name for an unknown one."""
    return _named("release", name, RELEASES)


def _named(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise ConfigError(f"no {kind} '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    return known[name]
