"""The memory of a training step of the picture codec, estimated before anything is allocated (see `training.memory`)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from chameleon_jax.configs import VQConfig, VQTrainConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.parallel.device_memory import device_memory, host_memory, in_words
from chameleon_jax.tokenizer_training import codec_step
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.training.memory import REFUSED, limit_to_check, saved_bytes

_UPDATE_COPIES = 2.0  # of the parameters beside the state: gradient and updates
_KEPT_SHARE = (
    0.65  # of what a `jax.vjp` of the nets keeps: XLA computes activation functions and norms again where they are used
)
_DISTANCE_COPIES = 2.0  # of the distances from latents to codes


def step_bytes(config: VQConfig, train: VQTrainConfig) -> int:
    """About how many bytes a step takes, from shapes alone, in a second or two."""
    side = config.resolution
    images = jax.ShapeDtypeStruct((train.batch_size, side, side, config.in_channels), jnp.float32)
    state = jax.eval_shape(functools.partial(codec_step.create, config=config, train=train), images)

    def backward(params: Any, images: Any) -> Any:
        def objective(params: Any) -> jax.Array:
            latents = vqgan.encode_latents(params, images, config)
            output = vqgan.decode_latents(params, latents, config)
            return sum(codec_step.reconstruction_terms(images, output).values())

        return jax.vjp(objective, params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, state.params, images))
    parameters = jax.tree.leaves(state.params)
    kept = saved_bytes(leaves, parameters, "cpu")
    distances = 4 * train.batch_size * config.codes_per_image * config.codes
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    update = _UPDATE_COPIES * sum(4 * leaf.size for leaf in parameters)
    return int(held + update + max(_KEPT_SHARE * kept, _DISTANCE_COPIES * distances))


def check(config: VQConfig, train: VQTrainConfig) -> None:
    """Raise ConfigError, naming the numbers and what to lower, where a step cannot fit into this machine.

    The codec is trained on one device, which on a CPU may have all of the host's memory. `VQTrainConfig.memory_gb` is what the
    device has, where it does not say so itself or there is more.
    """
    device = jax.local_devices()[0]
    known = host_memory() if device.platform == "cpu" else device_memory(device)
    limit = limit_to_check(train.memory_gb, known, _at_most(config, train))
    if limit is None:
        return
    found = step_bytes(config, train)
    if found > REFUSED * limit:
        where = "this machine has" if device.platform == "cpu" else "the device has"
        raise ConfigError(
            f"a step of the picture codec needs about {in_words(found)} of memory and {where} {in_words(limit)}: lower "
            f"VQTrainConfig.batch_size ({train.batch_size}), VQConfig.channels ({config.channels}) or the resolution "
            f"({config.resolution}), or raise VQConfig.patch_size ({config.patch_size}); if there is more, "
            "say so in VQTrainConfig.memory_gb"
        )


def _at_most(config: VQConfig, train: VQTrainConfig) -> int:
    """Bytes that a step of these sizes needs several times less than, by a formula."""
    width = config.channels * max(config.channel_multipliers)
    layers = 2 * len(config.channel_multipliers) * (config.res_blocks + 3)
    values = 4 * 40 * layers * train.batch_size * (config.resolution // config.patch_size) ** 2 * width
    parameters = 4 * 8 * layers * 2 * 9 * max(width, config.latent_channels) ** 2
    return values + parameters + 16 * config.codes * (config.embed_dim + train.batch_size * config.codes_per_image)
