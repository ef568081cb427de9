"""What the controls of the chat page do, without a browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from colossal_llama.chat.gradio_setup import prepare_gradio
from colossal_llama.chat.rooms import Rooms
from colossal_llama.chat.session import ChatSession
from colossal_llama.generation import SamplingSettings, load_for_generation
from tests.helpers.chat_model import count_passes, save_chat_model

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


@pytest.fixture
def passes(new_session: Callable[[], ChatSession], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that each pass of the model is given."""
    return count_passes(new_session()._generator._model, monkeypatch)


def answer(
    page: Any, number: int, question: str, system: str = "", tab: Any = TAB, max_new_tokens: int = 8
) -> Iterator[tuple[Any, Any]]:
    """What the question with this number shows when its turn comes."""
    return page.answer(number, question, system, False, 0.3, 0.95, 50, max_new_tokens, tab)


def ask(page: Any, question: str, system: str = "", tab: Any = TAB, max_new_tokens: int = 8) -> list[tuple[Any, Any]]:
    """All that one question shows."""
    number = page.send(tab)[2]
    return list(answer(page, number, question, system, tab, max_new_tokens))


def stop_is_shown(buttons: tuple[Any, Any]) -> bool:
    send, stop = buttons
    assert send["visible"] != stop["visible"]
    return stop["visible"]


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


def test_a_question_comes_back_when_the_memory_is_exhausted(
    page: Any, new_session: Callable[[], ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("full")

    before = ask(page, "Who?")[-1][0]
    monkeypatch.setattr(new_session()._generator._model, "forward", fail)
    with pytest.warns(UserWarning, match="memory is exhausted"):
        assert ask(page, "And?")[-1] == (before, "And?")
    assert not stop_is_shown(page.buttons(TAB))


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
    *buttons, number = page.send(TAB)
    answers = answer(page, number, "Tell me.", max_new_tokens=60)
    next(answers)
    page.stop(OTHER_TAB)
    next(answers)
    # The button stays until the token that is being computed is there.
    assert stop_is_shown(tuple(buttons))
    assert stop_is_shown(page.stop(TAB))
    *_, (conversation, _) = answers
    assert not stop_is_shown(page.buttons(TAB))
    page.clear(TAB)
    whole = ask(page, "Tell me.", max_new_tokens=60)[-1][0]
    assert whole[-1]["content"].startswith(conversation[-1]["content"])
    assert len(whole[-1]["content"]) > len(conversation[-1]["content"])


def test_no_token_is_begun_behind_the_one_that_is_stopped(
    page: Any, new_session: Callable[[], ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_session()._generator._model
    forward = model.forward
    begun: list[int] = []
    allowed = threading.Semaphore(10)

    def wait_to_be_allowed(*args: Any, **kwargs: Any) -> Any:
        begun.append(kwargs["input_ids"].shape[1])
        assert allowed.acquire(timeout=120)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", wait_to_be_allowed)
    answers = answer(page, page.send(TAB)[2], "Tell me.", max_new_tokens=60)
    next(answers)
    next(answers)
    page.stop(TAB)
    allowed.release(100)
    assert list(answers)
    assert len(begun) <= 11


def test_a_question_that_waits_for_another_tab_can_be_stopped(page: Any, passes: list[int]) -> None:
    import gradio as gr

    other = answer(page, page.send(OTHER_TAB)[2], "Tell me.", tab=OTHER_TAB)
    next(other)
    *buttons, number = page.send(TAB)
    assert stop_is_shown(tuple(buttons))
    assert not stop_is_shown(page.stop(TAB))  # at once
    again = page.send(TAB)[2]
    assert stop_is_shown(page.buttons(TAB))
    assert list(other)[-1][0][1]["role"] == "assistant"  # the other tab has not noticed
    passes.clear()
    assert list(answer(page, number, "Who?")) == [(gr.skip(), gr.skip())]  # the question stays in its box
    assert not passes
    assert stop_is_shown(page.buttons(TAB))
    shown = list(answer(page, again, "Whom?"))
    assert [message["role"] for message in shown[-1][0]] == ["user", "assistant"]
    assert not stop_is_shown(page.buttons(TAB))


def test_a_question_that_is_sent_twice_is_asked_once(page: Any) -> None:
    import gradio as gr

    numbers = [page.send(TAB)[2] for _ in range(2)]
    first, second = (list(answer(page, number, "Who?")) for number in numbers)
    assert len(first[-1][0]) == 2
    assert second == [(gr.skip(), gr.skip())]
    assert json.loads(page.export(TAB))["messages"] == first[-1][0]
    assert page.send(TAB)[2] > 0


@pytest.mark.parametrize(
    "start", [GREEDY, SamplingSettings(9000, True, 5.0, 500), SamplingSettings(1, True, 0.01, 0, 0.01)]
)
def test_the_page_takes_the_settings_that_it_starts_with(
    start: SamplingSettings, new_session: Callable[[], ChatSession]
) -> None:
    from colossal_llama.chat.web import ChatPage

    _, *sliders = ChatPage(Rooms(new_session), start).settings_controls()
    values = [slider.preprocess(slider.value) for slider in sliders]  # Gradio refuses what lies out of a slider's range
    assert values == [start.temperature, start.top_p, start.top_k, start.max_new_tokens]


def test_a_whole_temperature_is_one(page: Any) -> None:
    number = page.send(TAB)[2]
    shown = list(page.answer(number, "Who?", "", True, 2, 1, 50, 8, TAB))  # a browser writes 2.0 as 2
    assert shown[-1][0][1]["role"] == "assistant"


def test_a_fast_answer_is_shown_in_steps(page: Any) -> None:
    from colossal_llama.chat.web import paced

    clock: Iterator[float] = iter((0.0, 0.01, 0.06, 0.07, 0.2))
    assert list(paced("abcde", 0.05, lambda: next(clock))) == ["a", "abc", "abcde"]
