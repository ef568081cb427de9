"""The kinds of tokenizer that can be widened, behind one interface."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object
from colossal_llama.tokenizer import bytelevel, sentencepiece, sentencepiece_bpe, unigram
from colossal_llama.tokenizer.reachability import Unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of tokenizer, bound to the one that is to be widened.

    Attributes:
        name: for reports.
        spell: from a piece (with ``▁``) to the tokenizer's spelling of it.
        judge: why a piece cannot be added, or None.
        find_unreachable: which pieces could not be reached if exactly these were added.
        widen: adds pieces, and with True what they lack; returns the spellings of the intermediate tokens.
        write: writes ``tokenizer.json`` and the family's own files into a folder.
        scores: log-probability of each id after widening, where that is how the model segments.
        has_slow: whether a slow tokenizer must agree.
    """

    name: str
    spell: Callable[[str], str]
    judge: Callable[[str], str | None]
    find_unreachable: Callable[[list[str]], list[Unreachable]]
    widen: Callable[[list[str], bool], list[str]]
    write: Callable[[Path], None]
    scores: Callable[[], Sequence[float] | None] = lambda: None
    has_slow: bool = False


def family_of(old: "PreTrainedTokenizerBase", source_dir: Path, flag: str) -> Family:
    """The family by the files: a byte-level ``tokenizer.json`` first, then ``tokenizer.model``.

    Raises:
        UserError: the tokenizer has no fast version or is of none of the families, or its model is broken.
    """
    if not old.is_fast:
        raise UserError(f"{flag} {source_dir}: {type(old).__name__} has no fast version; cannot widen it")
    # The backend as loaded holds what tokenizer_config.json adds to tokenizer.json, too.
    backend: dict[str, Any] = json.loads(old.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    if bytelevel.is_byte_level(backend):
        return _byte_level(old, backend, source_dir)
    kind = backend["model"].get("type")
    if (source_dir / "tokenizer.model").is_file() and kind in ("BPE", "Unigram"):
        model = sentencepiece.read_model(source_dir / "tokenizer.model")
        if model.is_unigram == (kind == "Unigram"):
            return (_unigram if model.is_unigram else _sentencepiece_bpe)(model, old, backend)
        raise UserError(
            f"{flag} {source_dir}: tokenizer.json holds a {kind} model, tokenizer.model another kind; they do not "
            "belong together, so copy both again from one place"
        )
    raise UserError(
        f"{flag} {source_dir}: cannot widen this {kind} tokenizer; expected a SentencePiece BPE or unigram "
        "tokenizer.model, or a byte-level BPE tokenizer.json"
    )


def _byte_level(old: "PreTrainedTokenizerBase", backend: dict[str, Any], source_dir: Path) -> Family:
    old_backend = old.backend_tokenizer  # type: ignore[attr-defined]

    def write(folder: Path) -> None:
        write_json(folder / "tokenizer.json", backend)
        # The slow tokenizers of GPT-2 and Qwen read these two; stale copies would contradict tokenizer.json.
        if (source_dir / "vocab.json").is_file():
            write_json(folder / "vocab.json", backend["model"]["vocab"])
            lines = [" ".join(merge) for merge in backend["model"]["merges"]]
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")

    return Family(
        name="byte-level",
        spell=bytelevel.spell,
        judge=lambda piece: bytelevel.judge(old_backend, piece),
        find_unreachable=lambda pieces: bytelevel.join_pieces(backend, pieces)[1],
        widen=lambda pieces, repair: bytelevel.widen(backend, pieces, repair=repair),
        write=write,
    )


def _sentencepiece_bpe(
    model: sentencepiece.SentencePieceModel, old: "PreTrainedTokenizerBase", backend: dict[str, Any]
) -> Family:
    proto = model.proto

    def widen(pieces: list[str], repair: bool) -> list[str]:
        intermediates = sentencepiece_bpe.plan_intermediates(proto, pieces) if repair else []
        absorbed = sentencepiece.absorb_added_tokens(proto, old, model.path)
        added = pieces + intermediates
        sentencepiece.append_pieces(proto, added, sentencepiece_bpe.new_scores(proto, len(added)))
        fast = backend["model"]
        fast["vocab"] |= {proto.pieces[at].piece: at for at in range(absorbed.start, len(proto.pieces))}
        fast["merges"] = sentencepiece_bpe.widened_merges(proto, fast["merges"], absorbed)
        return intermediates

    return Family(
        name="sentencepiece-bpe",
        spell=lambda piece: piece,
        judge=model.judge,
        find_unreachable=lambda pieces: sentencepiece_bpe.find_unreachable(proto, pieces),
        widen=widen,
        write=lambda folder: _write_sentencepiece(folder, proto, backend),
        has_slow=True,
    )


def _unigram(
    model: sentencepiece.SentencePieceModel, old: "PreTrainedTokenizerBase", backend: dict[str, Any]
) -> Family:
    proto, vocabulary = model.proto, backend["model"]["vocab"]

    def widen(pieces: list[str], _repair: bool) -> list[str]:
        unigram.check_same_pieces(proto, vocabulary, model.path)
        scores = unigram.new_scores(proto, pieces)
        sentencepiece.absorb_added_tokens(proto, old, model.path)
        sentencepiece.append_pieces(proto, pieces, scores)
        vocabulary.extend([piece.piece, piece.score] for piece in proto.pieces[len(vocabulary) :])
        return []

    return Family(
        name="sentencepiece-unigram",
        spell=lambda piece: piece,
        judge=model.judge,
        find_unreachable=lambda pieces: unigram.find_unreachable(proto, pieces),
        widen=widen,
        write=lambda folder: _write_sentencepiece(folder, proto, backend),
        scores=lambda: [piece.score for piece in proto.pieces],
        has_slow=True,
    )


def _write_sentencepiece(folder: Path, proto: Any, backend: dict[str, Any]) -> None:
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    write_json(folder / "tokenizer.json", backend)


def settle_config(config_file: Path, family: str) -> None:
    """Take out of ``tokenizer_config.json`` what keeps the written files from loading as they stand.

    That is ``auto_map``, which names code that is not copied, and for SentencePiece ``"add_prefix_space": true``, the
    default: given, it makes every load convert the model anew.
    """
    if not config_file.is_file():
        return
    config = read_json_object(config_file)
    kept = {key: value for key, value in config.items() if key != "auto_map"}
    if family.startswith("sentencepiece") and kept.get("add_prefix_space") is True:
        del kept["add_prefix_space"]
    if kept != config:
        write_json(config_file, kept)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as the tokenizers library does: indented, in UTF-8."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
