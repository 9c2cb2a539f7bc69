"""What can be asked of the molecules of any task beside: elements, a total charge, values of properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import advice, of_atoms
from moldiff.errors import MoldiffError
from moldiff.molecules.elements import SYMBOLS
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.task import Admission, Task, TaskOutcome

LIMITED_CLASS_LEAD = 6.0
"""How far classes and bonds run ahead of the coordinates (`PowerSampler.class_lead`) where elements are limited.

Of 60 molecules without oxygen, drawn in 30 steps by a model that had learnt separate noise levels, 57 had sound
distances; with classes, bonds and coordinates at one level, 38 had.
"""

SIZE = "atoms"
"""The property that is counted and not predicted: the number of atoms, hydrogens included."""

_NUMBERS = {symbol: number for number, symbol in SYMBOLS.items()}


def element_mask(
    vocabulary: Vocabulary, elements: Sequence[str] | None = None, forbid: Sequence[str] = ()
) -> np.ndarray | None:
    """Classes [K] that a free atom may have; None = any.

    Args:
        vocabulary: classes of the model.
        elements: symbols of the only elements that may occur; hydrogens may whether they are named or not.
        forbid: symbols of elements that must not occur, H included.

    Raises:
        MoldiffError: for what is no element of the model, or when no class is left.
    """
    if elements is None and not forbid:
        return None
    table = vocabulary.table
    mask = np.ones(len(table), dtype=bool)
    if elements is not None:
        mask &= np.isin(table[:, 0], _numbers("elements", elements, vocabulary))
    forbidden = _numbers("forbid", forbid, vocabulary)
    mask &= ~np.isin(table[:, 0], forbidden)
    if 1 in forbidden:
        mask &= table[:, 2] == 0
    if mask.all():
        return None
    if not mask.any():
        raise MoldiffError("elements: what elements and forbid leave is none of the model's classes of heavy atoms")
    return mask


class Predictor(Protocol):
    """Says what properties a molecule has."""

    @property
    def errors(self) -> Mapping[str, float]:
        """Its mean absolute error of every property, in the units of the data."""
        ...

    def predict(self, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
        """The values of every molecule by name, in the units of the data; {} = it cannot say."""
        ...


def predicted(predictor: Predictor, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
    """What a predictor says of every molecule by name, and its number of atoms."""
    values = predictor.predict(molecules)
    return [found | {SIZE: float(one.num_atoms)} for found, one in zip(values, molecules, strict=True)]


@dataclass(frozen=True, eq=False, kw_only=True)
class ConstrainedTask(Task):
    """A task of whose molecules more is asked.

    Attributes:
        task: any task.
        mask: classes [K] that free atoms may have; None = any.
        charge: the total charge, whatever it would be otherwise; None = that of the task.
        properties: those that the model knows.
        asked: values of properties to draw towards by name, in the data's units.
        predictor: says what the molecules turn out to have; None = nothing does.
        num_candidates: from how many each molecule is chosen.
    """

    task: Task
    mask: np.ndarray | None = None
    charge: SumConstraint | None = None
    properties: Properties = field(default_factory=Properties)
    asked: Mapping[str, float] = field(default_factory=dict)
    predictor: Predictor | None = None
    num_candidates: int = 1

    def count(self, n: int) -> int:
        return self.task.count(n)

    def sizes(self) -> tuple[int, int]:
        return self.task.sizes()

    def notes(self) -> Sequence[str]:
        """Those of the task, the trained range of every property, and how far its prediction can be trusted."""
        if not self.asked:
            return self.task.notes()
        errors = {} if self.predictor is None else self.predictor.errors
        lines = [*self.task.notes(), *self.properties.notes(self.asked)]
        for entry in self.properties.entries:
            if entry.name in self.asked and entry.name in errors:
                error = f"{errors[entry.name]:.3g} {entry.unit}"
                lines.append(f"predicted_{entry.name} is off by {error} on average for molecules of the data")
        if self.num_candidates > 1:
            lines.append(f"each molecule is the nearest of {self.num_candidates} that were drawn for it")
        return lines

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        """The start of the task with the values, its free atoms within the mask."""
        start = self.task.begin(index, generator)
        start = with_target(start, self.properties, self.asked) if self.asked else start
        return start if self.mask is None else limit(start, self.mask)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        """Those of the task, with the charge that is asked for instead of its own."""
        charge = self.charge
        if charge is None:
            return self.task.totals(index)
        others = [one for one in self.task.totals(index) if not np.array_equal(one.weight, charge.weight)]
        return [*others, charge]

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """That of the task; the record says what was asked for and, if there is a predictor, what it predicts."""
        outcome = self.task.finish(index, start, molecule)
        if not self.asked:
            return outcome
        fields = {f"asked_{name}": float(value) for name, value in self.asked.items()}
        if self.predictor is not None:
            (values,) = predicted(self.predictor, [outcome.molecule])
            fields |= {f"predicted_{name}": values[name] for name in self.asked if name in values}
        return replace(outcome, fields={**outcome.fields, **fields})

    def admission(self, n: int) -> Admission | None:
        return self.task.admission(n)


def with_target(start: PartialState, properties: Properties, asked: Mapping[str, float]) -> PartialState:
    """The same start with property values for all of its molecules."""
    rows = properties.row(asked).expand(start.clean.num_molecules, -1)
    return replace(start, clean=start.clean.replace(condition=rows))


def limit(start: PartialState, mask: np.ndarray) -> PartialState:
    """The same start with free atoms limited to the classes of `mask` [K]; known atoms stay what they are.

    Raises:
        MoldiffError: when the task leaves an atom no class within the mask, or no atom free.
    """
    known = start.level.atom[..., None] == 0
    if bool(known.all()):
        raise MoldiffError("elements: elements and forbid have nothing to limit, the task says what every atom is")
    within = torch.from_numpy(mask).expand(*known.shape[:2], -1) | known
    allowed = within if start.allowed is None else start.allowed & within
    if not allowed.any(-1).all():
        atom = int((~allowed.any(-1))[0].long().argmax())
        raise MoldiffError(f"elements: elements and forbid leave no class for atom {atom}, which the task asks for")
    return replace(start, allowed=allowed)


def _numbers(name: str, symbols: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Atomic numbers of symbols that the model knows."""
    known = sorted({SYMBOLS[int(number)] for number in vocabulary.table[:, 0]} | {"H"})
    for symbol in symbols:
        if symbol not in known:
            other = advice(of_atoms((_NUMBERS.get(one, 0), None) for one in symbols if one != "H"))
            expected = f"expected elements that the model knows: {', '.join(known)}"
            raise MoldiffError(f"{name}: got {symbol!r}, {expected}{other}")
    return [_NUMBERS[symbol] for symbol in symbols]
