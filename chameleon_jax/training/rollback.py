"""Going back to an earlier step, once: a command that is repeated after a stop must not go back again.

The workdir keeps the last rollback in `rollback.json`, and a checkpoint the last one before it. So a request that has been carried
out is known, and a checkpoint that was saved before the rollback to it is known to lack the batches that are passed over.
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
    text = distributed.decide(
        lambda: file.read_text(errors="replace") if file.exists() else None, "reading the last rollback"
    )
    if text is None:
        return None
    try:
        found = Rollback(**json.loads(text))
        if type(found.step) is not int or type(found.skip_batches) is not int:
            raise ValueError(f"no whole numbers: {text.strip()}")
    except (ValueError, TypeError) as error:
        raise WorkdirError(f"{file} is damaged ({error}); delete it to forget the last rollback") from error
    return found


def record(workdir: Path, rollback: Rollback) -> None:
    """Remember that this rollback has been carried out; later steps must be gone by now."""
    text = json.dumps(dataclasses.asdict(rollback)) + "\n"
    distributed.first_does(lambda: atomic_write(workdir / FILE, text), "recording the rollback")
