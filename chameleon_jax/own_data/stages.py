"""How far a folder is that `experiments.new` made: which of its commands have been run, and which is the next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from chameleon_jax.checkpoints.restore import numbered_steps
from chameleon_jax.commands import as_called
from chameleon_jax.data.store_format import MANIFEST
from chameleon_jax.own_data import earlier, gin_files
from chameleon_jax.own_data.proposal import PAGE
from chameleon_jax.workdir import CHECKPOINTS, PLAN, VOCAB


def is_new_folder(folder: Path) -> bool:
    """Whether `new` wrote its gin files there."""
    return all((folder / name).is_file() for name in (earlier.NAME, gin_files.TOKENIZER, gin_files.DATA, gin_files.RUN))


def lines(folder: Path) -> list[str]:
    """The state of each command's output, and what to type next."""
    tokenizer, store, model = folder / "tokenizer", folder / gin_files.STORE, folder / "model"
    steps = numbered_steps(model / CHECKPOINTS)
    planned = _planned(model)
    is_whole = bool(steps) and (planned is None or steps[-1] >= planned)
    done = {
        "train_tokenizer": (tokenizer, (tokenizer / VOCAB).is_file(), tokenizer.exists()),
        "tokenize": (store, (store / MANIFEST).is_file(), (store / PLAN).is_file()),
        "pretrain": (model, is_whole, model.exists()),
    }
    said = [f"{folder}: gin files of a run, made by experiments.new; {folder / PAGE} shows its data", ""]
    for name, (place, is_there, has_begun) in done.items():
        state = "there" if is_there else "begun" if has_begun else "not there yet"
        if name == "pretrain" and steps:
            state = f"saved at step {steps[-1]:,}" if is_whole else f"at step {steps[-1]:,} of {planned:,}"
        said.append(f"  {place.relative_to(folder)!s:12} {state:24} of {name}")
    following = next((name for name, (_, is_there, _) in done.items() if not is_there), "generate")
    if following == "generate":
        told = f"python -m experiments.inspect {shlex.quote(str(model))}"
    else:
        told = gin_files.command(following, folder)
    return [*said, "", f"next: {as_called(told)}"]


def _planned(model: Path) -> int | None:
    """Steps of the run in this workdir; None where its config cannot be read."""
    try:
        return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
