"""Generated outputs as files: the words of output K in KK.txt, with `[KK-N.png]` where a picture came, and KK-N.png."""

from __future__ import annotations

from pathlib import Path

from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.prompt import ImageOutput, TextOutput
from chameleon_jax.tokenizers.images import to_image


def make_folder(folder: Path) -> None:
    """Make the folder for outputs. Raises GenerationError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerationError(f"{folder} cannot be made: {error.strerror}") from error


def write_output(parts: list[TextOutput | ImageOutput], folder: Path, number: int) -> str:
    """Write one output and return its words; a picture that the model left broken is left out.

    Raises GenerationError when a file cannot be written.
    """
    words, drawn = [], 0
    try:
        for part in parts:
            if isinstance(part, TextOutput):
                words.append(part.text)
            elif part.pixels is not None:  # a broken image, as mode `unrestricted` may give, is no picture
                name = f"{number:02d}-{drawn}.png"
                to_image(part.pixels).save(folder / name)
                words.append(f"[{name}]")
                drawn += 1
        (folder / f"{number:02d}.txt").write_text("".join(words) + "\n", encoding="utf-8")
    except OSError as error:
        raise GenerationError(f"{folder} cannot be written: {error.strerror}") from error
    return "".join(words)


def read_file(name: str) -> bytes:
    """The bytes of a picture file that was named on the command line. Raises GenerationError, saying why it cannot be read."""
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise GenerationError(f"--image {name} cannot be read: {error.strerror}") from error
