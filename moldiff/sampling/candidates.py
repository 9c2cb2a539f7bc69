"""Several molecules drawn for each that is delivered, of which one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Protocol

from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.sampler import Start
from moldiff.molecules.molecule import Molecule
from moldiff.tasks.targets import Predictor, predicted


class Choice(Protocol):
    """Decides which of several candidates is a molecule of the run."""

    @property
    def num_candidates(self) -> int:
        """How many are drawn for each molecule."""
        ...

    def distances(self, starts: Sequence[Start], molecules: Sequence[Molecule]) -> list[float]:
        """How far each molecule is from what its start asks for; the least is chosen."""
        ...


@dataclass(frozen=True, eq=False)
class Nearest:
    """Chooses the candidate that is nearest to the values that its start asks for.

    Attributes:
        num_candidates: drawn for each molecule.
        properties: those of the model.
        predictor: says what the candidates have. It should have learnt from the same molecules as the generator:
            another one can then judge what is chosen.
    """

    num_candidates: int
    properties: Properties
    predictor: Predictor

    def distances(self, starts: Sequence[Start], molecules: Sequence[Molecule]) -> list[float]:
        """Mean distances from the values asked for, in standard deviations; infinite where there is no prediction."""
        scales = [entry.std for entry in self.properties.entries]
        found = []
        for start, values in zip(starts, predicted(self.predictor, molecules), strict=True):
            assert start.clean.condition is not None
            asked = zip(self.properties.names, scales, start.clean.condition[0].tolist(), strict=True)
            off = [abs(values.get(name, inf) - value) / scale for name, scale, value in asked if isfinite(value)]
            found.append(sum(off) / max(1, len(off)))
        return found
