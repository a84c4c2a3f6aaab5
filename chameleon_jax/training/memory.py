"""The memory of a pretraining step, estimated before anything is allocated, so that a run that cannot fit says so in one line.

What the backward pass keeps is not modelled but read off: `jax.vjp` of the real loss is traced with shapes alone, and the leaves of
its result are what would be kept, whatever the remat policy, the attention backend or untied parts make of it. Compilers free some
of it and need room of their own, so a run is refused only where the estimate is far above what there is (`REFUSED`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from chameleon_jax.checkpoints.manifest import named_leaves
from chameleon_jax.configs import MeshConfig, PretrainConfig
from chameleon_jax.data.batch import Batch
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import params
from chameleon_jax.parallel.device_memory import device_memory, in_words
from chameleon_jax.parallel.mesh import TRAINING, make_mesh
from chameleon_jax.training.task import Recipe

# Estimates lie within this factor of what XLA plans (tests/training/test_memory.py), so nothing that fits is refused.
REFUSED = 1.4
_MORE = "; if there is more, say so in TrainConfig.memory_gb"
# Copies of the trained parameters in float32 beside the state: gradient, updates, and the new values until the step is accepted.
_UPDATE_COPIES = 3.1
# Measured with XLA on the CPU: how often a block of attention scores exists in its backward pass, and a block of logits; and the
# share of what one layer keeps that exists a second time while its gradient is taken.
_SCORE_COPIES, _LOGIT_COPIES, _LAYER_SHARE = 3.0, 1.8, 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on each device."""

    state: int  # parameters, and the moments of what is trained
    update: int  # gradients and updates
    kept: int  # activations of one microbatch that the backward pass needs
    working: int  # what exists for a moment: a block of attention scores or of logits

    @property
    def total(self) -> int:
        return self.state + self.update + self.kept + self.working


def estimate(recipe: Recipe, mesh: Mesh) -> StepMemory:
    """Memory of one step of a pretraining recipe on this mesh, from shapes alone, in a second or less."""
    config: PretrainConfig = recipe.config
    model, train, length = config.model, config.train, config.data.seq_len
    rows = math.ceil(train.batch_size / train.microbatches / _batch_shards(mesh))
    tensor, device = mesh.shape["tensor"], mesh.devices.flat[0]
    stored = _stored_bytes(recipe.trainable.specs, mesh)
    trained = _stored_bytes(recipe.trainable.selected_specs(), mesh)
    kept = _kept(recipe, rows, device) // tensor
    plain = dataclasses.replace(config, model=dataclasses.replace(model, remat="none"))
    plain_recipe = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, config=plain), config=plain)
    layer = _kept(plain_recipe, rows, device) // tensor // model.n_layers
    scores = 4 * rows * model.n_heads // tensor * _visible(length, model.attention_chunk, model.attention)
    logits = 4 * min(rows * length, max(rows, config.loss.chunk)) * model.vocab_size // tensor
    working = max(_LAYER_SHARE * layer + _SCORE_COPIES * scores, _LOGIT_COPIES * logits)
    return StepMemory(state=stored + 2 * trained, update=int(_UPDATE_COPIES * trained), kept=kept, working=int(working))


def check(recipe: Recipe, mesh: Mesh) -> None:
    """Raise ConfigError, naming the numbers and what to lower, where a step cannot fit into a device of the mesh.

    `TrainConfig.memory_gb` is what a device has, where it does not say so itself or there is more.
    """
    device = mesh.local_devices[0]
    limit = limit_to_check(recipe.config.train.memory_gb, device_memory(device), _at_most(recipe, mesh))
    if limit is None:
        return
    found = estimate(recipe, mesh)
    if found.total > REFUSED * limit:
        raise ConfigError(_refusal(found, limit, recipe.config, device.platform))


def limit_to_check(given_gb: float, known: int | None, at_most: int) -> int | None:
    """The bytes that a step may take: `given_gb`, else what the device is `known` to have.

    None where nobody knows them, and where `at_most`, a bound by a formula, is below them: then no second goes into tracing.
    """
    limit = int(given_gb * 1e9) if given_gb else known
    return limit if limit is not None and at_most >= limit else None


