"""Parameters to start from: those of another run or of a converted release, placed straight on this run's mesh.

One parameter after the other is read to its shards, cast and, if it has a row for each id, grown. What is new has no trained value:
an added id begins with the mean embedding of the old text pieces (Hewitt 2021, "Initializing new word embeddings for pretrained
language models"), and with the head of `<pad>`, which is a target nowhere. So it begins as unlikely as what the model has learned
never to write: n new ids raise log Z, and with it the loss, by log(1 + n p(<pad>)). The mean of the head would make each as likely
as an average id.

A parameter that is untied here and tied in the source is copied for each modality: the model starts as the same function.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from chameleon_jax.checkpoints.manifest import Manifest, named_leaves, nest, read_manifest
from chameleon_jax.checkpoints.restore import found_by_any, numbered_steps, restore_subtree
from chameleon_jax.configs import InitConfig, TransformerConfig, VocabConfig
from chameleon_jax.errors import CheckpointError, ConfigError, TokenizerError, did_you_mean
from chameleon_jax.models import params, transformer
from chameleon_jax.models.params import ParamSpec
from chameleon_jax.parallel import distributed
from chameleon_jax.parallel.mesh import TRAINING, using
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.vocab import Vocab
from chameleon_jax.workdir import CHECKPOINTS, TOKENIZER

_PART = "params"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTokenizer:
    """What made the ids that this run trains on; `folder` has the bundle and is looked into for an extension only."""

    fingerprint: str
    vocab: VocabConfig
    folder: Path


@dataclasses.dataclass(frozen=True)
class InitialParams:
    """Parameters on the mesh, and in one line where they come from."""

    params: dict[str, Any]
    description: str


def initial_params(
    init: InitConfig, model: TransformerConfig, tokenizer: RunTokenizer, mesh: Mesh, key: jax.Array
) -> InitialParams:
    """Parameters of `model` from the workdir that `init` names, in its param_dtype; what `init` leaves out from `key`.

    Raises ConfigError for a pattern that no parameter has, parameters of other shapes (the first is named) and a tokenizer that is
    neither the source's nor extends it; CheckpointError for a path that is no run, and where no step is whole.
    """
    specs = named_leaves(transformer.param_specs(model))
    taken = _chosen(init, specs)
    workdir = Path(init.workdir)
    damaged = []
    for step in _steps(init, workdir):
        folder = workdir / CHECKPOINTS / str(step)
        manifest, damage = None, None
        try:
            manifest = read_manifest(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage = " ".join(str(error).split())
        # What one process cannot read is passed over by all: the arrays are read together.
        damage = found_by_any(damage, f"reading the manifest of step {step} to start from")
        if damage is not None:
            damaged.append(f"{step}: {damage}")
            continue
        source = _Source.of(manifest, workdir, model, tokenizer, taken)
        _check_shapes(source, taken, init)
        try:
            made = {path: _read(folder, source, path, spec, mesh) for path, spec in taken.items()}
        except CheckpointError as error:
            damaged.append(f"{step}: {error}")
            logging.warning("init_from: skipped step %d of %s: %s", step, workdir, error)
            continue
        fresh = {path: spec for path, spec in specs.items() if path not in taken}
        made |= _initialise(fresh, mesh, key)
        return InitialParams(nest({path: made[path] for path in specs}), _describe(source, step, fresh))
    raise CheckpointError(f"init_from: no step of {workdir} can be used ({'; '.join(damaged)})")


def vocab_size(init: InitConfig) -> int:
    """Rows of the source's embedding, as its manifest says; 0 where none can be read, which `initial_params` tells better."""
    workdir = Path(init.workdir)
    for step in numbered_steps(workdir / CHECKPOINTS)[::-1] if init.step is None else [init.step]:
        try:
            return read_manifest(workdir / CHECKPOINTS / str(step)).leaves[f"{_PART}/embed"].shape[0]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0


def _chosen(init: InitConfig, specs: Mapping[str, ParamSpec]) -> dict[str, ParamSpec]:
    for pattern in init.parameters:
        if not fnmatch.filter(specs, pattern):
            raise ConfigError(
                f"InitConfig.parameters: no parameter is named '{pattern}'{did_you_mean(pattern, specs)}; a pattern such as "
                "'layers/*' names many"
            )
    return {p: spec for p, spec in specs.items() if any(fnmatch.fnmatch(p, pattern) for pattern in init.parameters)}


