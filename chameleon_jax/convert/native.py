"""A workdir of ours, in and out: the checkpoint that generation and evaluation load, and the tokenizer bundle beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.checkpoints.stream import LeafStream, StreamedCheckpoint, save_stream
from chameleon_jax.configs import TransformerConfig
from chameleon_jax.convert import layout, source
from chameleon_jax.convert.layout import Parameter
from chameleon_jax.convert.source import Report, WeightSource
from chameleon_jax.convert.tensor_files import require_finite
from chameleon_jax.errors import CheckpointError, ConvertError
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.workdir import CHECKPOINTS, TOKENIZER, VOCAB

_PART = "params"


class NativeWeights:
    """The newest checkpoint of a workdir that verifies, as a `WeightSource`.

    `bundle` is its tokenizer, None without one; `codec` its image codec, which may be there alone, and is not looked at where it
    is not wanted.
    """

    flavour = "chameleon_jax"

    def __init__(self, workdir: Path, *, with_codec: bool = True):
        self.report, self._workdir = Report(), workdir
        self._checkpoint = StreamedCheckpoint(workdir / CHECKPOINTS, _PART)
        try:
            config = TransformerConfig.from_dict(self._checkpoint.metadata["config"]["model"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint in {workdir} does not say its model's config") from error
        if config.untied:
            raise ConvertError(
                f"the model in {workdir} has parts by modality (untied={list(config.untied)}), which no other layout has and no "
                "conversion takes: use its workdir as it is"
            )
        if config.perception is not None:
            raise ConvertError(
                f"the model in {workdir} has a patch encoder, which no other layout has and no conversion takes: use its workdir "
                "as it is"
            )
        dtypes = {leaf.dtype for leaf in self._checkpoint.leaves.values()}
        self.config = dataclasses.replace(config, param_dtype=source.exact_dtype(dtypes))
        for parameter in layout.parameters(self.config):
            path = f"{_PART}/{parameter.path}"
            if path not in self._checkpoint.leaves:
                raise ConvertError(f"the checkpoint in {workdir} lacks {path}")
            self.report.used.setdefault(f"step {self._checkpoint.step}", {})[path] = None
        folder = workdir / TOKENIZER
        self.bundle, self.codec = None, None
        if (folder / VOCAB).is_file():
            self.bundle = TokenizerBundle.load(folder, with_pictures=with_codec)
            self.codec = self.bundle.pictures.vqgan if self.bundle.pictures else None
        elif with_codec and (folder / vqgan.CONFIG).is_file():
            self.codec = vqgan.load(folder)
        for path, leaf in jax.tree.leaves_with_path(self.codec.params) if self.codec else ():
            require_finite(leaf, str(folder / vqgan.WEIGHTS), jax.tree_util.keystr(path, simple=True, separator="/"))

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        path = f"{_PART}/{parameter.path}"
        array = np.ascontiguousarray(self._checkpoint.read(path, layer))
        where = f"step {self._checkpoint.step} of {self._workdir}" + ("" if layer is None else f", layer {layer}")
        return source.cast(require_finite(array, where, path), self.config.param_dtype)


def write_weights(
    weights: WeightSource,
    workdir: Path,
    metadata: dict[str, Any],
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Write the weights as checkpoint 0 of a workdir, one layer of one parameter in memory at a time."""
    config = weights.config
    dtype = np.dtype(config.param_dtype)

    def stream(parameter: Parameter) -> LeafStream:
        shape = layout.our_shape(parameter, config)

        def read(layer: int | None) -> np.ndarray:
            values = np.ascontiguousarray(weights.read(parameter, layer))
            on_bytes(values.nbytes)
            return values

        whole = (config.n_layers, *shape) if parameter.stacked else shape
        return LeafStream(whole, dtype, parameter.stacked, read)

    leaves = {f"{_PART}/{p.path}": stream(p) for p in layout.parameters(config)}
    save_stream(workdir / CHECKPOINTS, 0, leaves, {"config": {"model": config.to_dict()}, **metadata})
