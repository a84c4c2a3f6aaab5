"""Generated outputs as files: the words of output K in KK.txt, with `[KK-N.png]` where a picture came, and KK-N.png.

Other modalities have files of their codec's kind; one without a codec is numbers among the words: `[moves 0 1 1]`.
"""

from __future__ import annotations

from pathlib import Path

from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.prompt import SpanOutput, TextOutput
from chameleon_jax.tokenizers.bundle import TokenizerBundle


def make_folder(folder: Path) -> None:
    """Make the folder for outputs. Raises GenerationError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenerationError(f"{folder} cannot be made: {error.strerror}; choose another --out") from error


def write_output(parts: list[TextOutput | SpanOutput], folder: Path, number: int, bundle: TokenizerBundle) -> str:
    """Write one output and return its words; a span that the model left broken is left out.

    Raises GenerationError when a file cannot be written.
    """
    words, files = [], 0
    try:
        for part in parts:
            if isinstance(part, TextOutput):
                words.append(part.text)
            elif part.item is not None:  # a broken span, as mode `unrestricted` may give, has none
                codec = bundle.codecs[part.modality]
                name = f"{number:02d}-{files}{codec.suffix}"
                (folder / name).write_bytes(codec.to_file(part.item))
                words.append(f"[{name}]")
                files += 1
            elif part.codes is not None:
                words.append(f"[{part.modality} {' '.join(map(str, part.codes.reshape(-1)))}]")
        (folder / f"{number:02d}.txt").write_text("".join(words) + "\n", encoding="utf-8")
    except OSError as error:
        raise GenerationError(f"{folder} cannot be written: {error.strerror}") from error
    return "".join(words)


def read_file(name: str) -> bytes:
    """The bytes of a file that was named on the command line. Raises GenerationError, saying why it cannot be read."""
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise GenerationError(f"{name} cannot be read: {error.strerror}") from error
