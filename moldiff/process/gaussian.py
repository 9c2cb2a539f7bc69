"""Diffusion of vectors: x_t = alpha(t) x_0 + sigma(t) noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moldiff.process.schedule import LinearSchedule, Schedule


def _expand(level: Tensor, values: Tensor) -> Tensor:
    """Append singleton axes to level [B, N] until it broadcasts against values [B, N, ...]."""
    return level.reshape(*level.shape, *(1 for _ in range(values.dim() - level.dim())))


@dataclass(frozen=True)
class GaussianProcess:
    """Isotropic Gaussian noise on vectors; equivariant, since noise and data turn together.

    Args:
        schedule: alpha and sigma by noise level.
        churn: share of the noise that a step draws anew: 0 = deterministic (DDIM, Song et al. 2020,
            arXiv:2010.02502, eq. 12), 1 = ancestral sampling. The law of x_s is the same at every value.
        min_weight: lower clamp of the loss weight alpha / sigma.
        max_weight: upper clamp of the loss weight. Below the level where it is reached the loss falls as fast as the
            squared error, and the network learns little there.
    """

    schedule: Schedule = field(default_factory=LinearSchedule)
    churn: float = 0.0
    min_weight: float = 0.05
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

    def score_from_clean(self, noisy: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """The score -noise / sigma(t) that a clean estimate stands for; 0 where t = 0."""
        sigma = self.schedule.sigma(_expand(t, noisy)).clamp(min=1e-12)
        return -self.noise_from_clean(noisy, clean, t) / sigma

    def step(self, noisy: Tensor, clean: Tensor, t: Tensor, s: Tensor, noise: Tensor | None) -> Tensor:
        """From level t [B, N] to s <= t given the clean estimate; `noise` is needed only where churn > 0.

        x_s = alpha_s x̂_0 + sqrt(sigma_s² - gamma²) ε̂ + gamma z, with gamma the churn's share of the ancestral
        standard deviation. Atoms with t = 0 are known and stay as they are.
        """
        estimate = self.noise_from_clean(noisy, clean, t)
        alpha_s, sigma_s = (_expand(f(s), noisy) for f in (self.schedule.alpha, self.schedule.sigma))
        if self.churn and noise is not None:
            gamma = self.churn * self._ancestral_sigma(t, s)
            gamma = _expand(gamma, noisy)
            moved = alpha_s * clean + (sigma_s.square() - gamma.square()).clamp(min=0).sqrt() * estimate + gamma * noise
        else:
            moved = alpha_s * clean + sigma_s * estimate
        return torch.where(_expand(t, noisy) > 0, moved, noisy)

    def _ancestral_sigma(self, t: Tensor, s: Tensor) -> Tensor:
        """Standard deviation of q(x_s | x_t, x_0) (Kingma et al. 2021, arXiv:2107.00630, eq. 25)."""
        alpha_t, sigma_t = self.schedule.alpha(t), self.schedule.sigma(t).clamp(min=1e-12)
        alpha_s, sigma_s = self.schedule.alpha(s).clamp(min=1e-12), self.schedule.sigma(s)
        transition = sigma_t.square() - (alpha_t / alpha_s).square() * sigma_s.square()
        return sigma_s * transition.clamp(min=0).sqrt() / sigma_t

    def weight(self, t: Tensor) -> Tensor:
        """Loss weight clamp(alpha / sigma) by level."""
        ratio = self.schedule.alpha(t) / self.schedule.sigma(t).clamp(min=1e-12)
        return ratio.clamp(self.min_weight, self.max_weight)

    def loss(self, prediction: Tensor, clean: Tensor, t: Tensor, node_mask: Tensor) -> Tensor:
        """Weighted squared error per atom, averaged over atoms that carry noise; a scalar."""
        error = (prediction - clean).square().flatten(2).sum(-1) * self.weight(t)
        counted = node_mask & (t > 0)
        return (error * counted).sum() / counted.sum().clamp(min=1)

    def bound(self, prediction: Tensor, clean: Tensor, t: Tensor, s: Tensor, node_mask: Tensor) -> Tensor:
        """KL divergence of the step from t to s, per molecule [B] (nats).

        1/2 (SNR(s) - SNR(t)) |x_0 - x̂_0|² (Kingma et al. 2021, eq. 13).
        """
        snr_t, snr_s = (
            (self.schedule.alpha(level) / self.schedule.sigma(level).clamp(min=1e-12)).square() for level in (t, s)
        )
        error = (prediction - clean).square().flatten(2).sum(-1)
        return (0.5 * (snr_s - snr_t) * error * node_mask).sum(1)