def _batch_shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _refusal(found: StepMemory, limit: int, config: PretrainConfig, platform: str) -> str:
    """One line: what is needed, what there is, and the fields that matter most."""
    held = found.state + found.update
    where = "this machine has" if platform == "cpu" else "a device has"
    text = (
        f"a step needs about {in_words(found.total)} of memory and {where} {in_words(limit)}: "
        f"{in_words(found.state)} parameters and moments, {in_words(found.update)} gradients and updates, "
        f"{in_words(found.kept)} activations, {in_words(found.working)} scores or logits; "
    )
    if held > limit:
        model = config.model
        return text + (
            f"lower TransformerConfig.d_model ({model.d_model}), n_layers ({model.n_layers}) or vocab_size ({model.vocab_size:,})"
            + ("" if platform == "cpu" else ", or divide it over more devices (MeshConfig.fsdp)")
            + _MORE
        )
    remedies = [f"raise TrainConfig.microbatches ({config.train.microbatches})"]
    if config.train.batch_size == config.train.microbatches:
        remedies = [f"lower DataConfig.seq_len ({config.data.seq_len})"]
    if config.model.remat != "full" and found.kept > found.working:
        remedies.append("set TransformerConfig.remat='full'")
    if found.working > found.kept:
        remedies.append(f"lower LossConfig.chunk ({config.loss.chunk:,}) and TransformerConfig.attention_chunk")
    remedies.append(f"lower TrainConfig.batch_size ({config.train.batch_size})")
    return text + ", or ".join(remedies) + _MORE


def _at_most(recipe: Recipe, mesh: Mesh) -> int:
    """Bytes that a step of these shapes needs several times less than, by a formula."""
    config: PretrainConfig = recipe.config
    model, length = config.model, config.data.seq_len
    tokens = math.ceil(config.train.batch_size / config.train.microbatches / _batch_shards(mesh)) * length
    widths = model.d_model + model.n_heads * model.head_dim + model.d_ff
    per_token = 100 * widths * (model.n_layers + 2) + 20 * model.n_heads * length
    logits = 16 * max(config.loss.chunk, tokens // length) * model.vocab_size
    return 8 * _stored_bytes(recipe.trainable.specs, mesh) + tokens * per_token + logits


def _stored_bytes(specs: Any, mesh: Mesh) -> int:
    shapes = jax.tree.leaves(params.abstract(specs, mesh, TRAINING))
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in shapes)


def _kept(recipe: Recipe, rows: int, device: jax.Device) -> int:
    """Bytes that the backward pass of so many rows keeps on such a device beside the parameters, with no dimension divided."""
    length = recipe.config.data.seq_len
    whole, real = (jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(
        tokens=whole,
        targets=whole,
        loss_weights=real,
        segment_ids=whole,
        positions=whole,
        modality=whole,
        input_modality=whole,
    )
    key = jax.random.split(jax.random.key(0), rows) if recipe.config.model.dropout else None

    def backward(weights: Any, batch: Batch) -> Any:
        def objective(selected: Any) -> jax.Array:
            merged = recipe.trainable.merge(weights, selected)
            return recipe.task.loss(merged, batch, key, statistics=False)[0].objective

        return jax.vjp(objective, recipe.trainable.select(weights))[1]

    weights = params.abstract(recipe.trainable.specs)
    with jax.set_mesh(make_mesh(MeshConfig(), [device])):
        leaves = jax.tree.leaves(jax.eval_shape(backward, weights, batch))
    return saved_bytes(leaves, named_leaves(weights).values(), device.platform)


def saved_bytes(leaves: Any, parameters: Any, platform: str) -> int:
    """Bytes of the `leaves` of a `jax.vjp` that are no parameters, which lie in memory anyway."""
    there = collections.Counter((leaf.size, leaf.dtype) for leaf in parameters)
    total = 0
    for leaf in leaves:
        if there[leaf.size, leaf.dtype] > 0:
            there[leaf.size, leaf.dtype] -= 1
            continue
        # XLA computes bfloat16 in float32 on a CPU, and keeps it so.
        size = 4 if platform == "cpu" and leaf.dtype == jnp.bfloat16 else leaf.dtype.itemsize
        total += leaf.size * size
    return total


def _visible(length: int, chunk: int, backend: str) -> int:
    """Scores of one head and row that exist in a backward pass: all of a block of queries and the keys that it sees."""
    if backend == "reference" or chunk >= length:
        return length * length
    return sum((min(start + chunk, length) - start) * min(start + chunk, length) for start in range(0, length, chunk))
