"""A document as a list of blocks, and its two forms for people: Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.alarm { background: #b00020; color: #fff; font-weight: 600; padding: .8rem 1rem; border-radius: .3rem; }
.notice { background: #fff3cd; padding: .6rem 1rem; border-radius: .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { white-space: nowrap; color: #555; }
figure { margin: .8rem 0; } figcaption { font-size: .85rem; }
figure img { width: 100%; max-width: 60rem; display: block; }
"""
# What Markdown reads as markup; an underscore inside a word is not.
SPECIAL = re.compile(r"[\\`*\[\]<>|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


DASH = "–"  # in the place of a number that there is not


class Title(NamedTuple):
    text: str


class Heading(NamedTuple):
    text: str


class Text(NamedTuple):
    text: str


class Alarm(NamedTuple):
    """What must not be overlooked: the results do not mean what they seem to."""

    text: str


class Notice(NamedTuple):
    """What a reader has to know."""

    text: str


class Facts(NamedTuple):
    """Names and values."""

    rows: Sequence[tuple[str, str]]


class Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Figures(NamedTuple):
    """Captions, and the keys of their pictures; Markdown has the captions alone."""

    rows: Sequence[tuple[str, str]]


Block = Title | Heading | Text | Alarm | Notice | Facts | Table | Figures


def markdown(blocks: Sequence[Block]) -> str:
    """The document in Markdown, without pictures."""
    return "\n\n".join(map(markdown_block, blocks)) + "\n"


def markdown_block(block: Block) -> str:
    match block:
        case Title(text):
            return f"# {escape_markdown(text)}"
        case Heading(text):
            return f"## {escape_markdown(text)}"
        case Text(text):
            return escape_markdown(text)
        case Alarm(text):
            return f"> **{escape_markdown(text)}**"
        case Notice(text):
            return f"> {escape_markdown(text)}"
        case Facts(rows):
            return markdown_table(("", ""), rows)
        case Table(header, rows):
            return markdown_table(header, rows)
        case Figures(rows):
            return "\n".join(f"{place}. {escape_markdown(caption)}" for place, (caption, _) in enumerate(rows, start=1))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column on the left, the others on the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    cells = [[cell if place == 1 else escape_markdown(cell) for cell in line] for place, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def escape_markdown(text: str) -> str:
    """`text` in one line in which nothing is taken for Markdown or HTML."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def page(blocks: Sequence[Block], pictures: dict[str, str]) -> str:
    """The document as an HTML page without scripts that loads nothing; `pictures`: data URIs by key."""
    title = next(block.text for block in blocks if isinstance(block, Title))
    body = "\n".join(html_block(block, pictures) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_block(block: Block, pictures: dict[str, str]) -> str:
    match block:
        case Title(text):
            return f"<h1>{html.escape(text)}</h1>"
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Alarm(text):
            return f'<p class="alarm">{html.escape(text)}</p>'
        case Notice(text):
            return f'<p class="notice">{html.escape(text)}</p>'
        case Facts(rows):
            return f'<table class="facts">{"".join(html_row(row) for row in rows)}</table>'
        case Table(header, rows):
            body = html_row(header, "th") + "".join(html_row(row) for row in rows)
            return f'<div class="wide"><table>{body}</table></div>'
        case Figures(rows):
            return "\n".join(html_figure(caption, pictures.get(key)) for caption, key in rows)


def html_row(cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>\n"


def html_figure(caption: str, source: str | None) -> str:
    image = "" if source is None else f'<img src="{html.escape(source)}" alt="{html.escape(caption)}">'
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{image}</figure>"


def figure(value: float | None) -> str:
    """A score in a table."""
    return DASH if value is None else f"{value:.4f}"


def between(bounds: Sequence[float] | None) -> str:
    """An interval in a table."""
    return DASH if bounds is None else f"{figure(bounds[0])} to {figure(bounds[1])}"
