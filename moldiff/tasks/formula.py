"""Molecules of a given formula."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moldiff.batch import Molecule
from moldiff.data.statistics import Statistics
from moldiff.decode import Total
from moldiff.drawing import Admission, Finished
from moldiff.errors import MoldiffError
from moldiff.sampler import Start
from moldiff.vocabulary import MAX_HYDROGENS, SYMBOLS, Vocabulary

_FORMULA = re.compile(r"((?:[A-Z][a-z]?\d*)+)(?:([+-])(\d*))?")
_NUMBERS = {symbol: number for number, symbol in SYMBOLS.items()}


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Molecules of one formula: the elements are known; where the hydrogens are and all else is drawn.

    Args:
        formula: such as C7H10N2O, with its charge if it has one: C2H8N+, C2H3O2-.
    """

    formula: str | None = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> FormulaTask:
        """The task for a model.

        Raises:
            MoldiffError: for what is no formula, one that no molecule can have, or elements that the model lacks.
        """
        counts, charge = _parsed(self.formula)
        hydrogens = counts.pop("H", 0)
        known = {SYMBOLS[int(number)] for number in vocabulary.table[:, 0]}
        for symbol in counts:
            if symbol not in known:
                names = ", ".join(sorted(known | {"H"}))
                raise MoldiffError(f"formula: got {symbol} in {self.formula}, expected elements of the model: {names}")
        elements = np.array([_NUMBERS[symbol] for symbol, count in counts.items() for _ in range(count)])
        _check_possible(str(self.formula), elements, hydrogens, charge, vocabulary)
        totals = (Total(vocabulary.table[:, 2], hydrogens), Total(vocabulary.table[:, 1], charge))
        return FormulaTask(str(self.formula), elements, totals, vocabulary)


@dataclass(frozen=True, eq=False)
class FormulaTask:
    """Draws molecules whose elements are known.

    Attributes:
        formula: as it was given.
        elements: atomic number of every heavy atom [n].
        rules: the numbers of hydrogens and of charges.
        vocabulary: classes of the model.
    """

    formula: str
    elements: np.ndarray
    rules: tuple[Total, ...]
    vocabulary: Vocabulary

    def count(self, n: int) -> int:
        """Molecules that make up the answer when n are asked for."""
        return n

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        return len(self.elements), len(self.elements)

    def notes(self) -> Sequence[str]:
        """None."""
        return ()

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """Atoms of which only the elements are known."""
        start = Start.unknown(torch.ones(1, len(self.elements), dtype=torch.bool))
        allowed = self.vocabulary.table[None, :, 0] == self.elements[:, None]
        return Start(start.clean, start.level, torch.from_numpy(allowed)[None])

    def totals(self, index: int) -> Sequence[Total]:
        """The numbers of hydrogens and of charges."""
        return self.rules

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """The molecule; a problem if it has another formula, as an argmax without rules may have."""
        hydrogens, charge = (rule.value for rule in self.rules)
        right = molecule.num_hydrogens.sum() == hydrogens and molecule.formal_charge.sum() == charge
        return Finished(molecule, {"formula": self.formula}, None if right else "formula")

    def admission(self, n: int) -> Admission | None:
        """All may come in."""
        return None


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
    if not 1 <= heavy <= 1000 or min(counts.values()) < (0 if "H" in counts else 1):
        raise MoldiffError(f"formula: got {formula!r}, expected 1 to 1000 heavy atoms and no element 0 times")
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
