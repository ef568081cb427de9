"""The pieces of another tokenizer's vocabulary, as candidates."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object
from colossal_llama.tokenizer.bytelevel import is_byte_level, is_whole_text, unspell
from colossal_llama.tokenizer.pieces import SPACE_MARK
from colossal_llama.tokenizer.sentencepiece import NORMAL

NOT_TEXT = "control, unknown, byte or user-defined piece of the other vocabulary"
PART_OF_CHARACTER = "part of a character"

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_TYPES = ("BPE", "Unigram")


def read_vocabulary(path: Path, flag: str, dropped: Counter[str]) -> list[str]:
    """The pieces that stand for text, in the vocabulary's order, with ``▁`` for a space.

    Args:
        path: a SentencePiece model, a ``tokenizer.json``, or a folder with ``tokenizer.json`` or
            ``tokenizer.model``.
        flag: the flag that gave it, for messages.
        dropped: counts the pieces that do not stand for text.

    Raises:
        UserError: nothing is there, or it is no vocabulary of these kinds.
    """
    if not path.exists():
        raise UserError(f"{flag} {path}: no such file; give a SentencePiece .model or a tokenizer.json")
    if path.is_dir():
        names = [name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not names:
            raise UserError(f"{flag} {path}: no tokenizer here; expected tokenizer.json or tokenizer.model")
        path = path / names[0]
    pieces = _json_pieces(path, flag, dropped) if path.suffix == ".json" else _model_pieces(path, flag, dropped)
    if not pieces:
        raise UserError(f"{flag} {path}: its vocabulary holds no text")
    return pieces


def _model_pieces(path: Path, flag: str, dropped: Counter[str]) -> list[str]:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's error types differ between versions
        raise UserError(f"{flag} {path}: truncated or not a SentencePiece model; copy the file again") from error
    pieces = [piece.piece for piece in proto.pieces if piece.type == NORMAL and piece.piece]
    dropped[NOT_TEXT] += len(proto.pieces) - len(pieces)
    return pieces


def _json_pieces(path: Path, flag: str, dropped: Counter[str]) -> list[str]:
    content = read_json_object(path, f"{flag} {path}")
    try:
        vocabulary = _tokens_by_id(content["model"])
        special = {added["content"] for added in content.get("added_tokens") or []}
        byte_level = is_byte_level(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{flag} {path}: not a tokenizer.json ({type(error).__name__}: {error})") from error
    if content["model"].get("type") not in _TYPES:
        raise UserError(f"{flag} {path}: a {content['model'].get('type')} vocabulary; expected {' or '.join(_TYPES)}")
    pieces = []
    for token in vocabulary:
        if token in special or not token or _BYTE_PIECE.fullmatch(token):
            dropped[NOT_TEXT] += 1
        elif not byte_level:
            pieces.append(token)
        elif is_whole_text(token):
            pieces.append(unspell(token).decode("utf-8").replace(" ", SPACE_MARK))
        else:
            dropped[PART_OF_CHARACTER] += 1
    return pieces


def _tokens_by_id(model: dict[str, Any]) -> list[str]:
    """BPE maps tokens to ids; Unigram lists tokens with their scores."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return [str(entry[0]) for entry in vocabulary]
    return sorted(vocabulary, key=vocabulary.__getitem__)
