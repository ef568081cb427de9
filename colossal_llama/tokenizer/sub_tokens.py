"""How an old tokenizer spells the tokens that a wider one added."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.bytelevel import is_byte_level, spell, unspell
from colossal_llama.tokenizer.pieces import SPACE_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How SentencePiece spells a byte that is no character of the vocabulary."""


@dataclasses.dataclass(frozen=True)
class VocabularyGrowth:
    """The step from an old vocabulary to a wider one, in plain numbers.

    Attributes:
        old_ids: every id of the old tokenizer, ascending.
        new_ids: every id that only the new tokenizer has, ascending.
        sub_tokens: for each of ``new_ids``, the old ids of its characters in running text, in their order; empty
            where the old tokenizer knows nothing of them.
        sub_token_lengths: for each of ``sub_tokens``, the characters that it stands for; at least 1.
        size: the highest id of the new tokenizer + 1.
    """

    old_ids: list[int]
    new_ids: list[int]
    sub_tokens: list[list[int]]
    sub_token_lengths: list[list[int]]
    size: int


def vocabulary_growth(old: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase") -> VocabularyGrowth:
    """Compare two fast tokenizers and split each new token into old ones.

    The old merge model is asked directly, so neither a dummy prefix nor special tokens get in; for a
    SentencePiece piece that starts with ``▁`` the space is part of the piece.

    Raises:
        UserError: ``new`` lacks an old token or gives it another id.
    """
    check_old_ids(old, new)
    backend = old.backend_tokenizer  # type: ignore[attr-defined]
    byte_level = is_byte_level(json.loads(backend.to_str()))
    model, known = backend.model, old.get_vocab()
    old_ids = sorted(set(known.values()))
    fresh = sorted((token_id, token) for token, token_id in new.get_vocab().items() if token not in known)
    added = new.added_tokens_encoder  # type: ignore[attr-defined]
    own_added = old.added_tokens_encoder  # type: ignore[attr-defined]
    sub_tokens, sub_token_lengths = [], []
    for _, token in fresh:
        parts = model.tokenize(_spell_added(token, byte_level) if token in added else token)
        sub_tokens.append([part.id for part in parts])
        sub_token_lengths.append(
            [characters_of(part.value, byte_level and part.value not in own_added) for part in parts]
        )
    return VocabularyGrowth(
        old_ids=old_ids,
        new_ids=[token_id for token_id, _ in fresh],
        sub_tokens=sub_tokens,
        sub_token_lengths=sub_token_lengths,
        size=max(new.get_vocab().values()) + 1,
    )


def _spell_added(content: str, byte_level: bool) -> str:
    """Added tokens are stored as plain text, all others in the model's own spelling."""
    return spell(content) if byte_level else content.replace(" ", SPACE_MARK)


def characters_of(token: str, byte_level: bool) -> int:
    """How many characters of text a token stands for, at least 1; bytes that are a part of one count as one.

    Args:
        token: as the vocabulary spells it.
        byte_level: whether each of its characters stands for a byte; else ``<0x0A>`` is a byte.
    """
    if byte_level:
        return max(1, len(unspell(token).decode("utf-8", errors="replace")))
    return 1 if _BYTE_TOKEN.fullmatch(token) else max(1, len(token))


def check_old_ids(old: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase") -> None:
    """Check that ``new`` holds every token of ``old`` under its old id.

    Raises:
        UserError: a token is missing or has another id; the message shows one.
    """
    vocabulary = new.get_vocab()
    for token, token_id in old.get_vocab().items():
        if vocabulary.get(token) != token_id:
            raise UserError(
                f"the tokenizer in {new.name_or_path} does not match the one in {old.name_or_path}: token "
                f"{token!r} has id {vocabulary.get(token)} instead of {token_id}; use a tokenizer that "
                "init_tokenizer.py made from the model's own"
            )


def count_old_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[int]:
    """How many tokens each of ``texts`` costs in running text (no dummy prefix, no special tokens)."""
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    byte_level = is_byte_level(json.loads(backend.to_str()))
    model = backend.model
    return [len(model.tokenize(_spell_added(text, byte_level))) for text in texts]
