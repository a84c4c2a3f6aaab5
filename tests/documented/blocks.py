"""What a page tells a reader to run: its fenced blocks, the commands in its sentences, and the examples of a command's --help.

A block is one of three kinds: `shell` lines, `python` code, or `text`, which is everything else (gin, JSON, output).
"""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PROGRAMS = r"(?:[A-Z_]+=\S+ )?(?:python3?|chameleon|pip|curl) "
_INLINE = re.compile(rf"`({_PROGRAMS}(?:-m experiments\.\w+ )?[^`]+)`")
_GIN = re.compile(r"(?:include '|[\w/]+\.\w+ = )")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of a page; `line` is its first line there, from 1."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0]
        return f"{self.page}:{self.line} {first[:80]}"


def pages() -> list[str]:
    """Every page and every entry point, by its path in the repository."""
    files = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "experiments").glob("[a-z]*.py")),
    ]
    return [str(file.relative_to(ROOT)) for file in files]


def of_page(page: str) -> list[Block]:
    """The blocks of a page in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return _examples(page, text) if page.endswith(".py") else _markdown(page, text)


def _markdown(page: str, text: str) -> list[Block]:
    found = []
    for match in _FENCE.finditer(text):
        content = textwrap.dedent(match[3])
        found.append((match.start(), _kind(match[2], content), content))
    # Blanked, so that places stay and no backtick of a fence is taken for that of a sentence.
    prose = _FENCE.sub(lambda match: " " * len(match[0]), text)
    found += [(match.start(), "shell", " ".join(match[1].split())) for match in _INLINE.finditer(prose)]
    return [Block(page, text.count("\n", 0, at) + 1, kind, content) for at, kind, content in sorted(found)]


def _kind(language: str, content: str) -> str:
    if language == "bash" or (not language and re.match(_PROGRAMS, content)):
        return "shell"
    return "python" if language == "python" and not _GIN.match(content) else "text"


def _examples(page: str, source: str) -> list[Block]:
    """The indented lines behind "Examples:" of the docstring, a block each; a backslash joins two."""
    doc = ast.get_docstring(ast.parse(source)) or ""
    _, _, examples = doc.partition("Examples:\n")
    lines = examples.partition("\n\n")[0].replace("\\\n", " ").splitlines()
    before = source[: source.index("Examples:")].count("\n") if examples else 0
    return [Block(page, before + 2 + number, "shell", line.strip()) for number, line in enumerate(lines)]
