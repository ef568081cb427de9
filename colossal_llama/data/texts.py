"""The plain texts of corpus files, for tokenizers: any input of the preparation commands, and plain text."""

import codecs
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
from colossal_llama.data.input_files import KINDS, InputFile, list_input_files
from colossal_llama.data.readers import Record, read_slice
from colossal_llama.data.slices import plan_slices
from colossal_llama.errors import UserError

PLAIN_TEXT = "txt"
"""Kind of the files whose lines are read as they are: every file that ends in none of ``KINDS``."""

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
        dropped: after reading, how many records held no text, by reason.
        unread: after reading, how many records hold something in a field which is not read, by its name.
    """

    inputs: Sequence[str]
    flag: str
    data_format: str = "auto"
    text_field: str | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    def files(self) -> list[InputFile]:
        """The files, each once, in the order of ``inputs``.

        Raises:
            UserError: an input is missing or has nothing to read.
        """
        found = [file for spec in self.inputs for file in self._files_of(Path(spec))]
        return list({file.path: file for file in found}.values())

    def _files_of(self, path: Path) -> list[InputFile]:
        if path.is_file() and not path.name.lower().endswith(tuple(f".{kind}" for kind in KINDS)):
            return [InputFile(str(path), PLAIN_TEXT)]
        plain = sorted(path.glob("*.txt")) if path.is_dir() else []
        try:
            records = list_input_files(path, self.flag)
        except UserError:
            if not plain:
                raise
            records = []
        return records + [InputFile(str(file), PLAIN_TEXT) for file in plain]

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
            if file.kind == PLAIN_TEXT:
                yield from (CorpusText(line, category) for line in _lines(file.path))
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


def _lines(path: str) -> Iterator[str]:
    """Lines that are not blank, with their line ends.

    Raises:
        UserError: a line is not UTF-8.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8; convert the file to UTF-8") from error
            if line.strip():
                yield line
