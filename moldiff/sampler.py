"""Sampling loops as plain functions over a model, a grid of levels and a source of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from moldiff.batch import MolBatch, NoiseLevel, Prediction
from moldiff.errors import MoldiffError
from moldiff.model import MoleculeDiffusion
from moldiff.process.schedule import log_snr
from moldiff.process.time import power_grid
from moldiff.randomness import Draws


@dataclass(frozen=True)
class SamplerState:
    """One network call of a running sampler.

    Attributes:
        noisy: the state that went into the network (model units).
        prediction: the network's answer (model units).
        step: 0-based number of the call.
    """

    noisy: MolBatch
    prediction: Prediction
    step: int


class Sampler(Protocol):
    """Turns noise into clean-data estimates; each yielded state is one network call, the last is the sample."""

    def __call__(
        self, model: MoleculeDiffusion, prior: MolBatch, noise_level: NoiseLevel, draws: Draws
    ) -> Iterator[SamplerState]:
        """Run from `prior` at `noise_level` (0 where known) down to the data."""
        ...


@dataclass(frozen=True)
class PowerSampler:
    """Steps down a power grid of levels, one network call a level.

    Args:
        num_steps: network calls a molecule.
        grid_power: above 1 the grid is denser towards the data.
        corrector: corrector noise η of atom classes and bonds.
        churn: share of the ancestral noise that is drawn anew for coordinates; 0 = deterministic.
        order: of the solver for the coordinates: 1, or 2 = extrapolate from the last two estimates.
    """

    num_steps: int = 50
    grid_power: float = 2.0
    corrector: float = 10.0
    churn: float = 0.0
    order: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise MoldiffError(f"steps: got {self.num_steps}, expected a whole number of at least 1")
        for name, low in (("grid_power", 0.1), ("corrector", 0.0), ("churn", 0.0)):
            if not getattr(self, name) >= low:
                raise MoldiffError(f"sampler.{name}: got {getattr(self, name)}, expected a number >= {low}")
        if self.churn > 1:
            raise MoldiffError(f"sampler.churn: got {self.churn}, expected a number from 0 to 1")
        if self.order not in (1, 2):
            raise MoldiffError(f"sampler.order: got {self.order}, expected 1 or 2")

    def __call__(
        self, model: MoleculeDiffusion, prior: MolBatch, noise_level: NoiseLevel, draws: Draws
    ) -> Iterator[SamplerState]:
        """Yield every network call; the last one's prediction is the sample."""
        process = replace(
            model.process,
            pos=replace(model.process.pos, churn=self.churn),
            hydrogen=replace(model.process.hydrogen, churn=self.churn),
            atom_type=replace(model.process.atom_type, corrector=self.corrector),
            bond=replace(model.process.bond, corrector=self.corrector),
        )
        grid = power_grid(self.num_steps, self.grid_power).to(prior.pos)
        half_log_snr = log_snr(process.pos.schedule, grid.double()) / 2
        noisy, previous = prior, None
        for step, level in enumerate(grid):
            t = scale_level(noise_level, level)
            prediction = model.denoise(noisy, t, previous)
            yield SamplerState(noisy, prediction, step)
            if step + 1 < self.num_steps:
                target = prediction
                if self.order == 2 and previous is not None:
                    target = extrapolate(prediction, previous, half_log_snr[step - 1 : step + 2])
                noisy = process.step(noisy, target, t, scale_level(noise_level, grid[step + 1]), draws)
            previous = prediction


def extrapolate(prediction: Prediction, previous: Prediction, half_log_snr: Tensor) -> Prediction:
    """The clean coordinates that carry a first-order step to second order, from the last two estimates.

    DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): D = x̂ + h / (2 h_last) (x̂ - x̂_last), where h are
    the steps in half the log SNR. From pure noise, where that is infinite, the step stays of first order.

    Args:
        prediction: the present estimate.
        previous: the one before.
        half_log_snr: [3] at the last, the present and the next level.
    """
    last, step = half_log_snr.diff().tolist()
    share = step / (2 * last) if last < float("inf") else 0.0
    return replace(
        prediction,
        pos=prediction.pos + share * (prediction.pos - previous.pos),
        hydrogen=prediction.hydrogen + share * (prediction.hydrogen - previous.hydrogen),
    )


def scale_level(noise_level: NoiseLevel, factor: Tensor) -> NoiseLevel:
    """Every level times a factor in [0, 1]; what is known (0) stays known."""
    return NoiseLevel(noise_level.pos * factor, noise_level.atom * factor, noise_level.bond * factor)


@torch.no_grad()
def run_sampler(
    model: MoleculeDiffusion,
    sampler: Sampler,
    node_mask: Tensor,
    draws: Draws,
    *,
    on_step: Callable[[SamplerState], None] | None = None,
) -> Prediction:
    """Sample whole molecules for the atoms of `node_mask` [B, N] from pure noise.

    Returns:
        The last network call's prediction, coordinates in Å.
    """
    prior = model.process.prior(node_mask, draws)
    state = None
    for state in sampler(model, prior, NoiseLevel.uniform(prior.pos.new_ones(len(node_mask)), node_mask), draws):
        if on_step is not None:
            on_step(state)
    if state is None:
        raise MoldiffError("sampler: got no network call, expected at least one")
    prediction = state.prediction
    return replace(
        prediction,
        pos=prediction.pos * model.statistics.pos_scale,
        hydrogen=prediction.hydrogen * model.statistics.hydrogen_scale,
    )
