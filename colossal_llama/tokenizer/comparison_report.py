"""A comparison of tokenizers as text for the terminal, Markdown and one HTML file that opens offline."""

from collections.abc import Callable
from html import escape

from colossal_llama.html_page import render_page
from colossal_llama.tables import ALL, TABLE_STYLE, Table, html_text, markdown_text, terminal_text
from colossal_llama.tokenizer.comparison import Comparison, TextFigures, TokenizerMeter

CHARTED = "Tokens per character"

_MOST_CHARTS = 12
_COLORS = ("#3b74c4", "#d08a2e", "#3d9a6d", "#b0506f", "#7a63b8", "#5b8a99", "#8c7a4a", "#777f8f")


def overview(comparison: Comparison) -> Table:
    """One row for each tokenizer, over all text."""
    base = comparison.meters[0].total
    head = ["tokenizer", "vocabulary", "tokens", "tokens/character", "tokens/byte", "tokens/sample", "against first"]
    head += ["unknown", "byte fallback", "vocabulary used", "added used", "round-trip failures"]
    rows = []
    for meter in comparison.meters:
        total = meter.total
        added = "-"
        widened = [other for other in comparison.meters if meter.widens(other)]
        if widened:
            old = max(widened, key=lambda other: other.size).vocabulary
            new = sorted(set(meter.vocabulary.values()) - set(old.values()))
            added = _share(int(total.used[new].sum()), len(new))
        rows.append(
            [
                *(meter.name, f"{meter.size:,}", f"{total.tokens:,}", *_rates(total)),
                f"{total.tokens / base.tokens - 1:+.1%}",
                *(_share(total.unknown, total.tokens), _share(total.byte_tokens, total.tokens)),
                *(_share(int(total.used.sum()), meter.size), added, f"{total.failures:,} of {total.samples:,}"),
            ]
        )
    note = (
        "Tokens without special ones. Byte fallback: tokens that hold only a part of a character. Added used: share "
        "that occurs of the tokens added to another tokenizer of this table (the largest that is part of it). "
        "Round-trip failure: decoding does not give the text back."
    )
    return Table("All text", head, rows, note)


