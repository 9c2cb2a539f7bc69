"""Noise levels t, 0 = data, 1 = prior: how noisy they are, which training visits, which the sampler steps through."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moldiff.errors import MoldiffError


class Schedule(Protocol):
    """A pure function of the noise level with an inverse."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor on the data, 1 at t = 0 and 0 at t = 1."""

    def sigma(self, t: Tensor) -> Tensor:
        """The factor on the noise, 0 at t = 0 and 1 at t = 1."""

    def level(self, log_snr: Tensor) -> Tensor:
        """The noise level at which log(alpha² / sigma²) has the given value."""


@dataclass(frozen=True)
class LinearSchedule:
    """alpha = 1 - t, sigma = t: the straight path of rectified flow (Liu et al. 2022, arXiv:2209.03003, eq. 1)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def level(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class CosineSchedule:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving (Nichol & Dhariwal 2021, arXiv:2102.09672)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def level(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2)) * (2 / math.pi)


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """The log signal-to-noise ratio log(alpha² / sigma²) at noise level t, infinite at the ends."""
    return 2 * (torch.log(schedule.alpha(t)) - torch.log(schedule.sigma(t)))


MIN_LEVEL = 1e-3  # the lowest noise level of free fields: the last network call, whose answer is taken as the data


@dataclass(frozen=True)
class PowerTimes:
    """Levels t = 1 - u^(1 / power) with u uniform, so that 1 - t is Beta(power, 1): power > 1 visits low noise more."""

    power: float = 1.5

    def __call__(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw `num` levels in [MIN_LEVEL, 1], stratified over the batch so that each batch covers the range."""
        uniform = torch.rand(num, generator=generator, device=generator.device)
        strata = torch.randperm(num, generator=generator, device=generator.device)
        level = 1 - ((strata + uniform) / num).pow(1 / self.power)
        return level.clamp(MIN_LEVEL, 1.0)


def power_grid(num_steps: int, power: float = 2.0, *, start: float = 1.0, end: float = MIN_LEVEL) -> Tensor:
    """`num_steps` levels from `start` down to `end`, denser towards the data for power > 1; MoldiffError for none.

    Each level is one network call; the last call's answer is the sample.
    """
    if num_steps < 1:
        raise MoldiffError(f"steps: got {num_steps}, expected at least 1")
    first, last = (((level - MIN_LEVEL) / (1 - MIN_LEVEL)) ** (1 / power) for level in (start, end))
    fraction = torch.linspace(first, last, num_steps, dtype=torch.float64)
    return MIN_LEVEL + (1 - MIN_LEVEL) * fraction**power
