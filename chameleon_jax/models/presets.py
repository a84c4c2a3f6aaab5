"""Named sizes of models: the released ones, and small ones for one's own runs.

Sizes: Chameleon (arXiv 2405.09818), table 1 and section 2.3, and the shapes of the published weights. What else belongs to a
release stands in `convert/releases.py`.
"""

from __future__ import annotations

import dataclasses

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import ConfigError, did_you_mean

_7B = TransformerConfig(vocab_size=65536, remat="attention")
_34B = TransformerConfig(
    vocab_size=65536,
    d_model=8192,
    n_layers=48,
    n_heads=64,
    n_kv_heads=8,
    d_ff=22016,
    qk_norm_groups=4,
    norm_order="swin",
    remat="attention",
)


def _lumina(model: TransformerConfig) -> TransformerConfig:
    # A picture of 1024 x 1024 pixels is 4,164 ids, and there is a prompt before it.
    return dataclasses.replace(model, dropout=0.05, max_seq_len=5120)


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
    "1b": TransformerConfig(
        vocab_size=65536, d_model=2048, n_layers=18, n_heads=16, n_kv_heads=16, d_ff=5632, remat="attention"
    ),
    "chameleon-7b": dataclasses.replace(_7B, dropout=0.1),
    "chameleon-34b": dataclasses.replace(_34B, dropout=0.0),
    "anole-7b": dataclasses.replace(_7B, dropout=0.0),
    "lumina-mgpt-7b": _lumina(_7B),
    "lumina-mgpt-34b": _lumina(_34B),
}


def preset(name: str) -> TransformerConfig:
    """The config of that name; raises ConfigError with the nearest name for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"no model preset '{name}'{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
