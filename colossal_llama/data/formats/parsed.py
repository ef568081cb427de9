"""What records are turned into: pretraining texts and conversations, or nothing with a reason."""

from collections.abc import Iterable
from dataclasses import dataclass

HUMAN = "human"
ASSISTANT = "assistant"
SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Sample:
    """A pretraining text: no loss on ``source`` (may be empty), loss on ``target``."""

    source: str
    target: str
    category: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: "human" or "assistant".
        content: its text.
        segments: of an assistant's message that is learned in part: pairs of text and whether it is learned,
            which add up to ``content``. None for a message that is learned whole.
        has_loss: whether an assistant's message is learned at all, its end token included.
    """

    role: str
    content: str
    segments: tuple[tuple[str, bool], ...] | None = None
    has_loss: bool = True

    @classmethod
    def of_segments(cls, segments: Iterable[tuple[str, bool]]) -> "Message":
        """An assistant's message that is learned in part; without a part that is not learned, a plain one."""
        parts = tuple((text, learn) for text, learn in segments if text)
        content = "".join(text for text, _ in parts)
        return cls(ASSISTANT, content, None if all(learn for _, learn in parts) else parts)

    @classmethod
    def without_loss(cls, content: str) -> "Message":
        """An assistant's message of which nothing is learned, its end token neither."""
        return cls(ASSISTANT, content, has_loss=False)

    @property
    def learned_text(self) -> str:
        """What of an assistant's message is learned."""
        if self.segments is None:
            return self.content
        return "".join(text for text, learn in self.segments if learn)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that alternate human, assistant, ... and end with the assistant.

    ``system`` is the content of a leading system message, None without one. ``trailing_human`` says that a
    last, unanswered human message was cut.
    """

    system: str | None
    messages: tuple[Message, ...]
    category: str
    trailing_human: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A well-formed record without anything to learn."""

    reason: str


Parsed = Sample | Conversation | Dropped


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """Choices of the user's.

    Attributes:
        text_field: the field that the format "text" reads.
        ignored: names of fields that are passed over although they change what a record means.
    """

    text_field: str | None = None
    ignored: frozenset[str] = frozenset()


NO_OPTIONS = FormatOptions()
