"""What goes wrong on purpose while molecules are drawn; worker processes import it by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from torch import nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.sampler import PartialState
from moldiff.tasks.task import NewMolecules


@dataclass(frozen=True)
class Deadly(NewMolecules):
    """Ends a worker process, and only such, at one of the molecules."""

    at: int = 0
    home: int = field(default_factory=os.getpid)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        if index == self.at and os.getpid() != self.home:
            os._exit(9)
        return super().begin(index, generator)


class Narrow(nn.Module):
    """A denoiser that has no memory for more than so many pairs of atoms."""

    def __init__(self, inner: nn.Module, pairs: int, error: Exception) -> None:
        super().__init__()
        self.inner = inner
        self.pairs = pairs
        self.error = error
        self.failures = 0

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None) -> Prediction:
        if noisy.bond.numel() > self.pairs:
            self.failures += 1
            raise self.error
        prediction: Prediction = self.inner(noisy, noise_level, previous)
        return prediction


class Overflowing(nn.Module):
    """A denoiser that loses some molecules: nothing of them is a number from one of the calls on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None) -> Prediction:
        prediction: Prediction = self.inner(noisy, noise_level, previous)
        lost = noisy.pos[:, 0, 0] > 0
        changed = {name: value.clone() for name, value in vars(prediction).items()}
        for value in changed.values():
            value[lost] = torch.nan
        return Prediction(**changed)
