"""Draws picture pages: rows of text and images on one PNG, for people who would rather look than read numbers."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 24, 10
BACKGROUND, INK, FAINT = "#ffffff", "#1d1d1f", "#6e6e73"


@dataclasses.dataclass(frozen=True)
class Row:
    """A label on the left, pictures with a small caption each on the right."""

    label: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    rows: Sequence[Row]


def draw(path: str | Path, title: str, subtitle: str, sections: Sequence[Section], *, picture_size: int = 72) -> None:
    """Write the page as PNG."""
    render(title, subtitle, sections, picture_size=picture_size).save(path)


def render(title: str, subtitle: str, sections: Sequence[Section], *, picture_size: int = 72) -> Image.Image:
    """The page; small pictures are enlarged with hard pixel edges, so that what the model drew is what is seen."""
    heading, body, small = _font(26), _font(16), _font(13)
    label_width = 300
    columns = max((len(row.pictures) for section in sections for row in section.rows), default=0)
    width = 2 * MARGIN + label_width + columns * (picture_size + GAP)
    line = small.size + 4

    def row_height(row: Row) -> int:
        lines = max((len(_wrap(c, picture_size, small)) for c in row.captions), default=0)
        label = len(_wrap(row.label, label_width - GAP, body)) * (body.size + 5)
        return max(picture_size + lines * line, label) + GAP

    heights = [sum(row_height(row) for row in section.rows) + 2 * body.size + 2 * GAP for section in sections]
    lead = _wrap(subtitle, width - 2 * MARGIN, small)
    top = MARGIN + heading.size + GAP + len(lead) * line + GAP
    page = Image.new("RGB", (width, top + sum(heights) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, font=heading, fill=INK)
    for index, text in enumerate(lead):
        pen.text((MARGIN, MARGIN + heading.size + GAP + index * line), text, font=small, fill=FAINT)
    y = top
    for section in sections:
        y += GAP
        pen.line((MARGIN, y, width - MARGIN, y), fill="#d2d2d7")
        pen.text((MARGIN, y + GAP), section.title, font=body, fill=INK)
        y += 2 * body.size + GAP
        for row in section.rows:
            for index, text in enumerate(_wrap(row.label, label_width - GAP, body)):
                pen.text((MARGIN, y + index * (body.size + 5)), text, font=body, fill=INK)
            for column, picture in enumerate(row.pictures):
                x = MARGIN + label_width + column * (picture_size + GAP)
                page.paste(picture.resize((picture_size, picture_size), Image.Resampling.NEAREST), (x, y))
                if column < len(row.captions):
                    for index, text in enumerate(_wrap(row.captions[column], picture_size, small)):
                        pen.text((x, y + picture_size + 2 + index * line), text, font=small, fill=FAINT)
            y += row_height(row)
    return page


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of at most `width` pixels."""
    per_line = max(4, int(width / font.getlength("abcdefghij") * 10))
    return [line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, per_line)] or [""]
