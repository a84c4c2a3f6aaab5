"""Pictures that are perceived, not generated: patches of pixels to vectors that take the place of embedded ids.

A small vision transformer (Dosovitskiy et al. 2021) with fixed two-axis sine positions (Beyer et al. 2022, "Better plain ViT
baselines"), trained with the decoder. Its output is RMS-normed and has the RMS of the token embeddings times a learned scale, so
that the residual stream begins as large at a patch as at a word. `transformer.forward` takes the vectors as `vectors` and the
places that they take as `vector_index`; `inputs` makes both of pictures and ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from chameleon_jax.configs import PatchEncoderConfig, TransformerConfig
from chameleon_jax.models import params
from chameleon_jax.models.layers import linear, rms_norm
from chameleon_jax.models.params import ParamSpec
from chameleon_jax.parallel.mesh import TRAINING, ShardingRules, constrain
from chameleon_jax.parallel.shards import mean
from chameleon_jax.vocab import Vocab


def param_specs(encoder: PatchEncoderConfig, d_model: int, dtype: str) -> dict[str, Any]:
    """The encoder's parameters; matrices N(0, 1 / inputs), the two that end a branch divided by sqrt(2 l)."""
    width, layers, heads = encoder.width, encoder.n_layers, encoder.n_heads
    pixels, branch = 3 * encoder.patch_size**2, max(1, 2 * layers) ** -0.5
    head = width // heads

    def weight(axes: str, inputs: str, fan_in: int, *shape: int, scale: float = 1.0) -> ParamSpec:
        std = scale * fan_in**-0.5
        return ParamSpec(shape=shape, axes=axes, inputs=inputs, role="matrix", init="normal", std=std, dtype=dtype)

    def norm(axes: str, *shape: int) -> ParamSpec:
        return ParamSpec(shape=shape, axes=axes, role="norm", init="ones", dtype=dtype)

    specs = {
        "patches": weight("p d", "p", pixels, pixels, width),
        "norm": norm("d", width),
        "projection": weight("d D", "d", width, width, d_model),
        "scale": norm("D", d_model),
    }
    if layers == 0:
        return specs
    return specs | {
        "layers": {
            "attn": {
                "wq": weight("l d n h", "d", width, layers, width, heads, head),
                "wk": weight("l d n h", "d", width, layers, width, heads, head),
                "wv": weight("l d n h", "d", width, layers, width, heads, head),
                "wo": weight("l n h d", "n h", width, layers, heads, head, width, scale=branch),
            },
            "attn_norm": norm("l d", layers, width),
            "mlp": {
                "up": weight("l d f", "d", width, layers, width, encoder.d_ff),
                "down": weight("l f d", "f", encoder.d_ff, layers, encoder.d_ff, width, scale=branch),
            },
            "mlp_norm": norm("l d", layers, width),
        }
    }


def patches(height: int, width: int, encoder: PatchEncoderConfig) -> int:
    """Number of vectors of a picture. Raises ValueError for sides that are no multiples of the patch size."""
    size = encoder.patch_size
    if height % size or width % size or not (height and width):
        raise ValueError(f"a picture of {height}x{width} pixels is not made of patches of {size}x{size}")
    return height // size * (width // size)


def problem(config: TransformerConfig, vocab: Vocab) -> str:
    """Why a model and the vocabulary of its ids do not agree on perceived pictures; empty if they do."""
    row = vocab.perceived
    if row is None and config.perception is not None:
        return "model.perception is set, but the vocabulary has no modality with codec 'patches': leave perception out"
    if row is not None and config.perception is None:
        return f"the vocabulary has pictures in patches ('{row.name}'), but model.perception is None: set a PatchEncoderConfig"
    return ""


def picture_side(config: TransformerConfig, vocab: Vocab) -> int:
    """Height and width in pixels of a perceived picture."""
    return config.perception.patch_size * math.isqrt(vocab.perceived.grammar.length)


