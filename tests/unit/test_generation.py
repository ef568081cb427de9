"""Prompts and sampling settings."""

import shutil
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
    generate_batches,
    load_for_generation,
)
from colossal_llama.generation.loading import choose_precision
from tests.helpers.tiny import save_tiny_model, save_tiny_tokenizer

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
        "num_beams": 1,
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
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --prompt_style sft")


def test_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda:0") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda:0") == "cuda:0"
    assert choose_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cuda") == "cpu"
    with pytest.raises(UserError, match="--device cuda:3: this machine has no GPU; use --device auto"):
        choose_device("cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == "cuda:0"
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="this machine's GPUs are cuda:0 to cuda:1"):
        choose_device("cuda:2")
    with pytest.raises(UserError, match="--device gpu: expected auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("cpu") == "fp32"
    assert choose_precision("cpu", "bf16") == "bf16"
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_precision("cuda:0") == expected


PROMPTS = ("the class", "a", "Some longer text, which needs no padding at all", "the class", "Names refer to objects.")


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batches_answer_as_single_prompts_do(num_beams: int, tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    prompts = [build_prompt(tokenizer, text, "text") for text in PROMPTS]
    settings = SamplingSettings(max_new_tokens=16, do_sample=False, num_beams=num_beams)
    done: list[int] = []
    batched = generate_batches(model, tokenizer, prompts, settings, batch_size=3, on_progress=done.append)
    assert done == [3, 5]
    assert batched == [generate_batches(model, tokenizer, [prompt], settings)[0] for prompt in prompts]
    assert len({answer.text for answer in batched}) == 4


def test_beams_find_a_likelier_text_than_greedy_search(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    prompt = build_prompt(tokenizer, "the class", "text")

    def score(num_beams: int) -> float:
        settings = SamplingSettings(max_new_tokens=8, do_sample=False, num_beams=num_beams)
        with torch.inference_mode():
            ids = model.generate(torch.tensor([prompt]), eos_token_id=None, pad_token_id=1, **settings.as_arguments())
            log_probabilities = model(ids).logits.log_softmax(-1)
        written = ids[0, len(prompt) :]
        return log_probabilities[0, len(prompt) - 1 : -1].gather(1, written[:, None]).sum().item()

    assert score(16) > score(1) + 1e-4


def test_an_answer_ends_at_the_first_end_token(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    settings = SamplingSettings(max_new_tokens=16, do_sample=False)
    prompts = [build_prompt(tokenizer, text, "text") for text in PROMPTS]
    whole = generate_batches(model, tokenizer, prompts, settings)
    assert {answer.finished for answer in whole} == {False}
    assert {answer.tokens for answer in whole} == {16}
    with torch.inference_mode():
        output = model.generate(torch.tensor([prompts[0]]), max_new_tokens=16, do_sample=False, pad_token_id=1)
    end = output[0, len(prompts[0]) + 5].item()
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])
    cut = generate_batches(model, tokenizer, prompts, settings, batch_size=5)
    assert cut[0].finished
    assert cut[0].tokens <= 5
    assert all(old.text.startswith(new.text) for old, new in zip(whole, cut, strict=True))


def run_inference(model_dir: Path, *flags: str) -> int:
    return main(["--model_path", str(model_dir), "--prompt_style", "pretrained", "--do_sample", "false", *flags])


def test_a_prompt_longer_than_the_context_is_refused(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_inference(model_dir, "--input_txt", "word " * 200, "--max_new_tokens", "8") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: --input_txt: the prompt has ")
    assert "context of 128 tokens" in line
    assert run_inference(model_dir, "--input_txt", "word", "--max_new_tokens", "128") == 2
    assert "--max_new_tokens is 128" in capsys.readouterr().err


def test_folders_that_hold_no_model_or_another_tokenizer(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    wide = tmp_path / "wide"
    shutil.copytree(model_dir, wide)
    save_tiny_tokenizer(wide, 600)
    for folder, message in ((tmp_path / "empty", "no config.json"), (wide, "has 600 tokens but the model only 512")):
        assert run_inference(folder) == 2
        error = capsys.readouterr().err
        assert f"error: --model_path {folder}: " in error
        assert message in error
    assert run_inference(model_dir, "--base_model_path", str(wide)) == 2
    assert "holds no LoRA adapters" in capsys.readouterr().err


def test_adapters_are_loaded_with_their_base(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(model_dir, base)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(str(base)), config).save_pretrained(str(adapter))
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(adapter))
    ids = torch.arange(24).view(2, 12)

    def expected_logits(folder: Path) -> torch.Tensor:
        adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(str(folder)), str(adapter)).eval()
        with torch.inference_mode():
            return adapted(input_ids=ids).logits

    expected = expected_logits(base)
    model, tokenizer = load_for_generation(adapter, "cpu")
    with torch.inference_mode():
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(load_for_generation(base, "cpu")[0](input_ids=ids).logits, expected, atol=1e-2)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    base.rename(tmp_path / "moved")
    assert run_inference(adapter) == 2
    assert "name the base model with --base_model_path" in capsys.readouterr().err
    assert run_inference(adapter, "--base_model_path", str(tmp_path / "moved"), "--max_new_tokens", "4") == 0
