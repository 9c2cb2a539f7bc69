"""How much of the data (alpha) and of the noise (sigma) is left at noise level t, 0 = data, 1 = prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A pure function of the noise level with an inverse."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor on the data, 1 at t = 0 and 0 at t = 1."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """The factor on the noise, 0 at t = 0 and 1 at t = 1."""
        ...

    def level(self, log_snr: Tensor) -> Tensor:
        """The noise level at which log(alpha² / sigma²) has the given value."""
        ...


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
