"""Mining pieces from a corpus: what they save is measured, not claimed."""

from pathlib import Path

import pytest

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.mining import MinedPiece, count_runs, mine_pieces, read_texts, write_pieces
from colossal_llama.tokenizer.pieces import read_pieces
from tests.helpers import assets


def test_runs_are_letters_outside_ascii() -> None:
    runs = count_runs(["却说孔明，却说 abc曹操abc123\n却说１２\u3000é"])
    assert runs == {"却说孔明": 1, "，": 1, "却说": 2, "曹操": 1, "é": 1}


def test_mined_pieces_save_what_they_claim(sentencepiece_dir: Path, tmp_path: Path) -> None:
    text = assets.sanguo_text()[:60_000]
    old = load_tokenizer(sentencepiece_dir, "--t")
    mined = mine_pieces([text], old, 200)
    assert len(mined) == 200
    assert [entry.saved for entry in mined] == sorted((entry.saved for entry in mined), reverse=True)
    assert all(1 <= len(entry.piece) <= 4 and entry.piece not in old.get_vocab() for entry in mined)
    assert len({entry.piece for entry in mined}) == 200
    pieces = [entry.piece for entry in mined]
    assert {"玄德", "曹操"} <= set(pieces)
    expand_tokenizer(sentencepiece_dir, pieces, tmp_path / "wider")
    new = load_tokenizer(tmp_path / "wider", "--t")
    lines = text.splitlines()
    saved = sum(map(len, old(lines).input_ids)) - sum(map(len, new(lines).input_ids))
    assert saved == pytest.approx(sum(entry.saved for entry in mined), rel=0.15)


def test_best_piece_comes_first_and_length_is_limited(sentencepiece_dir: Path) -> None:
    tokenizer = load_tokenizer(sentencepiece_dir, "--t")
    texts = ["饕餮"] * 5 + ["中国"] * 9 + ["罕"]
    mined = mine_pieces(texts, tokenizer, 10)
    assert mined == [MinedPiece("饕餮", 5, 25), MinedPiece("中国", 9, 9)]
    for longest in (1, 2, 3):
        mined = mine_pieces(["饕餮之徒"] * 5, tokenizer, 10, max_characters=longest)
        assert max(len(entry.piece) for entry in mined) == min(longest, 2), longest


def test_english_gives_nothing(sentencepiece_dir: Path) -> None:
    assert mine_pieces(["the quick brown fox " * 9], load_tokenizer(sentencepiece_dir, "--t"), 10) == []


def test_reads_jsonl_and_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "", "target": "甲"}\n\n{"text": "乙"}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("\ufeff丙\r\n丁".encode())
    assert list(read_texts([tmp_path / "a.jsonl", tmp_path / "b.txt"])) == ["甲", "乙", "丙\r\n", "丁"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"target": "a"}\n{"target": 7}\n', ":2: expected an object with a string"),
        (b'{"target": "a"\n', ":1: not valid JSON"),
        (b"[1]\n", ":1: expected a JSON object"),
        (b'{"target": "a"}\n\xd6\xd0\n', ":2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"corpus.jsonl{message}"):
        list(read_texts([path]))
    with pytest.raises(UserError, match="no such file"):
        list(read_texts([tmp_path / "absent.txt"]))


def test_written_pieces_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pieces.jsonl"
    write_pieces(path, [MinedPiece("饕餮", 5, 25), MinedPiece("中国", 9, 9)])
    assert read_pieces(path) == ["饕餮", "中国"]
    assert [file.name for file in path.parent.iterdir()] == ["pieces.jsonl"]
