"""Coordinates that cannot be those of a molecule in Å."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from rdkit import Chem
from scipy.spatial import cKDTree

from moldiff.batch import Molecule
from moldiff.chem import atoms
from moldiff.data.fragments import file_index
from moldiff.data.packed import used_slots
from moldiff.results import InvalidMolecule, Status

_MIN_DISTANCE = 0.6
"""Å; atoms closer than this are taken for a mistake (H-H in H2 is 0.74, X-ray structures have O-H from 0.7)."""

_MAX_MEDIAN_BOND = 2.75
"""Å; in organic molecules it is about 1.5, which in Bohr is 2.8; I-I has 2.7."""

_LONGEST_BOND = 2.0
"""Times the sum of the covalent radii. Of QM9, the NCI set, the drug-like set, approved drugs and 2,000 ligands of the
PDB none has a bond above 1.33, but for four ligands with a hydrogen at 4.7 to 8.1 times the sum."""

_FAR = 1_000.0
"""Å; coordinates are kept as numbers of 32 bits, which further from the origin tell less than 0.0001 Å apart."""


def not_finite(mol: Chem.Mol, pos: np.ndarray) -> InvalidMolecule:
    """The first atom of `mol` whose position in `pos` [n, 3] is not a number."""
    atom = mol.GetAtomWithIdx(int((~np.isfinite(pos).all(1)).argmax()))
    index = file_index(atom)
    reason = f"atom {index} ({atom.GetSymbol()}): coordinate not finite"
    return InvalidMolecule(Status.NON_FINITE, reason, index)


def clash(mol: Chem.Mol, *, hydrogens: bool = True) -> InvalidMolecule | None:
    """The two closest atoms of a molecule in 3D, if they are closer than any can be; `hydrogens` = they count, too."""
    found = [atom for atom in atoms(mol) if hydrogens or atom.GetAtomicNum() != 1]
    pos = mol.GetConformer().GetPositions()[[atom.GetIdx() for atom in found]]
    if len(pos) < 2 or not np.isfinite(pos).all():
        return None
    # The nearest of an atom is itself, unless another one is at the same place.
    distance, nearest = cKDTree(pos).query(pos, k=2)
    i = int(distance[:, 1].argmin())
    if (length := distance[i, 1]) >= _MIN_DISTANCE:
        return None
    j = int(nearest[i, 1] if nearest[i, 1] != i else nearest[i, 0])
    first, second = (f"{file_index(found[k])} ({found[k].GetSymbol()})" for k in sorted((i, j)))
    reason = f"atoms {first} and {second} are {length:.2f} Å apart, expected at least {_MIN_DISTANCE}"
    return InvalidMolecule(Status.CLASH, reason, file_index(found[min(i, j)]))


def impossible_bonds(molecule: Molecule) -> InvalidMolecule | None:
    """Bonds so long that the coordinates must be in other units, or one that is longer than any bond can be.

    Coordinates in units that make bonds too short clash. One torn bond, be it that of a hydrogen, would spoil the scale
    of a whole set.
    """
    i, j, _ = molecule.bonds.T
    atom, slot = np.nonzero(used_slots(molecule.num_hydrogens))
    vectors = np.concatenate([molecule.pos[i] - molecule.pos[j], molecule.hydrogen_offset[atom, slot]])
    lengths = np.sqrt((vectors**2).sum(-1))
    if len(i):
        median = float(np.sort(lengths[: len(i)])[[(len(i) - 1) // 2, len(i) // 2]].mean())
        if median > _MAX_MEDIAN_BOND:
            reason = f"half of the bonds are longer than {median:.2f} Å, expected coordinates in Å"
            return InvalidMolecule(Status.UNREADABLE, reason)
    first = molecule.atomic_number[np.concatenate([i, atom])]
    second = np.concatenate([molecule.atomic_number[j], np.ones_like(atom)])
    longest = _LONGEST_BOND * (_radii()[first] + _radii()[second])
    if not (lengths > longest).any():
        return None
    worst = int((lengths / longest).argmax())
    pair = "-".join(Chem.GetPeriodicTable().GetElementSymbol(int(ends[worst])) for ends in (first, second))
    reason = f"a bond {pair} of {lengths[worst]:.2f} Å, expected at most {longest[worst]:.2f}"
    return InvalidMolecule(Status.UNREADABLE, reason)


@cache
def _radii() -> np.ndarray:
    """Covalent radii by atomic number (Å)."""
    table = Chem.GetPeriodicTable()
    return np.array([0.0] + [table.GetRcovalent(number) for number in range(1, 119)])


def near_origin(molecule: Molecule) -> Molecule | None:
    """The molecule with its centre at the origin where it is too far from there to be kept exactly; else None."""
    centre = molecule.pos.mean(axis=0)
    if np.abs(centre).max() <= _FAR:
        return None
    return replace(molecule, pos=molecule.pos - centre)
