"""A demonstration as the commands that a user would type, run in this process up to the first error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from chameleon_jax import commands, summary
from chameleon_jax.errors import ChameleonError, ConfigError, WorkdirError
from chameleon_jax.files import atomic_write

_STOPPED = (75, 130)  # exit codes of a run that was told to stop, and of Ctrl-C


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m experiments.MODULE FLAGS`, and what it is for.

    `writes` is the file that it writes last, of a command that would begin again: where it is there, the command is not run.
    """

    what: str
    module: str
    flags: tuple[str, ...]
    writes: Path | None = None

    @property
    def typed(self) -> str:
        """As it is typed into a shell."""
        return commands.typed(self.module, self.flags)


def from_data_to_model(
    root: Path,
    name: str,
    *,
    data: tuple[str, str],
    tokenizer: str,
    model: str,
    seed: int,
    steps: int | None,
    codec_steps: int | None = None,
) -> list[Command]:
    """The five commands from nothing to a trained model in `root/model`; steps that are None are as in the gin files.

    `name` is that of the run files, `NAME_tokenizer.gin`, `NAME_tokenize.gin` and `NAME.gin`. `data` is the command that writes
    `train.jsonl` and `heldout.jsonl`, and what it writes; `tokenizer` and `model` say what is trained.
    """
    folders = {part: root / part for part in ("data", "tokenizer", "store", "model")}
    seeded = f"--gin.SEED={seed}"
    stores = (f"--gin.TRAIN={folders['store'] / 'train'}", f"--gin.HELDOUT={folders['store'] / 'heldout'}")
    trained = (_run_file(f"{name}_tokenizer.gin"), f"--gin.DATA={folders['data']}", seeded)
    what, module = data
    return [
        Command(what, module, (f"--seed={seed}", f"--workdir={folders['data']}"), folders["data"] / "heldout.jsonl"),
        Command(
            tokenizer,
            "train_tokenizer",
            (*trained, *_steps("VQTrainConfig", codec_steps), f"--workdir={folders['tokenizer']}"),
        ),
        *(_tokenize(f"{name}_tokenize.gin", root, part, seed) for part in ("train", "heldout")),
        Command(
            model,
            "pretrain",
            (_run_file(f"{name}.gin"), *stores, seeded, *_steps("TrainConfig", steps), f"--workdir={folders['model']}"),
        ),
    ]


def claim(root: Path, *, chosen: Mapping[str, int | str], **counts: int | None) -> None:
    """Make `root` the workdir of these flags, before anything is run.

    Raises ConfigError for a workdir of other ones, a negative seed among them, or a count below 1.
    """
    for name, value, least in (("seed", chosen["seed"], 0), *((name, value, 1) for name, value in counts.items())):
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
    file = root / "flags.json"
    try:
        before = json.loads(file.read_text()) if file.exists() else dict(chosen)
        if not isinstance(before, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is damaged: delete it, or choose another --workdir") from error
    for name, value in chosen.items():
        if before.get(name) != value:
            raise ConfigError(f"{root} was made with --{name}={before.get(name)}: use it, or another --workdir")
    try:
        root.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(chosen) + "\n")
    except OSError as error:
        raise WorkdirError(f"{root} cannot be made or written ({error.strerror}): choose another --workdir") from error


def follow(steps: Sequence[Command], last: str) -> None:
    """Run all, then announce the caller's own last step. Raises ChameleonError at the first that fails."""
    of = len(steps) + 1
    for number, command in enumerate(steps, 1):
        run(number, of, command)
    print(f"\n[{of}/{of}] {last}", flush=True)


def run(number: int, of: int, command: Command) -> None:
    """Run it in this process: JAX is imported once and not by every command."""
    print(f"\n[{number}/{of}] {command.what}\n  $ {command.typed}", flush=True)
    if command.writes and command.writes.exists():
        print(f"  {command.writes} is there already", flush=True)
        return
    try:
        with summary.led():
            commands.run(command.module, command.flags)
    except SystemExit as ended:
        if ended.code in _STOPPED:
            print("stopped; run the same command to go on", flush=True)
            raise
        if ended.code:
            raise ChameleonError(f"step {number} ended with exit code {ended.code}; its own message is above") from None


def _run_file(name: str) -> str:
    """The flag that names a run file of this project."""
    return f"--gin_file=gin_configs/runs/{name}"


def _steps(config: str, count: int | None) -> tuple[str, ...]:
    """The flag that sets the steps of a training; none where the run file's stay."""
    return () if count is None else (f"--gin.{config}.steps={count}",)


def _tokenize(file: str, root: Path, part: str, seed: int) -> Command:
    """`root/data/PART.jsonl` to `root/store/PART` with the tokenizer in `root/tokenizer`."""
    inputs = (f"--gin.MANIFEST={root / 'data' / part}.jsonl", f"--gin.TOKENIZER={root / 'tokenizer'}")
    flags = (_run_file(file), *inputs, f"--gin.SEED={seed}", f"--workdir={root / 'store' / part}")
    return Command(f"documents to tokens ({part})", "tokenize", flags)
