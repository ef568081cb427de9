"""Text as letters: how texts of users and files are encoded everywhere.

A text that explains ``</s>`` keeps its letters, in preparation, training, evaluation and inference alike. Only what a
chat template or a command itself puts between texts is a control token, and that is put in by id.
"""

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_OUT_OF_TEXT = "\U000f0000\U000f0001"
"""Characters for private use, before the names of control tokens that letters may not make."""

TextToIds = Callable[[Sequence[str]], list[list[int]]]


def plain_content(tokenizer: "PreTrainedTokenizerBase", control_tokens: Iterable[str] = ()) -> dict[str, Any]:
    """The serialised backend of a fast tokenizer, in which every control token is marked as special.

    A backend with ``encode_special_tokens`` reads those as letters. Added tokens that are neither special nor among
    ``control_tokens`` (Phi's runs of spaces, for example) belong to the text and stay tokens.

    Args:
        tokenizer: a fast tokenizer.
        control_tokens: tokens of a chat template, which need not be special tokens of the tokenizer.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    # Special tokens are added by id, and the byte-level post-processor would trim spaces off the offsets.
    content |= {"post_processor": None, "truncation": None, "padding": None}
    control = {*tokenizer.all_special_tokens, *control_tokens}
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control
    _take_out_of_model(content, {token["content"] for token in content["added_tokens"] if token["special"]})
    return content


def _take_out_of_model(content: dict[str, Any], control: set[str]) -> None:
    """Keep the model itself from putting letters together to a control token.

    SentencePiece never does that with its control pieces. Its models in the format of ``tokenizers`` hold them as
    pieces like any other: a unigram model takes them whenever they occur, and merges may lead to them.
    """
    model = content["model"]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in control]
    if model["type"] == "Unigram":
        model["vocab"] = [
            [_OUT_OF_TEXT + piece if piece in control else piece, score] for piece, score in model["vocab"]
        ]
    elif model.get("ignore_merges"):
        model["vocab"] = {_OUT_OF_TEXT + piece if piece in control else piece: n for piece, n in model["vocab"].items()}
    else:
        return
    unknown = model.get("unk_token")
    if unknown in control:
        model["unk_token"] = _OUT_OF_TEXT + unknown
    for token in content["added_tokens"]:
        if token["special"]:
            token["content"] = _OUT_OF_TEXT + token["content"]  # keeps its id


def _merged(merge: str | list[str]) -> str:
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def plain_encoder(tokenizer: "PreTrainedTokenizerBase", flag: str, control_tokens: Iterable[str] = ()) -> "Tokenizer":
    """The tokenizer's backend, set to encode text and nothing else: no special tokens put in or recognised.

    Raises:
        UserError: there is no fast version.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        raise UserError(f"{flag} {tokenizer.name_or_path}: has no fast version; save it with a tokenizer.json")
    encoder = Tokenizer.from_str(json.dumps(plain_content(tokenizer, control_tokens), ensure_ascii=False))
    encoder.encode_special_tokens = True
    return encoder


def text_encoder(tokenizer: "PreTrainedTokenizerBase", parse_special: bool = False) -> TextToIds:
    """What gives the ids of texts at the start of a sequence, without special tokens around them.

    To be made once for many texts: it takes the tokenizer apart.

    Args:
        tokenizer: of a model. Slow ones are taken too; they are asked in transformers' way, which makes letters of
            every added token.
        parse_special: whether control tokens that a text spells out become tokens; else they stay letters, as in the
            preparation of data.
    """
    if not tokenizer.is_fast or parse_special:

        def ask(texts: Sequence[str]) -> list[list[int]]:
            split = not parse_special
            return [
                tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split, verbose=False)
                for text in texts
            ]

        return ask
    encoder = plain_encoder(tokenizer, "tokenizer")

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [code.ids for code in encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


def plain_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A copy that reads texts as letters, for programs that call a tokenizer themselves.

    It puts in the special tokens that the tokenizer itself puts around a text.
    """
    result = copy.copy(tokenizer)
    result.split_special_tokens = True
    if tokenizer.is_fast:
        from tokenizers import Tokenizer

        content = plain_content(tokenizer)
        own = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        content["post_processor"] = own["post_processor"]
        plain = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        result.__class__ = _encoding_with(type(tokenizer), plain)
    return result


def _encoding_with(tokenizer_class: type, backend: "Tokenizer") -> type:
    """A subclass that encodes with another backend than it decodes with."""

    class PlainTokenizer(tokenizer_class):  # type: ignore[misc]
        _tokenizer: Any

        def _batch_encode_plus(self, *arguments: Any, **settings: Any) -> Any:
            own, self._tokenizer = self._tokenizer, backend
            try:
                return super()._batch_encode_plus(*arguments, **settings)
            finally:
                self._tokenizer = own

    return PlainTokenizer
