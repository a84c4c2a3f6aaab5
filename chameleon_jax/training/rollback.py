"""Going back to an earlier step, once: a command that is repeated after a stop must not go back again.

The workdir keeps the last rollback in `rollback.json`. It says that a request has been carried out, and, as long as nothing was
saved after it, how many batches a resumption passes over.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from chameleon_jax.errors import WorkdirError
from chameleon_jax.files import atomic_write
from chameleon_jax.parallel import distributed

FILE = "rollback.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollback:
    """Go on from an earlier step; later ones are deleted. `skip_batches` passes over what came next, such as a bad batch."""

    step: int
    skip_batches: int = 0


def last(workdir: Path) -> Rollback | None:
    """The last rollback of this workdir, as process 0 sees it. Raises WorkdirError where its record is damaged."""
    file = workdir / FILE
    text = distributed.decide(lambda: file.read_text() if file.exists() else None, "reading the last rollback")
    if text is None:
        return None
    try:
        return Rollback(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise WorkdirError(f"{file} is damaged ({error}); delete it to forget the last rollback") from error


def record(workdir: Path, rollback: Rollback) -> None:
    """Remember that this rollback has been carried out; later steps must be gone by now."""
    text = json.dumps(dataclasses.asdict(rollback)) + "\n"
    distributed.first_does(lambda: atomic_write(workdir / FILE, text), "recording the rollback")
