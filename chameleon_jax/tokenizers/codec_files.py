"""A codec on disk: NAME.json with its config and NAME.safetensors with its parameters, read only when they belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import traverse_util

from chameleon_jax.config_base import Config
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.files import atomic_write

Params = dict[str, Any]
C = TypeVar("C", bound=Config)


def save(directory: str | os.PathLike, name: str, params: Params, config: Config) -> None:
    """Write both files, each whole or not at all; the directory is made if need be."""
    from safetensors.numpy import save as to_bytes

    flat = traverse_util.flatten_dict(params, sep=".")
    tensors = {key: np.ascontiguousarray(leaf, np.float32) for key, leaf in flat.items()}
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, data in ((".json", config.to_json().encode()), (".safetensors", to_bytes(tensors))):
        atomic_write(folder / f"{name}{suffix}", data)


def load(
    directory: str | os.PathLike, name: str, kind: type[C], shapes: Callable[[C, Iterable[str]], Params]
) -> tuple[Params, C]:
    """Read what `save` wrote. `shapes` says which parameters a config has, given the dotted names that are there.

    Raises TokenizerError for a file missing or damaged, or tensors that do not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    folder = Path(directory)
    weights, reading = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        config = kind.from_dict(json.loads(reading.read_text(encoding="utf-8")))
        reading = weights
        tensors = from_bytes(weights.read_bytes())
    except FileNotFoundError as error:
        raise TokenizerError(f"{error.filename} does not exist: run  python -m experiments.train_tokenizer") from None
    except (OSError, ValueError, AttributeError, TypeError, KeyError, SafetensorError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{reading} is damaged ({reason}): copy the tokenizer again, or train it anew") from error
    wanted = traverse_util.flatten_dict(shapes(config, tensors), sep=".")
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors or key not in wanted:
            state = "lacks" if key not in tensors else "has, but its config does not ask for,"
            raise TokenizerError(f"{weights} {state} tensor {key}: weights and {name}.json do not belong together")
        if tensors[key].shape != wanted[key].shape or tensors[key].dtype != np.float32:
            found = f"{tensors[key].dtype}{list(tensors[key].shape)}"
            raise TokenizerError(f"{weights}: {key} is {found}, {name}.json asks for float32{list(wanted[key].shape)}")
    return traverse_util.unflatten_dict(tensors, sep="."), config
