"""Conversations: what the model computes again, what the context holds, stopping, and files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama.chat.decoding import IncrementalDecoder
from colossal_llama.chat.engine import StreamingGenerator
from colossal_llama.chat.files import load_conversation, save_conversation
from colossal_llama.chat.history import WrittenAnswer, restore_answers
from colossal_llama.chat.rooms import KEPT_CACHES, Rooms
from colossal_llama.chat.session import ChatSession
from colossal_llama.errors import UserError
from colossal_llama.generation import SamplingSettings, build_prompt, generate, load_for_generation
from tests.helpers.chat_model import count_passes, save_chat_model

GREEDY = SamplingSettings(max_new_tokens=12, do_sample=False)
QUESTION = "What is the class?"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def tiny(model_dir: Path) -> tuple[Any, Any]:
    return load_for_generation(model_dir, "cpu")


@pytest.fixture
def counted(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens given to each call of the model."""
    return count_passes(tiny[0], monkeypatch)


def ask(session: ChatSession, question: str = QUESTION, **settings: Any) -> str:
    return "".join(session.ask(question, SamplingSettings(**settings) if settings else None))


def test_a_turn_computes_only_what_is_new(tiny: tuple[Any, Any], counted: list[int]) -> None:
    model, tokenizer = tiny
    session = ChatSession(model, tokenizer, GREEDY, system="Be brief.")
    first = len(tokenizer.apply_chat_template([*session.messages, {"role": "user", "content": QUESTION}])) + len(
        tokenizer("<s>[assistant]")["input_ids"]
    )
    ask(session)
    assert counted == [first] + 11 * [1]
    # The last token of an answer is computed with what comes behind it.
    between = tokenizer(f"</s><s>[user]{QUESTION}</s><s>[assistant]", add_special_tokens=False)["input_ids"]
    for _ in range(3):
        counted.clear()
        ask(session)
        assert counted == [1 + len(between)] + 11 * [1]


def test_answers_are_those_of_a_session_that_keeps_nothing(tiny: tuple[Any, Any], counted: list[int]) -> None:
    model, tokenizer = tiny
    kept, bare = (ChatSession(model, tokenizer, GREEDY, keep_cache=keep) for keep in (True, False))
    questions = ["Who?", "And then?", "Why is that so?"]
    answers = [ask(kept, question) for question in questions]
    counted.clear()
    assert [ask(bare, question) for question in questions] == answers
    prompts = counted[::12]
    assert prompts == sorted(set(prompts))  # each prompt is computed from its start
    assert kept.messages == bare.messages
    assert answers[0] == generate(model, tokenizer, build_prompt(tokenizer, "Who?", "sft"), GREEDY)


def test_a_changed_beginning_is_computed_again(tiny: tuple[Any, Any], counted: list[int]) -> None:
    model, tokenizer = tiny
    session, fresh = (ChatSession(model, tokenizer, GREEDY) for _ in range(2))
    ask(session)
    session.system = "Be kind."
    fresh.replace(session.messages)
    counted.clear()
    answer = session.ask(QUESTION)
    text = "".join(answer)
    # All but the opening that both share.
    opening = tokenizer("<s>[", add_special_tokens=False)["input_ids"]
    assert answer.reused_tokens <= len(opening)
    assert counted[0] == answer.prompt_tokens - answer.reused_tokens
    assert text == ask(fresh)
    session.clear()
    assert session.messages == [{"role": "system", "content": "Be kind."}]


