"""A trained or converted model as generation needs it: weights, config and tokenizer bundle from one workdir."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.data.store_format import TOKENIZER
from chameleon_jax.models.transformer import Params
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.training.checkpoint import restore_subtree
from chameleon_jax.training.loop import CHECKPOINTS


@dataclasses.dataclass(frozen=True)
class Run:
    """`params` of the newest verified checkpoint, its step, and what they belong to."""

    params: Params
    model: TransformerConfig
    bundle: TokenizerBundle
    step: int


def load(workdir: str | Path) -> Run:
    """Load the workdir of `experiments.pretrain` or `experiments.convert`.

    Raises CheckpointError or TokenizerError, naming what is missing or damaged.
    """
    workdir = Path(workdir)
    restored = restore_subtree(workdir / CHECKPOINTS, "params")
    return Run(
        params=restored.state,
        model=TransformerConfig.from_dict(restored.metadata["config"]["model"]),
        bundle=TokenizerBundle.load(workdir / TOKENIZER),
        step=restored.step,
    )
