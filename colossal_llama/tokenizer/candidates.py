"""Where candidate pieces come from: one entry of :data:`METHODS` for each way to find them in text."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from colossal_llama.registry import Registry
from colossal_llama.tokenizer.bytelevel import is_byte_level, is_whole_text, unspell
from colossal_llama.tokenizer.ngrams import NgramCutter
from colossal_llama.tokenizer.pieces import SPACE_MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Cutter = Callable[[Iterable[str]], Counter[str]]
"""Cuts texts into candidates (``▁`` for a space) and counts how often each is used."""

SEGMENT_CHARACTERS = 1000
"""Longer stretches without a line end are cut: SentencePiece passes over sentences that are too long for it."""

_NO_ASCII = re.compile(r"[^\x00-\x1F\x21-\x7F]+")
"""A stretch that holds no ASCII character but spaces."""

_BYTES = 256


@dataclass(frozen=True)
class CandidateSettings:
    """What a method is to look for.

    Attributes:
        size: about how many candidates of two characters or more; every character is one, too.
        max_characters: the longest candidate.
        ascii_pieces: look inside of ASCII text, too.
    """

    size: int
    max_characters: int
    ascii_pieces: bool = False


@dataclass(frozen=True)
class MiningMethod:
    """A way to find candidates.

    Attributes:
        train: from texts, the tokenizer to widen and settings to a cutter.
        refined: whether candidates are ranked again by what a tokenizer widened with them really uses.
        finds_ascii: whether it can find pieces of ASCII characters.
    """

    train: Callable[[Iterable[str], "PreTrainedTokenizerBase", CandidateSettings], Cutter]
    refined: bool = True
    finds_ascii: bool = True


METHODS: Registry[MiningMethod] = Registry("mining method")
"""All methods, by the names that ``--method`` takes."""


def segments(texts: Iterable[str], ascii_pieces: bool) -> Iterator[str]:
    """Stretches of ``texts`` in which candidates are looked for: lines, or what of them is not ASCII."""
    for text in texts:
        for line in text.splitlines():
            for stretch in [line] if ascii_pieces else _NO_ASCII.findall(line):
                if stretch.isascii() and not ascii_pieces:
                    continue
                for start in range(0, len(stretch), SEGMENT_CHARACTERS):
                    yield stretch[start : start + SEGMENT_CHARACTERS]


def train_bpe(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", settings: CandidateSettings) -> Cutter:
    """BPE as the source tokenizer's own family trains it: SentencePiece's, or on bytes behind its pre-tokenizer."""
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    if is_byte_level(json.loads(backend.to_str())):
        return _train_byte_level(texts, backend, settings)
    return train_sentencepiece(texts, tokenizer, settings, model_type="bpe")


def train_sentencepiece(
    texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", settings: CandidateSettings, *, model_type: str
) -> Cutter:
    """A SentencePiece model over characters, without normalization, byte pieces or dummy prefix.

    One thread, so that the same text gives the same pieces.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    sentences = list(segments(texts, settings.ascii_pieces))
    if not sentences:
        return lambda others: Counter()
    alphabet = set().union(*sentences)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=model_type,
        vocab_size=len(alphabet) + 3 + settings.size,  # 3: unk and the two that SentencePiece reserves
        hard_vocab_limit=False,
        character_coverage=1.0,
        max_sentencepiece_length=settings.max_characters,
        max_sentence_length=8 * SEGMENT_CHARACTERS,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=model.getvalue())

    def cut(others: Iterable[str]) -> Counter[str]:
        used: Counter[str] = Counter()
        for stretch in segments(others, settings.ascii_pieces):
            used.update(processor.encode(stretch, out_type=str))
        return used

    return cut


def _train_byte_level(texts: Iterable[str], source: "Tokenizer", settings: CandidateSettings) -> Cutter:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    sentences = list(segments(texts, settings.ascii_pieces))
    trained = Tokenizer(BPE())
    if source.normalizer is not None:
        trained.normalizer = source.normalizer
    trained.pre_tokenizer = source.pre_tokenizer
    characters = len(set().union(*sentences))
    trainer = BpeTrainer(
        # A character of three bytes takes up to two merges of its own, some of them shared.
        vocab_size=_BYTES + 2 * characters + settings.size,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        max_token_length=4 * settings.max_characters + 1,
        min_frequency=2,
        show_progress=False,
    )
    trained.train_from_iterator(iter(sentences), trainer)

    def cut(others: Iterable[str]) -> Counter[str]:
        spelled: Counter[str] = Counter()
        for stretch in segments(others, settings.ascii_pieces):
            spelled.update(trained.encode(stretch, add_special_tokens=False).tokens)
        used: Counter[str] = Counter()
        for token, times in spelled.items():
            if is_whole_text(token):
                used[unspell(token).decode("utf-8").replace(" ", SPACE_MARK)] += times
        return used

    return cut


def _train_ngrams(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", settings: CandidateSettings) -> Cutter:
    return NgramCutter(texts, settings.size, settings.max_characters)


METHODS.add("bpe", MiningMethod(train_bpe))
METHODS.add("unigram", MiningMethod(partial(train_sentencepiece, model_type="unigram")))
METHODS.add("ngrams", MiningMethod(_train_ngrams, refined=False, finds_ascii=False))