def test_other_models_caches_are_left_alone(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    session = ChatSession(model, tokenizer, GREEDY)
    ask(session)
    assert session.ask(QUESTION).reused_tokens == 0


def test_a_stopped_answer_stays_and_the_next_one_builds_on_it(tiny: tuple[Any, Any], counted: list[int]) -> None:
    model, tokenizer = tiny
    session = ChatSession(model, tokenizer, SamplingSettings(max_new_tokens=5000, do_sample=False))
    pieces = []
    for piece in session.ask("Tell me all."):
        pieces.append(piece)
        if len(pieces) == 3:
            session.stop()
    assert len(counted) < 5000
    assert session.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    counted.clear()
    answer = session.ask("Go on.", GREEDY)
    assert answer.reused_tokens > answer.prompt_tokens / 2
    assert "".join(answer)
    assert counted[0] == answer.prompt_tokens - answer.reused_tokens


def test_an_abandoned_answer_ends_its_thread(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    session = ChatSession(model, tokenizer, SamplingSettings(max_new_tokens=50_000, do_sample=False))
    before = threading.active_count()
    pieces = iter(session.ask("Tell me all."))
    first = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert session.messages[-1]["content"] == first


def test_a_failure_is_the_callers_and_leaves_the_conversation(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    session = ChatSession(model, tokenizer, GREEDY)
    ask(session)
    before = session.messages
    forward = model.forward
    failure: BaseException = torch.cuda.OutOfMemoryError("full")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise failure

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(UserError, match="memory is exhausted"):
        ask(session)
    failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        ask(session)
    assert session.messages == before
    monkeypatch.setattr(model, "forward", forward)
    answer = session.ask(QUESTION)
    assert answer.reused_tokens == 0
    assert "".join(answer)


def test_the_oldest_turns_go_when_the_context_is_full(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(model.config, "max_position_embeddings", 160)
    session = ChatSession(model, tokenizer, GREEDY, system="Be brief.")
    dropped = 0
    for number in range(8):
        answer = session.ask(f"Question {number}?")
        assert answer.prompt_tokens + 12 <= 160
        assert "".join(answer)
        dropped += answer.dropped_turns
        assert session.messages[0]["role"] == "system"
        assert len(session.messages) == 1 + 2 * (number + 1 - dropped)
        assert session.messages[-2]["content"] == f"Question {number}?"
    assert 0 < dropped < 7
    before = session.messages
    with pytest.raises(UserError, match=r"the message makes a prompt of .* context of 160 tokens"):
        session.ask("long " * 200)
    assert session.messages == before
    # An answer may take all that is left, but no more.
    session.clear()
    long_answer = session.ask("Hi", SamplingSettings(max_new_tokens=1000, do_sample=False))
    assert "".join(long_answer)
    (written,) = session._written
    assert long_answer.prompt_tokens + len(written.ids) == 160


def test_a_model_without_template_does_not_chat(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        ChatSession(model, tokenizer, GREEDY)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system messages') }}")
    with pytest.raises(UserError, match=r"refuses messages of system, user: no system messages"):
        ChatSession(model, tokenizer, GREEDY, system="s").ask("q")


@pytest.mark.parametrize("text", ["你好，世界🙂！", "naïve  white\n\n space ", "<s>x</s>", "�", ""])
def test_pieces_add_up_to_the_text(text: str, tiny: tuple[Any, Any], sentencepiece_dir: Path) -> None:
    from transformers import AutoTokenizer

    for tokenizer in (tiny[1], AutoTokenizer.from_pretrained(str(sentencepiece_dir))):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoder = IncrementalDecoder(tokenizer)
        pieces = [decoder.put(token) for token in ids]
        if text != "�":
            assert "�" not in "".join(pieces)
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) + decoder.end() == whole


def test_bytes_that_are_no_character_are_shown_at_last(tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny
    start, *_, last = tokenizer("好a", add_special_tokens=False)["input_ids"]
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.put(start), decoder.put(last)] == ["", "�a"]
    assert [decoder.put(start), decoder.end(), decoder.end()] == ["", "�", ""]


def pieces_of(tokenizer: Any, text: str, size: int) -> list[int]:
    """Token ids of a text that is cut into pieces of ``size`` characters first."""
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return [token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("text", ["the class statement", "你好🙂", "�", " \n x", ""])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_earlier_answers_keep_their_tokens(text: str, size: int, tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny
    written = tuple(pieces_of(tokenizer, text, size))
    question = [{"role": "user", "content": "Which?"}]
    start = len(tokenizer.apply_chat_template(question, add_generation_prompt=True))
    answer = [*question, {"role": "assistant", "content": text}, *question]
    prompt = tokenizer.apply_chat_template(answer, add_generation_prompt=True)
    restored = restore_answers(tokenizer, prompt, [WrittenAnswer(start, written)])
    assert restored[:start] == prompt[:start]
    assert tuple(restored[start : start + len(written)]) == written
    assert tokenizer.decode(restored) == tokenizer.decode(prompt)
    other = tuple(pieces_of(tokenizer, text + " more", size))
    assert restore_answers(tokenizer, prompt, [WrittenAnswer(start, other)]) == prompt


def test_answers_that_are_no_text_keep_their_tokens(tiny: tuple[Any, Any]) -> None:
    """Half a character is a replacement character in the conversation's text, which takes three tokens."""
    _, tokenizer = tiny
    half = tuple(tokenizer("好", add_special_tokens=False)["input_ids"][:1])
    prompt = tokenizer("<s>�</s><s>?", add_special_tokens=False)["input_ids"]
    assert restore_answers(tokenizer, prompt, [WrittenAnswer(1, half)]) == [prompt[0], *half, *prompt[4:]]


def test_conversations_in_files(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "Hello\n"},
    ]
    path = tmp_path / "new" / "talk.json"
    save_conversation(path, messages)
    assert load_conversation(path) == messages
    assert json.loads(path.read_text(encoding="utf-8"))["messages"] == messages
    save_conversation(path, messages[:1])  # an older conversation may be replaced
    assert load_conversation(path) == messages[:1]
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: exists and is no conversation"):
        save_conversation(other, messages)
    assert other.read_text() == "mine"
    for content, message in (
        ('{"messages": 5}', "must be an array"),
        ("{", "not valid JSON"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "must alternate"),
    ):
        other.write_text(content)
        with pytest.raises(UserError, match=message):
            load_conversation(other)
    with pytest.raises(UserError, match=r"gone\.json: cannot be read"):
        load_conversation(tmp_path / "gone.json")
    assert {entry.name for entry in path.parent.iterdir()} == {"talk.json"}


def test_tabs_have_conversations_of_their_own_and_the_oldest_caches_go(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    rooms = Rooms(lambda: ChatSession(model, tokenizer, GREEDY))
    for number in range(KEPT_CACHES + 1):
        ask(rooms.enter(str(number)).session, f"Question {number}?")
    assert rooms.enter("0").session.messages[0]["content"] == "Question 0?"  # and 1 is the one used longest ago
    rooms.free_caches()
    assert rooms.enter("1").session.ask("More?").reused_tokens == 0
    assert rooms.enter("2").session.ask("More?").reused_tokens > 0
    rooms.leave("2")
    rooms.leave("2")
    assert rooms.enter("2").session.messages == []


def test_a_stream_ends_at_the_models_end_token(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    generator = StreamingGenerator(model, tokenizer)
    prompt = build_prompt(tokenizer, "Who?", "sft")

    def stream() -> Iterator[int]:
        return generator.stream(prompt, GREEDY, threading.Event())

    tokens = list(stream())
    assert len(tokens) == 12
    end = tokens[4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [1, end])
    assert list(stream()) == tokens[: tokens.index(end)]
