"""Held-out evaluation: exact whatever the layout, by category, and without a trace in the training."""

import json

import pytest
import torch

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.collator import PackedCollator
from colossal_llama.data.dataset import PackedDataset
from tests.distributed.cases import CASES
from tests.helpers.launching import read_losses, run_training, train
from tests.helpers.tiny import save_categorised_rows

COMMON = ["--lr", "1e-3", "--max_length", "32", "--skip_save_each_epoch", "--save_interval", "0"]
HELD_OUT_ROWS = 7
"""Not a multiple of any global batch."""


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return save_categorised_rows(tmp_path_factory.mktemp("held_out"), HELD_OUT_ROWS)


@pytest.fixture(scope="module")
def expected(tiny_model, held_out):
    """Nats and target tokens by category before training: one process, one row at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), torch_dtype=torch.float32)
    rows, collate = PackedDataset([held_out]), PackedCollator(1, 32, "max_length")
    sums = {"all": [0.0, 0]}
    for index in range(len(rows)):
        batch = collate([rows[index]])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits, batch["targets"][0], reduction="none")
        names = [name for name, length in documents_of(held_out, index) for _ in range(length)]
        for position, target in enumerate(batch["targets"][0].tolist()):
            if target != IGNORE_INDEX:
                for label in ("all", f"category/{names[position + 1]}"):
                    total = sums.setdefault(label, [0.0, 0])
                    total[0] += losses[position].item()
                    total[1] += 1
    return {label: {"loss": nats / tokens, "tokens": tokens} for label, (nats, tokens) in sums.items()}


def documents_of(part, index):
    import datasets

    row = datasets.load_from_disk(str(part))[index]
    return list(zip(row["category"], row["seq_lengths"], strict=True))


def read_evaluations(folder):
    lines = (folder / "logs" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return {event["step"]: event["scores"] for event in map(json.loads, lines) if event["kind"] == "evaluation"}


def flags(model, rows, held_out, *more):
    evaluate = ["--eval_interval", "2", "--eval_dataset", str(held_out)]
    return ["--pretrained", str(model), "--dataset", str(rows), *COMMON, *evaluate, *more]


@pytest.fixture(scope="module")
def rows_4_steps(tmp_path_factory):
    return save_categorised_rows(tmp_path_factory.mktemp("rows16"), 16, seed=1)


LAYOUTS = ("ddp-accumulate", "zero2", "3d-tp2", "3d-pp2", "3d-sp-split_gather", "3d-sp-all_to_all")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in LAYOUTS], ids=lambda case: case.name)
def test_scores_in_fp32_are_those_of_one_process(case, tmp_path, tiny_model, rows_4_steps, held_out, expected):
    train(tmp_path, flags(tiny_model, rows_4_steps, held_out, "--mixed_precision", "fp32", *case.flags))
    evaluations = read_evaluations(tmp_path)
    assert list(evaluations) == [0, 2, 4]
    assert evaluations[0].keys() == expected.keys()
    for label, figures in expected.items():
        assert evaluations[0][label]["tokens"] == figures["tokens"]
        assert evaluations[0][label]["loss"] == pytest.approx(figures["loss"], rel=1e-6)
    assert evaluations[4]["all"]["loss"] < evaluations[0]["all"]["loss"]


UNDISTURBED = ("ddp", "zero2", "gemini", "gemini_auto", "3d-pp2")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in UNDISTURBED], ids=lambda case: case.name)
def test_training_is_the_same_to_the_bit_with_and_without(case, tmp_path, tiny_model, rows_4_steps, held_out):
    noisy = ["--mixed_precision", "bf16", "--use_neft", *case.flags]
    arguments = flags(tiny_model, rows_4_steps, held_out, *noisy)
    train(tmp_path / "with", arguments, environment=case.environment)
    without = arguments[: arguments.index("--eval_interval")] + noisy
    train(tmp_path / "without", without, environment=case.environment)
    assert read_losses(tmp_path / "with") == read_losses(tmp_path / "without")
    first = 2 if case.name == "gemini_auto" else 0
    assert list(read_evaluations(tmp_path / "with")) == sorted({first, 2, 4})


def test_a_limit_takes_fewer_rows_and_bytes_are_those_of_the_text(tmp_path, tiny_model, rows_4_steps, held_out):
    from transformers import AutoTokenizer

    train(tmp_path, flags(tiny_model, rows_4_steps, held_out, "--plugin", "ddp", "--eval_rows", "3"), processes=1)
    rows, tokenizer = PackedDataset([held_out]), AutoTokenizer.from_pretrained(str(tiny_model))
    taken = [index * HELD_OUT_ROWS // 3 for index in range(3)]
    labels = [rows[index]["labels"][1:] for index in taken]
    learned = [label[label != IGNORE_INDEX] for label in labels]
    scores = read_evaluations(tmp_path)[0]["all"]
    assert scores["tokens"] == sum(map(len, learned))
    backend = tokenizer.backend_tokenizer
    spelled = [backend.id_to_token(int(token)) for one in learned for token in one if token > 1]
    assert scores["bytes"] == sum(map(len, spelled))  # in the byte alphabet a character is a byte
    assert scores["bits_per_byte"] > 0


def test_without_held_out_rows_nothing_starts(tmp_path, tiny_model, rows_4_steps):
    arguments = ["--pretrained", str(tiny_model), "--dataset", str(rows_4_steps), "--eval_interval", "2"]
    done = run_training([*arguments, "--save_dir", str(tmp_path / "c")], processes=1)
    assert done.returncode != 0
    assert "--validation_fraction" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()
