"""The hosts of a run: reading a hostfile, and looking whether ``colossalai run`` will reach them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_text_file

LOCAL_NAMES = ("localhost", "127.0.0.1", "0.0.0.0")
SECONDS_TO_REACH = 10.0
SSH_CONFIG = Path("~/.ssh/config")
SSH_PORT = 22


@dataclass(frozen=True)
class Host:
    """A host and where it is named, for messages."""

    name: str
    where: str


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a hostfile, one name a line.

    Raises:
        UserError: the file is missing or names no host; a line is empty, holds more than a name, or names a host again.
    """
    lines = read_text_file(path, f"hostfile {path}", "expected one host name a line").splitlines()
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            raise UserError(f"{where}: an empty line; a hostfile has one host name a line")
        if len(line.split()) > 1 or line.strip().startswith("#"):
            raise UserError(f"{where}: {line.strip()!r} is more than a host name; a hostfile has one name a line")
        hosts.append(Host(line.strip(), where))
    if not hosts:
        raise UserError(f"hostfile {path}: empty; expected one host name a line")
    _refuse_doubles(hosts)
    return hosts


def parse_hosts(names: str) -> list[Host]:
    """The hosts of a list with commas between the names.

    Raises:
        UserError: a name is empty or stands there twice.
    """
    hosts = [Host(name.strip(), f"host {names!r}") for name in names.split(",")]
    if not all(host.name for host in hosts):
        raise UserError(f"host {names!r}: an empty name; expected names with commas between them")
    _refuse_doubles(hosts)
    return hosts


def _refuse_doubles(hosts: Sequence[Host]) -> None:
    first: dict[str, Host] = {}
    for host in hosts:
        if host.name in first:
            raise UserError(
                f"{host.where}: {host.name} is named twice (also in {first[host.name].where}); "
                "nproc_per_node says how many processes a host gets"
            )
        first[host.name] = host


def check_reachable(hosts: Sequence[Host], ssh_port: int | None, seconds: float = SECONDS_TO_REACH) -> None:
    """Look whether every name resolves and every host that is not this one answers on its ssh port.

    All hosts are tried at once, and no longer than ``seconds`` together. Names, ports and proxies of ``~/.ssh/config``
    count; what is reached through a proxy is not tried.

    Raises:
        UserError: names every host that cannot be reached, with the reason.
    """
    answers: dict[str, str | None] = {}

    def try_host(host: Host) -> None:
        answers[host.name] = _obstacle(host.name, ssh_port, seconds)

    threads = [threading.Thread(target=try_host, args=(host,), daemon=True) for host in hosts]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {seconds:g} seconds"
    obstacles = [(host, answers.get(host.name, late)) for host in hosts]
    unreachable = [f"{host.name} ({host.where}): {reason}" for host, reason in obstacles if reason is not None]
    if unreachable:
        raise UserError(f"cannot reach {'; '.join(unreachable)}. Training needs every host by ssh without a password")


def ssh_address(name: str, ssh_port: int | None, config: Path = SSH_CONFIG) -> tuple[str, int] | None:
    """Host name and port that ssh connects to for ``name``, or None where it goes through a proxy."""
    found: Mapping[str, str] = {}
    if config.expanduser().is_file():
        from paramiko import SSHConfig

        found = SSHConfig.from_path(str(config.expanduser())).lookup(name)
    if "proxycommand" in found or "proxyjump" in found:
        return None
    return found.get("hostname", name), ssh_port or int(found.get("port", SSH_PORT))


def _obstacle(name: str, ssh_port: int | None, seconds: float) -> str | None:
    """Why ``colossalai run`` cannot start processes on a host, or None."""
    if name in LOCAL_NAMES or _is_this_machine(name, ssh_port):
        return None
    target = ssh_address(name, ssh_port)
    if target is None:
        return None
    try:
        addresses = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"the name does not resolve ({error.strerror or error})"
    reason = ""
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(seconds)
                probe.connect(address)
                return None
        except OSError as error:
            reason = error.strerror or str(error)
    return f"no ssh server on port {target[1]} ({reason})"


def _is_this_machine(name: str, ssh_port: int | None) -> bool:
    """Colossal-AI's own rule for hosts that it needs no ssh for (colossalai/cli/launcher/hostinfo.py)."""
    port = ssh_port or SSH_PORT
    try:
        return socket.getaddrinfo(socket.gethostname(), port) == socket.getaddrinfo(socket.getfqdn(name), port)
    except OSError:
        return False
