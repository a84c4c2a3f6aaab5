"""Documents and records for people: one list of cards, as a self-contained HTML page and as lines for a terminal.

A card is a document; its parts stand in its order: words, pictures, sounds, numbers. Nothing here knows where a card comes from
(`records` does), and nothing on the page is fetched from elsewhere.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from chameleon_jax.data.sources import printable
from chameleon_jax.errors import ChameleonError
from chameleon_jax.files import atomic_write

_WIDTH = 112  # of a line in a terminal
_VALUES = 16  # numbers of a span that a terminal shows
_CHARACTERS = 400  # of a text that a terminal shows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """An id and what stands for it; a marker is no text of anybody."""

    text: str
    id: int
    marker: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a card: words (`text`, or `tokens` where ids are known), a file that a browser shows, or numbers.

    `learned` says whether training predicts it; None where that is not said. `note` is shown small: sizes, names of files.
    """

    label: str
    note: str = ""
    learned: bool | None = None
    text: str = ""
    tokens: tuple[Token, ...] = ()
    file: bytes = b""
    mime: str = ""
    values: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A document, or with `fault` a record that cannot be used and why."""

    title: str
    note: str = ""
    parts: tuple[Part, ...] = ()
    fault: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    lead: str = ""
    cards: tuple[Card, ...] = ()


def write(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page. Raises ChameleonError where the file cannot be written."""
    body = "".join(map(_section, sections))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<main><h1>{html.escape(title)}</h1><p class=lead>{html.escape(lead)}</p>{body}</main></html>\n"
    )
    try:
        atomic_write(path, page)
    except OSError as error:
        raise ChameleonError(f"{path} cannot be written ({error.strerror}): give another --out") from error


def lines(sections: Sequence[Section]) -> Iterable[str]:
    """The same for a terminal."""
    return map(printable, _lines(sections))


def _lines(sections: Sequence[Section]) -> Iterable[str]:
    for section in sections:
        yield f"{section.title}{f': {section.lead}' if section.lead else ''}"
        for card in section.cards:
            yield f"  {card.title}{f'  ({card.note})' if card.note else ''}"
            if card.fault:
                yield from textwrap.wrap(card.fault, _WIDTH, initial_indent="      ", subsequent_indent="      ")
            for part in card.parts:
                yield from _part_lines(part)


def _part_lines(part: Part) -> Iterable[str]:
    label = f"{part.label}{f' {part.note}' if part.note else ''}{' (not learned)' if part.learned is False else ''}"
    shown = part.text or "".join(token.text for token in part.tokens)
    if not shown and part.values:
        more = len(part.values) - _VALUES
        shown = " ".join(map(str, part.values[:_VALUES])) + (f" and {more:,} more" if more > 0 else "")
    more = f" and {len(shown) - _CHARACTERS:,} more characters" if len(shown) > _CHARACTERS else ""
    shown = printable(shown[:_CHARACTERS]) + more
    line = f"{label}: {shown}" if shown else label
    yield from (
        textwrap.wrap(line, _WIDTH, initial_indent="      ", subsequent_indent="        ") if line.strip() else ()
    )


def _section(section: Section) -> str:
    lead = f"<p>{html.escape(section.lead)}</p>" if section.lead else ""
    cards = "".join(map(_card, section.cards))
    return f"<section><h2>{html.escape(section.title)}</h2>{lead}<div class=cards>{cards}</div></section>"


def _card(card: Card) -> str:
    fault = f"<p class=fault>{html.escape(card.fault)}</p>" if card.fault else ""
    note = f"<small>{html.escape(card.note)}</small>" if card.note else ""
    parts = "".join(map(_part, card.parts))
    return f"<article><h3>{html.escape(card.title)} {note}</h3>{fault}{parts}</article>"


def _part(part: Part) -> str:
    if part.tokens:
        shown = f"<p class=words>{''.join(map(_token, part.tokens))}</p>"
    elif part.text:
        shown = f"<p class=words>{html.escape(part.text)}</p>"
    elif part.file:
        url = f"data:{part.mime};base64,{base64.b64encode(part.file).decode()}"
        label = html.escape(part.label, quote=True)
        is_picture = part.mime.startswith("image/")
        shown = f'<img src="{url}" alt="{label}">' if is_picture else f'<audio controls src="{url}"></audio>'
    else:
        shown = ""
    values = part.values or tuple(token.id for token in part.tokens)
    numbers = ""
    if values:
        what = "codes" if part.values else "ids"
        inside = f"<summary>{what}</summary>{' '.join(map(str, values))}"
        numbers = f"<details{'' if shown else ' open'}>{inside}</details>"
    role = "" if part.learned is None else f" <em>{'learned' if part.learned else 'not learned'}</em>"
    kind = " quiet" if part.learned is False else ""
    note = f"<b>{html.escape(part.label)}</b> {html.escape(part.note)}{role}"
    return f'<div class="part{kind}"><small>{note}</small>{shown}{numbers}</div>'


def _token(token: Token) -> str:
    kind = " class=marker" if token.marker else ""
    shown = html.escape(token.text.replace("\n", "⏎\n"))
    return f'<i{kind} title="id {token.id}">{shown}</i>'


_STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--faint:#6e6e73;--page:#f5f5f7;--card:#fff;--line:#d2d2d7}
:root{--a:#e4ecfb;--b:#f1ebd9;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#f2f2f4;--faint:#a1a1a8;--page:#161618;--card:#232326;--line:#3b3b40}
:root{--a:#2b3a58;--b:#463f2a;--bad:#ff8a80}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px}
h1{font-size:1.6em;margin:.2em 0}h2{margin:1.6em 0 .3em;font-size:1.2em}h3{margin:0 0 .5em;font-size:.95em}
p{margin:.3em 0}.lead,small{color:var(--faint);font-weight:400}small{display:block;font-size:.8em}h3 small{display:inline}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
article{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px;min-width:0;overflow-wrap:anywhere}
.part{border-left:3px solid #4a7dde;padding:1px 0 1px 10px;margin:.6em 0}.quiet{border-left-style:dotted;border-color:var(--faint)}
em{font-style:normal;border:1px solid var(--line);border-radius:6px;padding:0 4px}
.words{white-space:pre-wrap}i{font-style:normal;border-radius:3px;background:var(--a)}i:nth-child(even){background:var(--b)}
i.marker{background:none;color:var(--faint);font:.8em ui-monospace,monospace}
img{display:block;min-width:128px;max-width:100%;max-height:320px;image-rendering:pixelated;border-radius:6px;background:#fff}
audio{width:100%}.fault{color:var(--bad)}details{font:.75em/1.4 ui-monospace,monospace;color:var(--faint)}summary{cursor:pointer}
"""
