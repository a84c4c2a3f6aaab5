"""The run directory: one run at a time in it, every file in it whole, and a record of what the run was.

The lock is the kernel's (flock), so it is gone the moment its process is, however that died; what the lock
file says is only for the message to the second comer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chameleon_jax.config_base import Config
from chameleon_jax.configs import RunConfig
from chameleon_jax.errors import CheckpointError, ConfigError, WorkdirError
from chameleon_jax.files import atomic_write

CHECKPOINTS = "checkpoints"  # folder of the numbered steps
TOKENIZER = "tokenizer"  # bundle of the tokens, also in a token store
LOCK = ".lock"
# Kinds of workdirs, and what lies in one and in no other.
RUN, STORE, BUNDLE = "a training run", "a token store", "a tokenizer"
PLAN, VOCAB = "plan.json", "vocab.json"  # of a token store, of a tokenizer
_MARKS = {RUN: CHECKPOINTS, STORE: PLAN, BUNDLE: VOCAB}
_CHANGES = 6  # that a message names
_PACKAGES = (
    "chameleon-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "numpy", "tokenizers",
    "safetensors",
)  # fmt: skip


def require_kind(path: str | os.PathLike[str], kind: str) -> None:
    """Raise WorkdirError where a workdir of another kind than RUN, STORE or BUNDLE lies: files of both would be taken for one."""
    for other, mark in _MARKS.items():
        if other != kind and (Path(path) / mark).exists():
            raise WorkdirError(f"{path} is {other} (it holds {mark}), not {kind}: choose another --workdir")


def require_run(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError, with what `path` is instead and what to give, where it is no workdir with checkpoints."""
    path = Path(path)
    if (path / CHECKPOINTS).is_dir():
        return
    nested = [child for child in (path / "model", path.parent, path.parent.parent) if (child / CHECKPOINTS).is_dir()]
    kind = next((kind for kind, mark in _MARKS.items() if (path / mark).exists()), None)
    places = ("config.json", "params.json", "models/*/params.json", "data/models/*/params.json")
    release = [found for place in places for found in path.glob(place)]
    if not path.is_dir():
        reason = "it is a file" if path.exists() else "there is no such folder"
    elif nested:
        reason = f"that is {nested[0]}"
    elif kind is not None:
        reason = f"it is {kind}"
    elif has_begun(path):
        raise CheckpointError(
            f"{path} is a training run that has saved nothing yet: run experiments.pretrain on it again, or wait for its first save"
        )
    elif (path / "run.gin").is_file():
        raise CheckpointError(
            f"{path} is a folder of gin files and no run: its run is {path / 'model'} once the commands that experiments.new "
            "printed have made it"
        )
    elif release:
        raise CheckpointError(
            f"{path} is a released checkpoint: make a workdir of it with  python -m experiments.convert --source={path} "
            "--output=DIR  and give that"
        )
    else:
        reason = "it has no checkpoints/"
    raise CheckpointError(
        f"{path} is not the workdir of a run ({reason}): give that of experiments.pretrain or experiments.convert"
    )


def has_begun(path: Path) -> bool:
    """Whether a training run wrote its files here: tokenising has another config, a release no record of the versions."""
    if not (path / "versions.json").is_file() or not (path / LOCK).exists():
        return False
    try:
        return "train" in json.loads((path / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


@contextlib.contextmanager
def open_workdir(path: str | os.PathLike[str], process_index: int = 0) -> Iterator[Path]:
    """Create the directory and hold it for this run alone; where many processes form one run, process 0 holds it for all.

    Raises WorkdirError when another living run holds it, and when it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) if process_index == 0 else None
    except OSError as error:
        raise WorkdirError(
            f"workdir {path} cannot be made or written ({error.strerror}); choose another --workdir"
        ) from error
    try:
        if descriptor is not None:
            _lock(path, descriptor)
        yield path
    finally:
        if descriptor is not None:
            os.close(descriptor)  # releases the lock; the file stays, for removing it would race with the next run


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise WorkdirError(
                f"workdir {path} cannot be locked ({error.strerror}); use a file system with flock"
            ) from error
        raise WorkdirError(
            f"workdir {path} is in use by {_holder(descriptor)}; wait for it, stop it, or choose another --workdir"
        ) from error
    # A full disk must not keep a run from starting to resume; the lock holds without text.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on host {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def write_run_files(
    path: str | os.PathLike[str],
    config: Config,
    gin_text: Mapping[str, str] | None = None,
    sharding: str | None = None,
) -> None:
    """Record what this run is: config.json, versions.json, a .gin file per entry of `gin_text`, and sharding.txt.

    `sharding` is a `params.sharding_table`. Only process 0 writes. Raises WorkdirError when the directory cannot be written.
    """
    import jax

    if jax.process_index() != 0:
        return
    path = Path(path)
    files = {"config.json": config.to_json(), "versions.json": json.dumps(versions(), indent=2) + "\n"}
    for name, text in (gin_text or {}).items():
        files[name if name.endswith(".gin") else f"{name}.gin"] = text
    if sharding is not None:
        files["sharding.txt"] = sharding
    try:
        for name, text in files.items():
            atomic_write(path / name, text)
    except OSError as error:
        raise WorkdirError(
            f"workdir {path} cannot be written ({error.strerror}); free the disk or choose another --workdir"
        ) from error


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and its main dependencies, and the git commit of the code if it is a checkout."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["git_commit"] = _git_commit()
    found["command"] = " ".join(sys.orig_argv)
    return found


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def check_resume(saved: dict[str, Any], config: RunConfig) -> None:
    """Refuse to resume with a config that would make another run of it.

    `saved` is the `to_dict` of the config that the checkpoint was made with. Fields under FREE_ON_RESUME may differ, and the
    run may be longer where nothing in its past depended on its length. Raises CheckpointError naming each other changed field
    with both values.
    """
    if not saved.keys() - {"model"}:
        raise CheckpointError(
            "this workdir holds a converted model and no run: train in a new --workdir that starts from it (InitConfig.workdir)"
        )
    # A field that is newer than the checkpoint counts as its default.
    with contextlib.suppress(ConfigError, KeyError, TypeError):
        saved = type(config).from_dict(saved).to_dict()
    changed = {
        field: values
        for field, values in config.diff(saved).items()
        if not any(f"{field}.".startswith(free if free.endswith(".") else f"{free}.") for free in config.FREE_ON_RESUME)
    }
    now, then = changed.get("train.steps", (0, 0))
    if now > then:
        if not (reason := config.shaped_by_steps(then)):
            del changed["train.steps"]
        elif len(changed) == 1:
            raise CheckpointError(
                f"this run was planned for {then} steps and cannot become one of {now}: {reason}. Keep train.steps={then}, or give "
                "a new --workdir; --gin.InitConfig.workdir=... starts it from these weights"
            )
    if changed:
        changes = ", ".join(f"{f} was {then!r} and is {now!r}" for f, (now, then) in list(changed.items())[:_CHANGES])
        changes += f" and {len(changed) - _CHANGES} more" if len(changed) > _CHANGES else ""
        raise CheckpointError(
            f"this workdir belongs to another config: {changes}; restore these values or use a new --workdir"
        )
