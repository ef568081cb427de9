"""Writing a checkpoint's files without stopping in the middle of a gather, at once or in the background.

Colossal-AI's checkpoint IO gathers a shard on all ranks, writes it on one, gathers the next. A rank that raises where
it writes leaves the others waiting in the next gather for ever, and a rank that writes keeps all of them from
training. Whatever the plugin, it writes models with ``torch.save`` and ``safetensors.torch.save_file``, and indices
with ``CheckpointIndexFile.write_index_file``; a :class:`FileWriter` takes these three over while a checkpoint is saved.
Its first failure is kept until all ranks are out of the gathers, and with snapshots the tensors are only copied to
host memory there and written later.

Colossal-AI's own ``use_async`` needs a package that writes with io_uring (tensornvme), and has no word for a failure.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.utils._pytree import tree_map

from colossal_llama.atomic import flush_file
from colossal_llama.checkpoint.manifest import FileRecord, record_file

_torch_save = torch.save
_save_file = safetensors.torch.save_file


class HostSnapshots:
    """Copies of tensors in host memory, which is kept for the next save: fresh pages cost more than the copying.

    The tensors of every save come in the same order with the same shapes, so the n-th buffer fits the n-th tensor;
    where it does not, it is made anew. Takes as much memory as this rank writes.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._next = 0

    def start(self) -> None:
        """Begin a save: the copies made before are given up."""
        self._next = 0

    def copy(self, value: Any) -> Any:
        """``value``, in containers of its own, with each tensor in it copied to the host, and other objects copied."""
        return tree_map(lambda leaf: self._copy_tensor(leaf) if torch.is_tensor(leaf) else copy.deepcopy(leaf), value)

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._next == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._next]
        if buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[self._next] = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._next += 1
        return buffer.copy_(tensor.detach())


class FileWriter:
    """This rank's files of one checkpoint.

    Args:
        folder: the checkpoint's, while it is written.
        snapshots: where tensors wait to be written by :meth:`finish`; None: they are written at once.
    """

    def __init__(self, folder: Path, snapshots: HostSnapshots | None = None) -> None:
        self._folder = folder
        self._snapshots = snapshots
        self._waiting: list[tuple[Path, Callable[[Path], None]]] = []
        self._written: list[Path] = []
        self._error: OSError | None = None
        if snapshots is not None:
            snapshots.start()

    @contextlib.contextmanager
    def taking_over(self) -> Iterator[None]:
        """While this lasts, what the calling code saves goes through this writer, and no failure is raised."""
        from colossalai.checkpoint_io.index_file import CheckpointIndexFile

        write_index = CheckpointIndexFile.write_index_file

        def save_torch(obj: Any, f: Any, *args: Any, **options: Any) -> None:
            if isinstance(f, str | os.PathLike):
                self._take(Path(f), obj, lambda kept, path: write_torch(kept, path, *args, **options))
            else:
                _torch_save(obj, f, *args, **options)

        def save_tensors(tensors: Any, filename: Any, metadata: dict[str, str] | None = None) -> None:
            self._take(Path(filename), tensors, lambda kept, path: write_safetensors(kept, path, metadata))

        def save_index(index: Any, name: str) -> None:
            self.attempt(lambda: write_index(index, name), Path(index.root_path, name))

        torch.save, safetensors.torch.save_file = save_torch, save_tensors
        CheckpointIndexFile.write_index_file = save_index
        try:
            yield
        finally:
            torch.save, safetensors.torch.save_file = _torch_save, _save_file
            CheckpointIndexFile.write_index_file = write_index

    def write_tensors(self, tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        """Write a file of safetensors; they may share memory. A failure is kept for :meth:`check`."""

        def write(kept: dict[str, torch.Tensor], path: Path) -> None:
            write_safetensors({name: _on_host_alone(tensor) for name, tensor in kept.items()}, path, metadata)

        self._take(path, tensors, write)

    def check(self) -> None:
        """Raise what went wrong so far.

        Raises:
            OSError: names the file.
        """
        if self._error is not None:
            raise self._error

    def finish(self) -> dict[str, FileRecord]:
        """Write what waits, and put this rank's files on the disk; returns their records by path below the folder.

        Raises:
            OSError: a file could not be written; names it.
        """
        for path, write in self._waiting:
            self._write(path, write)
        self._waiting.clear()
        self.check()
        return {path.relative_to(self._folder).as_posix(): record_file(path) for path in self._written}

    def _take(self, path: Path, content: Any, write: Callable[[Any, Path], None]) -> None:
        if self._snapshots is None:
            self._write(path, lambda path: write(content, path))
        else:
            kept = self._snapshots.copy(content)
            self._waiting.append((path, lambda path: write(kept, path)))

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        def write_and_flush() -> None:
            write(path)
            flush_file(path)
            self._written.append(path)

        self.attempt(write_and_flush, path)

    def attempt(self, action: Callable[[], None], path: Path) -> None:
        """Run ``action``, which writes ``path``; its failure is kept for :meth:`check`.

        Nothing is run once something has failed: on a full disk every further file would fail too.
        """
        if self._error is not None:
            return
        try:
            action()
        except OSError as error:
            nameless = error.filename is None and error.errno is not None  # raised by an open file
            self._error = OSError(error.errno, error.strerror, str(path)) if nameless else error


def _on_host_alone(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in host memory that no other one shares: safetensors refuses those."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach().to("cpu", copy=not alone)


class _PatientFile:
    """A file whose ``write`` never raises: the first error waits for :meth:`close`.

    torch.save's C++ writer ends the process (std::terminate) when it meets an error while it unwinds from another.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or nothing after an error."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is closed."""

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: the first error, also of an earlier write.
        """
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
            with contextlib.suppress(OSError):
                self._file.close()
        if self._error is not None:  # errors of an open file do not name it
            raise OSError(self._error.errno, self._error.strerror, str(self._path))


def write_torch(obj: Any, path: Path, *args: Any, **options: Any) -> None:
    """``torch.save`` to a file.

    Raises:
        OSError: it could not be written.
    """
    file: Any = _PatientFile(path)
    try:
        _torch_save(obj, file, *args, **options)
    finally:
        file.close()


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    """``safetensors.torch.save_file``.

    Raises:
        OSError: the file could not be written.
    """
    try:
        _save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
