"""What a command says at its end: how long it took, what it wrote and where, its main figures, and what to run next.

Run files are siblings: `NAME_tokenizer.gin`, `NAME_tokenize.gin` and `NAME.gin`. Where the next one lies beside the one that was
used, the next command is told with all its flags.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chameleon_jax import commands
from chameleon_jax.progress import format_seconds

Next = tuple[str, Sequence[str]]  # name and flags of a command

_led = 0  # demonstrations under way, which run the next command themselves


def show(
    seconds: float, wrote: Mapping[str, str], figures: Mapping[str, str] | None = None, then: Sequence[Next] = ()
) -> None:
    """Print the summary. `wrote` is by path, `figures` by name; both say the rest in words."""
    lines = [("wrote", f"{path}{f': {what}' if what else ''}") for path, what in wrote.items()]
    lines += (figures or {}).items()
    if not _led:
        lines += [("next", commands.typed(name, [str(flag) for flag in flags])) for name, flags in then]
    width, before = max((len(name) for name, _ in lines), default=0), ""
    print(f"done in {format_seconds(seconds)}")
    for name, text in lines:
        print(f"  {'' if name == before else name:{width}}  {text}")
        before = name


@contextlib.contextmanager
def led() -> Iterator[None]:
    """While the block runs nothing is said of next commands: whoever runs these ones runs those too."""
    global _led
    _led += 1
    try:
        yield
    finally:
        _led -= 1


def following(
    gin_files: Sequence[str], bindings: Sequence[str], endings: tuple[str, str], known: Mapping[str, object]
) -> list[str] | None:
    """The flags, without --workdir, of the command whose run file stands beside the last of `gin_files`, with the other ending.

    What that file requires is taken from `known` or from the macros among `bindings` (`NAME=value`). None where there is no such
    file, or something that it requires is not known.
    """
    old, new = endings
    if not gin_files or not gin_files[-1].endswith(old):
        return None
    name = gin_files[-1].removesuffix(old) + new
    file = next((path for path in (Path(name), commands.GIN_ROOT / name) if path.is_file()), None)
    if file is None:
        return None
    text = file.read_text(encoding="utf-8")
    given = macros(bindings)
    values = given | {macro: str(value) for macro, value in known.items()}
    required = re.findall(r"^(\w+)\s*=\s*%gin\.REQUIRED", text, re.M)
    if any(macro not in values for macro in required):
        return None
    kept = [macro for macro in given if macro not in required and re.search(rf"^{macro}\s*=", text, re.M)]
    return [f"--gin_file={name}", *(f"--gin.{macro}={values[macro]}" for macro in (*required, *kept))]


def macros(bindings: Sequence[str]) -> dict[str, str]:
    """The macros among bindings: names without a dot."""
    pairs = (binding.partition("=")[::2] for binding in bindings)
    return {name: value for name, value in pairs if "." not in name}
