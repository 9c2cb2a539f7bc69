"""Elements, their symbols, valences and sizes; classes of atoms and bonds, their indices and their valences."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from moldiff.errors import MoldiffError

_TABLE = """
* H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc
Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi
Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = dict(enumerate(_TABLE.split()))  # symbols of all elements by atomic number; * is the dummy atom 0
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

# By atomic number from H on, in pm: rows of the periodic table's noble gases and what leads to them.
_COVALENT_PM = (
    (31, 28),
    (128, 96, 84, 76, 71, 66, 57, 58),
    (166, 141, 121, 111, 107, 105, 102, 106),
    (203, 176, 170, 160, 153, 139, 139, 132, 126, 124, 132, 122, 122, 120, 119, 120, 120, 116),
    (220, 195, 190, 175, 164, 154, 147, 146, 142, 139, 145, 144, 142, 139, 139, 138, 139, 140),
    (244, 215, 207, 204, 203, 201, 199, 198, 198, 196, 194, 192, 192, 189, 190, 187),
    (187, 175, 170, 162, 151, 144, 141, 136, 136, 132, 145, 146, 148, 140, 150, 150),
    (260, 221, 215, 206, 200, 196, 190, 187, 180, 169),
)

COVALENT = np.array([0, *(radius for row in _COVALENT_PM for radius in row)]) / 100
"""Covalent radii [97] (Å) by atomic number, 0 for number 0 (Cordero et al. 2008, doi:10.1039/b801115j, table 2)."""


def covalent_radii(atomic_number: np.ndarray) -> np.ndarray:
    """Covalent radii (Å) of atomic numbers of any shape; elements behind curium have curium's."""
    return np.asarray(COVALENT[np.minimum(atomic_number, len(COVALENT) - 1)])


_BOND_PM = {
    1: (32,),
    5: (85, 78, 73), 6: (75, 67, 60), 7: (71, 60, 54), 8: (63, 57, 53), 9: (64, 59, 53),
    14: (116, 107, 102), 15: (111, 102, 94), 16: (103, 94, 95), 17: (99, 95, 93),
    33: (121, 114, 106), 34: (116, 107, 107), 35: (114, 109, 110), 53: (133, 129, 125),
}  # fmt: skip

BOND_RADII = np.full((3, len(COVALENT)), np.nan)
"""Covalent radii [3, 97] (Å) of single, double and triple bonds by atomic number; NaN where none is known here.

Pyykkö and Atsumi 2009, doi:10.1002/chem.200800987 and doi:10.1002/chem.200901472; Pyykkö et al. 2005,
doi:10.1002/chem.200401299.
"""
for _number, _radii in _BOND_PM.items():
    BOND_RADII[: len(_radii), _number] = np.array(_radii) / 100

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
