"""Takes down the steps of the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from colossal_llama.benchmarking.clock import OTHER, PhaseClock
from colossal_llama.benchmarking.memory_trace import mark
from colossal_llama.benchmarking.split import LOADER, PHASES
from colossal_llama.metrics.writers import Event, Metrics


@dataclass
class RecordedSteps:
    """Steps in their order.

    Attributes:
        losses: in nats for each target token.
        seconds: as the tracker measures them, from the end of one step to the end of the next.
        phases: seconds of each phase; they add up to the step.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def mean_phases(self) -> tuple[dict[str, float], float]:
        """Mean seconds of each phase, :data:`OTHER` last, and the mean length of a step, which is their sum."""
        names = (*PHASES, OTHER)
        means = {name: sum(step.get(name, 0.0) for step in self.phases) / len(self.phases) for name in names}
        return means, sum(sum(step.values()) for step in self.phases) / len(self.phases)


class StepRecorder:
    """A metric writer that keeps what it is given, and ends the steps of a :class:`PhaseClock`."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._steps = RecordedSteps()

    def taken(self) -> RecordedSteps:
        """The steps since the last call."""
        steps, self._steps = self._steps, RecordedSteps()
        return steps

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        phases = self._clock.end_step()
        # The trainer waits for rows outside of every phase.
        waited = min(metrics["loader_wait_seconds"], phases.get(OTHER, 0.0))
        phases[LOADER] = waited
        phases[OTHER] = phases.get(OTHER, 0.0) - waited
        self._steps.losses.append(metrics["loss"])
        self._steps.seconds.append(metrics["seconds"])
        self._steps.phases.append(phases)
        with mark("between_steps"):
            pass

    def note(self, step: int, event: Event) -> None:
        """See :class:`MetricWriter`."""

    def close(self) -> None:
        """See :class:`MetricWriter`."""
