"""Molecules drawn towards property values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.sampler import Start
from moldiff.molecules.molecule import Molecule
from moldiff.tasks.task import Finished, WrappedTask


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
