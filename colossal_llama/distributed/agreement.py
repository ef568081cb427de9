"""Failing together: what goes wrong on one rank stops all of them, where it would leave the others waiting."""

from __future__ import annotations

import pickle
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from colossal_llama.errors import UserError

T = TypeVar("T")


class WriteFailedError(Exception):
    """A rank could not write a file: the disk is full, a quota is used up, the file system is gone."""


@dataclass(frozen=True)
class _Outcome:
    """What one rank's part of the work came to: a value, or a failure in words."""

    value: Any = None
    failure: str | None = None
    is_write: bool = False
    is_user_error: bool = False


_recent: deque[Any] = deque(maxlen=16)
"""Tensors of the last collectives. A tensor that Python has dropped needs the GIL when gloo's thread drops it too, and
``destroy_process_group`` waits for that thread with the GIL in its hands: a run would never end. That is why
``dist.all_gather_object``, whose tensors end with it, is no alternative."""


def gather(value: Any, group: Any = None) -> list[Any]:
    """The values of all ranks, in their order, on every rank; collective over ``group`` (None: all ranks)."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    ranks = range(dist.get_world_size(group))
    content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    length = torch.tensor(len(content), device=device)
    lengths = [torch.zeros_like(length) for _ in ranks]
    dist.all_gather(lengths, length, group=group)
    sizes = [int(one) for one in lengths]
    padded = torch.nn.functional.pad(content, (0, max(sizes) - len(content))).to(device)
    parts = [torch.empty_like(padded) for _ in ranks]
    dist.all_gather(parts, padded, group=group)
    _recent.append((length, lengths, padded, parts))
    return [pickle.loads(part[:size].cpu().numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


def run_together(action: Callable[[], T], group: Any = None) -> list[T]:
    """Run ``action`` on every rank of ``group`` and wait for all of them; returns the results in the ranks' order.

    ``action`` may hold collectives, if it raises in none that other ranks wait in.

    Raises:
        WriteFailedError: on every rank, when a file could not be written on any; names the rank and the file.
        UserError: on every rank, when ``action`` raised one on any.
        Exception: whatever else ``action`` raised, on the rank that it was raised on.
        RuntimeError: on the other ranks then.
    """
    error = None
    try:
        outcome = _Outcome(value=action())
    except Exception as caught:
        error = caught
        is_user_error = isinstance(caught, UserError)
        outcome = _Outcome(
            failure=str(caught) if is_user_error else describe_failure(caught),
            is_write=not is_user_error and is_write_failure(caught),
            is_user_error=is_user_error,
        )
    outcomes = gather(outcome, group)
    failed = [rank for rank, one in enumerate(outcomes) if one.failure is not None]
    if not failed:
        return [one.value for one in outcomes]
    # A full disk makes other things fail as well, on other ranks; the disk is what has to be mended.
    rank = min(failed, key=lambda rank: not outcomes[rank].is_write)
    message = f"{outcomes[rank].failure} (rank {rank})"
    if outcomes[rank].is_write:
        raise WriteFailedError(message) from error
    if outcomes[rank].is_user_error:
        raise UserError(str(outcomes[rank].failure)) from error
    if error is not None:
        raise error
    raise RuntimeError(f"stopped, because another rank failed: {message}")


def is_write_failure(error: BaseException) -> bool:
    """Whether an exception came from the operating system; Rust's libraries wrap its errors in their own."""
    return isinstance(error, OSError) or re.search(r"\bos error \d+|\bcode: \d+", str(error)) is not None


def describe_failure(error: BaseException) -> str:
    """One line: file and reason for an operating system's error, kind and text for any other."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
