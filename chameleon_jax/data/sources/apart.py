"""Workdirs lie outside the data: what a run writes would be read as data the next time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import files, trees
from chameleon_jax.errors import WorkdirError


def require_apart(workdir: str | os.PathLike[str], data: str, *, below: bool = True) -> None:
    """Raise WorkdirError where `workdir` is the folder `data`, or, with `below`, lies in it."""
    here, folder = Path(workdir).resolve(), Path(data).expanduser().resolve()
    if folder.is_dir() and (here == folder or (below and folder in here.parents)):
        raise WorkdirError(
            f"--workdir={workdir} lies in the folder of the data, {data}, where its files would be read as data: choose another"
        )


def require_apart_from(workdir: str | os.PathLike[str], sources: Iterable[SourceConfig]) -> None:
    """The same for sources. A folder in that of a table, of lines or of tars is apart unless the glob looks into it."""
    for source in sources:
        if source.kind == "tfds":
            continue
        path = os.path.expanduser(source.path)
        if os.path.exists(path):
            folder = path if os.path.isdir(path) else os.path.dirname(path)
        elif glob.has_magic(path):
            folder = files.fixed_part(path)
        else:
            continue  # what is missing is told when it is opened
        require_apart(workdir, folder or ".", below=source.kind in trees.KINDS or "**" in path)
