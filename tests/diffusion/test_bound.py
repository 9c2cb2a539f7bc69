"""The variational bound against the value that is known of Gaussian molecules with the exact denoiser."""

from __future__ import annotations

import math

import pytest
import torch
from models import STATISTICS, VOCABULARY, small_process
from torch import Tensor, nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.model import BOUND_LEVELS, MoleculeDiffusion

ATOMS, MOLECULES, DEVIATION = 5, 3_000, 0.7
CARBON_2 = 2  # a class with two hydrogens


class ExactDenoiser(nn.Module):
    """The posterior mean of coordinates and offsets that are Gaussian, and classes that are always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        def mean(values: Tensor, level: Tensor) -> Tensor:
            alpha, sigma = 1 - level, level
            return values * alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)

        atom_type = 50.0 * nn.functional.one_hot(torch.full_like(noisy.atom_type, CARBON_2), len(VOCABULARY.table))
        bond = 50.0 * nn.functional.one_hot(torch.zeros_like(noisy.bond), 4)
        return Prediction(
            mean(noisy.pos, noise_level.pos[..., None]),
            mean(noisy.hydrogen, noise_level.hydrogen[..., None, None]),
            atom_type.to(noisy.pos),
            bond.to(noisy.pos),
        )


def gaussian_molecules() -> MolBatch:
    """Molecules whose coordinates and offsets are normal with the deviation in the model's units, of zero mean."""
    generator = torch.Generator().manual_seed(0)
    pos = torch.randn(MOLECULES, ATOMS, 3, generator=generator)
    hydrogen = torch.randn(MOLECULES, ATOMS, 4, 3, generator=generator)
    hydrogen[:, :, 2:] = 0
    kinds = torch.full((MOLECULES, ATOMS), CARBON_2)
    bond = torch.zeros(MOLECULES, ATOMS, ATOMS, dtype=torch.long)
    pos = (pos - pos.mean(1, keepdim=True)) * DEVIATION * STATISTICS.pos_scale
    scaled = hydrogen * DEVIATION * STATISTICS.hydrogen_scale
    return MolBatch(pos, scaled, kinds, bond, torch.ones(MOLECULES, ATOMS, dtype=torch.bool))


def known_value(dimensions: int) -> float:
    """Half the integral of the least squared error over the signal-to-noise ratio, in closed form (nats)."""
    high, low = (((1 - level) / level) ** 2 for level in BOUND_LEVELS)
    return dimensions / 2 * math.log((1 + DEVIATION**2 * high) / (1 + DEVIATION**2 * low))


def test_bound_of_gaussian_molecules_is_what_it_is_known_to_be() -> None:
    """Noise that followed the molecules would come out far below it."""
    model, batch = MoleculeDiffusion(ExactDenoiser(), small_process(), VOCABULARY, STATISTICS), gaussian_molecules()
    generator = torch.Generator().manual_seed(1)
    drawn = [model.bound(batch, generator, num_steps=1_000) for _ in range(20)]
    terms = {name: float(torch.stack([one[name] for one in drawn]).mean()) for name in drawn[0]}
    assert terms["pos"] == pytest.approx(known_value(3 * (ATOMS - 1)), rel=0.015)
    assert terms["hydrogen"] == pytest.approx(known_value(3 * 2 * ATOMS), rel=0.015)
    assert abs(terms["atom_type"]) < 1e-3
    assert abs(terms["bond"]) < 1e-3
