"""SentencePiece stands in for the tokenizers library where, and only where, it gives the same ids."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import PreTrainedTokenizerBase

from colossal_llama.commands.prepare_pretrain_dataset import main as prepare
from colossal_llama.data.sentencepiece_encoder import EqualModel, equal_model
from colossal_llama.data.tokenization import TextEncoder, encoder_spec
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.helpers.assets import english_text, sanguo_text, write_sentencepiece_dir
from tests.helpers.corpus import write_jsonl

TEXTS = st.text(
    st.one_of(st.sampled_from(" ▁\n\t-=.a1中<s>/"), st.characters(exclude_categories=("Cs",))), min_size=1, max_size=60
)


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = write_sentencepiece_dir(tmp_path_factory.mktemp("tokenizer") / "t", legacy=request.param)
    return load_tokenizer(folder, "--tokenizer_dir")


@pytest.fixture(scope="module")
def encoders(tokenizer: PreTrainedTokenizerBase) -> tuple[TextEncoder, TextEncoder]:
    spec = encoder_spec(tokenizer, "--tokenizer_dir")
    assert spec.sentencepiece is not None
    slow = encoder_spec(tokenizer, "--tokenizer_dir", encoder="tokenizers")
    assert slow.sentencepiece is None
    return TextEncoder(spec), TextEncoder(slow)


@given(texts=st.lists(TEXTS, max_size=5))
def test_any_text_gets_the_same_ids(encoders: tuple[TextEncoder, TextEncoder], texts: list[str]) -> None:
    quick, slow = encoders
    # The first of a batch is compared by the encoder itself.
    assert quick.ids(["x", *texts], at_start=True) == slow.ids(["x", *texts], at_start=True)


def test_real_texts_get_the_same_ids(encoders: tuple[TextEncoder, TextEncoder]) -> None:
    quick, slow = encoders
    text = sanguo_text()[:100_000] + english_text()[:200_000]
    texts = [text[start : start + 997] for start in range(0, len(text), 997)]
    assert quick.ids(texts, at_start=True) == slow.ids(texts, at_start=True)
    assert quick.ids(texts[:20], at_start=False) == slow.ids(texts[:20], at_start=False)


def _model_file(folder: Path, change: Callable[[Any], None]) -> Path:
    write_sentencepiece_dir(folder)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    change(proto)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


def _swap_scores(proto: Any) -> None:
    one, other = proto.pieces[400], proto.pieces[5000]
    one.score, other.score = other.score, one.score


def _share_a_score(proto: Any) -> None:
    proto.pieces[400].score = proto.pieces[401].score


def _strip_spaces(proto: Any) -> None:
    proto.normalizer_spec.remove_extra_whitespaces = True


def _define_by_user(proto: Any) -> None:
    proto.pieces[400].type = 4


def _other_piece(proto: Any) -> None:
    (piece,) = [piece for piece in proto.pieces if piece.piece == "▁the"]
    piece.piece = "unheard-of"


@pytest.mark.parametrize("change", [_swap_scores, _share_a_score, _strip_spaces, _define_by_user, _other_piece])
def test_a_model_that_may_encode_otherwise_is_not_taken(tmp_path: Path, change: Callable[[Any], None]) -> None:
    folder = write_sentencepiece_dir(tmp_path / "right")
    tokenizer = load_tokenizer(folder, "--tokenizer_dir")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    assert equal_model(tokenizer, backend) is not None
    tokenizer.vocab_file = str(_model_file(tmp_path / "changed", change) / "tokenizer.model")
    assert equal_model(tokenizer, backend) is None


def test_an_added_word_keeps_the_tokenizers_library(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_dir(tmp_path / "t"), "--tokenizer_dir")
    tokenizer.add_tokens(["unheard-of"])
    assert encoder_spec(tokenizer, "--tokenizer_dir").sentencepiece is None


def test_a_difference_that_shows_later_stops_the_work(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    spec = encoder_spec(tokenizer, "--tokenizer_dir")
    assert spec.sentencepiece is not None
    folder = _model_file(tmp_path / "changed", _other_piece)
    other = EqualModel((folder / "tokenizer.model").read_bytes(), spec.sentencepiece.marks_once)
    encoder = TextEncoder(dataclasses.replace(spec, sentencepiece=other))
    with pytest.raises(UserError, match=r"different ids for .*--encoder tokenizers"):
        encoder.ids([english_text()[:50_000]], at_start=True)


def test_the_dataset_is_the_same_with_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sentencepiece_dir(tmp_path / "t")
    text = english_text()
    records = [{"source": "Q: " if n % 3 == 0 else "", "target": text[90 * n : 90 * n + 200]} for n in range(60)]
    source = write_jsonl(tmp_path / "in/a.jsonl", records)
    arguments = ["--data_input_dirs", str(source), "--tokenizer_dir", str(folder), "--max_length", "128"]
    arguments += ["--num_workers", "1", "--num_spliced_dataset_bins", "2", "--data_arrow_output_dir"]
    assert prepare([*arguments, str(tmp_path / "auto")]) == 0
    assert "tokenising with sentencepiece" in capsys.readouterr().out
    assert prepare([*arguments, str(tmp_path / "slow"), "--encoder", "tokenizers"]) == 0
    assert "tokenising with tokenizers" in capsys.readouterr().out
    for part in ("part-00000", "part-00001"):
        name = f"{part}/data-00000-of-00001.arrow"
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "slow" / name).read_bytes()
