"""Which noise levels training visits, and which the sampler steps through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moldiff.errors import MoldiffError

MIN_LEVEL = 1e-3
"""The lowest noise level of free fields: the last network call, whose answer is taken as the data."""


@dataclass(frozen=True)
class PowerTimes:
    """Levels t = 1 - u^(1 / power) with u uniform: power > 1 visits low noise more often.

    The distance 1 - t from the prior has the Beta(power, 1) distribution.
    """

    power: float = 1.5

    def __call__(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw `num` levels in [MIN_LEVEL, 1], stratified over the batch so that each batch covers the range."""
        uniform = torch.rand(num, generator=generator, device=generator.device)
        strata = torch.randperm(num, generator=generator, device=generator.device)
        level = 1 - ((strata + uniform) / num).pow(1 / self.power)
        return level.clamp(MIN_LEVEL, 1.0)


def power_grid(num_steps: int, power: float = 2.0, *, start: float = 1.0, end: float = MIN_LEVEL) -> Tensor:
    """`num_steps` levels from `start` down to `end`, denser towards the data for power > 1.

    Each level is one network call; the last call's answer is the sample.

    Raises:
        MoldiffError: for fewer than one step.
    """
    if num_steps < 1:
        raise MoldiffError(f"steps: got {num_steps}, expected at least 1")
    first, last = (((level - MIN_LEVEL) / (1 - MIN_LEVEL)) ** (1 / power) for level in (start, end))
    fraction = torch.linspace(first, last, num_steps, dtype=torch.float64)
    return MIN_LEVEL + (1 - MIN_LEVEL) * fraction**power
