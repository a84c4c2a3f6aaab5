"""The compiled programs of a run as shapes, dtypes and shardings alone: a training step, a block of decoding, a prefill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from chameleon_jax.configs import EngineConfig, PretrainConfig, text_and_image
from chameleon_jax.convert.releases import RELEASES
from chameleon_jax.data.batch import Batch
from chameleon_jax.errors import ConfigError, StoreError
from chameleon_jax.generation import lanes, scheduler
from chameleon_jax.generation.lanes import LaneState, Shapes
from chameleon_jax.models import kv_cache, params, perception, transformer
from chameleon_jax.models.params import ParamSpec
from chameleon_jax.models.quantize import Int8Matrix, quantize_parameter
from chameleon_jax.parallel.mesh import DECODING, batch_sharding, check_fits, check_model_fits, make_mesh
from chameleon_jax.training import pretraining, state, step
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe
from chameleon_jax.vocab import Vocab

Kind = Literal["train", "decode", "prefill"]
_PROMPT = 1024  # ids of a prompt of which nobody says how long it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What is compiled, and what it is good for. `flops` are the model's own count of one call, on all devices together."""

    kind: Kind
    config: PretrainConfig
    mesh: Mesh
    lower: Callable[[], jax.stages.Lowered]
    unit: str  # of one call, in words
    tokens: int
    flops: float
    parameter_bytes: int  # in the compute dtype, all of them
    notes: tuple[str, ...] = ()


def program(
    config: PretrainConfig, kind: Kind, devices: Sequence[jax.Device], engine: EngineConfig, prompt: int = 0
) -> Program:
    """The program of a run on these devices. `engine` and the `prompt` length (0 = 1,024, or a slot) say what generation is of.

    Raises ConfigError where mesh, model and batch do not fit together.
    """
    mesh = make_mesh(config.mesh, list(devices))
    task, notes = pretrain_task(config)
    if kind == "train":
        return _train(task, mesh, notes)
    return _generation(task, kind, mesh, engine, prompt, notes)


def pretrain_task(config: PretrainConfig) -> tuple[PretrainTask, tuple[str, ...]]:
    """The run's task; a vocabulary of a release in place of the stores' where those are not here."""
    try:
        config = pretraining.complete(config)
        task = PretrainTask(config=config)
        _ = task.table
        return task, ()
    except StoreError as error:
        if not config.model.vocab_size:
            raise ConfigError(f"{error}; without the token stores, set TransformerConfig.vocab_size") from None
    known = next((one.vocab for one in RELEASES.values() if one.model.vocab_size == config.model.vocab_size), None)
    table = known or text_and_image()
    notes = (
        f"the token store {config.data.stores[0].path} is not here: the modality table is that of a released model",
    )
    return PretrainTask(config=config, vocab=table), notes


def _parameter_bytes(config: PretrainConfig) -> int:
    return params.count(transformer.param_specs(config.model)) * jnp.dtype(config.model.compute_dtype).itemsize


def _train(task: PretrainTask, mesh: Mesh, notes: tuple[str, ...]) -> Program:
    config = task.config
    check_fits(config.model, config.train.batch_size, config.train.microbatches, mesh)
    recipe = Recipe.of(task, config, {})

    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            compiled = step.compiled_train_step(recipe, mesh, statistics=False)
            return compiled.lower(state.abstract(recipe, mesh), abstract_batch(task, mesh))

    return Program(
        kind="train", config=config, mesh=mesh, lower=lower, unit="a training step",
        tokens=task.tokens_per_step, flops=task.flops_per_step, parameter_bytes=_parameter_bytes(config), notes=notes,
    )  # fmt: skip


