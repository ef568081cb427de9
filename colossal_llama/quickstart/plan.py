"""How much of everything the quickstart does, for SmolLM2-135M and for the tiny model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StagePlan:
    """One training stage.

    Attributes:
        name: folder and label.
        title: what the report calls it.
        chinese, english: characters of text to learn from.
        lr: peak learning rate.
        embeddings_only: train nothing but the embeddings.
        conversations: the texts become conversations and NEFTune is on.
        pairs: the English texts become source and target, loss on the target.
    """

    name: str
    title: str
    chinese: int
    english: int
    lr: float
    embeddings_only: bool = False
    conversations: bool = False
    pairs: bool = False


@dataclass(frozen=True)
class QuickstartPlan:
    """Sizes of one variant of the quickstart.

    Attributes:
        new_tokens: pieces to mine and add.
        max_length: row length in tokens.
        global_batch: rows per optimizer step.
        passage_characters: longest passage, Chinese and English.
        conversation_characters: longest text of one conversation, Chinese and English; with the chat template around
            it, it must fit into a row.
        measured_characters: characters to measure on, Chinese and English.
        save_interval: optimizer steps between checkpoints, which is what a kill loses at most.
        stages: in order.
        base_stage: trains the base model first, where there is none to start from.
    """

    new_tokens: int
    max_length: int
    global_batch: int
    passage_characters: tuple[int, int]
    conversation_characters: tuple[int, int]
    measured_characters: tuple[int, int]
    save_interval: int
    stages: tuple[StagePlan, ...]
    base_stage: StagePlan | None = None

    @property
    def all_stages(self) -> tuple[StagePlan, ...]:
        """The base stage, if any, and the others."""
        return self.stages if self.base_stage is None else (self.base_stage, *self.stages)


FULL = QuickstartPlan(
    new_tokens=64,
    max_length=256,
    global_batch=2,
    passage_characters=(150, 500),
    conversation_characters=(100, 500),
    measured_characters=(3000, 4000),
    save_interval=80,
    stages=(
        StagePlan("stage1", "1 embedding alignment", 8_000, 0, 2e-3, embeddings_only=True),
        StagePlan("stage2", "2 knowledge injection", 28_000, 14_000, 6e-4),
        StagePlan("stage3", "3 knowledge replay", 6_000, 24_000, 2e-4),
        StagePlan("sft", "4 SFT with NEFTune", 2_500, 2_500, 5e-5, conversations=True),
    ),
)

TINY = QuickstartPlan(
    new_tokens=256,
    max_length=256,
    global_batch=8,
    passage_characters=(70, 200),
    conversation_characters=(70, 200),
    measured_characters=(6000, 9000),
    save_interval=10,
    stages=(
        StagePlan("stage1", "1 embedding alignment", 20_000, 0, 4e-3, embeddings_only=True),
        StagePlan("stage2", "2 knowledge injection", 40_000, 0, 1e-3),
        StagePlan("stage3", "3 knowledge replay", 20_000, 32_000, 1e-3, pairs=True),
        StagePlan("sft", "4 SFT with NEFTune", 4_000, 4_000, 1e-4, conversations=True),
    ),
    base_stage=StagePlan("base", "0 English base model", 0, 150_000, 2e-3),
)
