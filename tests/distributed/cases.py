"""Every plugin and layout that two processes allow: one entry each, and a test that none is missing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """Flags of one layout.

    Attributes:
        flags: for train.py; the global batch is always 4 rows.
        fp32: whether Colossal-AI has fp32 there.
        environment: hooks of the worker.
        dumps_logits: whether the worker can evaluate the model outside of a pipeline.
    """

    name: str
    flags: tuple[str, ...]
    fp32: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    dumps_logits: bool = True


SHARD = {"GEMINI_SMALL_CHUNKS": "1"}
SP = ("--enable_sequence_parallelism", "--sp_mode")

CASES = (
    Case("ddp", ("--plugin", "ddp", "--batch_size", "2")),
    Case("zero2", ("--plugin", "zero2", "--batch_size", "2")),
    Case("zero2_cpu", ("--plugin", "zero2_cpu", "--batch_size", "2")),
    Case("zero2-accumulate", ("--plugin", "zero2", "--batch_size", "1", "--accumulation_steps", "2")),
    Case("ddp-accumulate", ("--plugin", "ddp", "--batch_size", "1", "--accumulation_steps", "2")),
    Case("gemini", ("--plugin", "gemini", "--batch_size", "2"), fp32=False, environment=SHARD),
    Case("gemini-whole", ("--plugin", "gemini", "--batch_size", "2"), fp32=False),
    Case("gemini_auto", ("--plugin", "gemini_auto", "--batch_size", "2"), fp32=False, environment=SHARD),
    Case("3d-dp2", ("--plugin", "3d", "--zero", "0", "--batch_size", "2")),
    Case("3d-zero1", ("--plugin", "3d", "--zero", "1", "--batch_size", "2"), fp32=False),
    Case("3d-zero2", ("--plugin", "3d", "--zero", "2", "--batch_size", "2"), fp32=False),
    Case("3d-tp2", ("--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4")),
    Case("3d-pp2", ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4"), dumps_logits=False),
    Case(
        "3d-pp2-accumulate",
        ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "2", "--accumulation_steps", "2"),
        dumps_logits=False,
    ),
    Case(
        "3d-sp-split_gather",
        ("--plugin", "3d", "--zero", "0", "--tp", "2", *SP, "split_gather", "--batch_size", "4"),
    ),
    Case("3d-sp-ring", ("--plugin", "3d", "--zero", "0", "--tp", "2", *SP, "ring", "--batch_size", "4")),
    Case(
        "3d-sp-all_to_all",
        ("--plugin", "3d", "--zero", "0", "--sp", "2", *SP, "all_to_all", "--batch_size", "4"),
        dumps_logits=False,
    ),
)
