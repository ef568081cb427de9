"""Random number generators of one rank: Python, NumPy, torch, the device and NEFTune's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from colossal_llama.checkpoint.safe_load import load_safely
from colossal_llama.errors import UserError


def _rng_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pt"


def save_rng(folder: Path, rank: int, extra: dict[str, Any]) -> None:
    """Write this rank's generator states; ``extra`` maps names to further ``torch.Generator``s."""
    import numpy as np
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    kind, keys, *position = np.random.get_state(legacy=True)
    states = {
        "python": random.getstate(),
        # As a tensor: an array in a pickle is read by calling functions, see checkpoint.safe_load.
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "extra": {name: generator.get_state() for name, generator in extra.items()},
    }
    torch.save(states, _rng_path(folder, rank))


def reseed_rng(seed: int, step: int, extra: dict[str, Any]) -> None:
    """Seed all generators by the run's seed and the steps done, the same on every rank.

    For runs that go on with other ranks than those whose states are stored. A generator of ``extra`` keeps what tells
    its rank from others: its own first seed.
    """
    import numpy as np
    import torch

    def mixed(first: int) -> int:
        # 63 bits: torch takes no more.
        return int(np.random.SeedSequence([first, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))

    random.seed(mixed(seed))
    np.random.seed(mixed(seed) % 2**32)
    torch.manual_seed(mixed(seed))
    for generator in extra.values():
        generator.manual_seed(mixed(generator.initial_seed()))


def load_rng(folder: Path, rank: int, extra: dict[str, Any]) -> bool:
    """Restore this rank's generator states; False where the checkpoint has none for it.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    import torch

    path = _rng_path(folder, rank)
    if not path.is_file():
        return False
    states = load_safely(path, _arrays_of_older_checkpoints())
    try:
        random.setstate(states["python"])
        _set_numpy_state(*states["numpy"])
        torch.set_rng_state(states["torch"])
        if states["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
        for name, generator in extra.items():
            if name in states["extra"]:
                generator.set_state(states["extra"][name])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); resume from another checkpoint") from error
    return True


def _set_numpy_state(kind: str, keys: Any, *position: Any) -> None:
    import numpy as np

    np.random.set_state((kind, np.asarray(keys).astype(np.uint32), *position))


def _arrays_of_older_checkpoints() -> list[Any]:
    """What an array in a pickle names: checkpoints held NumPy's state as one before it became a tensor."""
    import _codecs

    import numpy as np

    reconstruct = np.zeros(0).__reduce__()[0]
    return [reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), _codecs.encode]
