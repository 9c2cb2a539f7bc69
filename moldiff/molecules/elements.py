"""The elements: symbols, allowed valences and sizes."""

from __future__ import annotations

import numpy as np

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
    5: (85, 78, 73),
    6: (75, 67, 60),
    7: (71, 60, 54),
    8: (63, 57, 53),
    9: (64, 59, 53),
    14: (116, 107, 102),
    15: (111, 102, 94),
    16: (103, 94, 95),
    17: (99, 95, 93),
    33: (121, 114, 106),
    34: (116, 107, 107),
    35: (114, 109, 110),
    53: (133, 129, 125),
}

BOND_RADII = np.full((3, len(COVALENT)), np.nan)
"""Covalent radii [3, 97] (Å) of single, double and triple bonds by atomic number; NaN where none is known here.

Pyykkö and Atsumi 2009, doi:10.1002/chem.200800987 and doi:10.1002/chem.200901472; Pyykkö et al. 2005,
doi:10.1002/chem.200401299.
"""
for _number, _radii in _BOND_PM.items():
    BOND_RADII[: len(_radii), _number] = np.array(_radii) / 100
