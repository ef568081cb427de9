"""Bad input to init_tokenizer.py: one line that says what and where, and nothing written; or a counted, listed skip."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from colossal_llama.commands import init_tokenizer
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.sentencepiece import read_model
from tests.helpers.sentencepiece_models import train_model, write_dir

GOOD = '{"piece": "孔明曰之"}\n'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dir(tmp_path_factory.mktemp("source") / "tokenizer", train_model("bpe"))


def run(source: Path, pieces: bytes | str, folder: Path, *flags: str) -> tuple[int, Path]:
    file, target = folder / "pieces.jsonl", folder / "target"
    file.write_bytes(pieces if isinstance(pieces, bytes) else pieces.encode())
    argv = ["--source_tokenizer_dir", str(source), "--target_tokenizer_dir", str(target)]
    return init_tokenizer.main([*argv, "--expand_tokens_file", str(file), *flags]), target


@pytest.mark.parametrize(
    ("lines", "skipped"),
    [
        (['"你好呀"', '"你好呀"', '" the"', '"▁the"'], {"given twice": 1, "already in the vocabulary": 2}),
        (['" "', '"▁"', '"\\u3000"'], {"only white space": 3}),
        (
            ['"\\t"', '"第\\n一"', '"a\\u0000b"', '"\\ufeff中"', '"a\\u2028"'],
            {"contains a newline or control character": 5},
        ),
        (['"中 国"', '"of▁the"'], {"contains a space that is not its first character": 2}),
        (['"<s>"', '"</s>"', '"<unk>"', '"<0x41>"', '"<pad>"'], {"holds a special, control or byte token": 5}),
        (['"' + "中" * 5000 + '"'], {"longer than 32 characters": 1}),
        (['"�"'], {"contains U+FFFD, the mark of wrongly decoded text": 1}),
    ],
    ids=["duplicates", "blank", "control", "spaces", "special", "long", "broken"],
)
def test_unusable_pieces_are_counted_and_listed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], skipped: dict[str, int]
) -> None:
    code, target = run(source, GOOD + "".join(f'{{"piece": {line}}}\n' for line in lines), tmp_path)
    assert code == 0
    report = json.loads((target / "expansion.json").read_text(encoding="utf-8"))
    assert report["skipped"] == skipped
    assert len(report["skipped_pieces"]) == sum(skipped.values())
    printed = capsys.readouterr().out
    for reason, count in skipped.items():
        assert f"  {count} {reason}, such as " in printed


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ("", "holds no piece"),
        ("\n\n", "holds no piece"),
        (GOOD + '{"piece": ""}\n', "pieces.jsonl:2: the piece is empty"),
        (GOOD + '{"token": "中国"}\n', "pieces.jsonl:2: expected"),
        (GOOD + '{"piece": null}\n', "pieces.jsonl:2: expected"),
        (GOOD + '{"piece": 7}\n', "pieces.jsonl:2: expected"),
        (GOOD + '"中国"\n', "pieces.jsonl:2: expected a JSON object"),
        (GOOD + '{"piece": "\\ud800"}\n', "half of a surrogate pair"),
        (b'{"piece": "\xd6\xd0"}\n', "pieces.jsonl:1: not UTF-8"),
        ('{"piece": "▁the"}\n{"piece": "<s>"}\n', "no piece left to add (1 already in the vocabulary, 1 holds"),
    ],
)
def test_bad_piece_files_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pieces: bytes | str, message: str
) -> None:
    code, _ = run(source, pieces, tmp_path)
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pieces.jsonl"]


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return edit


def name_class(name: str, auto_map: bool) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text()) | {"tokenizer_class": name}
        if auto_map:
            config["auto_map"] = {"AutoTokenizer": [f"tokenization_own.{name}", None]}
        file.write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer here"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "has no tokenizer_config.json"),
        (cut("tokenizer.model"), "tokenizer.model is truncated or not a SentencePiece model"),
        (cut("tokenizer_config.json"), "not valid JSON"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"not a model"), "not a SentencePiece model"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b""), "not a SentencePiece model"),
        (
            lambda folder: (folder / "tokenizer.model").write_bytes(
                train_model("word", vocab_size=500, byte_fallback=False)
            ),
            "trained with a different algorithm",
        ),
        (name_class("NoSuchTokenizer", auto_map=False), 'write "tokenizer_class": "LlamaTokenizer"'),
        (name_class("InternLMTokenizer", auto_map=True), "InternLMTokenizer is none of transformers' own"),
    ],
    ids=["absent", "no-model", "no-config", "cut-model", "cut-config", "text", "empty", "word", "class", "custom-code"],
)
def test_bad_tokenizer_folders_are_refused(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    damage(folder)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, _ = run(folder, GOOD, tmp_path)
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert str(folder) in printed
    assert printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "pieces.jsonl"])


def test_nobody_is_asked_whether_to_run_code(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or "n")
    shutil.copytree(source, tmp_path / "source")
    name_class("InternLMTokenizer", auto_map=True)(tmp_path / "source")
    assert run(tmp_path / "source", GOOD, tmp_path)[0] == 2
    assert questions == []


def test_the_remedy_for_a_custom_class_works(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    name_class("BaichuanTokenizer", auto_map=True)(folder)
    assert run(folder, GOOD, tmp_path)[0] == 2
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["auto_map"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
    assert run(folder, GOOD, tmp_path)[0] == 0


def test_check_text_is_read_before_anything_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, broken = tmp_path / "plain.txt", tmp_path / "broken.jsonl"
    plain.write_text("Some English.\n\n孔明曰之乎\n", encoding="utf-8")
    broken.write_text('{"target": "fine"}\n{"other": 1}\n')
    for text, message in ((tmp_path / "absent.txt", "no such file"), (broken, "broken.jsonl:2")):
        code, target = run(source, GOOD, tmp_path, "--check_text", str(plain), str(text))
        assert code == 2
        assert message in capsys.readouterr().err
        assert not target.exists()
    assert run(source, GOOD, tmp_path, "--check_text", str(plain))[0] == 0
    printed = capsys.readouterr().out
    assert f"{plain}: 2 documents, tokens" in printed
    assert "ids changed in 1 documents, 0 of them without a new token" in printed
    assert "slow and fast tokenizer agree" in printed


def test_unreachable_flag_reaches_the_expansion(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_halves = '{"piece": "三十小中"}\n'
    for mode, message in (
        ("drop", "--unreachable drop leaves no piece"),
        ("error", "三十小中: stays 三|十|小|中; lacks"),
    ):
        assert run(source, no_halves, tmp_path, "--unreachable", mode)[0] == 2
        assert message in capsys.readouterr().err
    assert run(source, no_halves, tmp_path, "--unreachable", "keep")[0] == 0
    assert "1 found, kept; 1 left" in capsys.readouterr().out


def test_word_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_model("word", vocab_size=500, byte_fallback=False))
    with pytest.raises(UserError, match="only SentencePiece BPE and unigram models"):
        read_model(tmp_path / "tokenizer.model")
