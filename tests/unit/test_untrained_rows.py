"""Control tokens whose rows no training has touched and the coming one would not touch are told of before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.commands.train_update import check_control_rows
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.helpers.tiny import save_tiny_model

START, END = "<|im_start|>", "<|im_end|>"
LORA = {"lora_rank": 4}
BOTH = "--lora_modules_to_save embed_tokens lm_head"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model", layers=1, tied=request.param)


def check(folder: Path, change: Any, chat: bool = True, **settings: Any) -> list[str]:
    """What is said before a training on data with the ChatML template (or plain texts) starts."""
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    tokenizer = load_tokenizer(folder, "--pretrained")
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(1)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight[-2:] = torch.randn(2, 64)
        change(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    template = SimpleNamespace(name="chatml", jinja="")
    manifest = SimpleNamespace(chat_template=template if chat else None)
    said: list[str] = []
    setting = SimpleNamespace(
        config=TrainConfig(pretrained=str(folder), dataset=["unread"], **settings),
        tokenizer=tokenizer,
        rows=SimpleNamespace(manifests=[manifest]),
        inputs=SimpleNamespace(weights=folder, adapter=None, resume_from=None),
        env=SimpleNamespace(say=said.append),
    )
    check_control_rows(setting, model)  # type: ignore[arg-type]
    return said


def nothing(source: torch.Tensor, output: torch.Tensor) -> None:
    """The rows are as good as any."""


def zero_input(source: torch.Tensor, output: torch.Tensor) -> None:
    source[-2:] = 0


def tiny_output(source: torch.Tensor, output: torch.Tensor) -> None:
    output[-1] = 1e-23


def equal_to_each_other(source: torch.Tensor, output: torch.Tensor) -> None:
    output[-1] = output[-2]


def equal_to_another(source: torch.Tensor, output: torch.Tensor) -> None:
    source[-2] = source[17]


def zero_end_of_sequence(source: torch.Tensor, output: torch.Tensor) -> None:
    output[1] = 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (zero_input, "all zero"),
        (tiny_output, "all zero"),
        (equal_to_each_other, r"equal to the row of id 51[23]"),
        (equal_to_another, "equal to the row of id 17"),
    ],
)
def test_lora_cannot_teach_frozen_control_tokens(change: Any, reason: str, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"--lora_rank 4: rows of control tokens .*{reason}.*; add {BOTH}"):
        check(folder, change, **LORA)
    check(folder, change, lora_modules_to_save=["embed_tokens", "lm_head"], **LORA)
    check(folder, change)
    with pytest.raises(UserError, match=rf"--freeze_old_embedding_rows 514: .*{reason}.*; lower it to 512"):
        check(folder, change, freeze_old_embedding_rows=514)
    if "id" not in reason:
        check(folder, change, freeze_old_embedding_rows=512)
    check(folder, change, freeze_non_embeds_params=True)


def test_plain_texts_need_their_end_of_sequence(folder: Path) -> None:
    with pytest.raises(UserError, match=r"</s> \(all zero\)"):
        check(folder, zero_end_of_sequence, chat=False, **LORA)
    check(folder, tiny_output, chat=False, **LORA)


def test_a_widened_model_is_told_of(folder: Path) -> None:
    assert check(folder, nothing, **LORA) == []
    report = folder / "expansion.json"
    report.write_text("{}")
    try:
        (said,) = check(folder, nothing, **LORA)
        assert "LoRA leaves its new rows as init_model.py made them" in said
        assert said.endswith(BOTH)
        assert check(folder, nothing, lora_modules_to_save=["embed_tokens", "lm_head"], **LORA) == []
        assert check(folder, nothing) == []
    finally:
        report.unlink()