def _rates(figures: TextFigures) -> list[str]:
    return [
        f"{figures.tokens / figures.characters:.4f}",
        f"{figures.tokens / figures.bytes:.4f}",
        f"{figures.tokens / figures.samples:,.1f}",
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def by_category(comparison: Comparison) -> list[Table]:
    """One table for each rate: categories down, tokenizers across."""
    names = [meter.name for meter in comparison.meters]
    measures: list[tuple[str, Callable[[TextFigures], str]]] = [
        (CHARTED, lambda figures: f"{figures.tokens / figures.characters:.4f}"),
        ("Tokens per UTF-8 byte", lambda figures: f"{figures.tokens / figures.bytes:.4f}"),
        ("Tokens per sample", lambda figures: f"{figures.tokens / figures.samples:,.1f}"),
        ("Byte fallback", lambda figures: _share(figures.byte_tokens, figures.tokens)),
        ("Unknown", lambda figures: _share(figures.unknown, figures.tokens)),
        ("Round-trip failures", lambda figures: f"{figures.failures:,}"),
    ]
    tables = []
    for title, show in measures:
        rows = []
        for category in [*comparison.categories, ALL]:
            figures = [_figures(meter, category) for meter in comparison.meters]
            size = [f"{figures[0].samples:,}", f"{figures[0].characters:,}"]
            rows.append([category, *size, *(show(one) for one in figures)])
        tables.append(Table(title, ["category", "samples", "characters", *names], rows))
    return tables


def _figures(meter: TokenizerMeter, category: str) -> TextFigures:
    return meter.total if category == ALL else meter.categories[category]


def embedding_table(comparison: Comparison) -> Table | None:
    """Embedding rows, parameters and training tokens against the first tokenizer; None without a hidden size."""
    if comparison.hidden_size is None:
        return None
    rows = []
    for meter in comparison.meters[1:]:
        cost = comparison.cost(meter)
        tokens = _rounded(cost.training_tokens) if cost.rows > 0 else "-"
        rows.append([meter.name, f"{cost.rows:+,}", f"{cost.parameters:+,}", tokens])
    kind = "tied: one matrix" if comparison.tied else "not tied: two matrices"
    note = (
        f"Against {comparison.meters[0].name}; hidden size {comparison.hidden_size:,}, embeddings {kind}. Training "
        f"tokens are a rule of thumb: {comparison.tokens_per_parameter:g} for each added parameter (20 is the "
        "compute-optimal ratio of Hoffmann et al., 2022, for whole models from scratch; rows that start as means of "
        "trained rows ask for less, rare tokens for more)."
    )
    return Table("Embedding rows", ["tokenizer", "rows", "parameters", "training tokens (rule of thumb)"], rows, note)


def _rounded(number: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def failure_table(comparison: Comparison) -> Table | None:
    """Examples of failed round trips; None without any."""
    rows = [
        [meter.name, failure.category, repr(failure.original), repr(failure.decoded)]
        for meter in comparison.meters
        for failure in meter.examples
    ]
    head = ["tokenizer", "category", "original", "decoded"]
    return Table("Failed round trips, first ones", head, rows, figures_from=len(head)) if rows else None


def all_tables(comparison: Comparison) -> list[Table]:
    """Every table of the report, in order."""
    tables = [overview(comparison), *by_category(comparison), embedding_table(comparison), failure_table(comparison)]
    return [table for table in tables if table is not None and table.rows]


def to_terminal(comparison: Comparison) -> str:
    """The overview (turned, so that it fits), tokens per character by category, and the embedding rows."""
    whole = overview(comparison)
    turned = Table(whole.title, ["", *(row[0] for row in whole.rows)], [])
    for index, name in enumerate(whole.head[1:], start=1):
        turned.rows.append([name, *(row[index] for row in whole.rows)])
    tables = [turned, by_category(comparison)[0], embedding_table(comparison)]
    return "\n\n".join(terminal_text(table) for table in tables if table is not None and table.rows)


def to_markdown(comparison: Comparison) -> str:
    """All tables as Markdown."""
    parts = ["# Tokenizers compared", *map(markdown_text, all_tables(comparison))]
    return "\n\n".join(parts) + "\n"


def to_html(comparison: Comparison) -> str:
    """All tables and a chart of tokens per character for each category, as one file."""
    sections = []
    for table in all_tables(comparison):
        chart = _charts(comparison) if table.title == CHARTED else ""
        sections.append(f"<section><h2>{escape(table.title)}</h2>{chart}{html_text(table)}</section>\n")
    return render_page("Tokenizers compared", "".join(sections), TABLE_STYLE + _STYLE)


def _charts(comparison: Comparison) -> str:
    """Bars of tokens per character: a figure for each category, all on one scale."""
    names = [ALL, *comparison.categories][:_MOST_CHARTS]
    rates = {
        name: [figures.tokens / figures.characters for figures in (_figures(m, name) for m in comparison.meters)]
        for name in names
    }
    highest = max(max(values) for values in rates.values())
    figures = []
    for name, values in rates.items():
        bars = "".join(
            f'<span class="name">{escape(meter.name)}</span><span class="track"><span class="bar" '
            f'style="width:{100 * value / highest:.2f}%;background:{_COLORS[index % len(_COLORS)]}"></span></span>'
            f'<span class="value">{value:.3f}</span>'
            for index, (meter, value) in enumerate(zip(comparison.meters, values, strict=True))
        )
        figures.append(f'<figure><figcaption>{escape(name)}</figcaption><div class="bars">{bars}</div></figure>')
    return f'<div class="charts">{"".join(figures)}</div>'


_STYLE = """
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .2rem .6rem; align-items: center; }
.bars .name { font-size: .85rem; }
.bars .track { background: #f3f5f9; border-radius: 3px; }
.bars .bar { display: block; height: .9rem; border-radius: 3px; }
.bars .value { font-size: .85rem; font-variant-numeric: tabular-nums; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 0 1.5rem; }
"""
