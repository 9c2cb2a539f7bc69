"""The seams a user extends. Structural types only: nothing here needs to be inherited from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from moldiff.batch import MolBatch, Molecule, NoiseLevel, Prediction
from moldiff.randomness import Draws
from moldiff.results import MetricResult


@runtime_checkable
class Denoiser(Protocol):
    """Estimates the clean molecules from noisy ones; an equivariant network, or an exact score in tests."""

    def __call__(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """Predict the clean data; `previous` is the last estimate (self-conditioning), None = none yet.

        pos 1o; hydrogen 1o; the rest 0e; permutes with atoms.
        """
        ...


@runtime_checkable
class Process(Protocol):
    """The noising of whole molecules and its reversal."""

    def prior(self, node_mask: Tensor, draws: Draws) -> MolBatch:
        """Pure noise (level 1 everywhere) for the atoms of `node_mask` [B, N]."""
        ...

    def corrupt(self, clean: MolBatch, noise_level: NoiseLevel, draws: Draws) -> MolBatch:
        """Clean molecules at the given noise levels."""
        ...

    def loss(self, prediction: Prediction, clean: MolBatch, noise_level: NoiseLevel) -> dict[str, Tensor]:
        """The training loss of each field, scalars, unweighted by the field weights."""
        ...

    def step(self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: Draws) -> MolBatch:
        """Go from level t to level s <= t; atoms and fields with t = 0 are known and stay as they are."""
        ...


class Metric(Protocol):
    """A function of molecules and, where it compares, of reference molecules."""

    def __call__(
        self, molecules: Sequence[Molecule], reference: Sequence[Molecule] | None = None
    ) -> list[MetricResult]:
        """Numbers with their numerators, denominators and definitions."""
        ...
