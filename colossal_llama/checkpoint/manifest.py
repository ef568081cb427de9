"""``manifest.json`` of a checkpoint: size and checksum of each file, so that no damage goes unnoticed.

Format: ``{"algorithm": "xxh3_128", "files": {"<path below the folder>": {"size": bytes, "checksum": hex}},
"checksum": hex}``, written last. The last entry is the checksum of the others, and the text is exactly what
:func:`manifest_text` makes of them: a flipped byte in the manifest itself shows as well.

XXH3 (xxhash.com, 128 bits) finds accidents, not forgeries, and is faster than any disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from colossal_llama.atomic import flush_file
from colossal_llama.constants import MANIFEST_FILE

ALGORITHM = "xxh3_128"
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: ``size`` in bytes, ``checksum`` of its content in hexadecimal."""

    size: int
    checksum: str


def record_file(path: Path) -> FileRecord:
    """Read a file and describe it.

    Raises:
        OSError: it cannot be read.
    """
    digest = xxhash.xxh3_128()
    size = 0
    block = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


def manifest_text(files: Mapping[str, FileRecord]) -> str:
    """The content of a manifest."""
    content: dict[str, object] = {
        "algorithm": ALGORITHM,
        "files": {name: asdict(files[name]) for name in sorted(files)},
    }
    content["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    return json.dumps(content, indent=1) + "\n"


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The files that ``folder`` must hold, by their paths below it.

    Raises:
        ValueError: the manifest is damaged, or of another kind.
        OSError: it is missing or cannot be read.
    """
    text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        files = {name: FileRecord(**entry) for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"damaged ({type(error).__name__}: {error})") from error
    if content.get("algorithm") != ALGORITHM:
        raise ValueError(f"has checksums of the kind {content.get('algorithm')!r} instead of {ALGORITHM!r}")
    if text != manifest_text(files):
        raise ValueError("damaged (its own checksum differs)")
    return files


def write_manifest(folder: Path, known: Mapping[str, FileRecord]) -> None:
    """Describe each file below ``folder``; returns when files and manifest are on the disk.

    Args:
        known: records of files that are on the disk already; only the others are read.
    """
    files = dict(known)
    for path in all_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            flush_file(path)
            files[name] = record_file(path)
    manifest = folder / MANIFEST_FILE
    manifest.write_text(manifest_text(files), encoding="utf-8")
    flush_file(manifest)


def all_files(folder: Path) -> list[Path]:
    """All files below ``folder`` but its manifest, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)


def share_of_files(files: Mapping[str, FileRecord], rank: int, world_size: int) -> list[str]:
    """The files that one of ``world_size`` ranks reads, so that all have about as many bytes."""
    loads = [0] * world_size
    mine = []
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        least = loads.index(min(loads))
        loads[least] += files[name].size
        if least == rank:
            mine.append(name)
    return mine


def find_faults(folder: Path, files: Mapping[str, FileRecord], names: Iterable[str]) -> list[str]:
    """What is wrong with the files called ``names``: one line for each that is not as ``files`` says."""
    faults = []
    for name in names:
        fault = _fault(folder / name, files[name])
        if fault is not None:
            faults.append(f"{name}: {fault}")
    return faults


def _fault(path: Path, expected: FileRecord) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{size} bytes instead of {expected.size}"
        found = record_file(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else f"its content is not what was written (checksum {found.checksum})"
