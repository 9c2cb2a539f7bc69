"""Network, process, vocabulary and statistics as one module: what is trained, saved and sampled from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moldiff.batch import MolBatch, NoiseLevel, Prediction
from moldiff.data.statistics import Statistics
from moldiff.geometry import Coupling, center
from moldiff.process.joint import JointProcess
from moldiff.process.schedule import log_snr
from moldiff.protocols import Denoiser
from moldiff.randomness import BatchDraws
from moldiff.vocabulary import Vocabulary

BOUND_LEVELS = (0.01, 0.999)
"""Noise levels between which the variational bound is taken; the lower is about 0.01 Å of noise."""

TimeDistribution = Callable[[int, torch.Generator], Tensor]
TaskDistribution = Callable[[MolBatch, TimeDistribution, torch.Generator], tuple[NoiseLevel, Coupling]]


class MoleculeDiffusion(nn.Module):
    """A denoiser with everything that gives its numbers meaning.

    Inside, lengths are divided by the data's own scales so that every field has unit variance; batches that go in and
    molecules that come out are in Å.

    Args:
        denoiser: the network.
        process: the joint noising process.
        vocabulary: classes of atoms and bonds.
        statistics: sizes, frequencies and scales of the training data.
    """

    def __init__(
        self, denoiser: nn.Module, process: JointProcess, vocabulary: Vocabulary, statistics: Statistics
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process
        self.vocabulary = vocabulary
        self.statistics = statistics

    def to_model_units(self, batch: MolBatch, known: Tensor | None = None) -> MolBatch:
        """Å -> unit variance, centred on the atoms of known position (`known` [B, N]) or, without any, on all."""
        return batch.replace(
            pos=center(batch.pos, batch.node_mask, known) / self.statistics.pos_scale,
            hydrogen=batch.hydrogen / self.statistics.hydrogen_scale,
        )

    def to_angstrom(self, batch: MolBatch) -> MolBatch:
        """Unit variance -> Å."""
        return batch.replace(
            pos=batch.pos * self.statistics.pos_scale, hydrogen=batch.hydrogen * self.statistics.hydrogen_scale
        )

    def denoise(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """The network's estimate of the clean data, in the model's units."""
        denoiser: Denoiser = self.denoiser
        return denoiser(noisy, noise_level, previous)

    def losses(
        self,
        batch: MolBatch,
        times: TimeDistribution,
        generator: torch.Generator,
        *,
        self_condition: bool,
        tasks: TaskDistribution | None = None,
    ) -> dict[str, Tensor]:
        """Loss of every field for clean molecules in Å.

        Args:
            batch: clean molecules (Å).
            times: draws noise levels.
            generator: source of all random numbers.
            tasks: what is known of each molecule; None = nothing, one noise level shared by all fields.
            self_condition: feed the network its own first estimate (Chen et al. 2022, arXiv:2208.04202, section 3).
        """
        draws = BatchDraws(generator)
        mask = batch.node_mask
        if tasks is None:
            level, coupling, known = NoiseLevel.uniform(times(batch.num_molecules, generator), mask), None, None
        else:
            level, coupling = tasks(batch, times, generator)
            known = (level.pos == 0) & mask
        clean, noise = self.process.couple(
            self.to_model_units(batch, known), self.process.prior(mask, draws, known), coupling
        )
        noisy = self.process.corrupt(clean, noise, level, draws)
        previous = None
        if self_condition:
            with torch.no_grad():
                previous = self.denoise(noisy, level).detach()
        return self.process.loss(self.denoise(noisy, level, previous), clean, level)

    @torch.no_grad()
    def bound(self, batch: MolBatch, generator: torch.Generator, *, num_steps: int = 100) -> dict[str, Tensor]:
        """One-sample estimate of the variational bound of a process of `num_steps` steps, per field [B] (nats).

        The sum over steps of KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for clean molecules in Å, by one step drawn at
        random for each molecule (Kingma et al. 2021, arXiv:2107.00630, eq. 12). The grid is even in log SNR between
        `BOUND_LEVELS`, so that no step outweighs the others; the terms beyond its ends are left out.
        """
        draws = BatchDraws(generator)
        clean, noise = self.process.couple(self.to_model_units(batch), self.process.prior(batch.node_mask, draws))
        schedule = self.process.pos.schedule
        low, high = log_snr(schedule, torch.tensor(BOUND_LEVELS, dtype=torch.double))
        grid = schedule.level(torch.lerp(low, high, torch.linspace(0, 1, num_steps + 1).double())).to(clean.pos)
        index = torch.randint(num_steps, (batch.num_molecules,), generator=generator, device=generator.device)
        s, t = (NoiseLevel.uniform(grid[k], batch.node_mask) for k in (index, index + 1))
        noisy = self.process.corrupt(clean, noise, t, draws)
        prediction = self.denoise(noisy, t, self.denoise(noisy, t))
        terms = self.process.bound(prediction, clean, noisy, t, s)
        return {name: term * num_steps for name, term in terms.items()}
