"""From text to token ids and labels.

Special tokens are put in by id and never recognised inside of text: a document that explains ``</s>`` keeps
its letters. Worker processes need only the ``tokenizers`` library, so an :class:`EncoderSpec` carries all of
a tokenizer that they use.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.chat_templates import BoundTemplate, Span
from colossal_llama.data.formats import Conversation, Sample
from colossal_llama.data.sentencepiece_encoder import EqualModel, SentencePieceEncoder, equal_model
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.plain_text import plain_content

CHECKED_EVERY = 64
CHECKED_CHARACTERS = 1000
"""Of one text in so many, up to so many characters are encoded by both encoders, where there are two."""

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """One document: ``input_ids`` and ``labels``, int32 arrays of the same length.

    ``labels`` are the ids themselves (not shifted) or ``IGNORE_INDEX`` where nothing is learned.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    category: str


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What a worker process needs of a tokenizer.

    Attributes:
        head_json: the serialised tokenizer for text at the start of a sequence.
        tail_json: the same for text behind a control token; empty when there is no difference.
        bos_id: beginning-of-sequence id, None when the tokenizer has none.
        eos_id: end-of-sequence id, None when the tokenizer has none; see :func:`require_end_token`.
        sentencepiece: a model that encodes text at the start of a sequence alike, and faster, where there is one.
    """

    head_json: str
    tail_json: str
    bos_id: int | None
    eos_id: int | None
    sentencepiece: EqualModel | None = None


def require_end_token(tokenizer: "PreTrainedTokenizerBase", flag: str) -> None:
    """Refuse a tokenizer that cannot end a document.

    Raises:
        UserError: it has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag}: the tokenizer has no eos_token; set one in its tokenizer_config.json")


def encoder_spec(
    tokenizer: "PreTrainedTokenizerBase", flag: str, control_tokens: Iterable[str] = (), encoder: str = "auto"
) -> EncoderSpec:
    """Reduce a Hugging Face tokenizer to what encoding plain text needs.

    Args:
        tokenizer: a fast tokenizer.
        flag: the flag that named it, for messages.
        control_tokens: tokens of a chat template; like the tokenizer's special tokens they are not recognised
            inside of text.
        encoder: ``auto`` takes SentencePiece where it gives the same ids, ``tokenizers`` never does.

    Raises:
        UserError: the tokenizer has no fast implementation.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{flag}: no fast version of this tokenizer; save one as tokenizer.json in its folder")
    content = plain_content(tokenizer, control_tokens)
    head = json.dumps(content, ensure_ascii=False)
    model = equal_model(tokenizer, content) if encoder == "auto" else None
    changed = _never_prepend(content["pre_tokenizer"])
    tail = json.dumps(content, ensure_ascii=False) if changed else ""
    return EncoderSpec(head, tail, tokenizer.bos_token_id, tokenizer.eos_token_id, model)


def _never_prepend(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Switch off a prefix that belongs to the start of a sequence only; True if there was one."""
    if pre_tokenizer is None:
        return False
    changed = False
    for inner in pre_tokenizer.get("pretokenizers", []):
        changed = _never_prepend(inner) or changed
    if pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
        changed = True
    return changed


class TextEncoder:
    """Encodes batches of text without special tokens, added or recognised."""

    def __init__(self, spec: EncoderSpec) -> None:
        from tokenizers import Tokenizer

        self.bos_id = spec.bos_id
        self.eos_id = spec.eos_id
        self._head = Tokenizer.from_str(spec.head_json)
        self._head.encode_special_tokens = True
        self._tail = self._head
        if spec.tail_json:
            self._tail = Tokenizer.from_str(spec.tail_json)
            self._tail.encode_special_tokens = True
        self._fast = SentencePieceEncoder(spec.sentencepiece) if spec.sentencepiece else None

    def ids(self, texts: Sequence[str], *, at_start: bool) -> list[list[int]]:
        """The ids of texts, by the faster encoder; ``at_start`` as in :meth:`encode`.

        Raises:
            UserError: the encoders differ on one of the texts that both encode.
        """
        if self._fast is None or not at_start:
            return [code.ids for code in self.encode(texts, at_start=at_start, offsets=False)]
        ids = self._fast.encode(texts)
        self._check([text[:CHECKED_CHARACTERS] for text in texts[::CHECKED_EVERY]], self._fast)
        return ids

    def _check(self, texts: list[str], other: SentencePieceEncoder) -> None:
        codes = self.encode(texts, at_start=True, offsets=False)
        for text, code, fast in zip(texts, codes, other.encode(texts), strict=True):
            if code.ids != fast:
                raise UserError(
                    f"tokenizer.model and tokenizer.json give different ids for {text[:80]!r}; add "
                    "--encoder tokenizers to follow tokenizer.json"
                )

    def encode(self, texts: Sequence[str], *, at_start: bool, offsets: bool) -> list["Encoding"]:
        """Encode texts; ``at_start`` is False for text that follows a control token.

        Without ``offsets`` (which are in characters) encoding is faster.
        """
        tokenizer = self._head if at_start else self._tail
        encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        return encode(list(texts), add_special_tokens=False)


