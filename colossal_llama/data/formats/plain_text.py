"""Pretraining texts: the project's own records, plain texts and WuDao's pages."""

from functools import lru_cache

from colossal_llama.data.formats.field_use import FieldUse, reads
from colossal_llama.data.formats.fields import optional_string, string
from colossal_llama.data.formats.parsed import NO_OPTIONS, Dropped, FormatOptions, Sample
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError

EMPTY_TARGET = "empty target"

NOT_PRETRAINING = "not a pretraining record"

PRETRAIN_FIELDS = reads("source", "target", "category")
WUDAO_FIELDS = reads("title", "content", "dataType")


@lru_cache
def text_fields(name: str | None) -> FieldUse:
    """What becomes of the fields of a plain text in the field ``name``, or "text"."""
    return reads(name or "text", "category", meta=reads("pile_set_name"))


def parse_pretrain(record: Record, options: FormatOptions = NO_OPTIONS) -> Sample | Dropped:
    """A pretraining record: ``{"source": "", "target": "text", "category": "tag"}``.

    ``source`` and ``category`` may be absent or null.

    Raises:
        RecordError: ``target`` is missing or any field has the wrong type.
    """
    if "target" not in record.value and "messages" in record.value:
        raise RecordError(
            NOT_PRETRAINING,
            f"{record.where}: this is a conversation ('messages'), not a pretraining record; "
            "use prepare_sft_dataset.py for it",
        )
    return sample(optional_string(record, "source"), string(record, "target"), optional_string(record, "category"))


def sample(source: str, target: str, category: str) -> Sample | Dropped:
    """A text, or nothing where there is nothing to learn."""
    return Sample(source, target, category) if target.strip() else Dropped(EMPTY_TARGET)


def parse_text(record: Record, options: FormatOptions = NO_OPTIONS) -> Sample | Dropped:
    """A plain text: ``{"text": "..."}``, as the Pile and most corpora have it.

    The category is ``meta.pile_set_name`` or the field ``category``, where there is one.

    Raises:
        RecordError: the text field is missing or has the wrong type.
    """
    text = string(record, options.text_field or "text")
    meta = record.value.get("meta")
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return sample("", text, name if isinstance(name, str) else optional_string(record, "category"))


def parse_wudao(record: Record, options: FormatOptions = NO_OPTIONS) -> Sample | Dropped:
    """A WuDao page: ``{"title", "content", "dataType"}``; the title becomes the text's first line.

    Raises:
        RecordError: a field is missing or has the wrong type.
    """
    title, content = optional_string(record, "title"), string(record, "content")
    if not content.strip():
        return Dropped(EMPTY_TARGET)
    text = f"{title}\n{content}" if title.strip() else content
    return Sample("", text, optional_string(record, "dataType"))