def abstract_batch(task: PretrainTask, mesh: Mesh) -> Batch:
    """A training batch without its numbers. Rows perceive as many pictures as fit into them."""
    config = task.config
    rows, length = config.train.batch_size, config.data.seq_len

    def of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=batch_sharding(mesh))

    fields = {field.name: of(jnp.int32, length) for field in dataclasses.fields(Batch)}
    pictures = None
    if config.model.perception is not None:
        vocab = Vocab.from_config(task.table)
        side = perception.picture_side(config.model, vocab)
        pictures = of(jnp.uint8, max(1, length // vocab.perceived.grammar.length), side, side, 3)
    return Batch(**fields | {"loss_weights": of(jnp.float32, length), "pictures": pictures})


def _generation(
    task: PretrainTask, kind: Kind, mesh: Mesh, engine: EngineConfig, prompt: int, notes: tuple[str, ...]
) -> Program:
    config = task.config
    model = config.model
    check_model_fits(model, mesh)
    shapes = Shapes(model=model, vocab=Vocab.from_config(task.table))
    slots = min(engine.context or model.max_seq_len, model.max_seq_len)
    if prompt > slots:
        raise ConfigError(f"--prompt={prompt} is longer than the {slots} ids of a slot: lower it, or raise --context")
    prompt = prompt or min(_PROMPT, slots)
    parts = mesh.shape["data"]
    count = engine.slots + -engine.slots % parts
    group = scheduler.PREFILL_GROUP + -scheduler.PREFILL_GROUP % parts
    unit = f"one id for each of {count} slots" if kind == "decode" else f"a prefill of {group} prompts of {prompt} ids"
    idle = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, scheduler.idle_rows(count, slots, shapes)))

    def lower() -> jax.stages.Lowered:
        weights = _decoding_weights(config, engine.weights, mesh)
        with jax.set_mesh(mesh):
            cache = jax.eval_shape(lambda: kv_cache.create(model, count, slots, DECODING))
            state_of = LaneState(cache=_placed(cache, "K", mesh), rows=_placed(idle, "", mesh))
            if kind == "decode":
                return lanes.run_block.lower(weights, state_of, shapes, engine.block, slots)
            some = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((group, *leaf.shape[1:]), leaf.dtype), idle)
            places = jax.ShapeDtypeStruct((group,), jnp.int32)
            return lanes.admit.lower(weights, state_of, places, some, shapes, prompt)

    tokens = count if kind == "decode" else group * prompt
    length = slots if kind == "decode" else prompt
    # Of the count of training a third is forward; a token that is decoded sees a whole context, not half of it on average, and a
    # prefill makes no logits.
    seen = 2 * length if kind == "decode" else length
    head = 2 * model.vocab_size * model.d_model if kind == "prefill" else 0
    flops = transformer.flops_per_token(model, seen) / 3 - head
    return Program(
        kind=kind, config=config, mesh=mesh, lower=lower, unit=unit, tokens=tokens, flops=tokens * flops,
        parameter_bytes=_parameter_bytes(config), notes=notes,
    )  # fmt: skip


def _placed(tree: Any, heads: str, mesh: Mesh) -> Any:
    """Rows over the mesh as lanes are, and heads of a cache too."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        letters = "B K S H" if heads else " ".join("B" + "." * (len(leaf.shape) - 1))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, DECODING.activation(letters)))

    return jax.tree.map(place, tree)


def _decoding_weights(config: PretrainConfig, form: str, mesh: Mesh) -> Any:
    """The weights in the form in which they decode (`generation.weights.decoding_form`), as shapes with shardings."""
    model = config.model
    dtype = jnp.bfloat16 if form == "bfloat16" else model.compute_dtype

    def put(leaf: jax.ShapeDtypeStruct, letters: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, DECODING.parameter(letters)))

    def place(spec: ParamSpec) -> Any:
        if spec.untied is not None and spec.role == "matrix":
            return tuple(place(spec.tied) for _ in range(model.modalities))
        leaf = jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype))
        made = jax.eval_shape(lambda x: quantize_parameter(x, spec), leaf) if form == "int8" else leaf
        if isinstance(made, Int8Matrix):
            outputs = [letter for i, letter in enumerate(spec.axes.split()) if i not in spec.input_axes]
            return Int8Matrix(values=put(made.values, spec.axes), scale=put(made.scale, " ".join(outputs)))
        if spec.role in ("embedding", "matrix", "head"):
            made = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
        return put(made, spec.axes)

    return params.map_specs(place, transformer.by_layer_specs(model))
