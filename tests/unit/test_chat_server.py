"""Ports, what a page may load, and who may ask for it."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import socket
import sys
from pathlib import Path

import pytest

from colossal_llama.chat import server
from colossal_llama.chat.gradio_setup import prepare_gradio
from colossal_llama.chat.server import OwnSourcesOnly, is_local, open_port, url_of
from colossal_llama.commands.chat import main
from colossal_llama.errors import UserError, run_command

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> int:
    """A port that this process listens on."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


def test_a_taken_port_is_refused_and_the_next_free_one_found(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"--port {taken}: in use on {HOST}"):
        open_port(HOST, taken)
    monkeypatch.setattr(server, "FIRST_PORT", taken)
    monkeypatch.setattr(server, "PORTS_TRIED", min(50, 65536 - taken))
    with open_port(HOST, None) as listener:
        assert listener.getsockname()[1] > taken
        assert url_of(HOST, listener) == f"http://{HOST}:{listener.getsockname()[1]}"
        # It listens already: no one is turned away before the page is ready.
        socket.create_connection((HOST, listener.getsockname()[1]), timeout=5).close()
    monkeypatch.setattr(server, "PORTS_TRIED", 1)
    with pytest.raises(UserError, match=f"no free port from {taken} to {taken}; choose one with --port"):
        open_port(HOST, None)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 --port 0: cannot listen there"):
        open_port("192.0.2.1", 0)
    with pytest.raises(UserError, match=r"--host a\.\.b: no host's name"):
        open_port("a..b", 0)


def test_which_addresses_stay_on_this_machine() -> None:
    assert all(map(is_local, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.5", "example.org")))


def test_the_command_refuses_before_it_loads_a_model(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (
        ([str(tmp_path / "gone")], "gone: no such folder"),
        ([str(tmp_path), "--port", "7000"], "--port is for the web page; add --web"),
        ([str(tmp_path), "--web", "--port", "70000"], "--port must lie between 0 and 65535"),
        ([str(tmp_path), "--web", "--port", str(taken)], f"--port {taken}: in use on {HOST}"),
        ([str(tmp_path), "--temperature", "0"], "--temperature must be positive"),
        ([str(tmp_path), "--temperature", "nan"], "--temperature must be positive"),
        ([str(tmp_path)], "no config.json"),
    )
    for flags, message in cases:
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    assert main([str(tmp_path), "--web"]) == 2
    assert capsys.readouterr().err == "error: --web needs Gradio; run: pip install '.[chat]'\n"


def test_a_terminal_that_is_not_utf_8_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert run_command(lambda: print("é 你", flush=True)) == 0
    assert written.getvalue() == b"\xe9 \\u4f60\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_local_page_answers_to_its_own_names_only(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "")  # to be restored
    prepare_gradio()
    import gradio as gr
    import httpx

    transport = httpx.ASGITransport(app=server.web_application(gr.Blocks(), host))

    async def status_of(name: str) -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get("/config", headers={"host": name})).status_code

    own = f"[{host}]:7860" if ":" in host else f"{host}:7860"
    for name, status in ((own, 200), ("127.0.0.1:7860", 200), ("example.org:7860", 400), ("example.org", 400)):
        assert asyncio.run(status_of(name)) == status, name


def test_every_response_tells_the_browser_to_load_nothing_from_elsewhere() -> None:
    sent = []

    async def application(scope: dict, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"x"})  # type: ignore[operator]

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(OwnSourcesOnly(application)({"type": "http"}, None, send))  # type: ignore[arg-type]
    start, body = sent
    assert start["headers"][0] == (b"a", b"b")
    name, policy = start["headers"][1]
    assert name == b"content-security-policy"
    assert policy.startswith(b"default-src 'self';")
    assert b"http" not in policy
    assert body == {"type": "http.response.body", "body": b"x"}
