"""The table of parameters: where each one lies in our tree, in Meta's files and in Hugging Face's, and how its axes are turned.

Between the three layouts there are only renames, transposes, a permutation of rotary rows and cuts into shards. All
of them are exact, so what goes in comes out bitwise. The form in the middle is torch's: matrices [outputs, inputs], rotary pairs
half-split, QK-norms one row a group. Shapes and permutations: facebookresearch/chameleon `inference/transformer.py`;
huggingface/transformers 4.44 `convert_chameleon_weights_to_hf.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
from jaxtyping import Shaped

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import ConvertError
from chameleon_jax.models.params import ParamSpec
from chameleon_jax.models.transformer import param_specs

_BLOCK = 128  # rows and columns of a tile that is transposed at one time: it fits the cache, which makes it three times as fast


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One row of the table.

    `path` is that of our tree; below `layers/` a parameter is stacked and the foreign names have `{}` for the layer.
    `shard_axis` is the axis of the torch tensor that Meta cuts over its model-parallel ranks; None means a copy in each.
    """

    path: str
    meta: str
    hf: str
    shard_axis: int | None = None
    rotary: bool = False  # its rows are dimensions that RoPE turns in pairs

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")

    @property
    def qk_norm(self) -> bool:
        return self.path.endswith(("scale", "bias"))


def _qk_norm(name: str, part: str) -> Parameter:
    torch_part = {"scale": "weight", "bias": "bias"}[part]
    return Parameter(
        path=f"layers/attn/{name}_norm/{part}",
        meta=f"layers.{{}}.attention.{name}_normalization.{torch_part}",
        hf=f"model.layers.{{}}.self_attn.{name}_norm.{torch_part}",
        shard_axis=0,
        rotary=True,
    )


def _layer(path: str, meta: str, hf: str, shard_axis: int | None, rotary: bool = False) -> Parameter:
    return Parameter(
        path=f"layers/{path}",
        meta=f"layers.{{}}.{meta}.weight",
        hf=f"model.layers.{{}}.{hf}.weight",
        shard_axis=shard_axis,
        rotary=rotary,
    )


_BASE = (
    Parameter(path="embed", meta="tok_embeddings.weight", hf="model.embed_tokens.weight", shard_axis=1),
    _layer("attn/wq", "attention.wq", "self_attn.q_proj", 0, rotary=True),
    _layer("attn/wk", "attention.wk", "self_attn.k_proj", 0, rotary=True),
    _layer("attn/wv", "attention.wv", "self_attn.v_proj", 0),
    _layer("attn/wo", "attention.wo", "self_attn.o_proj", 1),
    _layer("attn_norm", "attention_norm", "input_layernorm", None),
    _layer("mlp/gate", "feed_forward.w1", "mlp.gate_proj", 0),
    _layer("mlp/up", "feed_forward.w3", "mlp.up_proj", 0),
    _layer("mlp/down", "feed_forward.w2", "mlp.down_proj", 1),
    _layer("mlp_norm", "ffn_norm", "post_attention_layernorm", None),
    Parameter(path="norm", meta="norm.weight", hf="model.norm.weight"),
    Parameter(path="head", meta="output.weight", hf="lm_head.weight", shard_axis=0),
)
_QK_NORMS = tuple(_qk_norm(name, part) for name in ("q", "k") for part in ("scale", "bias"))


def parameters(config: TransformerConfig) -> tuple[Parameter, ...]:
    """The rows that a model of this config has."""
    return _BASE + (_QK_NORMS if config.qk_norm else ())


def layers(parameter: Parameter, config: TransformerConfig) -> list[int | None]:
    """The layers that a parameter has a tensor for; [None] for one that is not stacked."""
    return list(range(config.n_layers)) if parameter.stacked else [None]


def our_shape(parameter: Parameter, config: TransformerConfig) -> tuple[int, ...]:
    """Shape in our tree, of one layer where stacked."""
    return _spec(parameter, config).shape


