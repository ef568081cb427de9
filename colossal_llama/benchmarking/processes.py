"""The environment in which a contender's processes find each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)


def contender_environment(environment: Mapping[str, str], order: int) -> dict[str, str]:
    """The variables of the contender that is measured as number ``order``.

    One process alone is started as if without a launcher. With several, all contenders use the launcher's store
    (torchrun's agent keeps one for its workers); a restart count of its own gives each of them a part of it, as if
    torchrun had started the workers anew.
    """
    values = dict(environment)
    if int(values.get("WORLD_SIZE", "1")) == 1:
        for name in [*LAUNCHER_VARIABLES, *(name for name in values if name.startswith("TORCHELASTIC_"))]:
            values.pop(name, None)
    else:
        restarts = int(values.get("TORCHELASTIC_RESTART_COUNT", "0"))
        values["TORCHELASTIC_RESTART_COUNT"] = str(1000 * (restarts + 1) + order)
    path = values.get("PYTHONPATH")
    values["PYTHONPATH"] = f"{PACKAGE_PARENT}{':' + path if path else ''}"
    return values
