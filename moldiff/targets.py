"""Molecules drawn towards property values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Protocol

import torch

from moldiff.batch import Molecule
from moldiff.condition import Properties
from moldiff.drawing import Finished, WrappedTask
from moldiff.sampler import Start


class Predictor(Protocol):
    """Says what properties a molecule has."""

    @property
    def errors(self) -> Mapping[str, float]:
        """Its mean absolute error of every property, in the units of the data."""
        ...

    def predict(self, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
        """The values of every molecule by name, in the units of the data; {} = it cannot say."""
        ...


SIZE = "atoms"
"""The property that is counted and not predicted: the number of atoms, hydrogens included."""


def predicted(predictor: Predictor, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
    """What a predictor says of every molecule by name, and its number of atoms."""
    values = predictor.predict(molecules)
    return [found | {SIZE: float(one.num_atoms)} for found, one in zip(values, molecules, strict=True)]


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


@dataclass(frozen=True, eq=False)
class Targeted(WrappedTask):
    """A task whose molecules are drawn towards property values.

    Attributes:
        properties: those that the model knows.
        asked: the values by name, in the data's units.
        predictor: says what the molecules turn out to have; None = nothing does.
        num_candidates: from how many each molecule is chosen.
    """

    properties: Properties
    asked: Mapping[str, float]
    predictor: Predictor | None = None
    num_candidates: int = 1

    def notes(self) -> Sequence[str]:
        """Those of the task, the trained range of every property, and how far its prediction can be trusted."""
        errors = {} if self.predictor is None else self.predictor.errors
        lines = [*self.task.notes(), *self.properties.notes(self.asked)]
        for entry in self.properties.entries:
            if entry.name in self.asked and entry.name in errors:
                error = f"{errors[entry.name]:.3g} {entry.unit}"
                lines.append(f"predicted_{entry.name} is off by {error} on average for molecules of the data")
        if self.num_candidates > 1:
            lines.append(f"each molecule is the nearest of {self.num_candidates} that were drawn for it")
        return lines

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """The start of the task with the values."""
        return with_target(self.task.begin(index, generator), self.properties, self.asked)

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """That of the task; the record says what was asked for and, if there is a predictor, what it predicts."""
        finished = self.task.finish(index, start, molecule)
        fields = {f"asked_{name}": float(value) for name, value in self.asked.items()}
        if self.predictor is not None:
            (values,) = predicted(self.predictor, [finished.molecule])
            fields |= {f"predicted_{name}": values[name] for name in self.asked if name in values}
        return replace(finished, fields={**finished.fields, **fields})


def with_target(start: Start, properties: Properties, asked: Mapping[str, float]) -> Start:
    """The same start with property values for all of its molecules."""
    rows = properties.row(asked).expand(start.clean.num_molecules, -1)
    return replace(start, clean=start.clean.replace(condition=rows))