class DocumentTokenizer:
    """BOS + source + target + EOS, whatever the tokenizer itself would add; no BOS token, no BOS.

    Loss on target and EOS, or on everything when there is no source. Source and target are encoded as one
    text, as they will be read: the token that holds characters of both belongs to the target, because the
    model must be able to produce the target's first letters.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        assert encoder.eos_id is not None, "require_end_token refuses such tokenizers"
        self._encoder = encoder
        self._end = encoder.eos_id
        self._prefix = [] if encoder.bos_id is None else [encoder.bos_id]

    def tokenize(self, samples: Sequence[Sample]) -> list[TokenizedSample]:
        """Tokenise a batch; the result has the order of ``samples``."""
        plain = [sample for sample in samples if not sample.source]
        paired = [sample for sample in samples if sample.source]
        plain_ids = self._encoder.ids([sample.target for sample in plain], at_start=True)
        pair_texts = [sample.source + sample.target for sample in paired]
        pair_codes = self._encoder.encode(pair_texts, at_start=True, offsets=True)
        plain_iterator, pair_iterator = iter(plain_ids), iter(pair_codes)
        # One conversion to an array for all: one for each document costs more than the tokens of a short one.
        ids: list[int] = []
        ends: list[int] = []
        unlearned: list[tuple[int, int]] = []
        for sample in samples:
            start = len(ids)
            ids += self._prefix
            if sample.source:
                code = next(pair_iterator)
                ids += code.ids
            else:
                ids += next(plain_iterator)
            ids.append(self._end)
            ends.append(len(ids))
            if sample.source:
                first_learned = bisect_right(code.offsets, len(sample.source), key=lambda offset: offset[1])
                unlearned.append((start, start + len(self._prefix) + first_learned))
        return _views(samples, np.fromiter(ids, dtype=np.int32, count=len(ids)), ends, unlearned)


def _views(
    samples: Sequence[Sample], input_ids: np.ndarray, ends: Sequence[int], unlearned: Iterable[tuple[int, int]]
) -> list[TokenizedSample]:
    """Documents that lie one behind the other in ``input_ids``, as views."""
    labels = input_ids.copy()
    for start, end in unlearned:
        labels[start:end] = IGNORE_INDEX
    return [
        TokenizedSample(input_ids[start:end], labels[start:end], sample.category)
        for sample, start, end in zip(samples, [0, *ends], ends, strict=False)
    ]


@dataclass(slots=True)
class TokenizedConversation:
    """A conversation in one or more pieces of whole turns, and what did not fit.

    Attributes:
        pieces: samples of at most ``max_length`` tokens; each starts with the system text.
        dropped_turns: turns (human and assistant) that are longer than a row by themselves.
        dropped_tokens: the tokens of those turns.
        turns_without_loss: turns that would have made a piece in which nothing is learned.
        tokens_without_loss: the tokens of those pieces.
    """

    pieces: list[TokenizedSample] = field(default_factory=list)
    dropped_turns: int = 0
    dropped_tokens: int = 0
    turns_without_loss: int = 0
    tokens_without_loss: int = 0


Tokens = tuple[list[int], list[int]]
"""Ids and labels of a stretch of tokens."""


class SpanTextEncoder(Protocol):
    """What :func:`encode_spans` needs for spans of which all or none are learned."""

    def ids(self, texts: Sequence[str], *, at_start: bool) -> list[list[int]]:
        """See :meth:`TextEncoder.ids`."""


class ConversationTokenizer:
    """Tokenises conversations with a chat template; loss on the assistant's contents and their end tokens.

    Text between two control tokens is encoded as one, as ``apply_chat_template`` does; where a learned text
    follows a header directly, a token that holds characters of both is learned.
    """

    def __init__(self, encoder: TextEncoder, template: BoundTemplate, max_length: int) -> None:
        self._encoder = encoder
        self._template = template
        self._max_length = max_length
        [self._ending] = encode_spans(encoder, [(template.after_answer_spans(), False)])

    def tokenize(self, conversations: Sequence[Conversation]) -> list[TokenizedConversation]:
        """Tokenise a batch; the result has the order of ``conversations``.

        A conversation longer than ``max_length`` continues in further pieces, cut between turns. Turns start
        behind an answer's end token, so their tokens do not depend on the turns before them.
        """
        units = [self._turns(conversation) for conversation in conversations]
        flat = [(spans, number == 0) for turns in units for number, spans in enumerate(turns)]
        tokens = iter(encode_spans(self._encoder, flat))
        return [
            self._assemble(conversation, [next(tokens) for _ in turns])
            for conversation, turns in zip(conversations, units, strict=True)
        ]

    def _turn(self, conversation: Conversation, number: int, first: bool) -> list[Span]:
        """A turn that begins a sequence with the system text, or continues one behind an end token."""
        template = self._template
        spans = template.system_spans(conversation.system) if first else template.after_answer_spans()
        for message in conversation.messages[2 * number : 2 * number + 2]:
            spans = spans + template.message_spans(message, first)
        return spans

    def _turns(self, conversation: Conversation) -> list[list[Span]]:
        return [self._turn(conversation, number, number == 0) for number in range(len(conversation.messages) // 2)]

    def _assemble(self, conversation: Conversation, turns: list[Tokens]) -> TokenizedConversation:
        result = TokenizedConversation()
        room = self._max_length - len(self._ending[0])
        ids: list[int] = []
        labels: list[int] = []
        held = 0
        for number, (turn_ids, turn_labels) in enumerate(turns):
            if ids and len(ids) + len(turn_ids) > room:
                self._add_piece(result, ids, labels, held, conversation.category)
                ids, labels, held = [], [], 0
            if not ids and number > 0:
                [(turn_ids, turn_labels)] = encode_spans(
                    self._encoder, [(self._turn(conversation, number, True), True)]
                )
            if len(ids) + len(turn_ids) > room:
                result.dropped_turns += 1
                result.dropped_tokens += len(turn_ids)
                continue
            ids, labels, held = ids + turn_ids, labels + turn_labels, held + 1
        if ids:
            self._add_piece(result, ids, labels, held, conversation.category)
        return result

    def _add_piece(
        self, result: TokenizedConversation, ids: list[int], labels: list[int], turns: int, category: str
    ) -> None:
        ids, labels = ids + self._ending[0], labels + self._ending[1]
        if any(label != IGNORE_INDEX for label in labels):
            result.pieces.append(_sample(ids, labels, category))
        else:
            result.turns_without_loss += turns
            result.tokens_without_loss += len(ids)


def encode_spans(encoder: SpanTextEncoder, sequences: Sequence[tuple[Sequence[Span], bool]]) -> list[Tokens]:
    """Encode sequences of spans, in few large batches.

    Args:
        encoder: encodes the texts; spans that differ in what is learned need a :class:`TextEncoder`.
        sequences: pairs of spans and whether they start a sequence (text behind a control token is
            encoded without the prefix that some tokenizers put before a sequence).

    Returns:
        Ids and labels of each sequence.
    """
    plans = [_segments(spans) for spans, _ in sequences]
    groups: dict[tuple[bool, bool], list[list[Span]]] = {}
    keys: list[tuple[bool, bool] | None] = []
    for (_, at_start), plan in zip(sequences, plans, strict=True):
        for position, segment in enumerate(plan):
            if segment[0].token_id is not None:
                keys.append(None)
                continue
            key = (at_start and position == 0, len({span.learn for span in segment}) > 1)
            groups.setdefault(key, []).append(segment)
            keys.append(key)
    encoded = {key: iter(_encode_group(encoder, key, segments)) for key, segments in groups.items()}
    key_iterator = iter(keys)
    results: list[Tokens] = []
    for plan in plans:
        ids: list[int] = []
        labels: list[int] = []
        for segment in plan:
            key_of_segment = next(key_iterator)
            new = _control_token(segment[0]) if key_of_segment is None else next(encoded[key_of_segment])
            ids.extend(new[0])
            labels.extend(new[1])
        results.append((ids, labels))
    return results


def _encode_group(encoder: SpanTextEncoder, key: tuple[bool, bool], segments: list[list[Span]]) -> list[Tokens]:
    at_start, mixed = key
    texts = ["".join(span.text for span in segment) for segment in segments]
    if mixed:
        assert isinstance(encoder, TextEncoder)
        codes = encoder.encode(texts, at_start=at_start, offsets=True)
        return [_mixed_labels(segment, code) for segment, code in zip(segments, codes, strict=True)]
    return [
        (ids, ids if segment[0].learn else [IGNORE_INDEX] * len(ids))
        for segment, ids in zip(segments, encoder.ids(texts, at_start=at_start), strict=True)
    ]


def _sample(ids: list[int], labels: list[int], category: str) -> TokenizedSample:
    return TokenizedSample(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32), category)


def _segments(spans: Sequence[Span]) -> list[list[Span]]:
    """Group spans: each control token alone, neighbouring texts together; empty texts vanish."""
    segments: list[list[Span]] = []
    for span in spans:
        if span.token_id is None and not span.text:
            continue
        if span.token_id is None and segments and segments[-1][0].token_id is None:
            segments[-1].append(span)
        else:
            segments.append([span])
    return segments


def _control_token(span: Span) -> Tokens:
    assert span.token_id is not None
    return [span.token_id], [span.token_id if span.learn else IGNORE_INDEX]


def _mixed_labels(segment: list[Span], code: "Encoding") -> Tokens:
    """Labels of a text that is learned in part: a token that holds any learned character is learned."""
    learned_before = [0]
    for span in segment:
        for _ in span.text:
            learned_before.append(learned_before[-1] + span.learn)
    ids = code.ids
    labels = [
        token if learned_before[end] > learned_before[start] else IGNORE_INDEX
        for token, (start, end) in zip(ids, code.offsets, strict=True)
    ]
    return ids, labels
