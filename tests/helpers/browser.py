"""The system's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""For a container without a network: no sandbox of its own, and nothing looked up in the background."""


def find_chromium() -> str:
    """The path of a Chromium; without one the test is skipped, except in CI, where it fails."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    message = f"none of {', '.join(NAMES)} on PATH; install Debian's package chromium"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
