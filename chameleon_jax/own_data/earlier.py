"""What an earlier `new` measured and wrote in a workdir, so that the same command gives the same files, and edits are told apart.

Speeds differ from one measurement to the next, and the sizes with them; so the same data on the same machine take the numbers
that were measured first (`proposal.propose` says when not).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.files import atomic_write
from chameleon_jax.own_data.machine import WIDTHS, Machine
from chameleon_jax.own_data.survey import Survey

NAME = ".new.json"


def measured(folder: Path, found: Survey) -> tuple[Machine, float] | None:
    """The machine and the seconds of reading as they were measured; None for other data, another machine or the first time."""
    kept = _load(folder)
    try:
        machine = Machine(**(kept["machine"] | {"rates": tuple(kept["machine"]["rates"])}))
        seconds = float(kept["seconds"])
    except (KeyError, TypeError, ValueError):
        return None
    device = jax.local_devices()[0]
    same_machine = (machine.platform, machine.devices) == (device.platform, jax.local_device_count())
    if not same_machine or len(machine.rates) != len(WIDTHS) or kept.get("data") != _data(found):
        return None
    return machine, seconds


def is_untouched(folder: Path, name: str, text: str) -> bool:
    """Whether this text of a file is what was written there, so that nobody has edited it."""
    return _load(folder).get("files", {}).get(name) == _digest(text)


def keep(folder: Path, found: Survey, machine: Machine, files: dict[str, str]) -> None:
    """Remember what was measured and written. Raises OSError."""
    kept = {
        "data": _data(found),
        "seconds": found.seconds,
        "machine": dataclasses.asdict(machine),
        "files": {name: _digest(text) for name, text in files.items()},
    }
    atomic_write(folder / NAME, json.dumps(kept, indent=2) + "\n")


def _load(folder: Path) -> dict[str, Any]:
    try:
        kept = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _data(found: Survey) -> list[Any]:
    """What the sizes follow from, without the time that reading took."""
    return [json.dumps(found.source.to_dict()), found.read, found.documents, found.pictures, found.characters]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
