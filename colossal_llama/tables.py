"""Tables of text for the terminal, Markdown and HTML."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

ALL = "(all)"
"""First cell of a row over everything, which HTML sets apart."""

TABLE_STYLE = """
.note { color: #5a6478; font-size: .85rem; max-width: 60rem; }
tr.all td { font-weight: 600; background: #f8f9fc; }
th, td { overflow-wrap: normal; }
th.n { text-align: right; }
td { white-space: nowrap; }
"""
"""CSS that :func:`html_text` needs beside that of all pages."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; columns from ``figures_from`` on are figures; ``note`` says how to read them."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    figures_from: int = 1


def terminal_text(table: Table) -> str:
    """The table in aligned columns, figures to the right, under its title and over its note."""
    columns = list(zip(table.head, *table.rows, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    lines = [table.title]
    for row in [table.head, *table.rows]:
        cells = [
            _pad(cell, width, left=index < table.figures_from)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if table.note:
        lines.append(table.note)
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def markdown_rows(table: Table) -> str:
    """Head and rows in Markdown, without title and note."""
    lines = [
        _markdown_row(table.head),
        _markdown_row(["---:" if index >= table.figures_from else "---" for index in range(len(table.head))]),
    ]
    return "\n".join(lines + [_markdown_row(row) for row in table.rows])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown_text(table: Table) -> str:
    """The whole table in Markdown: title as a second-level heading, rows, note."""
    parts = [f"## {table.title}", markdown_rows(table)]
    return "\n\n".join([*parts, table.note] if table.note else parts)


def html_text(table: Table) -> str:
    """Rows and note in HTML, escaped; the caller sets the title."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [" class=n" if index >= table.figures_from else "" for index in range(len(cells))]
        marked = zip(cells, kinds, strict=True)
        return "".join(f"<{tag}{kind}>{escape(_printable(text))}</{tag}>" for text, kind in marked)

    lines = [f"<tr>{line(table.head, 'th')}</tr>"]
    for row in table.rows:
        lines.append(f"<tr{' class=all' if row[0] == ALL else ''}>{line(row, 'td')}</tr>")
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return f'<div class="wide"><table>{"".join(lines)}</table></div>{note}'


def _printable(text: str) -> str:
    """Control characters, which HTML forbids, as their escapes."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
