"""Files of checkpoints and models run nothing when they are read."""

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from colossal_llama.checkpoint.rng import load_rng, save_rng
from colossal_llama.checkpoint.safe_load import load_safely
from colossal_llama.data.dataset import load_table
from colossal_llama.data.readers import read_records
from colossal_llama.errors import UserError
from colossal_llama.generation.prompts import render_chat
from colossal_llama.model.lora import merge_adapter
from colossal_llama.model.pretrained import describe_repairs, load_causal_lm
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.helpers.hostile_pickle import RunsCode
from tests.helpers.tiny import save_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "base")


def test_the_hostile_object_does_run_code(tmp_path: Path) -> None:
    torch.save(RunsCode(tmp_path / "mark"), tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: {"states": [[one]]}, lambda one: (torch.zeros(2), one)])
def test_code_is_refused(wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(RunsCode(tmp_path / "mark")), tmp_path / "rank-00000.pt")
    with pytest.raises(UserError, match=r"rank-00000\.pt: not read, because .*posix\.mkdir"):
        load_safely(tmp_path / "rank-00000.pt")
    assert not (tmp_path / "mark").exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lr_scheduler").write_bytes(pickle.dumps(RunsCode(tmp_path / "mark")))
    with pytest.raises(UserError, match="lr_scheduler: "):
        load_safely(tmp_path / "lr_scheduler")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + bytes(100), None])
def test_damaged_files_are_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "loss_scale.pt"
    if content is None:
        torch.save({"a": torch.zeros(1000)}, path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"loss_scale\.pt: "):
        load_safely(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        load_safely(tmp_path / "lr_scheduler")


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_generators_of_older_checkpoints_are_read(tmp_path: Path) -> None:
    """They held NumPy's state as an array, which a pickle can only make by calling functions."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": None,
        "extra": {},
    }
    torch.save(states, tmp_path / "rank-00000.pt")
    expected = draw()
    assert load_rng(tmp_path, 0, {})
    assert draw() == expected


def test_generators_hold_no_array(tmp_path: Path) -> None:
    save_rng(tmp_path, 0, {"neftune": torch.Generator()})
    expected = draw()
    load_safely(tmp_path / "rank-00000.pt")  # without the classes of older checkpoints
    assert load_rng(tmp_path, 0, {"neftune": torch.Generator()})
    assert draw() == expected


@pytest.mark.parametrize("states", [{}, [], {"python": 1, "numpy": 2}, {"python": (3, (1, 2), None)}])
def test_generators_of_another_shape_are_refused(states: Any, tmp_path: Path) -> None:
    torch.save(states, tmp_path / "rank-00000.pt")
    before = random.getstate()
    with pytest.raises(UserError, match=r"rank-00000\.pt: damaged"):
        load_rng(tmp_path, 0, {})
    random.setstate(before)


def test_pickled_weights_run_nothing(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": RunsCode(tmp_path / "mark")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_causal_lm(folder, "--pretrained")
    assert not (tmp_path / "mark").exists()


def test_pickled_adapters_run_nothing(tmp_path: Path, base: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.save({"a": RunsCode(tmp_path / "mark")}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin: is truncated or not a file of weights"):
        merge_adapter(load_causal_lm(base, "--base_model_path"), adapter, "--adapter_path")
    assert not (tmp_path / "mark").exists()


def test_python_beside_a_model_is_not_run(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does transformers ask on the terminal whether it may."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on the terminal"))
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    code = f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nOwnConfig = OwnModel = OwnTokenizer = None\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    auto_map = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoTokenizer": ["own.OwnTokenizer", None],
    }
    for name, changes in (
        ("config.json", {"auto_map": auto_map, "model_type": "own"}),
        ("tokenizer_config.json", {"auto_map": auto_map, "tokenizer_class": "OwnTokenizer"}),
    ):
        content = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for read in (load_causal_lm, describe_repairs, load_tokenizer):
        with pytest.raises(UserError):
            read(folder, "--pretrained")
    assert not (tmp_path / "mark").exists()


def test_a_type_that_is_a_pickle_runs_nothing(tmp_path: Path) -> None:
    """pyarrow before 14.0.1 unpickled such types when it read a schema (CVE-2023-47248)."""
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(RunsCode(tmp_path / "mark")),
    }
    kind = pa.list_(pa.int32())
    schema = pa.schema([pa.field(name, kind, metadata=extension) for name in ("input_ids", "labels")])
    table = pa.table([pa.array([[1, 2, 3]], kind)] * 2, schema=schema)
    part = tmp_path / "part-00000"
    part.mkdir()
    with pa.OSFile(str(part / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": None}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (part / "dataset_info.json").write_text("{}", encoding="utf-8")
    parquet.write_table(table, tmp_path / "rows.parquet")
    for path in (tmp_path / "rows.parquet", part):
        assert [record.value["labels"] for record in read_records(path)] == [[1, 2, 3]]
    assert load_table(part, "--dataset").num_rows == 1
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('mark') }}",
        "{% set _ = messages.append(1) %}{{ messages }}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(
    template: str, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(base, "--model_path")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="chat template"):
        render_chat(tokenizer, [{"role": "user", "content": "hello"}])
    assert not (tmp_path / "mark").exists()
