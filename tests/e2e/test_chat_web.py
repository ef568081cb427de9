"""The chat page in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.browser import ARGUMENTS, find_chromium
from tests.helpers.chat_model import save_chat_model

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = ("--do_sample", "false", "--max_new_tokens", "4096")
FLAGS = ("--web", "--port", "0", "--device", "cpu", "--system", "Be brief.", *ENDLESS)
START_TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a page for a model whose answers take minutes."""
    find_chromium()
    folder = tmp_path_factory.mktemp("web")
    save_chat_model(folder / "model")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "chat.py"), str(folder / "model"), *FLAGS],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _read_url(folder / "log", process)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _read_url(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"chat at (http://127\.0\.0\.1:\d+) ", log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8"))


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        tab = browser.new_page(viewport={"width": 1200, "height": 800})
        tab.set_default_timeout(60_000)
        yield tab
        browser.close()


def send(page: Page, text: str) -> None:
    page.get_by_placeholder("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def answer_text(page: Page) -> str:
    return page.locator(".bot.message").last.inner_text()


def exported(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "conversation.json"
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["messages"]


def test_a_conversation(page: Page, url: str, tmp_path: Path) -> None:
    asked: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: refused.append(request.url) if request.failure == "csp" else None)
    page.goto(url)
    send(page, "Tell me all.")
    # The answer is shown while it is being written.
    page.locator(".bot.message").wait_for()
    early = answer_text(page)
    page.wait_for_function(
        "length => [...document.querySelectorAll('.bot.message')].pop().innerText.length > length", arg=len(early)
    )
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Send").wait_for()
    stopped = answer_text(page)
    page.wait_for_timeout(500)
    assert answer_text(page) == stopped
    messages = exported(page)
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."
    assert messages[1]["content"] == "Tell me all."

    # Settings are those of the next answer.
    page.get_by_label("number input for Max new tokens").fill("4")
    page.get_by_label("System message").fill("Be kind.")
    send(page, "And?")
    page.locator(".bot.message").nth(1).wait_for()
    page.get_by_role("button", name="Send").wait_for()
    page.screenshot(path=str(tmp_path / "chat.png"))
    longer = exported(page)
    assert longer[0]["content"] == "Be kind."
    assert longer[1:3] == messages[1:]
    assert longer[3]["content"] == "And?"
    assert 0 < len(longer[4]["content"]) < len(longer[2]["content"])

    page.get_by_role("button", name="New chat").click()
    page.get_by_text("Ask the model something.").wait_for()
    assert [message["role"] for message in exported(page)] == ["system"]
    assert (tmp_path / "chat.png").stat().st_size > 5_000
    # Nothing comes from another machine; Gradio 5 links to one, which the page's policy refuses.
    sent = [address for address in asked if address not in refused]
    assert {address.split("/")[2] for address in sent if address.startswith("http")} == {url.removeprefix("http://")}
    assert not [address for address in sent if not address.startswith(("http", "data:", "blob:"))]


def test_a_question_that_waits_for_another_tab(page: Page, url: str) -> None:
    assert page.context.browser is not None
    other = page.context.browser.new_page()
    other.set_default_timeout(60_000)
    for tab in (page, other):
        tab.goto(url)
    send(page, "Tell me all.")
    page.locator(".bot.message").wait_for()
    # While the model writes, the page answers other tabs, which wait for it.
    send(other, "And me?")
    other.get_by_role("button", name="Stop").click()
    other.get_by_role("button", name="Send").wait_for()
    assert [message["role"] for message in exported(other)] == ["system"]
    assert other.get_by_placeholder("Message").input_value() == "And me?"
    send(other, "And now?")
    other.get_by_role("button", name="Stop").wait_for()
    length = len(answer_text(page))
    page.wait_for_function(
        "length => [...document.querySelectorAll('.bot.message')].pop().innerText.length > length", arg=length
    )
    page.get_by_role("button", name="Stop").click()
    # Only the question that was not taken back is answered.
    other.locator(".bot.message").wait_for()
    other.get_by_role("button", name="Stop").click()
    other.get_by_role("button", name="Send").wait_for()
    messages = exported(other)
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "And now?"
