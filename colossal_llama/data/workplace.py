"""Where a preparation does its work: found again by the same command after a kill, and by no other."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from colossal_llama.data.engines import WorkerLostError
from colossal_llama.data.job import PrepareJob
from colossal_llama.data.manifest import FORMAT_VERSION
from colossal_llama.data.readers import InputFile
from colossal_llama.data.shards import TokenizeSetup
from colossal_llama.errors import UserError


@dataclass(frozen=True)
class Workplace:
    """Folders of one preparation, the same for every run of the same command.

    Attributes:
        scratch: shards, document lists and counts; below ``--data_cache_dir``.
        arrow, jsonl: the outputs under temporary names, beside their targets.
    """

    scratch: Path
    arrow: Path
    jsonl: Path | None

    def remove(self) -> None:
        """Remove everything that is not published."""
        for folder in (self.scratch, self.arrow, self.jsonl):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _identity(job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], shard_bytes: int) -> str:
    """A name for this preparation: equal for the same inputs, tokenizer, settings and program, else different."""
    facts = {
        "format": FORMAT_VERSION,
        "settings": asdict(job.settings),
        "tokenizer": hashlib.sha256((setup.spec.head_json + setup.spec.tail_json).encode()).hexdigest(),
        "template": None if job.template is None else job.template.jinja(),
        "outputs": [str(folder.resolve()) for folder in (job.arrow_dir, job.jsonl_dir) if folder is not None],
        "files": [[_file_state(file.path) for file in group] for group in files],
        "evaluation": [_file_state(path) for path in job.settings.screening.evaluation_files],
        "shard_bytes": shard_bytes,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _file_state(path: str) -> tuple[str, int, int]:
    """What changes when a file does."""
    state = Path(path).stat()
    return str(Path(path).resolve()), state.st_size, state.st_mtime_ns


@contextmanager
def open_workplace(
    job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], shard_bytes: int
) -> Iterator[Workplace]:
    """The folders that the work is done in; kept when the disk fails or a process is killed, else removed."""
    identity = _identity(job, setup, files, shard_bytes)
    arrow, jsonl = (
        None if target is None else target.resolve().with_name(f".{target.name}.prepare-{identity}")
        for target in (job.arrow_dir, job.jsonl_dir)
    )
    assert arrow is not None
    place = Workplace(job.cache_dir / f"prepare-{identity}", arrow, jsonl)
    made = [folder for folder in (job.cache_dir, *job.cache_dir.parents) if not folder.exists()]
    if place.scratch.exists():
        print(f"going on with what an earlier run left in {place.scratch}", flush=True)
    for folder in (place.scratch, place.arrow, place.jsonl):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    try:
        with _only_one(place.scratch / "lock"):
            try:
                yield place
            except (OSError, WorkerLostError):
                raise
            except Exception:
                place.remove()
                raise
            else:
                place.remove()
    finally:
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process.

    Raises:
        UserError: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{path.parent}: the same preparation is running already; wait for it or stop it"
            ) from error
        yield