def _steps(init: InitConfig, workdir: Path) -> list[int]:
    """The steps to try, in order."""
    found = distributed.decide(lambda: numbered_steps(workdir / CHECKPOINTS), "looking for steps to start from")
    if not found:
        raise CheckpointError(
            f"init_from: {workdir} is no run: it has no steps in {CHECKPOINTS}/; give the workdir of experiments.pretrain or "
            "experiments.convert"
        )
    if init.step is None:
        return found[::-1]
    if init.step not in found:
        raise CheckpointError(f"init_from: {workdir} has no step {init.step}; it has {', '.join(map(str, found))}")
    return [init.step]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """A step to take parameters from; `vocab` is None where none is taken that has a row for each id."""

    workdir: Path
    manifest: Manifest
    vocab: Vocab | None
    extends: int  # ids by which this run's tokenizer extends the source's

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        workdir: Path,
        model: TransformerConfig,
        tokenizer: RunTokenizer,
        taken: Mapping[str, ParamSpec],
    ) -> _Source:
        _check_meaning(manifest, workdir, model)
        if not any(_by_ids(spec) for spec in taken.values()):
            return cls(workdir=workdir, manifest=manifest, vocab=None, extends=0)
        fingerprint, vocab = _tokenizer_of(manifest, workdir)
        extends = 0
        if fingerprint != tokenizer.fingerprint:
            extends = len(tokenizer.vocab.added) - len(vocab.added)
            if extends <= 0 or _base_fingerprint(tokenizer, len(vocab.added)) != fingerprint:
                raise ConfigError(
                    f"init_from: the tokenizer of {workdir} is {fingerprint}, that of the token stores {tokenizer.fingerprint}, "
                    f"which does not extend it; tokenize with {workdir / TOKENIZER} or an extension of it "
                    "(experiments.extend_tokenizer)"
                )
        return cls(workdir=workdir, manifest=manifest, vocab=Vocab.from_config(vocab), extends=extends)

    def shape(self, path: str) -> tuple[int, ...] | None:
        leaf = self.manifest.leaves.get(f"{_PART}/{path}")
        return None if leaf is None else leaf.shape


def _check_meaning(manifest: Manifest, workdir: Path, model: TransformerConfig) -> None:
    """Shapes do not show everything: with other values of these fields the same parameters are another function."""
    try:
        theirs = TransformerConfig.from_dict(manifest.metadata["config"]["model"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"init_from: step {manifest.step} of {workdir} does not say its model's config"
        ) from error
    if theirs.norm_order != model.norm_order:
        raise ConfigError(
            f"init_from: norm_order is '{model.norm_order}' in this run and '{theirs.norm_order}' in {workdir}; set "
            f"TransformerConfig.norm_order='{theirs.norm_order}'"
        )
    for name in ("rope_theta", "norm_eps", "qk_norm_groups", "numerics"):  # may be changed on purpose
        if (mine := getattr(model, name)) != (other := getattr(theirs, name)):
            logging.warning("init_from: model.%s is %s in this run and %s in %s", name, mine, other, workdir)


def _tokenizer_of(manifest: Manifest, workdir: Path) -> tuple[str, VocabConfig]:
    """Fingerprint and id space of a source: as its run noted them, or of the bundle beside it."""
    noted, vocab = manifest.metadata.get("tokenizer"), manifest.metadata.get("vocab_config")
    # Runs older than the table of modalities noted a fingerprint of another spelling: the bundle that they kept tells it anew.
    if noted is not None and vocab is not None and "modalities" in vocab:
        return noted, VocabConfig.from_dict(vocab)
    try:
        bundle = TokenizerBundle.load(workdir / TOKENIZER)
    except TokenizerError as error:
        raise ConfigError(
            f"init_from: {workdir} has no tokenizer that says what its ids mean ({error}); convert it again with --tokenizer, or "
            "take layers alone: InitConfig.parameters=('layers/*', 'norm')"
        ) from error
    return bundle.fingerprint(), bundle.vocab_config


def _base_fingerprint(tokenizer: RunTokenizer, added: int) -> str | None:
    """Fingerprint of the bundle that this run's extends, with so many added ids; None where the bundle is not there or another."""
    try:
        bundle = TokenizerBundle.load(tokenizer.folder)
    except TokenizerError:
        return None
    if bundle.fingerprint() != tokenizer.fingerprint:
        return None
    return bundle.with_added(bundle.vocab_config.added[:added]).fingerprint()


def _by_ids(spec: ParamSpec) -> bool:
    """Whether it has a row for each id."""
    return "V" in spec.axes.split()


def _check_shapes(source: _Source, taken: Mapping[str, ParamSpec], init: InitConfig) -> None:
    step = f"step {source.manifest.step} of {source.workdir}"
    hint = "use the model config of the source, or leave the parameter out of InitConfig.parameters"
    for path, spec in taken.items():
        theirs = source.shape(path)
        if theirs is None:
            raise ConfigError(f"init_from: '{path}' is {list(spec.shape)} in this run and missing in {step}; {hint}")
        if len(theirs) == len(spec.tied.shape):  # of a source without untied parts: copied for each modality
            spec = spec.tied
        rows = spec.axes.split().index("V") if _by_ids(spec) else None
        fits = len(theirs) == len(spec.shape) and all(
            mine == other or (axis == rows and mine > other)
            for axis, (mine, other) in enumerate(zip(spec.shape, theirs, strict=True))
        )
        if not fits:
            raise ConfigError(
                f"init_from: '{path}' is {list(spec.shape)} in this run and {list(theirs)} in {step}; {hint}"
            )
    for path in source.manifest.leaves:
        name = path.removeprefix(f"{_PART}/")
        if name != path and name not in taken and any(fnmatch.fnmatch(name, p) for p in init.parameters):
            raise ConfigError(
                f"init_from: '{name}' is {list(source.shape(name))} in {step} and missing in this run; {hint}"
            )


def _read(folder: Path, source: _Source, path: str, spec: ParamSpec, mesh: Mesh) -> Array:
    """One parameter on the mesh: read as it was saved, then grown, copied for each modality and cast; the saved one is deleted."""
    leaf = source.manifest.leaves[f"{_PART}/{path}"]
    wanted = NamedSharding(mesh, TRAINING.parameter(spec.axes))
    theirs = spec if len(leaf.shape) == len(spec.shape) else spec.tied
    placed = _divisible(NamedSharding(mesh, TRAINING.parameter(theirs.axes)), leaf.shape)
    saved = jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype), sharding=placed)
    array = restore_subtree(folder, f"{_PART}/{path}", saved).state
    if array.shape == spec.shape and array.dtype == np.dtype(spec.dtype) and not (_by_ids(spec) and source.extends):
        return array
    fit = functools.partial(_fit, spec=spec, vocab=source.vocab, extends=source.extends)
    with using(mesh):
        made = jax.block_until_ready(jax.jit(fit, out_shardings=wanted)(array))
    array.delete()
    return made


