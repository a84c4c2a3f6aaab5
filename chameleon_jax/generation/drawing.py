"""Many outputs of the command line: asked for by flags or by the lines of a file, drawn together, written as each ends.

The record of an output is all that it depends on. An output of a file's line whose record lies in the folder already is not drawn
again, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import queue
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from chameleon_jax.configs import EngineConfig, GenerationConfig
from chameleon_jax.errors import ChameleonError, GenerationError
from chameleon_jax.generation.asked import config_with, lines_of, parts_of
from chameleon_jax.generation.engine import BLOCK, Engine, slots_for
from chameleon_jax.generation.grammar import span_tokens, written_rows
from chameleon_jax.generation.lanes import Shapes
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.output_files import OutputFiles, read_file
from chameleon_jax.generation.prompt import build_request, read_output
from chameleon_jax.generation.requests import Generated, Request
from chameleon_jax.generation.scheduler import Scheduler
from chameleon_jax.progress import count as plural
from chameleon_jax.progress import progress

TOGETHER = 32  # outputs that are drawn at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """An output to draw: its name in the folder, the record of all that it depends on, and what it takes of the engine."""

    name: str
    request: Request
    record: dict[str, Any]
    remaining: int  # ids that may come
    lanes: int  # more than one with guidance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """An output that lies in the folder."""

    name: str
    words: str
    files: tuple[str, ...]
    tokens: int
    finish_reason: str


def asked_for(run: Run, config: GenerationConfig, args: SimpleNamespace) -> list[Asked]:
    """The outputs that the flags ask for: `--count` of one prompt, or of every line of `--prompts`.

    A line is a JSON object whose fields stand for flags of the same name. Raises GenerationError and DataError for what cannot be
    served, naming the line, before anything is drawn.
    """
    if args.prompts is None:
        return list(_of_flags(run, config, args, ""))
    asked = []
    for number, where, flags in lines_of(args.prompts, args):
        try:
            asked += _of_flags(run, config, flags, f"{number:04d}")
        except ChameleonError as error:
            raise GenerationError(f"{where}: {error}") from error
    return asked


def _of_flags(run: Run, config: GenerationConfig, flags: SimpleNamespace, line: str) -> Iterator[Asked]:
    if flags.count < 1:
        raise GenerationError(f"--count is {flags.count}; ask for at least 1 output")
    config, format = config_with(config, run.bundle, flags), flags.format or run.format
    read = functools.cache(read_file)  # a file is prompt and part of the record
    parts = parts_of(flags.prompt, flags.image, flags.media, run.bundle, read)
    request = build_request(parts, run.bundle, config, format=format, image_size=flags.image_size)
    # It raises why not, where the request cannot be served.
    job = Scheduler.job(Shapes(model=run.model, vocab=run.bundle.vocab), request, run.model.max_seq_len)
    needs = {"remaining": job.checked.remaining, "lanes": len(job.contexts)}
    contents = _contents(run, flags, read)
    for row in range(flags.count):
        record = {
            "workdir": str(flags.workdir),
            "step": run.step,
            "prompt": flags.prompt,
            "image": list(flags.image),
            "media": list(flags.media),
            "format": format,
            "image_size": flags.image_size and "x".join(map(str, flags.image_size)),
            "seed": request.config.seed,
            "row": row,  # of the outputs of this prompt: each draws with the seed and its row
            "settings": request.config.to_dict(),
            **({"sha256": contents} if contents else {}),
        }
        name = "-".join([line] * bool(line) + [f"{row:02d}"] * (not line or flags.count > 1))
        yield Asked(name=name, request=dataclasses.replace(request, row_id=row), record=record, **needs)


def _contents(run: Run, flags: SimpleNamespace, read: Callable[[str], bytes]) -> dict[str, str]:
    """The beginning of the hash of every file that is given, by its name: one that was changed is another."""
    vocab = run.bundle.vocab_config
    given = [media.partition("=") for media in flags.media]
    rows = {row.name: row for row in vocab.modalities}
    files = [*flags.image, *(value for name, _, value in given if rows[name].codec)]
    return {name: hashlib.sha256(read(name)).hexdigest()[:16] for name in files}


def unfinished(asked: Sequence[Asked], folder: Path) -> list[Asked]:
    """Those whose record does not lie in the folder with everything that was written for it."""
    return [one for one in asked if not _is_finished(one, folder)]


def _is_finished(one: Asked, folder: Path) -> bool:
    found = _account(one, folder)
    files = found.pop("files", [None])
    found.pop("words", None)
    same = found == json.loads(json.dumps(one.record))
    return same and all(name is not None and (folder / name).is_file() for name in files)


def files_of(one: Asked, folder: Path) -> list[str]:
    """Names of the pictures and sounds of an output that lies there."""
    return _account(one, folder).get("files", [])


def _account(one: Asked, folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / f"{one.name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def draw(run: Run, asked: Sequence[Asked], folder: Path, *, together: int = TOGETHER) -> Iterator[Drawn]:
    """Draw and write all, each handed on as soon as its files lie there; progress is shown meanwhile. Takes the run's weights."""
    if not asked:
        return
    longest = max(len(one.request.prompt) + one.remaining for one in asked)
    config = EngineConfig(
        slots=min(together, len(asked)) * max(one.lanes for one in asked),
        context=slots_for(longest, run.model.max_seq_len),
        block=BLOCK,
        max_queued=len(asked),
    )
    expected = [_expected(one.request, one.remaining, run) for one in asked]
    came, events, done, files = [0] * len(asked), queue.SimpleQueue(), 0, 0
    with (
        progress("Generating", total=sum(expected), unit="tokens") as bar,
        Engine(run.params, run.model, run.bundle.vocab, config, donate=True) as engine,
    ):
        for i, one in enumerate(asked):
            engine.submit(
                one.request,
                lambda ids, i=i: events.put((i, ids)),
                lambda end, i=i: events.put((i, end)),
            )
        while done < len(asked):
            i, event = events.get()
            if isinstance(event, np.ndarray):
                came[i] += len(event)
                bar.advance(min(len(event), max(0, expected[i] - came[i] + len(event))))
                continue
            if isinstance(event, GenerationError):
                raise GenerationError(f"output {asked[i].name}: {event}")
            drawn = _write(event, asked[i], run, folder)
            done, files = done + 1, files + len(drawn.files)
            bar.advance(
                max(0, expected[i] - came[i]),
                f"{done} of {len(asked)} outputs, {plural(files, 'file')}",
            )
            yield drawn


def _expected(request: Request, remaining: int, run: Run) -> int:
    """Ids that will come at most: where nothing but spans may come, as many as they have."""
    vocab, config = run.bundle.vocab, request.config
    rows = written_rows(vocab, config.mode)
    if any(row not in vocab.marked for row in rows):
        return remaining
    most = sum(
        config.most_spans(name) * span_tokens(vocab.modalities[row], config.grids.get(name, (0, 0)))
        for row, name in ((row, vocab.names[row]) for row in rows)
    )
    return min(remaining, most)


def _write(output: Generated, asked: Asked, run: Run, folder: Path) -> Drawn:
    files = OutputFiles(folder, asked.name, run.bundle, asked.record)
    for part in read_output(output.ids, run.bundle):
        files.add(part)
    return Drawn(
        name=asked.name,
        words=files.close(),
        files=tuple(files.files),
        tokens=len(output.ids),
        finish_reason=output.finish_reason,
    )
