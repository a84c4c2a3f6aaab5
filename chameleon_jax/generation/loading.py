"""A trained or converted model as generation needs it: weights, config and tokenizer bundle from one workdir."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from chameleon_jax.checkpoints.restore import restore_subtree, saved_metadata
from chameleon_jax.configs import TransformerConfig
from chameleon_jax.models import params, transformer
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING, check_model_fits
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.workdir import CHECKPOINTS, TOKENIZER


@dataclasses.dataclass(frozen=True)
class Run:
    """`params` of one checkpoint, its step, and what they belong to."""

    params: Params
    model: TransformerConfig
    bundle: TokenizerBundle
    step: int


def load_run(workdir: str | Path, mesh: Mesh | None = None, step: int | None = None) -> Run:
    """Load the workdir of `experiments.pretrain` or `experiments.convert`: `step`, or the newest that verifies.

    On a mesh every device reads its own part of each parameter; what then runs on these parameters runs on that mesh. Without one
    they lie on the first device. Raises ConfigError, before anything is read, if the mesh does not divide the model, and
    CheckpointError or TokenizerError, naming what is missing or damaged.
    """
    workdir = Path(workdir)
    folder = workdir / CHECKPOINTS if step is None else workdir / CHECKPOINTS / str(step)
    wanted = None if mesh is None else _abstract_params(folder, mesh)
    restored = restore_subtree(folder, "params", wanted)
    return Run(
        params=restored.state,
        model=TransformerConfig.from_dict(restored.metadata["config"]["model"]),
        bundle=TokenizerBundle.load(workdir / TOKENIZER),
        step=restored.step,
    )


def _abstract_params(folder: Path, mesh: Mesh) -> Any:
    """The saved parameters as they are to lie on the mesh; None if there is nothing to read, which the reader explains."""
    metadata = saved_metadata(folder)
    if metadata is None:
        return None
    model = TransformerConfig.from_dict(metadata["config"]["model"])
    check_model_fits(model, mesh)
    return params.abstract(transformer.param_specs(model), mesh, DECODING)
