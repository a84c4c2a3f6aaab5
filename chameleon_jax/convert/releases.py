"""The released models, with everything that their weights need around them.

A release is more than a shape. Its id space, its pictures, its prompts and the rounding of its code belong to it, and `Release`
keeps them together. Shapes: `models/presets.py`, under the same names.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from chameleon_jax.configs import ImageConfig, NumericsConfig, TransformerConfig, VocabConfig, text_and_image
from chameleon_jax.errors import ConfigError, did_you_mean
from chameleon_jax.models.presets import preset

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


def _chameleon(name: str) -> Release:
    return Release(model=preset(name), vocab=text_and_image(), image=ImageConfig(), numerics="meta", prompt="chat")


def _lumina(name: str) -> Release:
    return Release(
        model=preset(name),
        # Images of any size up to 1024 x 1024 pixels: 64 x 64 codes.
        vocab=text_and_image(image_span="grid", codes_per_image=4096),
        image=ImageConfig(preprocessing="lumina"),
        numerics="lumina",
        prompt="lumina",
    )


RELEASES: dict[str, Release] = {
    **{name: _chameleon(name) for name in ("chameleon-7b", "chameleon-34b", "anole-7b")},
    **{name: _lumina(name) for name in ("lumina-mgpt-7b", "lumina-mgpt-34b")},
}


def release(name: str) -> Release:
    """The released model of that name; raises ConfigError with the nearest name for an unknown one."""
    if name not in RELEASES:
        raise ConfigError(f"no release '{name}'{did_you_mean(name, RELEASES)}; there are {', '.join(RELEASES)}")
    return RELEASES[name]
