"""Memory that runs out, and tokenizers without begin or end token, in the commands that use a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from colossal_llama.commands.chat import main as chat
from colossal_llama.commands.compare_models import main as compare
from colossal_llama.commands.evaluate import main as evaluate
from colossal_llama.commands.inference import main as infer
from colossal_llama.commands.merge_lora import main as merge
from colossal_llama.errors import is_out_of_memory, run_command
from tests.helpers.tiny import save_tiny_model

TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:115] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


def commands(model: Path, out: Path) -> dict[str, Callable[[], int]]:
    (out / "texts.txt").write_text("a text\n")
    texts = ["--held_out", str(out / "texts.txt"), "--output_dir", str(out / "results")]
    short = ["--max_new_tokens", "2"]
    return {
        "inference": lambda: infer(["--model_path", str(model), "--prompt_style", "pretrained", *short]),
        "evaluate": lambda: evaluate([str(model), *texts]),
        "compare": lambda: compare([str(model), f"other={model}", *texts]),
    }


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["inference", "evaluate", "compare"])
def test_exhausted_memory_is_one_line(
    name: str, error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")

    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    assert commands(model, tmp_path)[name]() == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith("error: out of memory (")
    assert "; lower --" in line


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_memory_exhausted_while_a_model_is_loaded(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")

    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", fail)
    assert infer(["--model_path", str(model)]) == 1
    assert chat([str(model)]) == 1
    assert capsys.readouterr().err.count("error: out of memory") == 2
    assert merge is not None
    assert is_out_of_memory(error)


def test_other_errors_stay_what_they_are() -> None:
    def fail() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_command(fail, "advice")


def without(model: Path, *names: str) -> Path:
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for name in names:
        config.pop(name)
    config.pop("tokenizer_class", None)
    path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}))
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    return model


@pytest.mark.parametrize("names", [("bos_token",), ("eos_token",), ("bos_token", "eos_token")])
def test_tokenizers_without_begin_or_end(
    names: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io

    model = without(save_tiny_model(tmp_path / "model"), *names)
    run = commands(model, tmp_path)
    assert run["inference"]() == 0
    assert infer(["--model_path", str(model), "--max_new_tokens", "2"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Who?\n")))
    assert chat([str(model), "--max_new_tokens", "2"]) == 0
    capsys.readouterr()
    expected = 2 if len(names) == 2 else 0
    for name in ("evaluate", "compare"):
        assert run[name]() == expected
        assert ("neither a bos_token nor an eos_token" in capsys.readouterr().err) == bool(expected)
