"""Held-out rows before any model sees them: which they are, in which group their tokens count, and how many bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from colossal_llama.commands.prepare_pretrain_dataset import main as prepare
from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.collator import PackedCollator
from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.held_out import GroupedCollator, HeldOutRows, held_out_paths, validation_beside
from colossal_llama.data.loader import EMPTY_ROW
from colossal_llama.errors import UserError
from colossal_llama.evaluation.held_out import OTHERS, SHOWN_GROUPS, scores_by_group
from colossal_llama.tokenizer.token_bytes import token_bytes
from tests.helpers.sentencepiece_models import train_model, write_dir
from tests.helpers.tiny import english_text, save_tiny_tokenizer

TEXTS = [text for text in english_text().split("\n\n") if 60 < len(text) < 400][:120]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two inputs of two categories each, a third of them held out; the arrow folder and the tokenizer's."""
    folder = tmp_path_factory.mktemp("held_out")
    save_tiny_tokenizer(folder / "tokenizer")
    for name, first in (("old", 0), ("new", 1)):
        (folder / name).mkdir()
        lines = [
            json.dumps({"source": "", "target": text, "category": ("law", "news")[number % 2]})
            for number, text in enumerate(TEXTS[first::2])
        ]
        (folder / name / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    inputs = f"{folder / 'old'},{folder / 'new'}"
    flags = ["--data_input_dirs", inputs, "--tokenizer_dir", str(folder / "tokenizer"), "--max_length", "256"]
    flags += ["--data_output_dirs", str(folder / "out"), "--num_spliced_dataset_bins", "2"]
    assert prepare([*flags, "--validation_fraction", "0.3"]) == 0
    return folder / "out" / "arrow", folder / "tokenizer"


def test_the_validation_part_is_found_beside_the_parts(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    arrow, _ = prepared
    expected = [arrow.resolve() / "validation"]
    assert validation_beside([arrow]) == expected
    assert validation_beside([arrow / "part-00000", arrow / "part-00001"]) == expected
    assert held_out_paths(None, [str(arrow)]) == expected
    assert held_out_paths(["elsewhere"], [str(arrow)]) == [Path("elsewhere")]
    with pytest.raises(UserError, match="--validation_fraction"):
        held_out_paths(None, [str(tmp_path)])


def test_every_token_counts_in_its_documents_group(prepared: tuple[Path, Path]) -> None:
    arrow, _ = prepared
    rows = HeldOutRows([arrow / "validation"], limit=0)
    assert rows.row_numbers.tolist() == list(range(len(rows.dataset)))
    assert set(rows.groups["category"]) == {"law", "news"}
    assert set(rows.groups["sub_dataset"]) == {"old", "new"}
    assert len(set(zip(rows.groups["category"], rows.groups["sub_dataset"], strict=True))) == 4
    manifest = json.loads((arrow / "manifest.json").read_text(encoding="utf-8"))
    counted = {"old": 0, "new": 0}
    for number in rows.row_numbers.tolist():
        row = rows[number]
        assert len(row["groups"]) == len(row["input_ids"])
        for group in row["groups"].tolist():
            counted[rows.groups["sub_dataset"][group]] += 1
    assert counted == {name: share["tokens"] for name, share in manifest["validation"]["sub_datasets"].items()}


def test_a_limit_spreads_over_all_rows_and_numbers_groups_alike(prepared: tuple[Path, Path]) -> None:
    arrow, _ = prepared
    rows = HeldOutRows([arrow / "part-00000", arrow / "part-00001"], limit=3)
    total = len(rows.dataset)
    assert rows.row_numbers.tolist() == [0, total // 3, 2 * total // 3]
    again = HeldOutRows([arrow / "part-00000", arrow / "part-00001"], limit=3)
    groups = again.groups
    again[int(again.row_numbers[-1])]
    assert again.groups == groups == rows.groups
    assert set(rows.groups["dataset"]) == {"part-00000", "part-00001"}
    assert (
        len(HeldOutRows([arrow / "part-00000"], limit=10_000).row_numbers)
        == PackedDataset([arrow / "part-00000"]).bucket_sizes[0]
    )


def test_collated_groups_belong_to_the_targets(prepared: tuple[Path, Path]) -> None:
    arrow, _ = prepared
    rows = HeldOutRows([arrow / "validation"], limit=0)
    batch = GroupedCollator(PackedCollator(1, 256, "max_length"))([rows[0], EMPTY_ROW])
    size = len(rows[0]["input_ids"])
    assert batch["groups"].shape == batch["targets"].shape == (2, 256)
    assert batch["groups"][0, : size - 1].tolist() == rows[0]["groups"][1:].tolist()
    assert (batch["targets"][1] == IGNORE_INDEX).all()


def test_bytes_of_the_tokens_are_those_of_the_text(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    texts = [*TEXTS[:5], "滚滚长江东逝水，浪花淘尽英雄。🙂", "  two  spaces\n\ttab"]
    tokenizer = AutoTokenizer.from_pretrained(str(prepared[1]))
    sizes = token_bytes(tokenizer, len(tokenizer) + 8)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert sizes[ids].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0
    assert not sizes[len(tokenizer) :].any()
    llama = AutoTokenizer.from_pretrained(str(write_dir(tmp_path / "llama", train_model("bpe"))))
    sizes = token_bytes(llama, len(llama))
    for text in texts[:6]:
        ids = llama(text, add_special_tokens=False)["input_ids"]
        assert sizes[ids].sum() == len(text.encode()) + 1  # the space that SentencePiece puts before the text


def test_scores_add_up_and_small_groups_are_put_together() -> None:
    count = SHOWN_GROUPS + 6
    groups = {
        "category": [f"c{number}" for number in range(count)],
        "sub_dataset": ["same"] * count,
        "dataset": [f"d{number}" for number in range(count)],
    }
    tokens = np.arange(1.0, count + 1)
    sums = [(2 * tokens).tolist(), tokens.tolist(), (tokens * np.log(2)).tolist(), (4 * tokens).tolist()]
    scores = scores_by_group(sums, groups)
    assert scores["all"] == pytest.approx(
        {"loss": 2.0, "tokens": tokens.sum(), "bytes": 4 * tokens.sum(), "bits_per_byte": 0.25}
    )
    named = [label for label in scores if label.startswith("category/")]
    assert len(named) == SHOWN_GROUPS
    assert sum(scores[label]["tokens"] for label in named) == tokens.sum()
    assert scores[f"category/{OTHERS}"]["tokens"] == tokens[:7].sum()
    assert len(scores) == 1 + SHOWN_GROUPS  # data sets divide the tokens as categories do


def test_a_set_without_text_has_no_bits_per_byte() -> None:
    scores = scores_by_group([[0.0], [0.0], [0.0], [0.0]], {"category": [""]})
    assert scores == {"all": {"loss": 0.0, "tokens": 0.0, "bytes": 0.0}}
