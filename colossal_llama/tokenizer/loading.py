"""Loading a tokenizer from a local folder, with errors that name the flag."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.errors import UserError
from colossal_llama.json_files import check_json_objects, read_json_object
from colossal_llama.json_records import json_type
from colossal_llama.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A tokenizer folder holds at least one of these."""

SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer of any class keeps beside its vocabulary."""

VOCABULARY_FILES = (*TOKENIZER_FILES, "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Vocabularies of the slow and the fast classes."""


def check_tokenizer_folder(path: Path, flag: str) -> None:
    """Refuse what cannot be a tokenizer folder before any library is asked.

    Raises:
        UserError: ``path`` is missing, is no folder, holds none of :data:`TOKENIZER_FILES`, or one of its
            :data:`SETTINGS_FILES` is damaged.
    """
    if not path.exists():
        raise UserError(f"{flag} {path}: no such folder; give a local Hugging Face tokenizer folder")
    if not path.is_dir():
        raise UserError(f"{flag} {path}: is a file; give the folder that holds the tokenizer's files")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{flag} {path}: no tokenizer here; expected one of {', '.join(TOKENIZER_FILES)}")
    check_json_objects(path, [name for name in SETTINGS_FILES if name.endswith(".json")])
    _check_length(path / "tokenizer_config.json")


def _check_length(path: Path) -> None:
    """transformers compares it with numbers of tokens only when a long text comes."""
    length = read_json_object(path).get("model_max_length", 0) if path.is_file() else 0
    if length is not None and (not isinstance(length, (int, float)) or isinstance(length, bool)):
        raise UserError(f"{path}: model_max_length must be a number, found {json_type(length)}")


def tokenizer_files(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> list[Path]:
    """The files of a folder that belong to its tokenizer, and nothing else that may lie there.

    Args:
        folder: where it was loaded from.
        tokenizer: whose class may name further files of a vocabulary.
    """
    own = [str(name) for name in type(tokenizer).vocab_files_names.values()]
    names = dict.fromkeys([*VOCABULARY_FILES, *SETTINGS_FILES, *own])
    versioned = sorted(folder.glob("tokenizer.*.json"))  # for certain versions of transformers
    return [path for path in (*(folder / name for name in names), *versioned) if path.is_file()]


def load_tokenizer(path: str | Path, flag: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a local folder; the hub is never asked.

    Args:
        path: a Hugging Face tokenizer (or model) folder.
        flag: the flag that named it, for error messages (``"--tokenizer_dir"``).

    Returns:
        The fast tokenizer where the folder has or allows one, otherwise the slow one.

    Raises:
        UserError: the folder is missing, holds no tokenizer files, or they cannot be read.
    """
    folder = Path(path)
    check_tokenizer_folder(folder, flag)
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            # Not left open: transformers would ask on the terminal whether to run code out of the folder.
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a broken file gives a dozen types, bare Exception among them
            raise UserError(f"{flag} {folder}: {explain_failure(folder, error)}") from error
        except BaseException as error:
            if not is_panic(error):
                raise
            raise UserError(f"{flag} {folder}: tokenizer.json cannot be read ({error}); copy it again") from error


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up over something that it did not expect, which is no ``Exception`` to Python."""
    return type(error).__name__ == "PanicException"


def load_slow_tokenizer(folder: Path) -> "PreTrainedTokenizerBase | None":
    """The slow tokenizer of a folder whose fast one loads, or None where its class has none that can be loaded."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=False
            )
        except Exception:  # as many types as for the fast one
            return None
    # False where the files are those of no slow class (transformers gives that instead of an error).
    return None if tokenizer is False or tokenizer.is_fast else tokenizer


def explain_failure(folder: Path, error: Exception) -> str:
    """Why transformers could not load the tokenizer in ``folder``, in terms of its files."""
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and (folder / "tokenizer.model").is_file() and not is_sentencepiece(folder / "tokenizer.model"):
        return "tokenizer.model is truncated or not a SentencePiece model; copy the file again"
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "config.json")):
        return "has no tokenizer_config.json, which names the tokenizer's class; copy it beside the other files"
    if "trust_remote_code" in str(error) or "Tokenizer class" in str(error):
        return _explain_class(folder)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the tokenizer's files cannot be read ({reason}); copy the folder again"


def _explain_class(folder: Path) -> str:
    try:
        name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        name = None
    reason = f"its tokenizer_class {name} is none of transformers' own, and code out of the folder is not run"
    if holds_sentencepiece(folder):
        return f'{reason}; write "tokenizer_class": "LlamaTokenizer" into tokenizer_config.json, remove "auto_map"'
    return f"{reason}; give a tokenizer of one of transformers' classes"


def holds_sentencepiece(folder: Path) -> bool:
    """Whether the folder holds a SentencePiece model."""
    return (folder / "tokenizer.model").is_file() and is_sentencepiece(folder / "tokenizer.model")


def is_sentencepiece(path: Path) -> bool:
    """Whether SentencePiece can load ``path``."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor().LoadFromSerializedProto(path.read_bytes())
    except RuntimeError:
        return False
    return True
