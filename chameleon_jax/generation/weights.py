"""A run's weights in the form in which they decode: a layer at a time, cast once, in eight bits if wanted.

One parameter after the other, so that whoever gives the weights away never holds more than them and one parameter.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.models import transformer
from chameleon_jax.models.params import ParamSpec
from chameleon_jax.models.quantize import Int8Matrix, quantize_parameter
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING


def decoding_form(
    weights: Params,
    config: TransformerConfig,
    form: Literal["compute", "bfloat16", "int8"],
    *,
    donate: bool = False,
) -> Params:
    """Matrices in the model's compute dtype ("compute"), bfloat16 or eight bits, norms as given; one pytree per layer.

    On a mesh in use every part is divided by the rules of decoding, as soon as it is made. With `donate` the given arrays may be
    deleted once they are copied.
    """
    mesh = jax.sharding.get_mesh()
    dtype = np.dtype("bfloat16" if form == "bfloat16" else config.compute_dtype)

    def convert(leaf: Array, spec: ParamSpec) -> Any:
        if not mesh.empty:
            # Donated, not deleted: an array of one device may share its buffer with that on the mesh.
            sharding = NamedSharding(mesh, DECODING.parameter(spec.axes))
            leaf = jax.device_put(leaf, sharding, donate=donate and isinstance(leaf, jax.Array))
        made = quantize_parameter(leaf, spec) if form == "int8" else leaf
        if made is leaf and spec.role in ("embedding", "matrix", "head") and leaf.dtype != dtype:
            made = leaf.astype(dtype)
        if spec.stacked:
            layers = (transformer.layer_of(made, i) for i in range(config.n_layers))
            parts = [_by_modality(layer, spec.layer, config, mesh) for layer in layers]
        else:
            parts = _by_modality(made, spec, config, mesh)
        if donate and isinstance(leaf, jax.Array) and (spec.stacked or made is not leaf):
            jax.block_until_ready(parts)
            leaf.delete()
        return parts

    made = jax.tree.map(convert, weights, transformer.param_specs(config))
    layers = tuple(
        jax.tree.map(lambda parts: parts[i], made["layers"], is_leaf=lambda node: isinstance(node, list))  # noqa: B023
        for i in range(config.n_layers)
    )
    return made | {"layers": layers}


def _by_modality(part: Array | Int8Matrix, spec: ParamSpec, config: TransformerConfig, mesh: Mesh) -> Any:
    """Of an untied matrix, one for each modality: arrays of their own, of which a step reads those that it uses."""
    if spec.untied is None or spec.role != "matrix":
        return _placed(part, spec, mesh)
    return tuple(_placed(transformer.layer_of(part, m), spec.tied, mesh) for m in range(config.modalities))


def _placed(part: Array | Int8Matrix, spec: ParamSpec, mesh: Mesh) -> Array | Int8Matrix:
    """The part divided over the mesh by the rules of decoding; no copy where it lies so already."""
    if mesh.empty:
        return part

    def put(array: Array, letters: list[str]) -> Array:
        return jax.device_put(array, NamedSharding(mesh, DECODING.parameter(" ".join(letters))))

    letters = spec.axes.split()
    if isinstance(part, Int8Matrix):
        outputs = [letter for i, letter in enumerate(letters) if i not in spec.input_axes]
        return Int8Matrix(values=put(part.values, letters), scale=put(part.scale, outputs))
    return put(part, letters)
