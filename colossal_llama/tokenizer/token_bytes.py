"""How many bytes of text each token stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.tokenizer.bytelevel import is_byte_level, unspell
from colossal_llama.tokenizer.pieces import SPACE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """UTF-8 bytes of text behind each id; 0 for special tokens and ids without a token.

    Added up over a text's tokens they are the text's bytes: exactly with a byte-level tokenizer; with SentencePiece
    one more where it puts a space before the text, and with what its normalization changes.

    Args:
        tokenizer: a fast tokenizer.
        vocab_size: rows of the model's embedding.

    Returns:
        int64 ``[vocab_size]``.
    """
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    byte_level = is_byte_level(backend)
    added = {entry["id"]: entry for entry in backend["added_tokens"]}
    special = set(tokenizer.all_special_ids)
    sizes = np.zeros(vocab_size, dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        if index in special or index >= vocab_size:
            continue
        if index in added:
            sizes[index] = 0 if added[index]["special"] else len(added[index]["content"].encode())
        else:
            sizes[index] = _byte_level_bytes(token) if byte_level else _sentencepiece_bytes(token)
    return sizes


def _byte_level_bytes(token: str) -> int:
    try:
        return len(unspell(token))
    except KeyError:  # in the vocabulary, but not spelled in the byte alphabet
        return len(token.encode())


def _sentencepiece_bytes(piece: str) -> int:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace(SPACE_MARK, " ").encode())
