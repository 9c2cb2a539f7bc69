"""Molecules of a given formula: atom classes that add up to it are drawn first, then bonds and coordinates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import advice, of_atoms
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS, NUMBERS, SYMBOLS, Vocabulary
from moldiff.tasks.task import Task, TaskOutcome

_FORMULA = re.compile(r"((?:[A-Z][a-z]?\d*)+)(?:([+-])(\d*))?")
_MAX_OPPOSITE = 3
"""Charges beyond the total one that may cancel each other, as in a zwitterion."""

_LEAST = 1e-9
"""Weight of a class that the training data lack."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Molecules of one formula.

    Which atoms have how many hydrogens is drawn in proportion to how often the training data have such atoms, then
    bonds and coordinates are.

    Args:
        formula: such as C7H10N2O, with its charge if it has one: C2H8N+, C2H3O2-.
    """

    formula: str | None = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> FormulaTask:
        counts, charge = _parsed(self.formula)
        hydrogens = counts.pop("H", 0)
        known = sorted({SYMBOLS[int(number)] for number in vocabulary.table[:, 0]} | {"H"})
        if unknown := [symbol for symbol in counts if symbol not in known]:
            other = advice(of_atoms((NUMBERS.get(one, 0), None) for one in counts.elements()))
            expected = f"expected elements of the model: {', '.join(known)}{other}"
            raise MoldiffError(f"formula: got {unknown[0]} in {self.formula}, {expected}")
        elements = np.array([NUMBERS[symbol] for symbol in counts.elements()])
        _check_possible(str(self.formula), elements, hydrogens, charge, vocabulary)
        composition = Composition.of(elements, hydrogens, charge, vocabulary, np.array(statistics.atom_marginal))
        if composition is None:
            raise MoldiffError(f"formula: {self.formula}: no combination of the model's atom classes makes it")
        return FormulaTask(str(self.formula), composition, (SumConstraint.of_charge(vocabulary, charge),))


@dataclass(frozen=True, eq=False)
class Composition:
    """Atom classes that add up to a formula, in proportion to the product of their frequencies."""

    choices: tuple[tuple[np.ndarray, np.ndarray], ...]  # classes that each heavy atom may have, and their weights
    table: np.ndarray  # [K, 3], element, charge and hydrogens of every class
    ways: np.ndarray  # [n + 1, hydrogens + 1, charges] weight of all choices for the atoms from i on that use that up
    charge: int  # total (e)

    @classmethod
    def of(
        cls, elements: np.ndarray, hydrogens: int, charge: int, vocabulary: Vocabulary, marginal: np.ndarray
    ) -> Composition | None:
        """Of heavy atoms [n] by their elements; None if nothing adds up. `marginal` [K] are the frequencies."""
        table, middle = vocabulary.table, abs(charge) + _MAX_OPPOSITE
        sums = [vocabulary.allowed_bond_sums(k) for k in range(len(table))]
        fitting = np.array([max(s, default=0) > 0 if len(elements) > 1 else 0 in s for s in sums])
        able = [np.flatnonzero((table[:, 0] == element) & fitting) for element in elements]
        choices = tuple((classes, np.maximum(marginal[classes], _LEAST)) for classes in able)
        ways = np.zeros((len(elements) + 1, hydrogens + 1, 2 * middle + 1))
        ways[-1, 0, middle] = 1
        for atom in range(len(elements) - 1, -1, -1):
            for k, weight in zip(*choices[atom], strict=True):
                _, q, h = table[k].tolist()
                rest = ways[atom + 1, : max(hydrogens + 1 - h, 0)]
                # Columns move to the right by the charge, or to the left where it is negative; zeros come in.
                shifted = np.pad(rest, ((0, 0), (abs(q), abs(q))))[:, abs(q) - q :][:, : rest.shape[1]]
                ways[atom, h:] += weight * shifted
            ways[atom] /= max(ways[atom].max(), np.finfo(float).tiny)  # only ratios count
        found = ways[0, hydrogens, middle + charge] > 0
        return cls(choices, table, ways, charge) if found else None

    def draw(self, generator: torch.Generator) -> np.ndarray:
        """Classes [n]."""
        hydrogens, middle = self.ways.shape[1] - 1, self.ways.shape[2] // 2
        charge, drawn = self.charge, []
        for atom, (classes, weights) in enumerate(self.choices):
            _, q, h = self.table[classes].T
            inside = (h <= hydrogens) & (np.abs(charge - q) <= middle)
            rest = self.ways[atom + 1, np.where(inside, hydrogens - h, 0), np.where(inside, middle + charge - q, 0)]
            total = (weights * rest * inside).cumsum()
            uniform = float(torch.rand((), generator=generator, dtype=torch.double)) * total[-1]
            place = int((uniform >= total).sum())
            drawn.append(classes[place])
            hydrogens, charge = hydrogens - int(h[place]), charge - int(q[place])
        return np.array(drawn)


@dataclass(frozen=True, eq=False)
class FormulaTask(Task):
    """Draws molecules whose atom classes add up to a formula."""

    formula: str  # as it was given
    composition: Composition
    charge: tuple[SumConstraint, ...]  # the total one, which the drawn classes have

    def sizes(self) -> tuple[int, int]:
        return len(self.composition.choices), len(self.composition.choices)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        classes = torch.from_numpy(self.composition.draw(generator))[None]
        start = PartialState.unknown(torch.ones(classes.shape, dtype=torch.bool))
        level = replace(start.level, atom=torch.zeros_like(start.level.atom))
        return PartialState(start.clean.replace(atom_type=classes), level)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return self.charge

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        return TaskOutcome(molecule, {"formula": self.formula})


def _parsed(formula: str | None) -> tuple[Counter[str], int]:
    """Numbers of atoms by element, and the charge (e)."""
    text = "" if formula is None else str(formula).replace(" ", "")
    found = _FORMULA.fullmatch(text)
    if found is None:
        raise MoldiffError(f"formula: got {formula!r}, expected elements and numbers such as C7H10N2O")
    counts: Counter[str] = Counter()
    for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", found[1]):
        counts[symbol] += int(number or 1)
    charge = int(found[3] or 1) * (1 if found[2] == "+" else -1) if found[2] else 0
    heavy = sum(counts.values()) - counts["H"]
    if not 1 <= heavy <= 250 or min(counts.values()) < (0 if "H" in counts else 1):
        raise MoldiffError(f"formula: got {formula!r}, expected 1 to 250 heavy atoms and no element 0 times")
    return counts, charge


def _check_possible(formula: str, elements: np.ndarray, hydrogens: int, charge: int, vocabulary: Vocabulary) -> None:
    """Refuse an odd number of electrons, and more hydrogens than there is room for."""
    if (int(elements.sum()) + hydrogens - charge) % 2:
        raise MoldiffError(f"formula: {formula} has an odd number of electrons, expected a closed shell")
    # A tree of atoms has room for the sum of their valences less two for each bond; a charge moves it by one.
    valences = [max(vocabulary.allowed_valences(int(element), 0), default=MAX_HYDROGENS) for element in elements]
    room = sum(valences) - 2 * (len(elements) - 1) + charge
    if hydrogens > room:
        raise MoldiffError(f"formula: {formula} has {hydrogens} hydrogens, expected {max(room, 0)} at most")
