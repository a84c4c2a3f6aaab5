"""What `experiments.new` does, step by step: recognise, read, measure the machine, choose sizes, write, and say what to type."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from chameleon_jax.commands import as_called
from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import described, field_names, printable, require_apart, source_of, trees
from chameleon_jax.data.sources.files import fixed_part
from chameleon_jax.data.sources.records import brief
from chameleon_jax.errors import DataError
from chameleon_jax.evaluation import record_page, records
from chameleon_jax.own_data import earlier, gin_files, machine, sizes, survey
from chameleon_jax.own_data.machine import Machine
from chameleon_jax.own_data.sizes import Sizes
from chameleon_jax.own_data.survey import Survey
from chameleon_jax.parallel.device_memory import in_words
from chameleon_jax.progress import count as plural
from chameleon_jax.progress import format_seconds
from chameleon_jax.workdir import require_kind

PAGE = "records.html"
FEW = 10  # documents, below which nothing can be learned
NO_WORDS = "a picture"  # what pictures without words are called, where nobody says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """What was found, what fits it, and where the files go."""

    found: Survey
    machine: Machine
    sizes: Sizes
    folder: Path


def require_new(folder: Path, data: str) -> None:
    """Raise WorkdirError where a run, a token store or a tokenizer lies in the folder, or the folder in that of the data."""
    require_kind(folder, "a folder of gin files")
    require_apart(folder, data)


def source_of_flags(data: str, split: str, caption: str | None) -> SourceConfig:
    """The source that the flags ask for, with an absolute path, so that commands find it from any folder.

    Raises DataError for a path that no reader knows and for words for pictures that have some.
    """
    source = source_of(data)
    path = source.path if source.kind == "tfds" and not os.path.exists(source.path) else os.path.abspath(source.path)
    if caption is not None and source.kind != "pictures":
        raise DataError(f"--caption is for pictures without words; {data} is {described(source)}")
    words = (caption or NO_WORDS) if source.kind == "pictures" else ""
    return dataclasses.replace(source, path=path, split=split, caption=words)


def look(source: SourceConfig) -> Survey:
    """Say what form the data have, and read them. Raises DataError where nothing in them can be used."""
    print(f"{_near(source.path)}: {described(source)}", flush=True)
    if source.caption == NO_WORDS:
        print(
            f'  no words are told, so every picture is called "{source.caption}"; --caption says otherwise', flush=True
        )
    found = survey.survey(source)
    for line in survey.lines(found):
        print(f"  {line}", flush=True)
    unnamed, texts = _passed_over(found)
    if not found.pictures and 2 * unnamed >= found.documents:
        raise DataError(
            f"{source.path} names no picture, and {plural(unnamed, 'picture file')} lie beside it: {_columns(source)}call the one "
            "with their names 'image', or move the pictures elsewhere to train on words alone"
        )
    if unnamed:
        print(f"  {plural(unnamed, 'picture file')} of the folder, not named in it: not read", flush=True)
    if texts:
        print(
            f"  {plural(texts, 'text file')} beside pictures: not read, {described(source)} gives the words", flush=True
        )
    if not found.words:
        named = _columns(source)
        wanted = f"{named}call the one with the words 'caption'" if named else "add a text to records"
        raise DataError(f"{source.path} holds no words: a model is trained on words, or words and pictures; {wanted}")
    if found.all_documents < FEW:
        print("  that is too few to learn from: the commands will run, what comes out means nothing", flush=True)
    if not found.pictures:
        print("  no pictures: the model will be one of text alone", flush=True)
    return found


def propose(found: Survey, folder: Path, minutes: float, *, overwrite: bool = False) -> Proposal:
    """Measure this machine, unless that was done in this folder for the same data, and choose sizes."""
    here, seconds = measured(found, folder, overwrite=overwrite)
    found = dataclasses.replace(found, seconds=seconds)
    return Proposal(found=found, machine=here, sizes=sizes.choose(found, here, minutes), folder=folder)


def measured(found: Survey, folder: Path, *, overwrite: bool) -> tuple[Machine, float]:
    """This machine, and the seconds of reading: those of an earlier time in this folder, for the same data, if there are any.

    They are measured again where the machine was busy, and with `overwrite`, until something was trained with the files that follow
    from them.
    """
    kept = earlier.measured(folder, found)
    if kept and (gin_files.trained(folder) or not (overwrite or kept[0].is_busy)):
        return kept
    return machine.measure(), found.seconds


def write(proposal: Proposal, *, overwrite: bool, shown: int) -> bool:
    """The gin files and the page; False where the gin files are those of an earlier time.

    Raises WorkdirError where edited files would be lost, or the folder cannot be written.
    """
    files = gin_files.make(proposal.found, proposal.sizes, proposal.folder)
    is_new = gin_files.write(proposal.folder, files, overwrite=overwrite)
    earlier.keep(proposal.folder, proposal.found, proposal.machine, files)
    page = records.of_source(proposal.found.source, shown)
    title = f"Records of {_near(proposal.found.source.path)}"
    record_page.write(proposal.folder / PAGE, title, page.lead, page.sections)
    return is_new


def lines(proposal: Proposal) -> list[str]:
    """What is proposed, and the commands with their times."""
    here, chosen, folder = proposal.machine, proposal.sizes, proposal.folder
    memory = f", {in_words(here.memory)} of memory" if here.memory else ""
    busy = f"; busy with other work, times are {here.load:.2g} times longer" if here.is_busy else ""
    devices = f"{here.devices} x {here.name}" if here.devices > 1 or not here.is_cpu else here.name
    said = ["", f"this machine: {devices}, {here.rate(chosen.model.d_model) / 1e9:,.0f} GFLOP/s{memory}{busy}"]
    if vq := chosen.vq:
        said.append(
            f"pictures:     {vq.resolution}x{vq.resolution} pixels as {vq.grid}x{vq.grid} = {vq.codes_per_image} codes of "
            f"{vq.codes:,}; codec trained {chosen.codec_steps:,} steps of {chosen.codec_batch}"
        )
        if vq.resolution < (largest := sizes.resolutions(proposal.found)[-1]):
            said.append(f"              (they would allow {largest}x{largest}; --minutes={chosen.minutes:g} does not)")
    said += [
        f"text:         at most {chosen.text_tokens:,} pieces",
        f"transformer:  {chosen.parameters / 1e6:.2g} M parameters, {chosen.model.n_layers} layers of width "
        f"{chosen.model.d_model}, context {chosen.seq_len}",
        f"training:     {chosen.steps:,} steps of {chosen.batch_size} rows, {chosen.epochs:.3g} passes over the data, "
        f"{in_words(chosen.memory)} of memory",
        "",
        f"look at {folder / PAGE}; {', '.join((gin_files.TOKENIZER, gin_files.DATA, gin_files.RUN))} say why. Then run",
        "",
    ]
    for name, command in gin_files.commands(proposal.found, folder):
        seconds = chosen.seconds.get(name)
        said += [as_called(command), f"    # about {format_seconds(seconds)}"] if seconds else [as_called(command)]
    total = sum(chosen.seconds.values())
    first = "picture" if chosen.vq else "text"
    said.append(f"\nin all about {format_seconds(total)} before the first {first}")
    if total > 60 * chosen.minutes + 1:
        said.append(
            f"that is more than --minutes={chosen.minutes:g}: starting and compiling alone take "
            f"{format_seconds(here.load * sum(sizes.STARTING.values()))}"
        )
    return said


def _passed_over(found: Survey) -> tuple[int, int]:
    """Files in the folder of a manifest, a table or lines: pictures beyond those that it names, and texts beside pictures.

    Zeros for other kinds of data, and for a source that was not read to its end.
    """
    path = Path(found.source.path)
    if found.source.kind not in ("folder", "csv", "jsonl") or found.source.split or found.scale != 1:
        return 0, 0
    root = path if path.is_dir() else fixed_part(found.source.path)
    walked = [os.path.splitext(name) for name in trees.all_files(str(root))]
    pictures = [stem for stem, ending in walked if ending.lower() in trees.PICTURES]
    texts = {stem for stem, ending in walked if ending.lower() in trees.TEXTS}
    return max(0, len(pictures) - found.named - len(found.rejects)), len(texts.intersection(pictures))


def _columns(source: SourceConfig) -> str:
    """What the columns of a table or the fields of a record are called, in words; empty for other kinds of data."""
    names = field_names(source)
    what = "columns" if source.kind in ("csv", "parquet") else "fields"
    return f"{what} found: {printable(brief(', '.join(names), 120))[1:-1]}; " if names else ""


def _near(path: str) -> str:
    """The path from the current folder where it lies below it, as people write it."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else near
