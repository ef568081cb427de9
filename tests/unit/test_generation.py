"""Prompts and sampling settings."""

from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama.commands.inference import main
from colossal_llama.errors import UserError
from colossal_llama.generation import (
    PRETRAINED_PROMPT_END,
    SamplingSettings,
    build_prompt,
    choose_device,
    generate,
    load_for_generation,
)
from tests.helpers.tiny import save_tiny_model

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[me]{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tiny(model_dir: Path) -> tuple[Any, Any]:
    return load_for_generation(model_dir, "cpu")


def test_pretrained_prompt_ends_with_the_separator(tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny
    ids = build_prompt(tokenizer, "the class", "pretrained")
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "the class" + PRETRAINED_PROMPT_END == "the class\n\n->\n\n"
    assert tokenizer.decode(build_prompt(tokenizer, "the class", "text")) == "<s>the class"


def test_sft_prompt_uses_the_models_template(tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny
    with pytest.raises(UserError, match="--prompt_style sft"):
        build_prompt(tokenizer, "Who?", "sft")
    tokenizer.chat_template = CHAT_TEMPLATE
    try:
        assert tokenizer.decode(build_prompt(tokenizer, "Who?", "sft")) == "[user]Who?[me]"
    finally:
        tokenizer.chat_template = None


def test_greedy_answers_do_not_depend_on_the_seed_and_sampled_ones_do(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    prompt = build_prompt(tokenizer, "the class", "text")
    greedy = SamplingSettings(max_new_tokens=12, do_sample=False)
    sampled = SamplingSettings(max_new_tokens=12, temperature=5.0, top_k=0, top_p=1.0)
    assert generate(model, tokenizer, prompt, greedy, seed=1) == generate(model, tokenizer, prompt, greedy, seed=2)
    first = generate(model, tokenizer, prompt, sampled, seed=1)
    assert generate(model, tokenizer, prompt, sampled, seed=1) == first
    assert generate(model, tokenizer, prompt, sampled, seed=2) != first


def test_sampling_settings_are_passed_only_when_sampling() -> None:
    assert SamplingSettings(do_sample=False).as_arguments()["temperature"] is None
    assert SamplingSettings().as_arguments() == {
        "max_new_tokens": 512,
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 50,
        "top_p": 0.95,
    }


def test_do_sample_false_is_false(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for seed in ("1", "2"):
        flags = [
            "--model_path",
            str(model_dir),
            "--prompt_style",
            "pretrained",
            "--max_new_tokens",
            "12",
            "--seed",
            seed,
        ]
        assert main([*flags, "--input_txt", "the class", "--do_sample", "False", "--temperature", "9"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert "[prompt]\nthe class\n[answer]\n" in answers[0]


def test_a_model_without_template_is_refused_for_chat(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_path", str(model_dir)]) == 2
    assert capsys.readouterr().err.startswith("error: --prompt_style sft")


def test_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda:0") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda:0") == "cuda:0"
    assert choose_device("cpu") == "cpu"
