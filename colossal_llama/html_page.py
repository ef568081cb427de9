"""The frame and the tables of the HTML reports: one file, no script, nothing fetched, so it opens offline."""

from collections.abc import Sequence
from html import escape

OPEN_TABLE_ROWS = 20
"""Longer tables are folded up."""

Table = list[list[str]]

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character."""

_CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_CONTROL_PICTURES |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), REPLACEMENT)

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif;
  margin: 0 auto; max-width: 1360px; padding: 1rem 1.5rem; color: #1c2330; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; border-bottom: 1px solid #d5dae3; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; }
.card { border: 1px solid #d5dae3; border-radius: 6px; padding: .4rem .8rem; min-width: 8rem; }
.card b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.card span, figcaption { color: #5a6478; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th { text-align: left; background: #f3f5f9; }
th, td { border: 1px solid #d5dae3; padding: .2rem .6rem; vertical-align: top; overflow-wrap: break-word; }
td:first-child { white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
summary { cursor: pointer; margin: .3rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: .8rem 0; flex: 1 1 420px; max-width: 660px; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@@TITLE@@</title>
<style>@@STYLE@@</style>
</head>
<body>
<h1>@@TITLE@@</h1>
@@BODY@@</body>
</html>
"""


def render_page(title: str, body: str, style: str = "") -> str:
    """A whole HTML document.

    Args:
        title: plain text, for the window and the heading.
        body: HTML.
        style: CSS rules of this report, after the common ones.
    """
    page = _PAGE.replace("@@TITLE@@", escape(title)).replace("@@STYLE@@", _STYLE + style.lstrip("\n"))
    return page.replace("@@BODY@@", body)


def printable(text: str) -> str:
    """``text`` with pictures in place of control characters, which terminals obey and HTML forbids."""
    return text.translate(_CONTROL_PICTURES)


def html_table(head: Sequence[str], rows: Table, summary: str, align: bool = True) -> str:
    """A table whose cells are escaped; ``align`` puts figures to the right. ``summary`` names its rows."""
    if not rows:
        return ""

    def cell(text: str, tag: str = "td") -> str:
        is_figure = align and text.strip("-+%").replace(",", "").replace(".", "", 1).isdigit()
        return f"<{tag}{' class=n' if is_figure else ''}>{escape(printable(text))}</{tag}>"

    lines = [f"<tr>{''.join(f'<th>{escape(printable(name))}</th>' for name in head)}</tr>"]
    lines += [f"<tr>{''.join(map(cell, row))}</tr>" for row in rows]
    table = f'<div class="wide"><table>{"".join(lines)}</table></div>'
    if len(rows) <= OPEN_TABLE_ROWS:
        return table
    return f"<details><summary>{len(rows):,} {escape(summary)}</summary>{table}</details>"


def html_figure(caption: str, svg: str) -> str:
    """A figure with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
