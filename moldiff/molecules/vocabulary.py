"""Elements, their symbols, valences and sizes; classes of atoms and bonds, their indices and their valences."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from moldiff.errors import MoldiffError

# The file has radii in pm; elements behind curium (96) have none.
_ROWS = [line.split("\t") for line in Path(__file__).with_name("elements.tsv").read_text().splitlines()[1:]]
_RADII = np.ascontiguousarray(np.array([[float(cell or "nan") for cell in row[2:]] for row in _ROWS[:97]]).T) / 100

SYMBOLS = {int(row[0]): row[1] for row in _ROWS}  # symbols of all elements by atomic number; * is the dummy atom 0
NUMBERS = {symbol: number for number, symbol in SYMBOLS.items()}  # atomic numbers by symbol

VALENCES: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 0): (1,),
    (5, 0): (3,), (5, -1): (4,),
    (6, 0): (4,), (6, 1): (3,), (6, -1): (3,),
    (7, 0): (3,), (7, 1): (4,), (7, -1): (2,),
    (8, 0): (2,), (8, 1): (3,), (8, -1): (1,),
    (9, 0): (1,), (17, 0): (1,), (35, 0): (1,), (53, 0): (1,),
    (14, 0): (4,),
    (15, 0): (3, 5), (15, 1): (4,), (15, -1): (6,),
    (16, 0): (2, 4, 6), (16, 1): (3,), (16, -1): (1,),
}  # fmt: skip
"""(atomic number, formal charge) -> allowed sums of Kekulé bond orders, hydrogens included (protocol P2)."""

COVALENT = _RADII[0]
"""Covalent radii [97] (Å) by atomic number, 0 for number 0 (Cordero et al. 2008, doi:10.1039/b801115j, table 2)."""


def covalent_radii(atomic_number: np.ndarray) -> np.ndarray:
    """Covalent radii (Å) of atomic numbers of any shape; elements behind curium have curium's."""
    return np.asarray(COVALENT[np.minimum(atomic_number, len(COVALENT) - 1)])


BOND_RADII = _RADII[1:]
"""Covalent radii [3, 97] (Å) of single, double and triple bonds by atomic number; NaN where none is known here.

Pyykkö and Atsumi 2009, doi:10.1002/chem.200800987 and doi:10.1002/chem.200901472; Pyykkö et al. 2005,
doi:10.1002/chem.200401299.
"""

NUM_BOND_CLASSES = 4  # bond classes are Kekulé orders: 0 = no bond, 1 = single, 2 = double, 3 = triple
MAX_HYDROGENS = 4  # slots for hydrogen offset vectors on every heavy atom


class AtomClass(NamedTuple):
    """What one atom index stands for: element, formal charge (e) and number of attached hydrogens."""

    atomic_number: int
    formal_charge: int
    num_hydrogens: int

    def __str__(self) -> str:
        hydrogens = f"H{self.num_hydrogens}" if self.num_hydrogens else ""
        charge = "" if not self.formal_charge else f"{self.formal_charge:+d}"
        return f"{SYMBOLS[self.atomic_number]}{hydrogens}{charge}"


@dataclass(frozen=True)
class Vocabulary:
    """Classes of (element, formal charge, hydrogens) <-> indices, and the valences each class allows.

    The index of a bond is its order, 0 to 3. The index after the last class of atoms or bonds is the
    mask of the absorbing process; it never decodes to an atom.
    Raises MoldiffError for an empty or repeated class, or one without a valence.
    """

    atom_classes: tuple[AtomClass, ...]  # in the order of their indices; no class twice
    extra_valences: Mapping[tuple[int, int], tuple[int, ...]]  # observed ones of (element, charge) the table lacks

    def __post_init__(self) -> None:
        if not self.atom_classes:
            raise MoldiffError("vocabulary: got no atom class, expected at least one")
        if len(set(self.atom_classes)) != len(self.atom_classes):
            raise MoldiffError("vocabulary: an atom class is listed twice, expected distinct classes")
        for atom_class in self.atom_classes:
            if not self.allowed_valences(atom_class.atomic_number, atom_class.formal_charge):
                raise MoldiffError(f"vocabulary: no valence known for class {atom_class}, expected one in the table")

    @property
    def num_atom_classes(self) -> int:
        return len(self.atom_classes)

    @cached_property
    def _index(self) -> dict[tuple[int, int, int], int]:
        return {atom_class: index for index, atom_class in enumerate(self.atom_classes)}

    @cached_property
    def table(self) -> np.ndarray:
        """[K, 3] int64: atomic number, formal charge and hydrogen count of every class."""
        return np.array(self.atom_classes, dtype=np.int64)

    def allowed_valences(self, atomic_number: int, formal_charge: int) -> tuple[int, ...]:
        """Allowed sums of bond orders, hydrogens included; empty when nothing is known of the pair."""
        key = (atomic_number, formal_charge)
        return VALENCES.get(key) or tuple(self.extra_valences.get(key, ()))

    def allowed_bond_sums(self, index: int) -> tuple[int, ...]:
        """Allowed sums of the orders of bonds to **heavy** atoms for the class `index`."""
        atomic_number, formal_charge, num_hydrogens = self.atom_classes[index]
        allowed = self.allowed_valences(atomic_number, formal_charge)
        return tuple(valence - num_hydrogens for valence in allowed if valence >= num_hydrogens)

    def encode(self, atomic_number: np.ndarray, formal_charge: np.ndarray, num_hydrogens: np.ndarray) -> np.ndarray:
        """Indices [n] int64 of atoms given as three arrays [n].

        Raises MoldiffError naming the first atom whose class is not in the vocabulary.
        """
        classes = list(zip(atomic_number.tolist(), formal_charge.tolist(), num_hydrogens.tolist(), strict=True))
        for atom, found in enumerate(classes):
            if found not in self._index:
                raise MoldiffError(f"atom {atom}: class {AtomClass(*found)} is not in the vocabulary ({self})")
        return np.array([self._index[found] for found in classes], dtype=np.int64)

    def decode(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Atomic numbers, formal charges and hydrogen counts, each [n] int64, of class indices [n]."""
        rows = self.table[indices]
        return rows[:, 0], rows[:, 1], rows[:, 2]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` is its inverse."""
        extra = [[z, q, list(sums)] for (z, q), sums in sorted(self.extra_valences.items())]
        return {"atom_classes": [list(c) for c in self.atom_classes], "extra_valences": extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote. Raises MoldiffError when a key is missing or an entry is malformed."""
        expected = "[element, charge, hydrogens]"
        try:
            extra = {(int(z), int(q)): tuple(int(v) for v in sums) for z, q, sums in data.get("extra_valences", [])}
            return cls(tuple(AtomClass(int(z), int(q), int(h)) for z, q, h in data["atom_classes"]), extra)
        except (KeyError, TypeError) as error:
            raise MoldiffError(f"vocabulary: malformed entry ({error}), expected {expected}") from None

    def __str__(self) -> str:
        return " ".join(str(atom_class) for atom_class in self.atom_classes)
