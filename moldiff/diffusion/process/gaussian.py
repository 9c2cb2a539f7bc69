"""Diffusion of vectors: x_t = alpha(t) x_0 + sigma(t) noise."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moldiff.diffusion.process.schedule import LinearSchedule, Schedule


def _expand(level: Tensor, values: Tensor) -> Tensor:
    """Append singleton axes to level [B, N] until it broadcasts against values [B, N, ...]."""
    return level.reshape(level.shape + (1,) * (values.dim() - level.dim()))


@dataclass(frozen=True)
class GaussianProcess:
    """Isotropic Gaussian noise on vectors; equivariant, since noise and data turn together.

    `churn` is the rate at which steps draw noise anew: 0 = none (DDIM, Song et al. 2020, arXiv:2010.02502, eq. 12), 1 =
    as the reverse SDE. Below the level where the loss weight alpha / sigma reaches `max_weight` it learns little.
    """

    schedule: Schedule = field(default_factory=LinearSchedule)
    churn: float = 0.0
    churn_levels: tuple[float, float] = (0.0, 1.0)  # between which steps start that draw noise anew
    min_weight: float = 0.05  # clamps of the loss weight
    max_weight: float = 1.5

    def corrupt(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy vectors [B, N, ...] at level t [B, N]."""
        t = _expand(t, clean)
        return self.schedule.alpha(t) * clean + self.schedule.sigma(t) * noise

    def noise_from_clean(self, noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from clean to noisy at level t [B, N]; 0 where t = 0."""
        t = _expand(t, noisy)
        sigma = self.schedule.sigma(t)
        return (noisy - self.schedule.alpha(t) * clean) / sigma.clamp(min=1e-12) * (sigma > 0)

    def step(self, noisy: Tensor, clean: Tensor, t: Tensor, s: Tensor, noise: Tensor | None) -> Tensor:
        """From level t [B, N] to s <= t given the clean estimate; `noise` is needed only where churn > 0.

        Section 5 of docs/method.md; SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, section 5.3) where the
        estimate is of second order (`moldiff.diffusion.sampler.extrapolate`). Atoms with t = 0 are known and stay.
        """
        estimate = self.noise_from_clean(noisy, clean, t)
        if self.churn and noise is not None:
            kept = _expand(self._kept_noise(t, s), noisy)
            estimate = kept * estimate + (1 - kept.square()).clamp(min=0).sqrt() * noise
        moved = _expand(self.schedule.alpha(s), noisy) * clean + _expand(self.schedule.sigma(s), noisy) * estimate
        return torch.where(_expand(t, noisy) > 0, moved, noisy)

    def _kept_noise(self, t: Tensor, s: Tensor) -> Tensor:
        """The share [B, N] of the noise that a step from level t to s keeps."""
        low, high = self.churn_levels
        alpha_t, sigma_t = self.schedule.alpha(t), self.schedule.sigma(t).clamp(min=1e-12)
        alpha_s, sigma_s = self.schedule.alpha(s).clamp(min=1e-12), self.schedule.sigma(s)
        churned = (s < t) & (t >= low) & (t <= high)
        return torch.where(churned, ((alpha_t * sigma_s) / (alpha_s * sigma_t)).clamp(0, 1) ** self.churn, 1.0)

    def weight(self, t: Tensor) -> Tensor:
        """Loss weight clamp(alpha / sigma) by level."""
        return self._ratio(t).clamp(self.min_weight, self.max_weight)

    def _ratio(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t) / self.schedule.sigma(t).clamp(min=1e-12)

    def loss(self, prediction: Tensor, clean: Tensor, t: Tensor, counted: Tensor) -> Tensor:
        """Weighted squared error of vectors [..., 3], averaged where `counted` [...] is True and there is noise."""
        error = (prediction - clean).square().sum(-1) * self.weight(_expand(t, counted))
        counted = counted & (_expand(t, counted) > 0)
        return (error * counted).sum() / counted.sum().clamp(min=1)

    def bound(self, prediction: Tensor, clean: Tensor, t: Tensor, s: Tensor, counted: Tensor) -> Tensor:
        """KL divergence of the step from t to s over the vectors where `counted` is True, per molecule [B] (nats).

        1/2 (SNR(s) - SNR(t)) |x_0 - x̂_0|² (Kingma et al. 2021, eq. 13).
        """
        gained = self._ratio(s).square() - self._ratio(t).square()
        error = (prediction - clean).square().sum(-1) * counted
        return (0.5 * _expand(gained, counted) * error).flatten(1).sum(1)
