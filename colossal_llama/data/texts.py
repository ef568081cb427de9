"""The plain texts of corpus files, for tokenizers: any input of the preparation commands, and plain text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from colossal_llama.data.formats import (
    FORMATS,
    Conversation,
    Dropped,
    FormatOptions,
    Parsed,
    RecordFormat,
    detect_format,
)
from colossal_llama.data.formats.field_use import REFUSABLE, count_names
from colossal_llama.data.input_files import TXT, FileRules, InputFile, describe_not_read, find_input_files
from colossal_llama.data.readers import Record, read_slice
from colossal_llama.data.slices import plan_slices

_DETECT_RECORDS = 100


@dataclass(frozen=True, slots=True)
class CorpusText:
    """One text: a record, or a line of a plain file that is not blank.

    Attributes:
        text: source and target of a pretraining record, or all contents of a conversation in lines.
        category: the record's, or the file's name without its ending where it has none.
    """

    text: str
    category: str


@dataclass
class TextReader:
    """Reads files one after the other; memory holds one slice of one file.

    Attributes:
        inputs: files, directories or globs, as ``--data_input_dirs`` takes them; a file of another ending is
            plain UTF-8 text, and so are the ``.txt`` files of a directory.
        flag: the flag that gave them, for messages.
        data_format: name of a record format, or "auto".
        text_field: the field that the format "text" reads.
        recursive: read the subfolders of directories too.
        not_read: after reading, why files and folders were passed over, by path.
        dropped: after reading, how many records held no text, by reason.
        unread: after reading, how many records hold something in a field which is not read, by its name.
    """

    inputs: Sequence[str]
    flag: str
    data_format: str = "auto"
    text_field: str | None = None
    recursive: bool = False
    not_read: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    def files(self) -> list[InputFile]:
        """The files, each once, in the order of ``inputs``.

        Raises:
            UserError: an input is missing or has nothing to read.
        """
        rules = FileRules(self.flag, self.recursive, unknown_is_text=True, may_repeat=True)
        found = find_input_files(self.inputs, rules)
        self.not_read = found.not_read
        return [file for group in found.groups for file in group]

    def notes(self) -> list[str]:
        """After reading, lines that say what was not read."""
        lines = []
        if self.not_read:
            lines.append(f"files and folders not read {len(self.not_read):,}: {describe_not_read(self.not_read)}")
        if self.dropped:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(self.dropped.items()))
            lines.append(f"records without text: {reasons}")
        if self.unread:
            names = ", ".join(f"{name} {number:,}" for name, number in sorted(self.unread.items()))
            lines.append(f"fields not read, in so many records: {names}")
        return lines

    def __iter__(self) -> Iterator[CorpusText]:
        """The texts of all files.

        Raises:
            UserError: an input cannot be read, or a record is not of its file's format.
        """
        # What changes the meaning of an answer does not change its text.
        options = FormatOptions(self.text_field, REFUSABLE)
        note_unread = partial(count_names, self.unread)
        for file in self.files():
            category = Path(file.path).name.split(".")[0]
            if file.kind == TXT:
                yield from (CorpusText(record.value["text"], category) for record in _records(file))
                continue
            records = list(islice(_records(file), _DETECT_RECORDS))
            if not records:
                continue
            known = self._format(records, file.path, options)
            for record in _records(file):
                parsed = known.parse(record, options, note_unread)
                if isinstance(parsed, Dropped):
                    self.dropped[parsed.reason] += 1
                else:
                    yield CorpusText(_text_of(parsed), parsed.category or category)

    def _format(self, records: list[Record], path: str, options: FormatOptions) -> RecordFormat:
        if self.data_format != "auto":
            return FORMATS.get(self.data_format)
        return detect_format(records, path, options)


def _records(file: InputFile) -> Iterator[Record]:
    return (record for piece in plan_slices(file) for record in read_slice(piece))


def _text_of(parsed: Parsed) -> str:
    if isinstance(parsed, Conversation):
        contents = [message.content for message in parsed.messages]
        return "\n".join([parsed.system, *contents] if parsed.system else contents)
    assert not isinstance(parsed, Dropped)
    return parsed.source + parsed.target
