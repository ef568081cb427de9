"""Progress of a run: what a checkpoint stores as ``running_states.json`` beside the tensors."""

from dataclasses import dataclass, fields
from typing import Any

PLACE_IN_RUN = ("epoch", "step", "global_step", "consumed_samples")
"""Fields without which there is no resuming."""


@dataclass
class TrainState:
    """Where a run stands, counted at the end of an optimizer step.

    Attributes:
        epoch: epochs finished, and thus the index of the one under way.
        step: optimizer steps finished in that epoch.
        global_step: optimizer steps finished in the run.
        consumed_samples: rows consumed in the epoch under way.
        target_tokens: tokens with loss that the run has learned from.
        samples: rows that the run has consumed, all epochs together.
        tokens: their tokens, padding not counted.
        skipped_steps: steps whose update was dropped because its loss or gradient was not finite.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    consumed_samples: int = 0
    target_tokens: int = 0
    samples: int = 0
    tokens: int = 0
    skipped_steps: int = 0

    def __post_init__(self) -> None:
        """Check that the counters fit together.

        Raises:
            ValueError: a counter is negative or an epoch's step exceeds the run's.
        """
        if min(vars(self).values()) < 0:
            raise ValueError(f"negative counter in {self}")
        if self.step > self.global_step:
            raise ValueError(f"more steps in the epoch than in the run: {self}")

    def finish_step(self, samples: int, target_tokens: int, tokens: int = 0) -> None:
        """Count one optimizer step of so many rows, tokens with loss, and tokens (padding not counted)."""
        self.step += 1
        self.global_step += 1
        self.consumed_samples += samples
        self.target_tokens += target_tokens
        self.samples += samples
        self.tokens += tokens

    def finish_epoch(self) -> None:
        """Turn to the next epoch."""
        self.epoch += 1
        self.step = 0
        self.consumed_samples = 0

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> "TrainState":
        """The state stored in a ``running_states.json`` mapping; other keys are ignored.

        Fields that an older version did not write get their defaults.

        Raises:
            KeyError: the mapping does not say where the run stood.
        """
        missing = [name for name in PLACE_IN_RUN if name not in mapping]
        if missing:
            raise KeyError(missing[0])
        return cls(**{field.name: int(mapping.get(field.name, field.default)) for field in fields(cls)})
