"""A trained or converted model as generation needs it: weights, config and tokenizer bundle from one workdir."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from chameleon_jax.checkpoints.restore import restore_subtree, saved_metadata
from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import CheckpointError
from chameleon_jax.generation.prompt import Format
from chameleon_jax.models import params, transformer
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING, check_model_fits
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.workdir import CHECKPOINTS, TOKENIZER, require_run


@dataclasses.dataclass(frozen=True)
class Weights:
    """`params` of one checkpoint, their shape, and its step."""

    params: Params
    model: TransformerConfig
    step: int


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is known of a run before its weights are read. `format` is that of prompts as it was trained on."""

    model: TransformerConfig
    bundle: TokenizerBundle
    format: Format


@dataclasses.dataclass(frozen=True)
class Run(Weights, Parts):
    """Weights and what they belong to."""


def load_run(workdir: str | Path, mesh: Mesh | None = None, step: int | None = None) -> Run:
    """Load the workdir of `experiments.pretrain` or `experiments.convert`: `step`, or the newest that verifies.

    On a mesh every device reads its own part of each parameter; what then runs on these parameters runs on that mesh. Without one
    they lie on the first device. Raises ConfigError, before anything is read, if the mesh does not divide the model, and
    CheckpointError or TokenizerError, naming what is missing or damaged.
    """
    weights = load_weights(workdir, mesh, step)
    return Run(**vars(load_parts(workdir)) | vars(weights))


def load_weights(workdir: str | Path, mesh: Mesh | None = None, step: int | None = None) -> Weights:
    """As `load_run`, without the bundle."""
    require_run(workdir)
    folder = Path(workdir) / CHECKPOINTS
    folder = folder if step is None else folder / str(step)
    wanted = None if mesh is None else _abstract_params(folder, mesh)
    restored = restore_subtree(folder, "params", wanted)
    model = TransformerConfig.from_dict(restored.metadata["config"]["model"])
    return Weights(params=restored.state, model=model, step=restored.step)


def load_parts(workdir: str | Path) -> Parts:
    """All of a run but its weights, which may take minutes.

    Raises CheckpointError for a folder that is no run or has no checkpoint, and as `TokenizerBundle.load`.
    """
    require_run(workdir)
    metadata = saved_metadata(Path(workdir) / CHECKPOINTS)
    if metadata is None:
        raise CheckpointError(
            f"no checkpoint in {workdir}: give the workdir of experiments.pretrain or experiments.convert, once it has saved"
        )
    bundle = TokenizerBundle.load(Path(workdir) / TOKENIZER)
    return Parts(TransformerConfig.from_dict(metadata["config"]["model"]), bundle, _format(metadata, bundle))


def _format(metadata: dict[str, Any], bundle: TokenizerBundle) -> Format:
    """As the run has noted it; else a release was tuned on turns, and a run that says nothing counts as one of plain documents."""
    if noted := metadata.get("prompt"):
        return noted
    if metadata.get("converted_from", "chameleon_jax") == "chameleon_jax":
        return "completion"
    return "lumina" if bundle.pictures and bundle.pictures.is_grid else "chat"


def _abstract_params(folder: Path, mesh: Mesh) -> Any:
    """The saved parameters as they are to lie on the mesh; None if there is nothing to read, which the reader explains."""
    metadata = saved_metadata(folder)
    if metadata is None:
        return None
    model = TransformerConfig.from_dict(metadata["config"]["model"])
    check_model_fits(model, mesh)
    return params.abstract(transformer.param_specs(model), mesh, DECODING)
