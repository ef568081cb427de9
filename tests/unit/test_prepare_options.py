"""What the preparation does beyond the plain case: bad records, duplicates, mixtures, kills, Ray."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as pretrain_main
from colossal_llama.commands.prepare_sft_dataset import main as sft_main
from colossal_llama.data import decontamination
from colossal_llama.data.dataset import PackedDataset
from tests.helpers.assets import sanguo_text
from tests.helpers.corpus import write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    text, draw = sanguo_text(), random.Random(seed)
    places = [draw.randrange(len(text) - 400) for _ in range(count)]
    return [{"target": text[place : place + draw.randrange(5, 300)], "category": "novel"} for place in places]


def command(inputs: Path | str, tokenizer_dir: Path, out: Path, *more: str) -> list[str]:
    base = ["--data_input_dirs", str(inputs), "--tokenizer_dir", str(tokenizer_dir), "--data_arrow_output_dir"]
    return [*base, str(out), "--num_workers", "1", "--max_length", "128", "--num_spliced_dataset_bins", "3", *more]


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_account(manifest: dict[str, Any]) -> None:
    """Every token that was made is somewhere."""
    validation = manifest["validation"]["tokens"] if manifest["validation"] else 0
    left = manifest["tokens"] + validation + sum(manifest["tokens_dropped"].values())
    assert manifest["tokens_in"] + manifest["tokens_repeated"] == left


def test_bad_records_are_skipped_counted_and_listed(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "in/a.jsonl", texts(30))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3:3] = [b'{"target": \n', b'{"target": 7}\n', b'{"target": "\xff"}\n', b'{"target": "half \\ud83d"}\n']
    path.write_bytes(b"".join(lines))
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "stop")) == 2
    assert f"{path}:4: " in capsys.readouterr().err
    assert not (tmp_path / "stop").exists()
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", "--on_bad_record", "skip")) == 0
    manifest = manifest_of(tmp_path / "out")
    assert manifest["documents"] == 30
    assert manifest["inputs"][0]["records"] == 34
    assert sum(manifest["dropped"].values()) == 4
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open(encoding="utf-8")]
    assert [reject["where"] for reject in rejects] == [f"{path}:{line}" for line in (4, 5, 6, 7)]
    assert {reject["reason"] for reject in rejects} == set(manifest["dropped"])


def test_formats_are_recognised_and_may_mix_over_files(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", texts(10))
    write_jsonl(tmp_path / "in/b.jsonl", [{"text": "one two three", "meta": {"pile_set_name": "Pile"}}] * 3)
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", "--sub_dataset_by", "category")) == 0
    assert "record formats: colossal (1 files), text (1 files)" in capsys.readouterr().out
    entries = {entry["name"]: entry["documents"] for entry in manifest_of(tmp_path / "out")["sub_datasets"]}
    assert entries == {"Pile": 3, "novel": 10}
    body = [{"body": record["target"]} for record in texts(5)]
    write_jsonl(tmp_path / "odd/a.jsonl", body)
    assert pretrain_main(command(tmp_path / "odd", tokenizer_dir, tmp_path / "o2")) == 2
    assert "no known format" in capsys.readouterr().err
    assert pretrain_main(command(tmp_path / "odd", tokenizer_dir, tmp_path / "o2", "--text_field", "body")) == 0


def test_the_wrong_command_for_the_records(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"instruction": "say hello", "input": "", "output": "hello"}
    write_jsonl(tmp_path / "chat/a.jsonl", [chat] * 3)
    write_jsonl(tmp_path / "text/a.jsonl", texts(3))
    assert pretrain_main(command(tmp_path / "chat", tokenizer_dir, tmp_path / "out")) == 2
    assert "use prepare_sft_dataset.py" in capsys.readouterr().err
    assert sft_main(command(tmp_path / "text", tokenizer_dir, tmp_path / "out")) == 2
    assert "use prepare_pretrain_dataset.py" in capsys.readouterr().err
    more = ("--llama_version", "2")
    assert sft_main(command(tmp_path / "chat", tokenizer_dir, tmp_path / "out", *more)) == 0
    assert manifest_of(tmp_path / "out")["documents"] == 3


@pytest.mark.parametrize("way", ["exact", "near"])
def test_duplicates_are_dropped_counted_and_listed(tmp_path: Path, tokenizer_dir: Path, way: str) -> None:
    records = [{"target": text["target"] + "。" * 20} for text in texts(20, seed=1)]
    again = [{"target": records[index]["target"].replace("。。", "。 。", 0)} for index in (3, 3, 7)]
    write_jsonl(tmp_path / "in/a.jsonl", [*records[:10], *again, *records[10:]])
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", "--deduplicate", way)) == 0
    manifest = manifest_of(tmp_path / "out")
    check_account(manifest)
    assert manifest["dropped"]["equal to an earlier text"] == 3
    assert manifest["tokens_dropped"]["duplicates"] > 0
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open(encoding="utf-8")]
    assert [reject["where"].rsplit(":", 1)[1] for reject in rejects][:3] == ["11", "12", "13"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_near_duplicates_over_files_and_shards(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """The n-grams that decide lie in the shards of both texts; a conversation in pieces counts once."""
    monkeypatch.setattr("colossal_llama.data.pipeline.SHARD_BYTES", 4000)
    monkeypatch.setattr("colossal_llama.data.slices.plan_slices.__defaults__", (2000,))
    text = sanguo_text()

    def chat(start: int, turns: int, change: str = "") -> dict[str, Any]:
        answers = [text[start + 60 * turn : start + 60 * turn + 60] for turn in range(turns)]
        answers[0] = answers[0] + change
        pairs = [(("human", "接下来？"), ("assistant", answer)) for answer in answers]
        return {"messages": [{"from": role, "content": content} for pair in pairs for role, content in pair]}

    records = [chat(1000 * number, 2 + number % 9) for number in range(40)]
    records += [chat(1000 * number, 2 + number % 9, "，") for number in (5, 8)]  # punctuation does not count
    records += [chat(1000 * number, 2 + number % 9, "改") for number in (17, 26)]
    records += [chat(1000 * number + 400, 9) for number in (7, 17)]
    write_jsonl(tmp_path / "in/a.jsonl", records[:25])
    write_jsonl(tmp_path / "in/b.jsonl", records[25:])
    more = ["--max_length", "512", "--deduplicate", "near", "--num_workers", workers]
    assert sft_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", *more)) == 0
    manifest = manifest_of(tmp_path / "out")
    check_account(manifest)
    assert manifest["dropped"] == {"nearly equal to an earlier text": 4}
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open(encoding="utf-8")]
    assert [reject["where"].rsplit("/", 1)[1] for reject in rejects] == [f"b.jsonl:{line}" for line in (16, 17, 18, 19)]
    assert sum(part["documents"] for part in manifest["parts"]) == 42


def test_evaluation_files_are_read_once(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question = sanguo_text()[5000:5040]
    write_jsonl(tmp_path / "in/a.jsonl", [*texts(20), {"target": question}])
    write_jsonl(tmp_path / "questions.jsonl", [{"question": question}])
    read = decontamination._read_texts

    def read_and_remove(path: Path, flag: str) -> list[str]:
        found = list(read(path, flag))
        path.write_text("", encoding="utf-8")
        return found

    monkeypatch.setattr(decontamination, "_read_texts", read_and_remove)
    more = ["--decontaminate", str(tmp_path / "questions.jsonl"), "--num_workers", "2"]
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", *more)) == 0
    assert manifest_of(tmp_path / "out")["dropped"] == {"holds an evaluation text": 1}


def test_quality_and_decontamination(tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = texts(12, seed=2)
    records = [record for record in records if len(record["target"]) >= 30]
    question = sanguo_text()[5000:5040]
    write_jsonl(
        tmp_path / "in/a.jsonl", [*records, {"target": "短"}, {"target": "same line\n" * 50}, {"target": question * 2}]
    )
    write_jsonl(tmp_path / "questions.jsonl", [{"question": question}])
    more = ["--quality", "gopher", "--min_characters", "10", "--decontaminate", str(tmp_path / "questions.jsonl")]
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", *more)) == 0
    assert "decontamination: 1 evaluation texts" in capsys.readouterr().out
    manifest = manifest_of(tmp_path / "out")
    assert manifest["documents"] == len(records)
    assert sum(manifest["dropped"].values()) == 3
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "x", "--decontaminate", "gone")) == 2
    assert "--decontaminate gone" in capsys.readouterr().err
    wrong = ["--min_characters", "9", "--max_characters", "3"]
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "x", *wrong)) == 2
    assert "--min_characters 9 is more than" in capsys.readouterr().err


def test_mixture_and_validation(tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "zh/a.jsonl", texts(200))
    write_jsonl(tmp_path / "en/a.jsonl", [{"target": f"sentence number {n} of the English text"} for n in range(40)])
    more = ["--mixture", "zh=1,en=1", "--validation_fraction", "0.1"]
    inputs = f"{tmp_path / 'zh'},{tmp_path / 'en'}"
    assert pretrain_main(command(inputs, tokenizer_dir, tmp_path / "out", *more)) == 0
    assert "sub-dataset en:" in capsys.readouterr().out
    manifest = manifest_of(tmp_path / "out")
    check_account(manifest)
    by_name = {entry["name"]: entry for entry in manifest["sub_datasets"]}
    assert by_name["zh"]["epochs"] == 1
    assert by_name["en"]["epochs"] > 2
    assert (by_name["zh"]["validation_documents"], by_name["en"]["validation_documents"]) == (20, 4)
    shares = {name: sum(part["sub_datasets"][name]["tokens"] for part in manifest["parts"]) for name in by_name}
    assert abs(shares["zh"] / shares["en"] - 1) < 0.1
    held = PackedDataset([tmp_path / "out/validation"])
    assert sum(len(held[index]["input_ids"]) for index in range(len(held))) == manifest["validation"]["tokens"]
    assert len(PackedDataset([tmp_path / "out"])) == manifest["rows"], "training does not read the validation part"
    seen = {tuple(held[index]["input_ids"].tolist()) for index in range(len(held))}
    assert seen


@pytest.mark.parametrize("way", ["truncate", "sample"])
@pytest.mark.parametrize("packing", ["concat", "none"])
def test_what_is_dropped_on_purpose_is_counted(tmp_path: Path, tokenizer_dir: Path, way: str, packing: str) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", texts(60))
    more = ["--long_documents", way, "--packing", packing]
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", *more)) == 0
    manifest = manifest_of(tmp_path / "out")
    check_account(manifest)
    assert manifest["tokens_dropped"]["end of a long document"] > 0


def spawn(arguments: list[str]) -> subprocess.Popen:
    """The command in a process group of its own, with small slices and shards so that there is much to resume."""
    program = (
        "import sys, colossal_llama.data.slices as r, colossal_llama.data.pipeline as p\n"
        "r.plan_slices.__defaults__ = (20_000,)\n"
        "p.SHARD_BYTES, p.PARALLEL_PART_TOKENS = 40_000, 100\n"
        "from colossal_llama.commands.prepare_pretrain_dataset import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path, tokenizer_dir: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", texts(1500))

    def arguments(name: str, workers: str) -> list[str]:
        return command(tmp_path / "in", tokenizer_dir, tmp_path / name / "arrow", "--num_workers", workers)

    whole = spawn(arguments("whole", "1"))
    assert whole.wait() == 0, whole.stdout and whole.stdout.read()
    expected = all_files(tmp_path / "whole")
    scratch = tmp_path / "killed"

    def files() -> int:
        return sum(len(names) for _, _, names in os.walk(scratch))

    draw = random.Random(0)
    resumed = False
    for attempt in range(30):
        process = spawn(arguments("killed", "2" if attempt % 2 else "1"))
        assert process.stdout is not None
        # Killed once a random number of further files is there, wherever the work then stands.
        goal = files() + draw.randrange(1, 9)
        while process.poll() is None and files() < goal:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        resumed = resumed or b"going on with" in process.stdout.read()
        if code == 0:
            break
    else:
        last = spawn(arguments("killed", "2"))
        assert last.wait() == 0, last.stdout and last.stdout.read()
    assert resumed
    assert all_files(scratch) == expected


def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", texts(50))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr("colossal_llama.data.pipeline.write_bins", full)
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out")) == 2
    assert "No space left on device; check space and permissions" in capsys.readouterr().err
    monkeypatch.undo()
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out")) == 0
    assert "going on with" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


KILLED_AT_EVERY_STEP = """
import json, os, shutil, signal, sys
import colossal_llama.data.pipeline as pipeline
from colossal_llama.commands.prepare_pretrain_dataset import main
import datasets, pyarrow, tokenizers, transformers.models.auto  # so that a fork has nothing left to import

