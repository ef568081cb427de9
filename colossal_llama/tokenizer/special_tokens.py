"""Adding control tokens (``<|im_start|>``) to a tokenizer of any family, with every old id in place."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.families import settle_config, write_json
from colossal_llama.tokenizer.loading import load_slow_tokenizer, load_tokenizer, tokenizer_files
from colossal_llama.tokenizer.sub_tokens import check_old_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLAG = "--special_tokens"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


@dataclass(frozen=True)
class ChatSettings:
    """What a chat template asks of the tokenizer.

    Attributes:
        jinja: the template.
        end_token: what ends an answer; becomes the end-of-sequence token.
    """

    jinja: str
    end_token: str


def read_special_tokens(path: Path, flag: str = "--special_tokens_file") -> list[str]:
    """The tokens in a UTF-8 file, one a line; empty lines are none.

    Raises:
        UserError: the file is missing or not UTF-8, or holds no token.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file; expected one token a line")
    try:
        tokens = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    if not tokens:
        raise UserError(f"{flag} {path}: holds no token; expected one a line")
    return tokens


def check_special_tokens(tokens: Sequence[str]) -> list[str]:
    """The tokens without repetitions.

    Raises:
        UserError: one is empty, has white space around it, or holds a control character.
    """
    for token in tokens:
        if (
            not token.strip()
            or token != token.strip()
            or any(unicodedata.category(one) in ("Cc", "Cs") for one in token)
        ):
            raise UserError(f"{FLAG} {token!r}: expected a token without white space around it or control characters")
    return list(dict.fromkeys(tokens))


def write_special_tokens(
    source_dir: Path,
    flag: str,
    tokens: Sequence[str],
    folder: Path,
    chat: Callable[[PreTrainedTokenizerBase], ChatSettings | None],
) -> list[str]:
    """Write a copy of a tokenizer with further control tokens behind its last id, and perhaps a chat template.

    A token that exists keeps its id and becomes a control token if it was none. With a chat template the
    end-of-sequence token becomes the one that ends an answer; a tokenizer without padding token pads with the old one.

    Args:
        source_dir: the tokenizer.
        flag: the flag that named it, for messages.
        tokens: to add.
        folder: an existing folder to write into.
        chat: the template's settings for the tokenizer with its new tokens, or None.

    Returns:
        The tokens that were not in the vocabulary before.

    Raises:
        UserError: a token will not do, the tokenizer has no fast version, or an old id would change.
    """
    from transformers import AddedToken

    wanted = check_special_tokens(tokens)
    old, new = load_tokenizer(source_dir, flag), load_tokenizer(source_dir, flag)
    if not new.is_fast:
        raise UserError(f"{flag} {source_dir}: {type(new).__name__} has no fast version; cannot add tokens to it")
    added = [AddedToken(token, special=True, normalized=False) for token in wanted]
    new.add_special_tokens({"additional_special_tokens": added}, replace_additional_special_tokens=False)  # type: ignore
    settings = chat(new)
    if settings is not None:
        if new.pad_token is None and settings.end_token != old.eos_token:
            new.pad_token = old.eos_token
        new.chat_template, new.eos_token = settings.jinja, settings.end_token
    _write(source_dir, folder, new, settings is not None)
    written = load_tokenizer(folder, flag)
    check_old_ids(old, written)
    slow = load_slow_tokenizer(folder)
    for token in wanted:
        ids = {one.convert_tokens_to_ids(token) for one in (new, written, slow) if one is not None}
        if len(ids) != 1 or (token not in old.get_vocab() and min(ids) <= max(old.get_vocab().values())):
            raise UserError(f"{FLAG} {token}: would get the ids {sorted(ids)}; the tokenizer's ids leave a gap")
    return [token for token in wanted if token not in old.get_vocab()]


def _write(source_dir: Path, folder: Path, tokenizer: Any, has_template: bool) -> None:
    for path in tokenizer_files(source_dir, tokenizer):
        shutil.copyfile(path, folder / path.name)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    content = tokenizer.added_tokens_decoder
    decoder = {
        str(number): {
            name: getattr(one, name) for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        }
        for number, one in content.items()
    }
    names = {"additional_special_tokens": [str(one) for one in tokenizer.additional_special_tokens]}
    if has_template:
        names |= {"eos_token": tokenizer.eos_token}
        names |= {"pad_token": tokenizer.pad_token} if tokenizer.pad_token is not None else {}
        for name in ("chat_template.jinja", "chat_template.json"):
            (folder / name).unlink(missing_ok=True)
    template = {"chat_template": tokenizer.chat_template} if has_template else {}
    _update(folder / CONFIG, names | template | {"added_tokens_decoder": decoder})
    _update(folder / MAP, names)
    if (folder / ADDED).is_file():
        _update(folder / ADDED, {one.content: number for number, one in content.items()})
    settle_config(folder / CONFIG, "sentencepiece" if (folder / "tokenizer.model").is_file() else "byte-level")


def _update(path: Path, changes: dict[str, Any]) -> None:
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, old | changes)
