"""What every source of weights has in common: a config, parameters one layer at a time, and an account of each tensor.

A source checks everything that names and shapes can tell when it is opened, before a byte of data is read. From
then on it is a function from (parameter, layer) to an array of our layout, and any writer can take from any source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 (gives numpy the name "bfloat16")
import numpy as np
from jaxtyping import Shaped

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.convert import layout
from chameleon_jax.convert.layout import Parameter
from chameleon_jax.convert.releases import RELEASES, release
from chameleon_jax.convert.tensor_files import FLOATS, TensorFile
from chameleon_jax.errors import ConvertError

_SIZE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "head_dim")


@dataclasses.dataclass
class Report:
    """Every tensor of a source: used, or dropped and why; and what else a user should know. Files by name."""

    used: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)  # sets that keep their order
    dropped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def use(self, file: TensorFile, key: str) -> None:
        self.used.setdefault(str(file.path), {})[key] = None

    def drop(self, file: TensorFile, key: str, reason: str) -> None:
        self.dropped.append({"file": str(file.path), "tensor": key, "reason": reason})

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class WeightSource(Protocol):
    """Weights of one model. `flavour` says whose layout they lie in; `config.param_dtype` is the one that holds them exactly."""

    flavour: str
    config: TransformerConfig
    report: Report

    def read(self, parameter: Parameter, layer: int | None) -> Shaped[np.ndarray, "..."]:
        """One parameter of one layer, in the shape of our tree (`layout.our_shape`) and in `config.param_dtype`."""


def expect(file: TensorFile, key: str, shape: tuple[int, ...], asked_by: str) -> None:
    """Raise ConvertError, naming file, key, expected and found, unless the file has that tensor as a float of that shape."""
    if key not in file.tensors:
        raise ConvertError(f"{file.path} lacks {key}, which {asked_by} asks for as {list(shape)}")
    found = file.tensors[key]
    if found.shape != shape:
        raise ConvertError(f"{file.path}: {key} is {found}, {asked_by} asks for {list(shape)}")
    check_float(file, key)


def check_float(file: TensorFile, key: str) -> None:
    """Raise ConvertError for a tensor of a dtype that weights cannot have."""
    found = file.tensors[key]
    if found.dtype not in FLOATS:
        raise ConvertError(
            f"{file.path}: {key} is {found}; weights are {', '.join(FLOATS)} (quantised checkpoints cannot be read)"
        )


def exact_dtype(dtypes: Iterable[str]) -> str:
    """The narrowest dtype of parameters that holds all of these exactly; float16 needs float32."""
    return "bfloat16" if set(dtypes) == {"bfloat16"} else "float32"


def refuse_unknown(unknown: list[tuple[TensorFile, str]]) -> None:
    """Raise ConvertError for tensors that no rule knows."""
    if unknown:
        file, key = unknown[0]
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ConvertError(
            f"{file.path} holds {key} {file.tensors[key]}{more}, which no layout of this family has: "
            "adapters must be merged into the weights first"
        )


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in float32 or bfloat16."""
    return array.astype(np.dtype(dtype), copy=False)


def equal_groups(rows: Mapping[str, Shaped[np.ndarray, "L g P H"]], config: TransformerConfig) -> int:
    """The fewest groups of heads whose QK-norms (P parameters each) say the same as these rows, bit for bit.

    `rows` has those of "q" and "k", one for each of `qk_norm_groups` and `k_norm_groups`.
    """
    most = config.qk_norm_groups
    for groups in range(1, most):
        keys = min(groups, config.n_kv_heads)
        divides = most % groups == 0 and config.n_kv_heads % keys == 0
        if divides and _groups_agree(rows["q"], groups) and _groups_agree(rows["k"], keys):
            return groups
    return most


def _groups_agree(rows: np.ndarray, groups: int) -> bool:
    if rows.shape[1] % groups:
        return False
    bits = np.ascontiguousarray(rows).view(np.uint8).reshape(rows.shape[0], groups, rows.shape[1] // groups, -1)
    return bool((bits == bits[:, :, :1]).all())


def check_release(weights: WeightSource, where: Path, preset: str | None) -> None:
    """Raise ConvertError where a model is not of the release that it was said to be, or has a release's size but not its norms."""
    config = weights.config
    if preset is not None:
        wanted = release(preset).model
        if weights.flavour not in ("chameleon_jax", "meta") and (weights.flavour == "lumina") != ("lumina" in preset):
            raise ConvertError(f"{where} is not {preset}: its files are of {weights.flavour} flavour")
        for name in (*_SIZE, "norm_order", "qk_norm", "norm_eps", "rope_theta"):
            ours, theirs = getattr(config, name), getattr(wanted, name)
            if ours != theirs:
                raise ConvertError(f"{where} is not {preset}: its {name} is {ours}, that of the release is {theirs}")
        return
    name = release_of_size(config)
    if name is not None and config.norm_order != (order := release(name).model.norm_order):
        raise ConvertError(
            f"{where} says norm order '{config.norm_order}', but a model of its size ({name}) has "
            f"'{order}': correct swin_norm there, a wrong one loads but gives nonsense"
        )


def release_of_size(config: TransformerConfig) -> str | None:
    """Name of the first release whose parameters have the same shapes; None for a model of another size."""
    return next(
        (
            name
            for name, known in RELEASES.items()
            if all(getattr(config, field) == getattr(known.model, field) for field in _SIZE)
        ),
        None,
    )


def norm_order(values: Mapping[str, Any], where: Path, asked: str | None) -> str | None:
    """The norm order that the config at `where` or the user says, None where neither does.

    Raises ConvertError where they contradict each other.
    """
    said = values.get("swin_norm")
    if said not in (None, True, False):
        raise ConvertError(f"{where}: swin_norm is {said!r}, expected true or false")
    found = None if said is None else ("swin" if said else "pre")
    if asked is not None and found is not None and asked != found:
        raise ConvertError(f"{where} says norm order '{found}' (swin_norm {said}), '{asked}' was asked for")
    return asked or found


def nbytes(config: TransformerConfig) -> int:
    """Bytes of all weights in `config.param_dtype`."""
    return sum(size for *_, size in pieces(config))


def pieces(config: TransformerConfig) -> list[tuple[Parameter, int | None, int]]:
    """(parameter, layer, bytes) of a whole model, in the order in which it is written."""
    width = np.dtype(config.param_dtype).itemsize
    return [
        (parameter, layer, math.prod(layout.our_shape(parameter, config)) * width)
        for parameter in layout.parameters(config)
        for layer in layout.layers(parameter, config)
    ]
