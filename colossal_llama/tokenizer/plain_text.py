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
    return content


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
    result = copy.deepcopy(tokenizer)
    result.split_special_tokens = True
    if result.is_fast:
        from tokenizers import Tokenizer

        content = plain_content(tokenizer)
        own = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        content["post_processor"] = own["post_processor"]
        result._tokenizer = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))  # type: ignore[attr-defined]
    return result
