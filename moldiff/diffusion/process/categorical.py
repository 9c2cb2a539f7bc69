"""Diffusion of classes: with probability alpha(t) the clean class, otherwise a draw from the prior."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moldiff.diffusion.process.schedule import LinearSchedule, Schedule
from moldiff.errors import MoldiffError


def marginal_prior(frequencies: Tensor) -> Tensor:
    """Prior [K + 1] that repeats the frequencies [K] of the data (Vignac et al. 2022, arXiv:2209.14734, sec. 4.1)."""
    return torch.cat([frequencies / frequencies.sum(), frequencies.new_zeros(1)])


def uniform_prior(frequencies: Tensor) -> Tensor:
    """Prior [K + 1] with equal weight on each of the K classes."""
    return marginal_prior(torch.ones_like(frequencies))


def absorbing_prior(frequencies: Tensor) -> Tensor:
    """Prior [K + 1] with all weight on the mask, index K (Austin et al. 2021, arXiv:2107.03006, section 3.1)."""
    return torch.cat([torch.zeros_like(frequencies), frequencies.new_ones(1)])


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Class indices [...] by inversion: probabilities [..., K], uniform numbers [...] in [0, 1)."""
    cumulative = probabilities.cumsum(-1)
    # Scaling by the last entry keeps rounding errors of the sum from ever choosing a class without weight.
    return (uniform[..., None] * cumulative[..., -1:] >= cumulative).sum(-1)


@dataclass(frozen=True, eq=False)
class CategoricalProcess:
    """Each entry keeps its class with probability alpha(t), independent of all others.

    A step redraws a share (alpha_s - alpha_t) / (1 - alpha_t) of the entries, times 1 + η alpha_t with the `corrector`
    η, 0 = the law of the process (Gat et al. 2024, arXiv:2407.15595, eq. 14). It noises the share `refresh` anew.
    """

    prior: Tensor  # probabilities [K + 1] of the K classes and, last, the mask
    schedule: Schedule = field(default_factory=LinearSchedule)
    corrector: float = 0.0
    refresh: float = 0.0

    def __post_init__(self) -> None:
        if self.corrector < 0:
            raise MoldiffError(f"corrector: got {self.corrector}, expected a number >= 0")

    def draw_prior(self, uniform: Tensor) -> Tensor:
        """Classes [...] from the prior, given uniform numbers [...]."""
        return draw(self.prior.to(uniform).expand(*uniform.shape, -1), uniform)

    def corrupt(self, clean: Tensor, noise: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
        """Clean classes where uniform < alpha(t), the noise's classes elsewhere; all [...]."""
        return torch.where(uniform < self.schedule.alpha(t), clean, noise)

    def step(self, noisy: Tensor, logits: Tensor, t: Tensor, s: Tensor, uniform: Tensor) -> Tensor:
        """Noisy classes [...] from level t [...] to s <= t: a share is redrawn from the estimate (logits [..., K]).

        Of uniform numbers [..., 2] the first decides whether, the second what is redrawn.
        """
        return torch.where(self.redrawn(t, s, uniform[..., 0]), draw(logits.softmax(-1), uniform[..., 1]), noisy)

    def refreshed(self, noisy: Tensor, logits: Tensor, s: Tensor, uniform: Tensor) -> Tensor:
        """Noisy classes [...] at level s [...] with a share drawn anew from q(x_s | x_0), x_0 as predicted (logits).

        Of uniform numbers [..., 2] the first decides whether and from what, the second what. With s = 0 all stay.
        """
        chosen = (uniform[..., 0] < self.refresh) & (s > 0)
        clean = uniform[..., 0] < self.refresh * self.schedule.alpha(s)
        fresh = torch.where(clean, draw(logits.softmax(-1), uniform[..., 1]), self.draw_prior(uniform[..., 1]))
        return torch.where(chosen, fresh, noisy)

    def redrawn(self, t: Tensor, s: Tensor, uniform: Tensor) -> Tensor:
        """Which entries [...] a step from level t to s <= t redraws, given uniform numbers [...]; known ones never."""
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        share = (alpha_s - alpha_t) / (1 - alpha_t).clamp(min=1e-12) * (1 + self.corrector * alpha_t)
        return (uniform < share) & (t > 0)

    def loss(self, logits: Tensor, clean: Tensor, counted: Tensor) -> Tensor:
        """Cross-entropy (nats) of clean classes [...] under logits [..., K], averaged where counted [...] is True."""
        entropy = torch.nn.functional.cross_entropy(logits.flatten(0, -2), clean.flatten(), reduction="none")
        return (entropy * counted.flatten()).sum() / counted.sum().clamp(min=1)

    def posterior(self, noisy: Tensor, clean_probabilities: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [..., K + 1] when x_0 has the given probabilities [..., K] (Austin et al. 2021, eq. 3)."""
        prior = self.prior.to(clean_probabilities)
        alpha_t, alpha_s = self.schedule.alpha(t)[..., None], self.schedule.alpha(s)[..., None]
        keep = alpha_t / alpha_s.clamp(min=1e-12)
        current = torch.nn.functional.one_hot(noisy, len(prior)).to(prior)
        likelihood = keep * current + (1 - keep) * prior[noisy][..., None]  # q(x_t | x_s), over x_s
        evidence = alpha_t * current + (1 - alpha_t) * prior[noisy][..., None]  # q(x_t | x_0), over x_0
        clean = torch.nn.functional.pad(clean_probabilities, (0, 1))
        ratio = torch.where(evidence > 0, clean / evidence.clamp(min=1e-30), 0.0)
        return likelihood * (alpha_s * ratio + (1 - alpha_s) * prior * ratio.sum(-1, keepdim=True))

    def bound(self, logits: Tensor, clean: Tensor, noisy: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """KL divergence [...] (nats) between the true and the predicted p(x_s | x_t)."""
        true = self.posterior(noisy, torch.nn.functional.one_hot(clean, logits.shape[-1]).to(logits), t, s)
        predicted = self.posterior(noisy, logits.softmax(-1), t, s)
        ratio = torch.where(true > 0, true.clamp(min=1e-30) / predicted.clamp(min=1e-30), 1.0)
        return (true * ratio.log()).sum(-1)
