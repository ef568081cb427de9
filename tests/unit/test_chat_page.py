"""What the controls of the chat page do, without a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from colossal_llama.chat.gradio_setup import prepare_gradio
from colossal_llama.chat.rooms import Rooms
from colossal_llama.chat.session import ChatSession
from colossal_llama.generation import SamplingSettings, load_for_generation
from tests.helpers.chat_model import save_chat_model

GREEDY = SamplingSettings(max_new_tokens=8, do_sample=False)
TAB, OTHER_TAB = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")


@pytest.fixture(scope="module")
def new_session(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ChatSession]:
    folder = save_chat_model(tmp_path_factory.mktemp("chat") / "model", context=120)
    model, tokenizer = load_for_generation(folder, "cpu")
    return lambda: ChatSession(model, tokenizer, GREEDY)


@pytest.fixture
def page(new_session: Callable[[], ChatSession], monkeypatch: pytest.MonkeyPatch) -> Any:
    for variable in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "")  # to be restored
    prepare_gradio()
    from colossal_llama.chat.web import ChatPage

    return ChatPage(Rooms(new_session), GREEDY)


def ask(page: Any, question: str, system: str = "", tab: Any = TAB, max_new_tokens: int = 8) -> list[tuple[Any, Any]]:
    """All that one question shows."""
    return list(page.answer(question, system, False, 0.3, 0.95, 50, max_new_tokens, tab))


def test_tabs_see_their_own_conversation_without_the_system_message(page: Any) -> None:
    shown = ask(page, "Who?", system=" Be brief. ")
    first, last = shown[0], shown[-1]
    assert first == ([{"role": "user", "content": "Who?"}], "")  # the question at once, and the box is empty
    assert [message["role"] for message in last[0]] == ["user", "assistant"]
    assert len(ask(page, "And?")[-1][0]) == 4
    assert len(ask(page, "Who?", tab=OTHER_TAB)[-1][0]) == 2
    exported = json.loads(page.export(TAB))["messages"]
    assert len(exported) == 4  # the system message was taken out of its box again
    assert page.clear(TAB) == []
    assert json.loads(page.export(TAB)) == {"messages": []}
    page.leave(OTHER_TAB)
    assert json.loads(page.export(OTHER_TAB)) == {"messages": []}


def test_what_cannot_be_answered_stays_in_the_box(page: Any) -> None:
    import gradio as gr

    before = ask(page, "Who?")[-1][0]
    assert ask(page, "  ") == [(before, gr.skip())]
    with pytest.warns(UserWarning, match="the message makes a prompt of"):
        assert ask(page, "long " * 100) == [(before, gr.skip())]


def test_dropped_turns_are_announced(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    told: list[str] = []
    monkeypatch.setattr(gr, "Info", told.append)
    for _ in range(4):
        ask(page, "Which one of them?", max_new_tokens=30)
    assert told
    assert set(told) <= {
        f"the {lost} dropped: the conversation is longer than the model's context"
        for lost in ("oldest question and its answer were", "2 oldest questions and their answers were")
    }


def test_stop_ends_the_answer_of_its_own_tab(page: Any) -> None:
    answers = page.answer("Tell me.", "", False, 0.3, 0.95, 50, 60, TAB)
    next(answers)
    page.stop(OTHER_TAB)
    next(answers)
    page.stop(TAB)
    *_, (conversation, _) = answers
    page.clear(TAB)
    whole = ask(page, "Tell me.", max_new_tokens=60)[-1][0]
    assert whole[-1]["content"].startswith(conversation[-1]["content"])
    assert len(whole[-1]["content"]) > len(conversation[-1]["content"])


def test_a_fast_answer_is_shown_in_steps(page: Any) -> None:
    from colossal_llama.chat.web import paced

    clock: Iterator[float] = iter((0.0, 0.01, 0.06, 0.07, 0.2))
    assert list(paced("abcde", 0.05, lambda: next(clock))) == ["a", "abc", "abcde"]
