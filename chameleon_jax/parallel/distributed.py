"""Many processes as one run: joining, and decisions that all share.

Process 0 decides what must be the same everywhere, and the others learn it through `decide`: JSON over the sockets of `group`, no
device and no collective. One process alone needs none of it, and every function here then does the obvious.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.errors import ChameleonError, ProcessError
from chameleon_jax.files import atomic_write
from chameleon_jax.parallel.group import EXIT_PEER_DIED, Group, Relay, leave

# For the watch to name a dead process, when its death reaches the main thread as an error of XLA first.
_NAMING_SECONDS = 5.0
# For a file of process 0 to be seen through a network file system.
_FOLDER_SECONDS = 10.0
_ROLL_CALL = ".roll-call"

_group: Group | None = None  # as JAX's own client, one a process


@contextlib.contextmanager
def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, timeout: float = 300.0
) -> Iterator[None]:
    """Be one of the processes of a run while the block runs: `jax.distributed.initialize` with errors that name processes.

    What is None is found out from the cluster (TPU pod, Slurm, MPI, Kubernetes). Call before anything touches a device. When
    another process ends without finishing the block, this one prints a line that names it and ends non-zero within seconds,
    whatever it is doing. An error that leaves the block is told to the others, printed, and ends the process (2 for one that the
    user can mend, else 1). Raises ProcessError when the processes do not find each other within `timeout` seconds.
    """
    global _group
    coordinator, processes, process, devices = _detect(coordinator, processes, process, timeout)
    if processes == 1:
        yield
        return
    _group = Group(coordinator, process, processes, timeout)
    try:
        # Its SIGTERM handler would compete with that of `training.signals`.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator_address=coordinator if process == 0 else Relay(coordinator).address,
            num_processes=processes,
            process_id=process,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(max(10, timeout)),
        )
        jax.devices()  # the first look at the devices waits for all processes: here, where all are
        yield
        share(None, "finishing")
        _group.close()
        jax.distributed.shutdown()
        _group = None
    except BaseException as error:
        _leave_with(_group, error)


def _detect(
    coordinator: str | None, processes: int | None, process: int | None, timeout: float
) -> tuple[str, int, int, list[int] | None]:
    """What is not given, from the cluster around this process; the last is which local devices are its own, None for all."""
    given = {"--coordinator": coordinator, "--num_processes": processes, "--process_id": process}
    missing = [flag for flag, value in given.items() if value is None]
    devices = None
    if missing:
        # JAX has no public way to ask before it connects.
        from jax._src.clusters import ClusterEnv

        coordinator, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, None, None, int(timeout)
        )
    if None in (coordinator, processes, process):
        raise ProcessError(f"no TPU pod, Slurm or MPI job was found around this process: give {', '.join(missing)}")
    if not 0 <= process < processes:
        raise ProcessError(f"--process_id {process} is not one of 0..{processes - 1} (--num_processes {processes})")
    return coordinator, processes, process, devices


def _leave_with(group: Group, error: BaseException) -> None:
    if isinstance(error, ChameleonError):
        text, code = f"error: {error}", 2
    elif isinstance(error, KeyboardInterrupt):
        text, code = "interrupted", 130
    else:
        # A dead process often shows as an error of a collective first; the watch knows its name, and ends this process.
        time.sleep(_NAMING_SECONDS)
        text, code = "".join(traceback.format_exception(error)).rstrip(), EXIT_PEER_DIED
    brief = str(error) if isinstance(error, ChameleonError) else f"{type(error).__name__}: {error}".partition("\n")[0]
    group.fail(brief, code)
    leave(code, text)


def share(value: Any, what: str, timeout: float = 3600.0) -> list[Any]:
    """The values (JSON) of all processes, by process; `[value]` for one alone. Every process must call it at the same place.

    `what` says in errors what is being waited for. Raises ProcessError, naming who is absent, after `timeout` seconds.
    """
    if _group is None:
        if jax.distributed.is_initialized() and jax.process_count() > 1:
            raise RuntimeError("many processes must be joined by parallel.distributed.join")
        return [value]
    return _group.share(value, what, timeout)


def decide(compute: Callable[[], Any], what: str) -> Any:
    """What `compute` (to JSON) gives on process 0, on all processes; no other process computes it."""
    return share(compute() if _is_first() else None, what)[0]


def first_does(work: Callable[[], Any], what: str) -> None:
    """Process 0 does `work`, and all go on when it is done."""
    if _is_first():
        work()
    share(None, what)


def _is_first() -> bool:
    return _group is None or _group.process == 0


def require_same(facts: Mapping[str, Any]) -> None:
    """Raise ProcessError, on all processes, naming the first process and fact that differ from process 0's."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
    if len(set(share(digest, "comparing configs and versions"))) == 1:
        return
    everybody = share(dict(facts), "looking for the difference of configs and versions")
    for process, theirs in enumerate(everybody):
        for name in everybody[0] | theirs:
            if theirs.get(name) != everybody[0].get(name):
                raise ProcessError(
                    f"{_group.members[process]} has {name} = {theirs.get(name)!r}, process 0 has "
                    f"{everybody[0].get(name)!r}; start all processes with the same command, files and code"
                )


def require_same_folder(path: str | os.PathLike[str]) -> None:
    """Raise ProcessError, on all processes, naming the first process whose `path` is not the folder that process 0 means."""
    if _group is None:
        return
    path = Path(path).absolute()
    token = decide(lambda: secrets.token_hex(8), "the workdir's token")
    problem = None
    if _group.process == 0:
        try:
            path.mkdir(parents=True, exist_ok=True)
            atomic_write(path / _ROLL_CALL, token)
        except OSError as error:
            problem = f"cannot write to {path} ({error.strerror})"
    share(None, "writing to the workdir")
    if _group.process and not _appears(path / _ROLL_CALL, token):
        problem = f"sees another folder at {path}"
    problems = share([str(path), problem], "looking at the workdir")
    if _group.process == 0:
        (path / _ROLL_CALL).unlink(missing_ok=True)
    for process, (_, found) in enumerate(problems):
        if found is not None:
            raise ProcessError(
                f"{_group.members[process]} {found}; process 0's workdir is {problems[0][0]}: "
                "give all processes one --workdir that they share"
            )


def _appears(file: Path, content: str) -> bool:
    deadline = time.monotonic() + _FOLDER_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
