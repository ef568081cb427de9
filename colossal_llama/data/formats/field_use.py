"""Which fields of a record a format reads, which it must not pass over, and which are there for others.

What a format neither reads nor refuses is counted by its name, so that the preparation's report can say so: nothing
that a record holds is left out without a word.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from colossal_llama.data.formats.parsed import FormatOptions
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError

NOT_SUPPORTED = "field that cannot be learned"

MOST_NAMES = 100
"""Names that are counted one by one; there are data sets whose field names are themselves data."""

OTHER_NAMES = "(other names)"

NoteUnread = Callable[[Iterable[str]], None]
"""Is told the names of the fields of one record that are not read."""

_NO_TOOLS = "no chat template here shows tools to the model"
_ONLY_TEXT = "only text can be learned"
_NO_REASONING = "no chat template here shows it; put it into the content, or leave it out"
_OTHER_MASK = "it says what is learned in a way that is not known here; give 'weight': 0 or 1 with each answer"
_BAD_ANSWER = "it marks an answer that is not to be learned (preference data)"

TOOLS = dict.fromkeys(("tools", "functions", "function", "tool_calls", "function_call"), _NO_TOOLS)
MEDIA = dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), _ONLY_TEXT)
REASONING = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _NO_REASONING)
MASKS = dict.fromkeys(("mask", "loss_mask", "train_detail", "training_detail"), _OTHER_MASK)
VERDICTS = dict.fromkeys(("label", "kto_tag"), _BAD_ANSWER)
"""Refused where false; a label that is anything else is only counted."""

EARLIER_TURNS = {"history": "this format has its turns in one place; put the earlier ones there"}

CONVERSATION_REFUSED = TOOLS | MEDIA | VERDICTS | EARLIER_TURNS
"""Fields beside the turns that change what an answer means; ``loss_mask`` is read by all conversations."""

TURN_REFUSED = TOOLS | MEDIA | REASONING | MASKS | {"refusal": "it is the answer's text; put it into the content"}
"""Fields of a turn that change what is to be learned of it."""

REFUSABLE = frozenset({*CONVERSATION_REFUSED, *TURN_REFUSED})
"""All names that any format refuses; ``FormatOptions.ignored`` may hold them."""


@dataclass(frozen=True)
class FieldUse:
    """What becomes of the fields of an object.

    Attributes:
        read: names that the parser looks at.
        refused: names that may not hold anything, and why.
        inner: what becomes of the fields of the objects in these fields, themselves or in lists.
        every: the fields are no names but numbers of turns, and each holds such an object.
    """

    read: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, "FieldUse"] = field(default_factory=dict)
    every: "FieldUse | None" = None

    def check(self, record: Record, options: FormatOptions) -> set[str]:
        """The names of the record's fields that hold something and are not read, as ``name`` or ``name.inner``.

        Raises:
            RecordError: a field may not be passed over, and ``options`` does not say to.
        """
        unread: set[str] = set()
        if self._is_worth_a_look(record.value):
            self._look(record.value, record.where, "", options.ignored, unread)
        return unread

    def _is_worth_a_look(self, value: dict[str, Any]) -> bool:
        """Whether any field is not read, or has objects inside; most records and turns are none of it."""
        if self.every is not None or not value.keys() <= self.read:
            return True
        for name in self.inner:  # noqa: SIM110 - a loop, because this is called for every turn
            if isinstance(value.get(name), (dict, list)):
                return True
        return False

    def _look(self, value: dict[str, Any], where: str, prefix: str, ignored: frozenset[str], unread: set[str]) -> None:
        if self.every is not None:
            for name, content in value.items():
                if isinstance(content, dict):
                    self.every._look(content, f"{where}: {name}", prefix, ignored, unread)
            return
        for name in value.keys() - self.read:
            self._pass_over(name, value[name], where, ignored)
            if not _is_empty(value[name]):
                unread.add(f"{prefix}{name}")
        for name, use in self.inner.items():
            content = value.get(name)
            for number, inner in enumerate(_objects(content), start=1):
                if use._is_worth_a_look(inner):
                    place = f"{where}: {name}" if isinstance(content, dict) else f"{where}: {name} {number}"
                    use._look(inner, place, f"{prefix}{name}.", ignored, unread)

    def _pass_over(self, name: str, content: Any, where: str, ignored: frozenset[str]) -> None:
        if name not in self.refused or name in ignored or _is_empty(content):
            return
        if name in VERDICTS and content is not False:
            return
        raise RecordError(
            NOT_SUPPORTED, f"{where}: '{name}': {self.refused[name]} (--ignore_fields {name} leaves it out)"
        )


def _objects(value: Any) -> Iterable[dict[str, Any]]:
    """The objects that a value is or holds, in lists of any depth."""
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        return ()
    if set(map(type, value)) == {dict}:  # most turns
        return value
    return chain.from_iterable(map(_objects, value))


def _is_empty(value: Any) -> bool:
    """Whether a field is there for form's sake, like a column of a table in which other rows hold something."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (isinstance(value, list | dict) and not value)


def reads(*names: str, refused: Mapping[str, str] | None = None, **inner: FieldUse) -> FieldUse:
    """A :class:`FieldUse` that reads these names and those of ``inner``."""
    return FieldUse(frozenset({*names, *inner}), refused or {}, inner)


def count_names(counter: Counter[str], names: Iterable[str]) -> None:
    """Count names, or add the numbers of another counter; at most :data:`MOST_NAMES` are told apart."""
    numbers = names if isinstance(names, Counter) else Counter(names)
    for name, number in numbers.items():
        counter[name if name in counter or len(counter) < MOST_NAMES else OTHER_NAMES] += number
