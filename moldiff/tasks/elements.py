"""Molecules limited to some elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from moldiff.diffusion.decoding import Total
from moldiff.diffusion.sampler import Start
from moldiff.diffusion.shipped import advice, of_atoms
from moldiff.errors import MoldiffError
from moldiff.molecules.elements import SYMBOLS
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.task import WrappedTask

LIMITED_CLASS_LEAD = 6.0
"""How far classes and bonds run ahead of the coordinates (`PowerSampler.class_lead`) where elements are limited.

Of 60 molecules without oxygen, drawn in 30 steps by a model that had learnt separate noise levels, 57 had sound
distances; with classes, bonds and coordinates at one level, 38 had.
"""

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


@dataclass(frozen=True, eq=False)
class Limited(WrappedTask):
    """A task whose free atoms may only be of some classes.

    Attributes:
        mask: the classes [K].
    """

    mask: np.ndarray

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """The start of the task within the mask."""
        return limit(self.task.begin(index, generator), self.mask)


@dataclass(frozen=True, eq=False)
class Charged(WrappedTask):
    """A task whose molecules have a total charge, whatever it would be otherwise.

    Attributes:
        charge: the total charge.
    """

    charge: Total

    def totals(self, index: int) -> Sequence[Total]:
        """Those of the task, with this charge instead of its own."""
        weight = self.charge.weight
        others = [total for total in self.task.totals(index) if not np.array_equal(total.weight, weight)]
        return [*others, self.charge]


def limit(start: Start, mask: np.ndarray) -> Start:
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
