"""Give a model the embedding rows of a wider tokenizer."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from colossal_llama.atomic import atomic_directory, refuse_existing
from colossal_llama.config.cli import parse_config
from colossal_llama.config.vocabulary import InitModelConfig
from colossal_llama.constants import ADAPTER_CONFIG_FILE, CONFIG_FILE
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from colossal_llama.model.checkpoint_writer import CheckpointWriter
    from colossal_llama.model.embeddings import InitSettings, WideningReport
    from colossal_llama.model.new_rows import NewTokens

SOURCE_FLAG = "--source_model_and_tokenizer_path"
TOKENIZER_FLAG = "--target_tokenizer_path"
TARGET_FLAG = "--target_model_path"
DESCRIPTION = "Give a model embedding rows for a wider tokenizer; every other weight keeps its bits."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``init_model.py``; returns the process's exit code."""
    return run_command(lambda: init_model(parse_config(InitModelConfig, argv, DESCRIPTION)))


def init_model(config: InitModelConfig) -> None:
    """Write the source model with the wider tokenizer's vocabulary, and that tokenizer, to the target folder.

    The target appears when everything is written. Where it is the tokenizer's own folder, its other files
    stay.

    Raises:
        UserError: a folder is missing or broken, the target exists or cannot be written, or tokenizers and model
            do not match.
    """
    if config.adds_control_tokens:
        from colossal_llama.commands.control_tokens import add_control_tokens

        source, target = Path(config.source_model_and_tokenizer_path), Path(config.target_model_path)
        refuse_target(source, source, target, config.overwrite)
        with TemporaryDirectory() as name:
            add_control_tokens(config, source, SOURCE_FLAG, Path(name))
            init_model(
                dataclasses.replace(
                    config, target_tokenizer_path=name, special_tokens=[], special_tokens_file=None, chat_template=None
                )
            )
        return
    source, tokenizer_dir = Path(config.source_model_and_tokenizer_path), Path(str(config.target_tokenizer_path))
    target = Path(config.target_model_path)
    refuse_target(source, tokenizer_dir, target, config.overwrite)
    from colossal_llama.model.widening import begin_copy
    from colossal_llama.tokenizer.loading import check_tokenizer_folder

    check_tokenizer_folder(tokenizer_dir, TOKENIZER_FLAG)
    try:
        with atomic_directory(target) as scratch, begin_copy(source, SOURCE_FLAG, scratch) as writer:
            report = _widen_into(scratch, config, writer)
    except OSError as error:
        where = error.filename or target
        raise UserError(f"{where}: {error.strerror or error}; check space and permissions") from error
    print(report.describe())
    print(f"written to {target}")


def _widen_into(scratch: Path, config: InitModelConfig, writer: "CheckpointWriter | None") -> "WideningReport":
    from colossal_llama.model.widening import widen_checkpoint

    source, tokenizer_dir = Path(config.source_model_and_tokenizer_path), Path(str(config.target_tokenizer_path))
    old, new = _load_fast(source, SOURCE_FLAG), _load_fast(tokenizer_dir, TOKENIZER_FLAG)
    tokens, settings = _plan(config, old, new)
    _copy_tokenizer(new, tokenizer_dir, Path(config.target_model_path), scratch)
    report = widen_checkpoint(source, SOURCE_FLAG, scratch, tokens, config.pad_to_multiple_of, settings, writer)
    if new.eos_token_id != old.eos_token_id:
        set_end_token(scratch, new)
    return report


def _copy_tokenizer(tokenizer: "PreTrainedTokenizerBase", tokenizer_dir: Path, target: Path, folder: Path) -> None:
    """Put the tokenizer's files, and nothing else, beside the model; a target that is their own folder keeps the rest.

    Raises:
        UserError: the rest of such a folder would make transformers open another model.
    """
    from colossal_llama.model.pretrained import copy_beside_model, is_model_file
    from colossal_llama.tokenizer.expansion_report import REPORT_FILE
    from colossal_llama.tokenizer.loading import tokenizer_files

    if target.resolve() == tokenizer_dir.resolve():
        if (tokenizer_dir / ADAPTER_CONFIG_FILE).is_file():
            raise UserError(
                f"{TARGET_FLAG} {target}: holds {ADAPTER_CONFIG_FILE}, so transformers would open the adapters' base "
                "instead of the new model; name another folder, or move the adapter_* files away"
            )
        copy_beside_model(tokenizer_dir, folder)
        return
    files = [*tokenizer_files(tokenizer_dir, tokenizer), tokenizer_dir / REPORT_FILE]
    for path in files:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    copied = {path.name for path in files}
    left = sorted(one.name for one in tokenizer_dir.iterdir() if one.name not in copied and not is_model_file(one))
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        print(f"{TOKENIZER_FLAG} {tokenizer_dir}: not copied, as no part of the tokenizer: {shown}")


def _plan(
    config: InitModelConfig, old: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase"
) -> "tuple[NewTokens, InitSettings]":
    from colossal_llama.model.auxiliary import read_auxiliary
    from colossal_llama.model.embeddings import InitSettings
    from colossal_llama.model.new_rows import NewTokens
    from colossal_llama.tokenizer.sub_tokens import vocabulary_growth

    growth = vocabulary_growth(old, new)
    control = frozenset(number for number, one in new.added_tokens_decoder.items() if one.special)  # type: ignore
    tokens = NewTokens(growth.old_ids, growth.new_ids, growth.sub_tokens, growth.sub_token_lengths, control)
    auxiliary = None
    if config.auxiliary_embeddings is not None:
        auxiliary = read_auxiliary(Path(config.auxiliary_embeddings), new.get_vocab(), growth.old_ids)
    return tokens, InitSettings(config.init_method, config.seed, auxiliary=auxiliary)


def set_end_token(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Have generation stop at the tokenizer's end token, and still at the model's old ones."""
    ids: dict[str, Any] = {}
    for name in (CONFIG_FILE, "generation_config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        old = content.get("eos_token_id")
        ends = dict.fromkeys([tokenizer.eos_token_id, *(old if isinstance(old, list) else [old])])
        ids["eos_token_id"] = [one for one in ends if one is not None]
        if tokenizer.pad_token_id is not None:
            ids["pad_token_id"] = tokenizer.pad_token_id
        text = json.dumps(content | ids, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def _load_fast(path: Path, flag: str) -> "PreTrainedTokenizerBase":
    from colossal_llama.tokenizer.loading import load_tokenizer

    tokenizer = load_tokenizer(path, flag)
    if not tokenizer.is_fast:
        raise UserError(f"{flag} {path}: {type(tokenizer).__name__} has no fast version; expected one")
    return tokenizer


def refuse_target(source: Path, tokenizer_dir: Path, target: Path, overwrite: bool) -> None:
    """Refuse a target that would replace the source, or an existing folder without ``overwrite``.

    Raises:
        UserError: see above.
    """
    from colossal_llama.model.pretrained import is_model_file

    if target.resolve() == source.resolve():
        raise UserError(f"{TARGET_FLAG} {target}: is the source model; give another folder")
    if not target.is_dir() or target.resolve() != tokenizer_dir.resolve():
        refuse_existing(target, TARGET_FLAG, overwrite)
    elif not overwrite and any(is_model_file(path) for path in target.iterdir()):
        raise UserError(f"{TARGET_FLAG} {target}: holds a model already; add --overwrite to replace it")