@functools.cache
def _specs(config: TransformerConfig) -> dict[str, ParamSpec]:
    leaves = jax.tree.leaves_with_path(param_specs(config))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): spec.layer for path, spec in leaves}


def _spec(parameter: Parameter, config: TransformerConfig) -> ParamSpec:
    """What our tree has at the parameter's path, of one layer where stacked."""
    return _specs(config)[parameter.path]


def torch_shape(parameter: Parameter, config: TransformerConfig) -> tuple[int, ...]:
    """Shape of the torch tensor before it is cut into shards; QK-norms have one row a group."""
    spec = _spec(parameter, config)
    if not spec.inputs:
        return spec.shape
    inputs = math.prod(spec.shape[axis] for axis in spec.input_axes)
    return spec.size // inputs, inputs


def to_ours(
    parameter: Parameter, tensor: Shaped[np.ndarray, "..."], config: TransformerConfig
) -> Shaped[np.ndarray, "..."]:
    """A torch tensor (half-split) as it lies in our tree."""
    if _spec(parameter, config).inputs:  # a matrix: torch has outputs first
        tensor = transpose(tensor)
    return tensor.reshape(our_shape(parameter, config))


def to_torch(
    parameter: Parameter, array: Shaped[np.ndarray, "..."], config: TransformerConfig
) -> Shaped[np.ndarray, "..."]:
    """Inverse of `to_ours`."""
    if not _spec(parameter, config).inputs:
        return array
    outputs, inputs = torch_shape(parameter, config)
    return transpose(array.reshape(inputs, outputs))


def half_split(rows: Shaped[np.ndarray, "NH *rest"], head_dim: int) -> Shaped[np.ndarray, "NH *rest"]:
    """Rows of interleaved rotary pairs (2i, 2i + 1) reordered to pairs (i, i + H/2), head by head."""
    return _swapped(rows, (head_dim // 2, 2))


def interleaved(rows: Shaped[np.ndarray, "NH *rest"], head_dim: int) -> Shaped[np.ndarray, "NH *rest"]:
    """Inverse of `half_split`."""
    return _swapped(rows, (2, head_dim // 2))


def _swapped(rows: np.ndarray, parts: tuple[int, int]) -> np.ndarray:
    return rows.reshape(-1, *parts, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rotary_rows(parameter: Parameter, tensor: np.ndarray, head_dim: int, reorder) -> np.ndarray:
    """`half_split` or `interleaved` of a torch tensor, if RoPE turns its rows; QK-norms [groups, H] count row by row."""
    if not parameter.rotary:
        return tensor
    return reorder(tensor.reshape(-1, *tensor.shape[2:]) if parameter.qk_norm else tensor, head_dim).reshape(
        tensor.shape
    )


def transpose(matrix: Shaped[np.ndarray, "a b"]) -> Shaped[np.ndarray, "b a"]:
    """A transposed copy, tile by tile."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, matrix.shape[0], _BLOCK):
        for j in range(0, matrix.shape[1], _BLOCK):
            out[j : j + _BLOCK, i : i + _BLOCK] = matrix[i : i + _BLOCK, j : j + _BLOCK].T
    return out


def ffn_width(d_model: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of Meta's feed-forward: two thirds of 4 D, times the multiplier, rounded up to a multiple."""
    width = int(2 * (4 * d_model) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def ffn_rule(d_model: int, d_ff: int) -> tuple[int, float | None]:
    """(multiple_of, multiplier) that give `d_ff`, Chameleon's own (256, None) where it does."""
    base = ffn_width(d_model, 1, None)
    for multiple_of, multiplier in ((256, None), (1, d_ff / base), (d_ff, None), (d_ff, d_ff / base)):
        if ffn_width(d_model, multiple_of, multiplier) == d_ff:
            return multiple_of, multiplier
    raise ConvertError(f"no multiple_of and ffn_dim_multiplier give a feed-forward width of {d_ff} at dim {d_model}")
