"""Named model sizes: the released ones and small ones for one's own runs.

Released values: chameleon paper (arXiv 2405.09818), table 1 and section 2.3, and the shapes of the published weights.
"""

from __future__ import annotations

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import ConfigError, did_you_mean

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
    "7b": TransformerConfig(dropout=0.1, remat="attention"),
    "34b": TransformerConfig(
        d_model=8192,
        n_layers=48,
        n_heads=64,
        n_kv_heads=8,
        d_ff=22016,
        qk_norm_groups=4,
        norm_order="swin",
        remat="attention",
    ),
}


def preset(name: str) -> TransformerConfig:
    """The config of that name; raises ConfigError with the nearest name for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"no model preset '{name}'{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
