"""Flags with which data sets say of a turn, or of all turns, whether it is learned.

``weight`` is that of OpenAI's and Mistral's fine-tuning files, ``loss`` of ChatGLM3, ms-swift and xtuner,
``loss_scale`` of ms-swift, ``train`` and ``training`` of axolotl, ``masked`` of torchtune; ``loss_mask`` beside the
turns is LLaMA-Factory's (hiyouga/LLaMA-Factory#9630).
"""

from typing import Any

from colossal_llama.data.formats.fields import WRONG_TYPE
from colossal_llama.data.formats.parsed import ASSISTANT, Message
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError

_LEARN = frozenset({"weight", "loss", "loss_scale", "train", "training"})
_MASK = frozenset({"masked"})

LOSS_FLAGS = _LEARN | _MASK
"""Names of the flags that a turn may have."""

LOSS_MASK = "loss_mask"
"""Field of a record: one flag for each message."""

UNKNOWN_FLAG = "unknown loss flag"


def with_loss_flag(place: str, entry: dict[str, Any], message: Message) -> Message:
    """The message as the flags of its entry want it learned; without flags as it is.

    Raises:
        RecordError: a flag is neither 0 nor 1, two contradict each other, or one asks to learn what is no answer.
    """
    if LOSS_FLAGS.isdisjoint(entry):
        return message
    wanted = {name: _flag(place, name, entry[name]) != (name in _MASK) for name in _flags(entry)}
    if len(set(wanted.values())) > 1:
        names = " and ".join(f"'{name}'" for name in wanted)
        raise RecordError(UNKNOWN_FLAG, f"{place}: {names} contradict each other; keep one of them")
    if not wanted:
        return message
    learn = next(iter(wanted.values()))
    if message.role != ASSISTANT:
        if learn:
            raise RecordError(
                UNKNOWN_FLAG, f"{place}: '{next(iter(wanted))}' asks to learn it, but only answers can be learned"
            )
        return message
    return message if learn else Message.without_loss(message.content)


def _flags(entry: dict[str, Any]) -> list[str]:
    return sorted(name for name in LOSS_FLAGS if entry.get(name) is not None)


def _flag(place: str, name: str, value: Any) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RecordError(UNKNOWN_FLAG, f"{place}: '{name}' must be 0 or 1 (or a boolean), found {value!r}")


def with_loss_mask(record: Record, messages: list[Message], left_out: int) -> list[Message]:
    """The messages as the record's ``loss_mask`` wants them learned; flags of questions do not matter.

    Args:
        record: may have the field.
        messages: without the system message.
        left_out: messages before them in the record, which the mask may count or not.

    Raises:
        RecordError: the mask is no list of 0 and 1, one for each message.
    """
    mask = record.value.get(LOSS_MASK)
    if mask is None or mask == []:
        return messages
    if not isinstance(mask, list) or len(mask) not in (len(messages), len(messages) + left_out):
        raise RecordError(
            WRONG_TYPE, f"{record.where}: '{LOSS_MASK}' must be an array of 0 and 1, one for each of the messages"
        )
    flags = [_flag(record.where, LOSS_MASK, value) for value in mask][len(mask) - len(messages) :]
    return [
        message if learn or message.role != ASSISTANT else Message.without_loss(message.content)
        for message, learn in zip(messages, flags, strict=True)
    ]