STEPS = ("rename", "unlink", "rmdir", "mkdir")
write_report = pipeline.write_report
done = 0

def die_before(step):
    def counted(call):
        def run(*arguments, **named):
            global done
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return call(*arguments, **named)
        return run

    def report(*arguments):
        write_report(*arguments)
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))

    pipeline.write_report = report

def child(step, arguments, log):
    process = os.fork()
    if process == 0:
        os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
        os.dup2(1, 2)
        if step is not None:
            die_before(step)
        os._exit(main(arguments))
    return os.waitpid(process, 0)[1]

folder, log, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
for step in range(1000):
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder + "-before"):
        shutil.copytree(folder + "-before", folder)
    killed = child(step, arguments, log)
    left = sorted(os.listdir(folder)) if os.path.exists(folder) else []
    finished = child(None, arguments, log) if killed else killed
    files = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            files[os.path.relpath(path, folder)] = open(path, "rb").read().hex()
    print(json.dumps({"killed": killed, "left": left, "finished": finished, "files": files}), flush=True)
    if not killed:
        break
"""


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_killed_while_publishing_the_same_command_finishes(
    tmp_path: Path, tokenizer_dir: Path, overwrite: bool
) -> None:
    """Killed before each single rename and removal from the moment on at which everything is made."""
    write_jsonl(tmp_path / "in/a.jsonl", texts(30))
    folder = tmp_path / "out"
    arguments = ["--data_input_dirs", str(tmp_path / "in"), "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
    arguments += ["--data_output_dirs", str(folder), "--max_length", "128", "--num_spliced_dataset_bins", "1"]
    assert pretrain_main(arguments) == 0
    expected = {name: content.hex() for name, content in all_files(folder).items()}
    shutil.rmtree(folder)
    if overwrite:
        assert pretrain_main([*arguments, "--seed", "7"]) == 0
        folder.rename(tmp_path / "out-before")
        arguments.append("--overwrite")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(folder), str(tmp_path / "log"), *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    printed = (tmp_path / "log").read_text(encoding="utf-8")
    assert len(runs) > 8
    assert [run["killed"] for run in runs] == [signal.SIGKILL] * (len(runs) - 1) + [0]
    for step, run in enumerate(runs):
        assert run["finished"] == 0, (step, run["left"], printed[-2000:])
        assert run["files"].keys() == expected.keys(), (step, run["left"])
        assert run["files"] == expected, step
    assert any({"arrow", "jsonl"} & set(run["left"]) == {"jsonl"} for run in runs), "never killed between the two"
    assert "publishing what is left" in printed


def test_what_a_killed_command_with_other_flags_left_is_removed(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import colossal_llama.data.pipeline as pipeline

    write_jsonl(tmp_path / "in/a.jsonl", texts(50))
    arguments = ["--data_input_dirs", str(tmp_path / "in"), "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
    arguments += ["--max_length", "128"]
    here = ["--data_output_dirs", str(tmp_path / "out")]
    monkeypatch.setattr(pipeline, "write_bins", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    # One with its scratch files in another folder, one for another output that has to stay.
    elsewhere = ["--data_output_dirs", str(tmp_path / "out2"), "--data_cache_dir", str(tmp_path / "cache")]
    for stopped in (
        [*here, "--seed", "1"],
        [*here, "--seed", "2", "--data_cache_dir", str(tmp_path / "cache")],
        elsewhere,
    ):
        with pytest.raises(KeyboardInterrupt):
            pretrain_main([*arguments, *stopped])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    other = sorted(path.name for path in (tmp_path / "out2").iterdir())
    monkeypatch.undo()
    assert pretrain_main([*arguments, *here, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("removed what a stopped preparation with other flags or input left beside ") == 2
    assert "going on with" not in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["arrow", "jsonl"]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert sorted(path.name for path in (tmp_path / "out2").iterdir()) == other
    assert pretrain_main([*arguments, *elsewhere]) == 0
    assert "going on with" in capsys.readouterr().out
    # The folder was made by a command that has been removed, for others too.
    assert list((tmp_path / "cache").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "in", "out", "out2"]


def test_a_note_does_not_make_it_remove_other_folders(tmp_path: Path, tokenizer_dir: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", texts(5))
    (tmp_path / "precious").mkdir()
    folders = [str(tmp_path / name) for name in ("precious", "prepare-12", ".out.prepare-34")]
    note = json.dumps({"folders": folders, "made": [str(tmp_path / "in"), str(tmp_path / "gone")]})
    for content, name in ((note, "12"), ("", "34"), ('{"folders": 1}', "56"), ('[1, "made"]', "78")):
        (tmp_path / f".out.prepare-{name}.json").write_text(content, encoding="utf-8")
    (tmp_path / "prepare-12").mkdir()
    (tmp_path / ".out.prepare-34").mkdir()
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.prepare-34", "in", "out", "precious"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "the same preparation is running already"),
        (["--seed", "9"], "another preparation of this folder is running"),
    ],
)
def test_two_at_a_time_are_refused(
    tmp_path: Path,
    tokenizer_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    import colossal_llama.data.pipeline as pipeline

    write_jsonl(tmp_path / "in/a.jsonl", texts(50))
    run, codes = pipeline._prepare_in, []

    def while_running(*arguments: Any) -> Any:
        monkeypatch.setattr(pipeline, "_prepare_in", run)
        codes.append(pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out", *more)))
        return run(*arguments)

    monkeypatch.setattr(pipeline, "_prepare_in", while_running)
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "out")) == 0
    assert codes == [2]
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_ray_gives_the_same_bytes(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr("colossal_llama.data.pipeline.SHARD_BYTES", 20_000)
    monkeypatch.setattr("colossal_llama.data.slices.plan_slices.__defaults__", (10_000,))
    write_jsonl(tmp_path / "in/a.jsonl", texts(400))
    assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "local/arrow")) == 0
    try:
        more = ["--engine", "ray", "--num_workers", "2"]
        assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "ray/arrow", *more)) == 0
        assert all_files(tmp_path / "local") == all_files(tmp_path / "ray")
        (tmp_path / "in/b.jsonl").write_text('{"target": 7}\n', encoding="utf-8")
        assert pretrain_main(command(tmp_path / "in", tokenizer_dir, tmp_path / "bad/arrow", *more)) == 2
        assert "b.jsonl:1: 'target' must be a string" in capsys.readouterr().err
    finally:
        ray.shutdown()
