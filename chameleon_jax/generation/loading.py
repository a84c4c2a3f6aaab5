"""A trained or converted model as generation needs it: weights, config and tokenizer bundle from one workdir."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from chameleon_jax.checkpoints.restore import restore_subtree, saved_metadata
from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import CheckpointError
from chameleon_jax.models import params, transformer
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING, check_model_fits
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.workdir import CHECKPOINTS, RUN, TOKENIZER, require_kind


@dataclasses.dataclass(frozen=True)
class Weights:
    """`params` of one checkpoint, their shape, and its step."""

    params: Params
    model: TransformerConfig
    step: int


@dataclasses.dataclass(frozen=True)
class Run(Weights):
    """Weights and the bundle that they belong to."""

    bundle: TokenizerBundle


def load_run(workdir: str | Path, mesh: Mesh | None = None, step: int | None = None) -> Run:
    """Load the workdir of `experiments.pretrain` or `experiments.convert`: `step`, or the newest that verifies.

    On a mesh every device reads its own part of each parameter; what then runs on these parameters runs on that mesh. Without one
    they lie on the first device. Raises ConfigError, before anything is read, if the mesh does not divide the model, and
    CheckpointError or TokenizerError, naming what is missing or damaged.
    """
    weights = load_weights(workdir, mesh, step)
    return Run(**vars(weights), bundle=TokenizerBundle.load(Path(workdir) / TOKENIZER))


def load_weights(workdir: str | Path, mesh: Mesh | None = None, step: int | None = None) -> Weights:
    """As `load_run`, without the bundle."""
    folder = Path(workdir) / CHECKPOINTS
    folder = folder if step is None else folder / str(step)
    wanted = None if mesh is None else _abstract_params(folder, mesh)
    restored = restore_subtree(folder, "params", wanted)
    model = TransformerConfig.from_dict(restored.metadata["config"]["model"])
    return Weights(params=restored.state, model=model, step=restored.step)


def load_parts(workdir: str | Path) -> tuple[TransformerConfig, TokenizerBundle]:
    """What is known of a run before its weights are read, which may take minutes.

    Raises WorkdirError for a workdir of another kind, CheckpointError for one without a checkpoint, and as
    `TokenizerBundle.load`.
    """
    require_kind(workdir, RUN)
    metadata = saved_metadata(Path(workdir) / CHECKPOINTS)
    if metadata is None:
        raise CheckpointError(
            f"no checkpoint in {workdir}: give the workdir of experiments.pretrain or experiments.convert, once it has saved"
        )
    return TransformerConfig.from_dict(metadata["config"]["model"]), TokenizerBundle.load(Path(workdir) / TOKENIZER)


def _abstract_params(folder: Path, mesh: Mesh) -> Any:
    """The saved parameters as they are to lie on the mesh; None if there is nothing to read, which the reader explains."""
    metadata = saved_metadata(folder)
    if metadata is None:
        return None
    model = TransformerConfig.from_dict(metadata["config"]["model"])
    check_model_fits(model, mesh)
    return params.abstract(transformer.param_specs(model), mesh, DECODING)
