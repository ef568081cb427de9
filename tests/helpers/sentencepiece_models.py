"""Small SentencePiece models, trained in a second or two on text that the test packages bring along."""

import io
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

from tests.helpers import assets


def training_lines() -> list[str]:
    """English and Chinese sentences; the Chinese ones leave characters over for byte fallback."""
    english = [line for line in assets.english_text().splitlines() if line.strip()][::3]
    sentences = assets.sanguo_text().replace("\n", "").split("。")
    return english + [sentence + "。" for sentence in sentences[::20]]


def train_model(model_type: str, **options: Any) -> bytes:
    """A ``tokenizer.model`` laid out as Llama's (identity normalization, byte fallback); ``options`` change it."""
    settings = {
        "vocab_size": 2200,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "max_sentence_length": 100_000,
        "num_threads": 1,
        "minloglevel": 2,
        **options,
    }
    output = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()), model_writer=output, model_type=model_type, **settings
    )
    return output.getvalue()


def write_dir(folder: Path, model: bytes, **settings: Any) -> Path:
    """A Hugging Face folder around ``model``; ``settings`` go to its tokenizer_config.json."""
    assets.write_sentencepiece_dir(folder, **settings)
    (folder / "tokenizer.model").write_bytes(model)
    return folder


def build_model(model_type: str, pieces: dict[str, float], user_defined: tuple[str, ...] = ()) -> bytes:
    """A ``bpe`` or ``unigram`` model of exactly these pieces and scores, with byte fallback."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = {"unigram": 1, "bpe": 2}[model_type]
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
    for piece, score in pieces.items():
        proto.pieces.add(piece=piece, score=score, type=1)
    for piece in user_defined:
        proto.pieces.add(piece=piece, score=0.0, type=4)
    return proto.SerializeToString()
