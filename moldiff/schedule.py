"""The learning rate as a function of how much of the training is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrapezoidSchedule:
    """Warm up over steps, hold, then decay linearly over the last share of the training.

    Args:
        warmup_steps: steps until the full rate.
        decay_share: share of the training, at its end, over which the rate falls.
        final: the factor at the very end.
    """

    warmup_steps: int = 100
    decay_share: float = 0.6
    final: float = 0.02

    def __call__(self, step: int, progress: float) -> float:
        """Factor on the learning rate at a 0-based step and a progress from 0 to 1."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        falling = (1 - progress) / self.decay_share if self.decay_share > 0 else 1.0
        return warm * max(self.final, min(1.0, falling))