def _divisible(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding without the axes that do not divide the shape: rows that are to grow may not."""
    parts = list(sharding.spec)
    for axis, name in enumerate(parts):
        if name is not None and shape[axis] % sharding.mesh.shape[name]:
            parts[axis] = None
    return NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*parts))


def _fit(array: Array, *, spec: ParamSpec, vocab: Vocab | None, extends: int) -> Array:
    """The saved parameter in this run's shape and dtype, with values for new ids."""
    if spec.role == "embedding":
        mean = jnp.mean(array[vocab.text.start : vocab.text.stop].astype(jnp.float32), axis=0).astype(array.dtype)
        # A new id may take a row that the source had to spare: it was never trained as that id.
        array = array.at[vocab.size : vocab.size + extends].set(mean)
        array = jnp.concatenate([array, jnp.tile(mean, (spec.shape[0] - len(array), 1))])
    elif spec.role == "head":
        # A spare row is what the source has learned never to write, so it stays, and the loss with it.
        pad = array[:, vocab.pad, None]
        array = jnp.concatenate([array, jnp.tile(pad, (1, spec.shape[1] - array.shape[1]))], axis=1)
    elif array.ndim < len(spec.shape):
        array = jnp.broadcast_to(jnp.expand_dims(array, spec.untied), spec.shape)
    return array.astype(spec.dtype)


def _initialise(specs: Mapping[str, ParamSpec], mesh: Mesh, key: jax.Array) -> dict[str, Array]:
    """From scratch, each the values that it has in a run that starts so."""
    tree = nest(specs)
    make = jax.jit(lambda key: params.initialise(key, tree), out_shardings=params.shardings(tree, mesh, TRAINING))
    with using(mesh):
        return named_leaves(make(key))


def _describe(source: _Source, step: int, fresh: Mapping[str, ParamSpec]) -> str:
    parts = [f"starting from step {step} of {source.workdir}"]
    if source.extends:
        parts.append(f"{source.extends} new ids")
    if fresh:
        names = ", ".join(list(fresh)[:3]) + (", ..." if len(fresh) > 3 else "")
        parts.append(f"from scratch: {names}")
    return "; ".join(parts)
