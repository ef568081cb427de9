"""The two preparation commands from files to parts, and what they refuse."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as pretrain_main
from colossal_llama.commands.prepare_sft_dataset import main as sft_main
from colossal_llama.data.dataset import PackedDataset
from tests.helpers.assets import sanguo_text
from tests.helpers.corpus import write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    text = sanguo_text()
    folder = tmp_path / "texts"
    for file in range(2):
        records = [
            {
                "source": "" if n % 3 else f"问{n}\n",
                "target": text[n * 97 + file * 9000 : n * 97 + file * 9000 + 5 + 7 * (n % 40)],
                "category": f"c{n % 2}",
            }
            for n in range(90)
        ]
        write_jsonl(folder / f"{file}.jsonl", [*records, {"target": " "}])
    return folder


def arguments(inputs: Path | str, tokenizer_dir: Path, out: Path, *more: str) -> list[str]:
    base = ["--data_input_dirs", str(inputs), "--tokenizer_dir", str(tokenizer_dir)]
    return [*base, "--data_output_dirs", str(out), "--num_workers", "1", "--max_length", "128", *more]


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pretraining_from_texts_to_parts(
    tmp_path: Path, texts: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    assert pretrain_main(arguments(texts, tokenizer_dir, tmp_path / "out", "--num_spliced_dataset_bins", "3")) == 0
    printed = capsys.readouterr().out
    assert "records read 182, kept 180, dropped: 2 empty target" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["arrow", "jsonl"]
    manifest = json.loads((tmp_path / "out/arrow/manifest.json").read_text(encoding="utf-8"))
    assert manifest["kind"] == "pretrain"
    assert manifest["dropped"] == {"empty target": 2}
    assert [part["name"] for part in manifest["parts"]] == ["part-00000", "part-00001", "part-00002"]
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    expected: Counter[str] = Counter()
    for path in texts.iterdir():
        for line in path.read_text(encoding="utf-8").split("\n")[:-2]:
            record = json.loads(line)
            expected["<s>" + record["source"] + record["target"] + "</s>"] += 1
    found: Counter[str] = Counter()
    tokens = 0
    for path in (tmp_path / "out/jsonl").iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            tokens += len(row["input_ids"])
            start = 0
            for length in row["seq_lengths"]:
                found[tokenizer.decode(row["input_ids"][start : start + length])] += 1
                start += length
    whole = {text for text in expected if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 128}
    assert len(whole) > 20
    assert {text: found[text] for text in whole} == {text: expected[text] for text in whole}
    assert sum(found.values()) == sum(part["pieces"] for part in manifest["parts"])
    assert sum("".join([text] * n).count("</s>") for text, n in found.items()) == 180
    assert tokens == manifest["tokens"] == sum(part["tokens"] for part in manifest["parts"])
    assert len(PackedDataset([tmp_path / "out/arrow"])) == manifest["rows"]


def test_result_depends_on_the_seed_but_not_on_the_workers(
    tmp_path: Path, texts: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many slices and shards, so that two processes really share the work.
    monkeypatch.setattr("colossal_llama.data.slices.plan_slices.__defaults__", (4096,))
    monkeypatch.setattr("colossal_llama.data.pipeline.SHARD_BYTES", 8192)
    monkeypatch.setattr("colossal_llama.data.pipeline.PARALLEL_PART_TOKENS", 100)
    results = {}
    for name, more in {"one": ["--num_workers", "1"], "two": ["--num_workers", "2"], "seed": ["--seed", "7"]}.items():
        assert pretrain_main(arguments(texts, tokenizer_dir, tmp_path / name, *more)) == 0
        results[name] = all_files(tmp_path / name)
    assert results["one"] == results["two"]
    assert results["one"] != results["seed"]


CHAT = {"messages": [{"from": "human", "content": "你好"}, {"from": "assistant", "content": "您好，</s>有什么事？"}]}


def test_sft_from_conversations_to_parts(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    long = {"messages": [{"from": "human", "content": "长" * 300}, {"from": "assistant", "content": "x"}]}
    only_human = {"messages": CHAT["messages"][:1]}
    write_jsonl(tmp_path / "in/a.jsonl", [CHAT, CHAT, only_human, long])
    command = arguments(tmp_path / "in", tokenizer_dir, tmp_path / "out", "--llama_version", "2")
    assert sft_main([*command, "--max_length", "400"]) == 0
    printed = capsys.readouterr().out
    assert "dropped: 1 every turn longer than a row, 1 no assistant message" in printed
    assert "turns longer than a row dropped: 1" in printed
    manifest = json.loads((tmp_path / "out/arrow/manifest.json").read_text(encoding="utf-8"))
    assert manifest["kind"] == "sft"
    assert manifest["chat_template"]["name"] == "colossal_llama_2"
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    dataset = PackedDataset([tmp_path / "out/arrow"])
    learned = [label for n in range(len(dataset)) for label in dataset[n]["labels"].tolist() if label >= 0]
    assert tokenizer.decode(learned) == "您好，</s>有什么事？</s>" * 2
    assert len(learned) == manifest["target_tokens"]


BAD = {
    "broken line": b'{"target": "x"}\n{"target": \n',
    "nothing": b"\n\n",
    "empty": b"",
    "nothing to learn": b'{"target": ""}\n',
    "conversation": b'{"messages": []}\n',
}


@pytest.mark.parametrize(("name", "workers"), [*((name, "1") for name in BAD), ("broken line", "2")])
def test_bad_input_leaves_nothing_behind(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str], name: str, workers: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(BAD[name])
    assert pretrain_main(arguments(tmp_path / "in", tokenizer_dir, tmp_path / "out", "--num_workers", workers)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "in") in error or name == "nothing to learn"
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_existing_output_is_refused_or_replaced(
    tmp_path: Path, texts: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(texts, tokenizer_dir, tmp_path / "out")
    assert pretrain_main(command) == 0
    before = all_files(tmp_path / "out")
    assert pretrain_main([*command, "--seed", "3"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert all_files(tmp_path / "out") == before
    assert pretrain_main([*command, "--seed", "3", "--overwrite"]) == 0
    assert all_files(tmp_path / "out") != before
    (tmp_path / "out/arrow/thesis.txt").write_text("precious", encoding="utf-8")
    assert pretrain_main([*command, "--overwrite"]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "out/arrow/thesis.txt").read_text(encoding="utf-8") == "precious"


def test_separate_output_folders_and_cache(tmp_path: Path, texts: Path, tokenizer_dir: Path) -> None:
    command = ["--data_input_dirs", str(texts), "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
    command += ["--data_arrow_output_dir", str(tmp_path / "a"), "--data_cache_dir", str(tmp_path / "made/cache")]
    assert pretrain_main([*command, "--data_jsonl_output_dir", str(tmp_path / "j")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "j", "texts"]
    assert len(list((tmp_path / "j").iterdir())) == 10


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_length", "1"], "--max_length must be at least 2"),
        (["--num_spliced_dataset_bins", "0"], "--num_spliced_dataset_bins must be 1 to"),
        (["--num_workers", "0"], "--num_workers must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--data_arrow_output_dir", "x"], "--data_output_dirs excludes"),
        (["--data_input_dirs", ","], "--data_input_dirs is empty"),
        (["--data_input_dirs", "a,./a"], "twice"),
        (["--data_input_dirs", "gone"], "gone: no such directory"),
        (["--tokenizer_dir", "gone"], "--tokenizer_dir gone: no such folder"),
        (["--data_output_dirs", "o", "--data_input_dirs", "o/arrow"], "holds --data_input_dirs"),
    ],
)
def test_wrong_flags(
    tmp_path: Path,
    texts: Path,
    tokenizer_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrain_main(arguments(texts, tokenizer_dir, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_wrong_sft_flags(tmp_path: Path, texts: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(texts, tokenizer_dir, tmp_path / "out")
    assert sft_main([*command, "--llama_version", "4"]) == 2
    assert "--llama_version must be 2 or 3" in capsys.readouterr().err
    assert sft_main([*command, "--chat_template", "colossal"]) == 2
    assert "known: colossal_llama_2, colossal_llama_3, chatml" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["prepare_pretrain_dataset.py", "prepare_sft_dataset.py"])
def test_help_does_not_import_heavy_libraries(script: str) -> None:
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "scripts" / script), "--help"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "--num_spliced_dataset_bins" in result.stdout
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "datasets", "colossalai"}
