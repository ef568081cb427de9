"""Writing a checkpoint in which some tensors are replaced, while other work goes on."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from colossal_llama.model.stored_tensors import (
    INDEX_FILE,
    SINGLE_FILE,
    Replacement,
    StoredTensor,
    checkpoint_tensors,
    copy_file,
    count_bytes,
    count_elements,
    read_index,
    rewrite_file,
)


class CheckpointWriter:
    """Copies the files of a checkpoint; those with replaced tensors are written anew, every other bit stays.

    Whole files are copied by a thread, in the kernel, so it costs little to start before all is known:
    :meth:`copy_early`. Shards are named ``model-00001-of-0000N.safetensors``, in the order of their old names. Use it
    as a context: leaving it stops the thread.
    """

    def __init__(self, source: Path, flag: str, folder: Path) -> None:
        """Look at the headers of ``source``, the folder that ``flag`` named; ``folder`` is to be written.

        Raises:
            UserError: there is no such checkpoint, or a file of it is missing or broken.
        """
        self.tensors = checkpoint_tensors(source, flag)
        self._index = None if (source / SINGLE_FILE).is_file() else read_index(source)
        self._folder = folder
        files = sorted({one.file for one in self.tensors.values()})
        self._names = dict.fromkeys(files, SINGLE_FILE)
        if self._index is not None:
            count = len(files)
            self._names = {file: f"model-{at:05d}-of-{count:05d}.safetensors" for at, file in enumerate(files, start=1)}
        self._copier = ThreadPoolExecutor(1)
        self._stop = Event()
        self._copies: dict[Path, Future[None]] = {}

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._copier.shutdown(cancel_futures=True)

    def copy_early(self, may_be_replaced: Callable[[StoredTensor], bool]) -> None:
        """Start to copy the files that hold no tensor of which ``may_be_replaced`` is true."""
        waiting = {one.file for one in self.tensors.values() if may_be_replaced(one)}
        for file, name in self._names.items():
            if file not in waiting and file not in self._copies:
                self._copies[file] = self._copier.submit(copy_file, file, self._folder / name, self._stop)

    def write(self, replaced: Mapping[str, Replacement]) -> None:
        """Write the files with ``replaced`` tensors, wait for the copies of all others, and write the index.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self.copy_early(lambda one: one.name in replaced)
        changed = {self.tensors[name].file for name in replaced}
        with tqdm(total=len(self._names), unit="file", disable=None) as progress:  # only on a terminal
            for file, name in sorted(self._names.items(), key=lambda item: item[0] not in changed):
                if file in self._copies:
                    self._copies[file].result()
                if file in changed:
                    rewrite_file(file, replaced, self._folder / name)
                progress.update()
        if self._index is not None:
            self._write_index(self._index, replaced)

    def _write_index(self, index: dict[str, Any], replaced: Mapping[str, Replacement]) -> None:
        tensors = self.tensors.values()
        metadata = {**(index.get("metadata") or {}), "total_size": sum(count_bytes(one, replaced) for one in tensors)}
        if "total_parameters" in metadata:
            more = sum(count_elements(one, replaced) - count_elements(one, {}) for one in tensors)
            metadata["total_parameters"] += more
        weight_map = {one.name: self._names[one.file] for one in tensors}
        text = json.dumps({**index, "metadata": metadata, "weight_map": weight_map}, indent=2)
        (self._folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