def stack_pictures(
    pictures: Sequence[Sequence[UInt8[np.ndarray, "side side 3"]]], count: int
) -> UInt8[np.ndarray, "B count side side 3"]:
    """Lists of pictures, not all of them empty, as one array; shorter ones are filled up with black ones that no place takes."""
    shape = next(seen for seen in pictures if len(seen))[0].shape
    made = np.zeros((len(pictures), count, *shape), np.uint8)
    for row, seen in zip(made, pictures, strict=True):
        for i, picture in enumerate(seen):
            row[i] = picture
    return made


def inputs(
    weights: dict[str, Any],
    tokens: Int[Array, "B T"],
    pictures: UInt8[Array, "B I side side 3"] | None,
    config: TransformerConfig,
    vocab: Vocab,
    rules: ShardingRules = TRAINING,
) -> dict[str, Array]:
    """`vectors` and `vector_index` for `transformer.forward`; nothing without pictures.

    The k-th placeholder of a row takes the k-th vector of its pictures. So nobody stores places: spans are never cut.
    """
    if pictures is None:
        return {}
    held = vocab.perceived.holds(tokens)
    index = jnp.where(held, jnp.cumsum(held, axis=1, dtype=jnp.int32) - 1, -1)
    pixels = pictures.astype(jnp.float32) / 127.5 - 1
    return {"vectors": encode(weights, pixels, config, rules), "vector_index": index}


def encode(
    weights: dict[str, Any],
    pictures: Float[Array, "B I height width 3"],
    config: TransformerConfig,
    rules: ShardingRules = TRAINING,
) -> Float[Array, "B P D"]:
    """Vectors of the I pictures of each row, pixels in [-1, 1]: picture after picture, each from left to right and top to bottom.

    `weights` is the whole tree of a model with `config.perception`. The RMS of the token embeddings has no gradient here.
    """
    encoder = config.perception
    specs = param_specs(encoder, config.d_model, config.param_dtype)
    own = params.gathered(weights["perception"], specs, config.compute_dtype, rules)
    rows, count, height, width, _ = pictures.shape
    size, total = encoder.patch_size, patches(height, width, encoder)
    x = pictures.astype(config.compute_dtype)
    x = x.reshape(rows * count, height // size, size, width // size, size, 3)
    x = jnp.moveaxis(x, 3, 2).reshape(rows * count, total, size * size * 3)
    x = constrain(x, "B T .", rules)
    x = linear(x, own["patches"])
    x = x + jnp.asarray(_positions(height // size, width // size, encoder.width), x.dtype)
    if encoder.n_layers:
        x, _ = jax.lax.scan(lambda x, layer: (_block(x, layer, config, rules), None), x, own["layers"])
    x = linear(rms_norm(x, own["norm"], config.norm_eps), own["projection"])
    x = rms_norm(x, own["scale"], config.norm_eps).astype(jnp.float32)
    table = jax.lax.stop_gradient(weights["embed"]).astype(jnp.float32)
    x = (x * jnp.sqrt(mean(jnp.square(table), "V D", rules))).astype(config.compute_dtype)
    return constrain(x.reshape(rows, count * total, -1), "B T D", rules)


def _block(
    x: Float[Array, "b T d"], layer: dict[str, Any], config: TransformerConfig, rules: ShardingRules
) -> Float[Array, "b T d"]:
    """Pre-norm attention of all patches of a picture to each other, then the feed-forward."""
    normed = rms_norm(x, layer["attn_norm"], config.norm_eps)
    q, k, v = (linear(normed, layer["attn"][name]) for name in ("wq", "wk", "wv"))
    x = x + linear(jax.nn.dot_product_attention(q, k, v), layer["attn"]["wo"])
    hidden = jax.nn.gelu(linear(rms_norm(x, layer["mlp_norm"], config.norm_eps), layer["mlp"]["up"]))
    return constrain(x + linear(hidden, layer["mlp"]["down"]), "B T .", rules)


def _positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "T d"]:
    """Sines and cosines of the row and of the column of each patch, a quarter of the width each."""
    frequencies = 1e4 ** (-np.arange(width // 4) / max(1, width // 4 - 1))
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = np.concatenate([row[:, None] * frequencies, column[:, None] * frequencies], axis=1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
