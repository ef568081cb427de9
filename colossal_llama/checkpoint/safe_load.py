"""Reading the files of a checkpoint that ``torch.save`` wrote, without running anything that they hold.

A pickle can call any function. A checkpoint that somebody else made may hold one, with a manifest that fits, so only
tensors, plain Python values and the classes that a caller names are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError


def load_safely(path: Path, classes: Sequence[Any] = (), map_location: Any = "cpu") -> Any:
    """The content of a file of :func:`torch.save`.

    Args:
        path: of the file.
        classes: classes and functions that it may name besides torch's own.
        map_location: where its tensors go.

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    import pickle
    import struct

    import torch

    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; resume from another checkpoint") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not read, because it is damaged or holds more than tensors and plain values, and could run code "
            f"({_reason(error)}); resume from another checkpoint, or start a new run from its weights with "
            f"--load_checkpoint {_checkpoint_of(path) / 'modeling'}"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path}: damaged ({_reason(error)}); resume from another checkpoint") from error


def _reason(error: Exception) -> str:
    """What torch says, without its advice to read the file all the same."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    blamed = [line for line in lines if "unsupported" in line.lower()]
    return " ".join((blamed or lines or [type(error).__name__])[0].split())[:200]


def _checkpoint_of(path: Path) -> Path:
    """The checkpoint's folder: the files of ranks lie one folder deeper."""
    return path.parent.parent if path.name.startswith("rank-") else path.parent
