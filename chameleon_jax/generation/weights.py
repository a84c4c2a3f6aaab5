"""A run's weights in the form in which they decode: a layer at a time, cast once, in eight bits if wanted.

The one idea: one parameter after the other, so that whoever gives the weights away never holds more than them and one parameter.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.models import transformer
from chameleon_jax.models.params import map_specs
from chameleon_jax.models.quantize import quantize_matrix
from chameleon_jax.models.transformer import Params


def decoding_form(
    weights: Params,
    config: TransformerConfig,
    form: Literal["as they are", "bfloat16", "int8"],
    *,
    donate: bool = False,
) -> Params:
    """Matrices in the compute dtype (`as they are`), bfloat16 or eight bits, norms as given, layers as `transformer.by_layer` says.

    With `donate` the given arrays may be deleted once they are copied.
    """
    dtype = np.dtype("bfloat16" if form == "bfloat16" else config.compute_dtype)
    is_matrix = map_specs(lambda spec: spec.init == "normal", transformer.param_specs(config))

    def convert(path: tuple, leaf: Array, matrix: bool) -> Any:
        made = leaf
        if form == "int8":
            made = quantize_matrix(path, leaf)
        if made is leaf and matrix and leaf.dtype != dtype:
            made = leaf.astype(dtype)
        stacked = path[0].key == "layers"
        parts = [transformer.layer_of(made, i) for i in range(config.n_layers)] if stacked else made
        if donate and isinstance(leaf, jax.Array) and (stacked or made is not leaf):
            jax.block_until_ready(parts)
            leaf.delete()
        return parts

    made = jax.tree_util.tree_map_with_path(convert, weights, is_matrix)
    layers = tuple(
        jax.tree.map(lambda parts: parts[i], made["layers"], is_leaf=lambda node: isinstance(node, list))  # noqa: B023
        for i in range(config.n_layers)
    )
    return made | {"layers": layers}
