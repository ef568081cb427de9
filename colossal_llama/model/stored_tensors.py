"""Safetensors checkpoints as they lie on disk: where each tensor's bytes are, copied without passing through memory.

A safetensors file is eight bytes (the header's length, little-endian), the header (JSON: for each tensor its dtype,
shape and byte range after the header) and the bytes of the tensors without gaps. The library opens, checks and maps
whole files; it neither tells the byte ranges nor writes a tensor that is not in memory, so this module reads and
writes the header itself. Format: https://huggingface.co/docs/safetensors
"""

import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
"""Bytes of one element, by the format's name for the dtype."""

_MAX_HEADER = 100_000_000
"""The format's own limit; a larger number is not a header's length."""

_STRIDE = 256 << 20
"""Bytes of a whole file that are copied before it is asked whether to go on."""

_COPY_BYTES = 8 << 20
"""Bytes in memory at a time where the kernel cannot copy between two files."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file.

    Attributes:
        file: the file that holds it.
        dtype: the format's name (``BF16``, ``F32``, ...).
        shape: its dimensions.
        start: the file's byte at which it starts.
        size: in bytes.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What is written instead of a tensor: its new shape, and what writes its bytes at the file's position."""

    shape: tuple[int, ...]
    write: Callable[[FileIO], None]


def read_header(file: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file, in the order of their bytes, and the file's metadata.

    Raises:
        UserError: the file is missing, is none, or is shorter or longer than its header says.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(length) if length <= _MAX_HEADER else b""
        content = json.loads(raw)
        metadata = content.pop("__metadata__", {})
        base = 8 + length
        tensors = [_tensor_of(file, name, entry, base) for name, entry in content.items()]
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; copy the model again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: is truncated or not a safetensors file; copy it again") from error
    tensors.sort(key=lambda one: (one.start, one.size))
    end = base
    for one in tensors:
        if one.start != end:
            raise UserError(f"{file}: the bytes of {one.name} are not where they should start; copy it again")
        end += one.size
    found = file.stat().st_size
    if found != end:
        raise UserError(f"{file}: is truncated or damaged ({found} bytes, its header says {end}); copy it again")
    return tensors, metadata


def _tensor_of(file: Path, name: str, entry: dict[str, Any], base: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    return StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), base + start, stop - start)


def checkpoint_tensors(folder: Path, flag: str) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in ``folder``, by name: of ``model.safetensors``, or of the index's files.

    Raises:
        UserError: there is no such checkpoint, a file is missing or broken, or the index names a tensor that
            the file does not hold.
    """
    if (folder / SINGLE_FILE).is_file():
        return {one.name: one for one in read_header(folder / SINGLE_FILE)[0]}
    if not (folder / INDEX_FILE).is_file():
        raise UserError(f"{flag} {folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}; copy the model again")
    weight_map = read_weight_map(folder / INDEX_FILE)
    stored: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise UserError(f"{folder / INDEX_FILE}: names the file {name}, which is missing; copy the model again")
        stored |= {one.name: one for one in read_header(folder / name)[0]}
    for tensor, name in weight_map.items():
        if tensor not in stored or stored[tensor].file.name != name:
            raise UserError(
                f"{folder / INDEX_FILE}: names the tensor {tensor} in {name}, which does not hold it; "
                "copy the model again"
            )
    return {name: stored[name] for name in weight_map}


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a sharded checkpoint's index.

    Raises:
        UserError: it is not JSON or has no ``weight_map``.
    """
    return _read_index_file(folder / INDEX_FILE)


def read_weight_map(path: Path) -> dict[str, str]:
    """Which file each tensor is in, from the index of a sharded checkpoint of either format.

    Raises:
        UserError: it is not an index, or names a file in another folder.
    """
    weight_map: dict[str, str] = _read_index_file(path)["weight_map"]
    for name in weight_map.values():
        if name != Path(name).name:
            raise UserError(f"{path}: names the file {name!r}; expected one in the same folder")
    return weight_map


def _read_index_file(path: Path) -> dict[str, Any]:
    index = read_json_object(path)
    weight_map = index.get("weight_map")
    is_map = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
    if is_map and weight_map and isinstance(index.get("metadata", {}), dict):
        return index
    raise UserError(f"{path}: is not the index of a checkpoint; copy the model again")


def count_elements(tensor: StoredTensor, replaced: Mapping[str, Replacement]) -> int:
    """How many elements a tensor has, or what replaces it."""
    return math.prod(replaced[tensor.name].shape if tensor.name in replaced else tensor.shape)


def count_bytes(tensor: StoredTensor, replaced: Mapping[str, Replacement]) -> int:
    """How many bytes a tensor has, or what replaces it."""
    return count_elements(tensor, replaced) * ITEM_BYTES[tensor.dtype] if tensor.name in replaced else tensor.size


def rewrite_file(source: Path, replaced: Mapping[str, Replacement], target: Path) -> None:
    """Copy a safetensors file with some of its tensors replaced.

    Tensors of wider elements come first, as the library writes them, so that each stays aligned to its elements
    whatever the new sizes are.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    tensors, metadata = read_header(source)
    tensors.sort(key=lambda one: -ITEM_BYTES.get(one.dtype, 1))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for one in tensors:
        shape = replaced[one.name].shape if one.name in replaced else one.shape
        size = count_bytes(one, replaced)
        header[one.name] = {"dtype": one.dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the format aligns the tensors' bytes
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        _write_all(writer, len(text).to_bytes(8, "little") + text)
        for one in tensors:
            if one.name in replaced:
                replaced[one.name].write(writer)
            else:
                copy_range(reader, one.start, one.size, writer)


def copy_file(source: Path, target: Path, stop: Event | None = None) -> None:
    """Copy a file's bytes; where the file system can, by sharing its blocks.

    Args:
        source: what to copy.
        target: where to.
        stop: once it is set, the rest is left out.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    size = source.stat().st_size
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        for start in range(0, size, _STRIDE):
            if stop is not None and stop.is_set():
                return
            copy_range(reader, start, min(_STRIDE, size - start), writer)


def copy_range(reader: FileIO, start: int, count: int, writer: FileIO) -> None:
    """Append ``count`` bytes of ``reader``, from byte ``start`` on, at the writer's position.

    The kernel copies from file to file where it can (Linux, ``copy_file_range``); else 8 MiB at a time.

    Raises:
        OSError: the source ends early, or the target cannot be written.
    """
    stop = start + count
    while start < stop:
        copied = _kernel_copy(reader, start, stop - start, writer)
        if not copied:
            copied = _write_all(writer, os.pread(reader.fileno(), min(stop - start, _COPY_BYTES), start))
        if not copied:
            raise OSError(errno.EIO, "ended while it was copied", reader.name)
        start += copied


def _kernel_copy(reader: FileIO, start: int, count: int, writer: FileIO) -> int:
    """Bytes that the kernel copied; 0 where it cannot copy between these two files."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(reader.fileno(), writer.fileno(), count, offset_src=start)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF):
            return 0
        error.filename = writer.name
        raise


def _write_all(writer: FileIO, data: bytes) -> int:
    """Write all of ``data``; an unbuffered file may take a part of it at a time."""
    view = memoryview(data)
    while view:
        view = view[writer.write(view) or 0 :]
    return len(data)
