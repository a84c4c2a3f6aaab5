"""Generated outputs as files: the words of output NAME in NAME.txt, with `[NAME-N.png]` where a picture came, and NAME-N.png.

Other modalities have files of their codec's kind; one without a codec is numbers among the words: `[moves 0 1 1]`. Where a record
of the request is given, it lies in NAME.json and, as JSON, in the text chunk `parameters` of every PNG: a picture tells how to
draw it again.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, PngImagePlugin

from chameleon_jax.errors import GenerationError
from chameleon_jax.files import atomic_write
from chameleon_jax.generation.prompt import SpanOutput, TextOutput
from chameleon_jax.tokenizers.bundle import TokenizerBundle

CHUNK = "parameters"  # of a PNG file
SHEET = "sheet.png"
SHEET_MOST = 256  # pictures on it
_GAP, _LABEL, _LEAST = 8, 16, 96  # pixels of a contact sheet: between pictures, of a name, of a picture's side


class OutputFiles:
    """The files of one output, written as its parts come; `close` writes the words, and last the record.

    Raises GenerationError where a file cannot be written.
    """

    def __init__(self, folder: Path, name: str, bundle: TokenizerBundle, record: Mapping[str, Any] | None = None):
        self._folder, self._name, self._bundle, self._record = folder, name, bundle, record
        self._words: list[str] = []
        self.files: list[str] = []

    def add(self, part: TextOutput | SpanOutput) -> str:
        """Write what the part needs and return what stands for it among the words; a span that is broken is left out."""
        shown = ""
        if isinstance(part, TextOutput):
            shown = part.text
        elif part.item is not None:  # a broken span, as mode `unrestricted` may give, has none
            codec = self._bundle.codecs[part.modality]
            name, data = f"{self._name}-{len(self.files)}{codec.suffix}", codec.to_file(part.item)
            is_png = self._record is not None and codec.mime == "image/png"
            self._write(name, with_record(data, self._record) if is_png else data)
            self.files.append(name)
            shown = f"[{name}]"
        elif part.codes is not None:
            shown = f"[{part.modality} {' '.join(map(str, part.codes.reshape(-1)))}]"
        self._words.append(shown)
        return shown

    def close(self) -> str:
        """Returns the words."""
        words = "".join(self._words)
        self._write(f"{self._name}.txt", f"{words}\n".encode())
        if self._record is not None:
            account = {**self._record, "words": words, "files": self.files}
            self._write(f"{self._name}.json", (json.dumps(account, indent=1, ensure_ascii=False) + "\n").encode())
        return words

    def _write(self, name: str, data: bytes) -> None:
        try:
            atomic_write(self._folder / name, data)
        except OSError as error:
            raise GenerationError(f"{self._folder} cannot be written: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Make the folder for outputs. Raises GenerationError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerationError(f"{folder} cannot be made: {error.strerror}; choose another --out") from error


def read_file(name: str) -> bytes:
    """The bytes of a file that was named on the command line. Raises GenerationError, saying why it cannot be read."""
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise GenerationError(f"{name} cannot be read: {error.strerror}") from error


def with_record(png: bytes, record: Mapping[str, Any]) -> bytes:
    """The same picture with the record in its text chunk, in UTF-8."""
    chunks, out = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_itxt(CHUNK, json.dumps(record, ensure_ascii=False))
    Image.open(io.BytesIO(png)).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def record_of(png: str | Path) -> dict[str, Any]:
    """What `with_record` put in; empty where there is nothing."""
    with Image.open(png) as image:
        return json.loads(image.text.get(CHUNK, "{}"))


def contact_sheet(folder: Path, names: Sequence[str]) -> Path | None:
    """The first `SHEET_MOST` of these pictures of the folder on one page, with their names; None where there are fewer than two.

    Raises GenerationError where it cannot be written.
    """
    names = [name for name in names if name.endswith(".png")][:SHEET_MOST]
    if len(names) < 2:
        return None
    sizes = []
    for name in names:
        with Image.open(folder / name) as picture:
            sizes.append(picture.size)
    sides = [max(size[axis] for size in sizes) for axis in (0, 1)]
    width, height = (side * math.ceil(_LEAST / max(sides)) for side in sides)
    columns = math.ceil(math.sqrt(len(names)))
    rows = -(-len(names) // columns)
    across, down = width + _GAP, height + _GAP + _LABEL
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        with Image.open(folder / name) as opened:
            picture = opened.convert("RGB")
        x, y = _GAP + i % columns * across, _GAP + i // columns * down
        scale = max(1, min(width // picture.width, height // picture.height))
        sheet.paste(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + height + 2), name.removesuffix(".png"), fill="#6e6e73")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    try:
        atomic_write(folder / SHEET, out.getvalue())
    except OSError as error:
        raise GenerationError(f"{folder} cannot be written: {error.strerror}") from error
    return folder / SHEET
