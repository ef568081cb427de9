"""Widening a SentencePiece BPE model (Llama 1 and 2, Mistral): ``tokenizer.model`` and ``tokenizer.json``.

New pieces score below the lowest old one, by rank. So old merges win wherever they applied before, and the
slow and the fast tokenizer, which break ties differently, never meet a tie.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.merging import merge_symbols
from colossal_llama.tokenizer.pieces import NOT_NORMAL, SPACE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BPE_MODEL_TYPE = 2
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Piece types of SentencePiece's ModelProto."""


@dataclasses.dataclass
class SentencePieceModel:
    """A parsed ``tokenizer.model`` and a processor that runs the same bytes."""

    proto: Any
    processor: Any
    path: Path

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
        UserError: the file is truncated or no SentencePiece model, or the model is not BPE.
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
    if proto.trainer_spec.model_type != BPE_MODEL_TYPE:
        raise UserError(f"{path}: not a BPE model; only SentencePiece BPE (Llama, Mistral) can be widened")
    return SentencePieceModel(proto, processor, path)


def plan_intermediates(model: SentencePieceModel, pieces: list[str]) -> list[str]:
    """The further pieces without which some of ``pieces`` could not be put together.

    SentencePiece itself starts from any character, the fast tokenizer only from characters in the vocabulary;
    so missing characters are added, and then the left-to-right halves that no existing merge reaches.

    Returns:
        Intermediate pieces in order of priority, all below ``pieces``.
    """
    ranks = _ranks(model.proto)
    for piece in pieces:
        ranks[piece] = len(ranks)
    requested = len(ranks)
    for piece in pieces:
        for character in piece:
            ranks.setdefault(character, len(ranks))
    for piece in pieces:
        tokens = merge_symbols(list(piece), lambda left, right: ranks.get(left + right))
        while len(tokens) > 1:
            ranks.setdefault(tokens[0] + tokens[1], len(ranks))
            tokens = merge_symbols(tokens, lambda left, right: ranks.get(left + right))
    return [piece for piece, rank in ranks.items() if rank >= requested]


def _ranks(proto: Any) -> dict[str, int]:
    """Old pieces in order of decreasing score: rank 0 merges first."""
    normal = [piece for piece in proto.pieces if piece.type == NORMAL]
    normal.sort(key=lambda piece: -piece.score)  # stable: ties keep the order of ids
    return {piece.piece: rank for rank, piece in enumerate(normal)}


def absorb_added_tokens(proto: Any, tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Give added tokens beyond the model (``<pad>`` at 32000) pieces of their own, which keeps their ids.

    New pieces get the next free ids of the model; without this they would take the added tokens' ids.

    Raises:
        UserError: the added tokens' ids leave a gap, which a SentencePiece model cannot have.
    """
    added = tokenizer.added_tokens_decoder  # type: ignore[attr-defined]
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


def append_pieces(proto: Any, pieces: list[str]) -> None:
    """Append ``pieces`` with scores that continue below the lowest old score, in their order."""
    score = min((piece.score for piece in proto.pieces if piece.type == NORMAL), default=0.0)
    for piece in pieces:
        score = _next_lower_score(score)
        proto.pieces.add(piece=piece, score=score, type=NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)


def _next_lower_score(score: float) -> float:
    """One less, or the next lower 32-bit float: next to -1e9, Mistral's lowest score, one less is no change."""
    import numpy as np

    return min(score - 1.0, float(np.nextafter(np.float32(score), np.float32(-np.inf))))


def fast_vocabulary(proto: Any, absorbed: range) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of ``tokenizer.json`` for a model, ordered by score as transformers does.

    Args:
        proto: the widened model.
        absorbed: ids of absorbed added tokens; text is split at them first, so nothing merges into them.
    """
    from transformers.convert_slow_tokenizer import generate_merges

    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    mergeable = {token: index for token, index in vocabulary.items() if index not in absorbed}
    scores = [(token, proto.pieces[index].score) for token, index in mergeable.items()]
    return vocabulary, [list(pair) for pair in generate_merges(mergeable, scores)]


def widen(
    model: SentencePieceModel,
    tokenizer: "PreTrainedTokenizerBase",
    backend: dict[str, Any],
    pieces: list[str],
) -> list[str]:
    """Append ``pieces`` and what they need to ``model.proto`` and to ``backend`` (both change in place).

    Args:
        model: the old model.
        tokenizer: the old tokenizer, for its added tokens.
        backend: its ``tokenizer.json`` as a mapping.
        pieces: new pieces, in order of priority.

    Returns:
        The intermediate pieces that were added after ``pieces``.

    Raises:
        UserError: see :func:`absorb_added_tokens`.
    """
    old_size = len(model.proto.pieces)
    intermediates = plan_intermediates(model, pieces)
    absorb_added_tokens(model.proto, tokenizer, model.path)
    absorbed = range(old_size, len(model.proto.pieces))
    append_pieces(model.proto, pieces + intermediates)
    vocabulary, merges = fast_vocabulary(model.proto, absorbed)
    backend["model"]["vocab"] = vocabulary
    backend["model"]["merges"] = merges
    return intermediates
