"""SentencePiece models: reading ``tokenizer.model``, and appending pieces to it with every old id in place.

How new pieces are scored differs: see :mod:`.sentencepiece_bpe` and :mod:`.unigram`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.pieces import NOT_NORMAL, SPACE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNIGRAM_MODEL_TYPE, BPE_MODEL_TYPE = 1, 2
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
"""Piece types of SentencePiece's ModelProto."""


@dataclasses.dataclass
class SentencePieceModel:
    """A parsed ``tokenizer.model`` and a processor that runs the same bytes."""

    proto: Any
    processor: Any
    path: Path

    @property
    def is_unigram(self) -> bool:
        """Whether the model segments by log-probabilities instead of merges."""
        return self.proto.trainer_spec.model_type == UNIGRAM_MODEL_TYPE

    def normalizes_away(self, piece: str) -> bool:
        """Whether the model's normalization changes ``piece``, so that no text can ever give it."""
        text = piece.replace(SPACE_MARK, " ")
        return self.processor.normalize(text).lstrip(SPACE_MARK) != piece.lstrip(SPACE_MARK)

    def judge(self, piece: str) -> str | None:
        """Why ``piece`` cannot be added to this model, or None."""
        return NOT_NORMAL if self.normalizes_away(piece) else None


def read_model(path: Path) -> SentencePieceModel:
    """Parse ``tokenizer.model`` from its own bytes.

    The slow tokenizer must not be asked for the model: with ``legacy`` off it holds a copy in which the dummy
    prefix was switched off.

    Raises:
        UserError: the file is truncated or no SentencePiece model, or the model is neither BPE nor unigram.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    content = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()
    processor = SentencePieceProcessor()
    try:
        proto.ParseFromString(content)
        processor.LoadFromSerializedProto(content)
    except Exception as error:  # protobuf's and SentencePiece's own error types differ between versions
        raise UserError(f"{path}: truncated or not a SentencePiece model; copy the file again") from error
    if proto.trainer_spec.model_type not in (UNIGRAM_MODEL_TYPE, BPE_MODEL_TYPE):
        raise UserError(f"{path}: a word or character model; only SentencePiece BPE and unigram models can be widened")
    return SentencePieceModel(proto, processor, path)


def absorb_added_tokens(proto: Any, tokenizer: "PreTrainedTokenizerBase", path: Path) -> range:
    """Give added tokens beyond the model (``<pad>`` at 32000) pieces of their own, which keeps their ids.

    New pieces get the next free ids of the model; without this they would take the added tokens' ids.

    Returns:
        The ids that the model did not hold before.

    Raises:
        UserError: the added tokens' ids leave a gap, which a SentencePiece model cannot have, or ``tokenizer.json``
            holds further tokens that the model lacks.
    """
    added = tokenizer.added_tokens_decoder  # type: ignore[attr-defined]
    old_size = len(proto.pieces)
    for token_id in sorted(added):
        if token_id < len(proto.pieces):
            continue
        if token_id != len(proto.pieces):
            raise UserError(
                f"{path}: added token {added[token_id].content!r} has id {token_id}, but the ids from "
                f"{len(proto.pieces)} on are unused; no id can be kept across a gap, so give the tokenizer "
                "without that added token"
            )
        special = added[token_id].special
        proto.pieces.add(piece=added[token_id].content, score=0.0, type=CONTROL if special else USER_DEFINED)
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        if token_id >= len(proto.pieces):
            raise UserError(
                f"{path}: has {old_size} pieces, but tokenizer.json gives {token!r} id {token_id}; the two files do "
                "not belong together, so copy both again from one place"
            )
    return range(old_size, len(proto.pieces))


def append_pieces(proto: Any, pieces: Sequence[str], scores: Iterable[float]) -> None:
    """Append ``pieces`` as ordinary ones with ``scores``."""
    for piece, score in zip(pieces, scores, strict=True):
        proto.pieces.add(piece=piece, score=score, type=NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
