"""``report.html``: what a prepared dataset holds, in one file that opens offline.

Figures of documents come from the manifest, whose fields may be more or fewer than this version writes; figures
of rows and pieces are counted in the arrow files, batch by batch. The same dataset gives the same bytes.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.data.inspection import (
    DecodedDocument,
    PreparedFolder,
    decode_row,
    open_prepared,
    part_entries,
)
from colossal_llama.data.part_statistics import PartStatistics, part_statistics
from colossal_llama.data.report_page import (
    STYLE,
    show_number,
    show_share,
    show_value,
    svg_bars,
    words,
)
from colossal_llama.html_page import Table, html_figure, html_table, printable, render_page

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "report.html"

SHOWN_ROWS = 4
SHOWN_CHARACTERS = 6000
SHOWN_CATEGORIES = 30
_FILL_BINS = 20
_HISTOGRAM_BINS = 32

_MOST_BARS = 512
_ROWS_LOOKED_AT = 256

_REASONS = ("dropped", "rejects", "rejected")
"""Fields of the manifest that map reasons to numbers."""

_SHOWN_ELSEWHERE = {
    *(
        "inputs",
        "sub_datasets",
        "parts",
        "validation",
        "tokens_in",
        "tokens_repeated",
        "tokens_dropped",
        "documents",
        "characters",
        "bytes",
        "rows",
        "tokens",
        "target_tokens",
    ),
    *("max_length", "split_documents", "dropped_turns", "dropped_turn_tokens", "trailing_human"),
    *("turns_without_loss", "tokens_without_loss", "fields_not_read", "files_not_read", "number_not_read"),
}
"""Fields of the manifest that have a place outside of the last section."""


def write_report(arrow_dir: Path, tokenizer: "PreTrainedTokenizerBase | None", path: Path) -> None:
    """Write the report on the dataset in ``arrow_dir`` to ``path``, which is complete or unchanged afterwards.

    Args:
        arrow_dir: a preparation's arrow folder, or one part of it.
        tokenizer: decodes the example rows; None shows their ids.
        path: the HTML file.

    Raises:
        UserError: ``arrow_dir`` is no prepared dataset.
    """
    folder = open_prepared(arrow_dir, "--dataset")
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        # Names of inputs need not be UTF-8.
        scratch.write_text(render_report(folder, tokenizer), encoding="utf-8", errors="backslashreplace")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def render_report(folder: PreparedFolder, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """The report as HTML."""
    parts = [part_statistics(part.mapped_again()) for part in folder.parts]
    total = PartStatistics()
    for part in parts:
        total.add(part)
    manifest = folder.manifest
    max_length = int(manifest.get("max_length") or max(total.row_lengths, default=1))
    sections = [
        ("Totals", _totals(manifest, total, max_length)),
        ("Inputs", _entries(manifest, "inputs")),
        ("Sub-datasets", _entries(manifest, "sub_datasets")),
        ("Categories", _categories(total)),
        ("Dropped", _dropped(manifest)),
        ("Not read", _not_read(manifest)),
        ("Lengths", _length_figures(total, max_length)),
        ("Buckets", _buckets(folder, parts, max_length)),
        ("Rows as they are learned", _example_rows(folder, tokenizer)),
        ("Settings and versions", _settings(manifest)),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>\n" for title, content in sections if content)
    return render_page("Prepared dataset", body, STYLE)


def _totals(manifest: dict[str, Any], total: PartStatistics, max_length: int) -> str:
    room = total.rows * max_length
    entries = [
        ("documents tokenised", manifest.get("documents")),
        ("rows", total.rows),
        ("tokens", total.tokens),
        ("tokens with loss", total.learned_tokens),
        ("share with loss", show_share(total.learned_tokens, total.tokens)),
        ("longest row allowed", max_length),
        ("padding to full rows", show_share(room - total.tokens, room)),
        ("tokens produced", manifest.get("tokens_in")),
        ("tokens repeated", manifest.get("tokens_repeated") or None),
        ("tokens in validation", (manifest.get("validation") or {}).get("tokens")),
        ("documents cut", sum(part.get("cut_documents", 0) for part in manifest.get("parts") or [])),
        ("pieces after cutting", total.pieces or None),
        ("characters", manifest.get("characters")),
        ("bytes", manifest.get("bytes")),
        *_compression(manifest, manifest.get("tokens_in", total.tokens)),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(show_value(value))}</b><span>{escape(name)}</span></div>'
        for name, value in entries
        if value is not None
    )
    return f'<div class="cards">{cards}</div>'


def _compression(entry: dict[str, Any], tokens: int | None) -> list[tuple[str, str]]:
    """Tokens per character and bytes per token, where the manifest has the figures."""
    characters, content = entry.get("characters"), entry.get("bytes")
    rates = []
    if tokens and isinstance(characters, int) and characters:
        rates.append(("tokens per character", f"{tokens / characters:.3f}"))
    if tokens and isinstance(content, int) and content:
        rates.append(("bytes per token", f"{content / tokens:.3f}"))
    return rates


def _columns(entries: Sequence[dict[str, Any]], left_out: Iterable[str] = ()) -> list[str]:
    """Keys of all entries, in the order in which they first occur."""
    return [name for name in dict.fromkeys(key for entry in entries for key in entry) if name not in set(left_out)]


def _entries(manifest: dict[str, Any], field: str) -> str:
    """Table of a list in the manifest, with compression rates where it has the figures."""
    entries = manifest.get(field) or []
    names = _columns(entries, ("fields_not_read",))
    rates = [dict(_compression(entry, entry.get("tokens"))) for entry in entries]
    rate_names = _columns(rates)
    rows = [
        [show_value(entry.get(name)) for name in names] + [rate.get(name, "") for name in rate_names]
        for entry, rate in zip(entries, rates, strict=True)
    ]
    return html_table([*map(words, names), *rate_names], rows, words(field))


def _categories(total: PartStatistics) -> str:
    ordered = sorted(total.category_tokens.items(), key=lambda item: (-item[1], item[0]))
    shown, others = ordered[:SHOWN_CATEGORIES], ordered[SHOWN_CATEGORIES:]
    rows = [
        [
            name or "(none)",
            show_number(total.category_pieces[name]),
            show_number(tokens),
            show_share(tokens, total.tokens),
        ]
        for name, tokens in shown
    ]
    if others:
        pieces, tokens = sum(total.category_pieces[name] for name, _ in others), sum(tokens for _, tokens in others)
        rows.append(
            [f"{len(others):,} others", show_number(pieces), show_number(tokens), show_share(tokens, total.tokens)]
        )
    return html_table(["category", "pieces", "tokens", "share"], rows, "categories")


def _dropped(manifest: dict[str, Any]) -> str:
    rows = [
        [str(reason), show_value(number)]
        for name in _REASONS
        if isinstance(manifest.get(name), dict)
        for reason, number in manifest[name].items()
    ]
    rows += [[f"tokens: {reason}", show_value(number)] for reason, number in manifest.get("tokens_dropped", {}).items()]
    for name, label in (
        ("dropped_turns", "turns longer than a row"),
        ("dropped_turn_tokens", "their tokens"),
        ("trailing_human", "unanswered last messages, cut"),
        ("turns_without_loss", "turns in pieces without loss"),
        ("tokens_without_loss", "tokens of these pieces"),
    ):
        if manifest.get(name):
            rows.append([label, show_value(manifest[name])])
    return html_table(["reason", "number"], rows, "reasons") or ("<p>nothing</p>" if "dropped" in manifest else "")


def _not_read(manifest: dict[str, Any]) -> str:
    """What the inputs hold besides: files, and fields of records under the names that they have there."""
    files: Table = [[str(path), str(reason)] for path, reason in (manifest.get("files_not_read") or {}).items()]
    table = html_table(["file or folder", "reason"], files, "files that are not read", align=False)
    rows = [[str(name), show_value(number)] for name, number in (manifest.get("fields_not_read") or {}).items()]
    return table + html_table(["field", "records"], rows, "fields that are not read")


def _length_figures(total: PartStatistics, max_length: int) -> str:
    figures = []
    if total.piece_lengths:
        edges = _log_edges(max(total.piece_lengths))
        caption = f"Documents by tokens (logarithmic); longer ones are cut at {max_length:,}. " + _spread(
            total.piece_lengths
        )
        figures.append(html_figure(caption, svg_bars(_binned(total.piece_lengths, edges), _edge_labels(edges))))
    limits = np.linspace(0, max_length, _FILL_BINS + 1)
    # A full row belongs to the last bin, so bins are open on the left.
    counts = np.zeros(_FILL_BINS, dtype=np.int64)
    for length, number in total.row_lengths.items():
        counts[min(_FILL_BINS - 1, max(0, int(np.searchsorted(limits, length)) - 1))] += number
    labels = [f"{100 * index // _FILL_BINS}–{100 * (index + 1) // _FILL_BINS} %" for index in range(_FILL_BINS)]
    full = total.row_lengths.get(max_length, 0)
    caption = f"Rows by fill (tokens of {max_length:,}); {full:,} of {total.rows:,} are full. " + _spread(
        total.row_lengths
    )
    figures.append(html_figure(caption, svg_bars(counts.tolist(), labels)))
    return f'<div class="figures">{"".join(figures)}</div>'


def _spread(lengths: Counter[int]) -> str:
    values = np.array(sorted(lengths), dtype=np.int64)
    ranks = np.cumsum([lengths[value] for value in values.tolist()])
    if not len(values):
        return ""
    low, middle, high = (int(values[np.searchsorted(ranks, share * ranks[-1])]) for share in (0.05, 0.5, 0.95))
    mean = sum(value * number for value, number in lengths.items()) / int(ranks[-1])
    return f"Median {middle:,}, mean {mean:,.0f}, nine in ten {low:,} to {high:,}, longest {values[-1]:,}."


def _log_edges(longest: int) -> list[int]:
    """Limits of bins that grow by a constant factor, whole numbers; the last lies above ``longest``."""
    return np.unique(np.geomspace(1, longest + 1, _HISTOGRAM_BINS + 1).round().astype(np.int64)).tolist()


def _edge_labels(edges: Sequence[int]) -> list[str]:
    return [f"{first:,}" if after - first == 1 else f"{first:,}–{after - 1:,}" for first, after in pairwise(edges)]


def _binned(lengths: Counter[int], edges: Sequence[int]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for length, number in lengths.items():
        counts[int(np.searchsorted(edges, length, side="right")) - 1] += number
    return counts


def _buckets(folder: PreparedFolder, parts: Sequence[PartStatistics], max_length: int) -> str:
    names = [part.name for part in folder.parts]
    known = part_entries(folder.manifest)
    entries = [known.get(name, {}) for name in names]
    columns = _columns(entries, ("name", "rows", "pieces", "tokens", "target_tokens"))
    rates = [dict(_compression(entry, part.tokens)) for entry, part in zip(entries, parts, strict=True)]
    rate_names = _columns(rates)
    rows = []
    for name, part, entry, rate in zip(names, parts, entries, rates, strict=True):
        room = part.rows * max_length
        rows.append(
            [
                name,
                show_number(part.rows),
                show_number(part.pieces),
                show_number(part.tokens),
                show_number(part.learned_tokens),
                show_share(room - part.tokens, room),
                *(show_value(entry.get(column)) for column in columns),
                *(rate.get(column, "") for column in rate_names),
            ]
        )
    head = ["bucket", "rows", "pieces", "tokens", "tokens with loss", "padding", *map(words, columns), *rate_names]
    table = html_table(head, rows, "buckets")
    if not 1 < len(parts) <= _MOST_BARS:
        return table
    figure = html_figure("Tokens per bucket", svg_bars([part.tokens for part in parts], names))
    return f'{table}<div class="figures">{figure}</div>'


def _example_rows(folder: PreparedFolder, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    blocks = []
    for number in _example_numbers(folder):
        row = folder.row(number)
        documents = decode_row(row, tokenizer)
        plural = "" if len(documents) == 1 else "s"
        heading = f"Row {number:,}: {len(row.input_ids):,} tokens, {len(documents):,} document{plural}"
        blocks.append(f'<h3>{heading}</h3><div class="row">{_row_html(documents)}</div>')
    legend = (
        '<p><span class="learned">learned</span> <span class="given">not learned</span> '
        '<span class="mark">start of a document, with its category</span></p>'
    )
    return legend + "".join(blocks) if blocks else ""


def _example_numbers(folder: PreparedFolder) -> list[int]:
    """Rows spread over the dataset, preferably with several documents."""
    borders = np.linspace(0, len(folder), SHOWN_ROWS + 1).astype(int).tolist()
    numbers = []
    for start, end in pairwise(borders):
        near = range(start, min(end, start + _ROWS_LOOKED_AT))
        several = (number for number in near if len(folder.row(number).seq_lengths) > 1)
        numbers += [next(several, start)] if near else []
    return numbers


def _row_html(documents: Sequence[DecodedDocument]) -> str:
    pieces = []
    left = SHOWN_CHARACTERS
    for index, document in enumerate(documents):
        if left <= 0:
            pieces.append(f'<span class="mark">and {len(documents) - index:,} more documents</span>')
            break
        category = document.category or "no category"
        mark = f"▶ {category} · {document.tokens:,} tokens, {document.learned_tokens:,} learned"
        pieces.append(f'<span class="mark">{escape(printable(mark))}</span>')
        for segment in document.segments:
            if left <= 0:
                pieces.append("…")
                break
            shown = segment.text[:left] + ("…" if len(segment.text) > left else "")
            left -= len(segment.text)
            kind = "learned" if segment.learned else "given"
            pieces.append(f'<span class="{kind}">{escape(printable(shown))}</span>')
    return "".join(pieces)


def _settings(manifest: dict[str, Any]) -> str:
    """Every field that no other section shows."""
    rows: Table = []
    for name, value in manifest.items():
        if name in _SHOWN_ELSEWHERE or (name in _REASONS and isinstance(value, dict)):
            continue
        if isinstance(value, dict) and value:
            rows += [[f"{words(name)}: {words(key)}", show_value(inner)] for key, inner in value.items()]
        else:
            rows.append([words(name), show_value(value) or "none"])
    return html_table(["field", "value"], rows, "fields", align=False)
