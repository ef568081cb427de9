"""Keeping a library's chatter off the terminal where the project reports in its own words."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' loggers and Python warnings below the level of an error."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)


def leave_torch_out() -> None:
    """Keep transformers from importing torch, for programs that need tokenizers only: it saves more than a second.

    To be called before transformers is imported, by a program and never by a library: it holds for the whole process.
    """
    os.environ.setdefault("USE_TORCH", "0")
    # transformers would warn that there are no models without torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
