"""Growing on real ligands: a substituent of a ring of every held-out PDB ligand is removed and drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from moldiff.molecules.molecule import Molecule
from tests.benchmarks.tasks.conformers import sanitized
from tests.benchmarks.tasks.parts import Parts

LIGAND = "pdb_"
"""How the names of PDB ligands begin in the drug-like set."""

_MAX_REMOVED = 10


@dataclass(frozen=True)
class Substituents(Parts):
    """As growing in general, but the removed part hangs on a ring by a single bond, and has at most ten atoms.

    It is chosen at random among all of the molecule's that are not more than half of it.
    """

    kind: str = "grow"

    def chosen(self, whole: Molecule, random: np.random.Generator) -> list[int] | None:
        """A substituent; None = no ring has any."""
        found = ring_substituents(whole)
        return found[int(random.integers(len(found)))] if found else None


def has_substituent(molecule: Molecule) -> bool:
    """Whether it is a PDB ligand with a substituent that can be removed."""
    return molecule.name.startswith(LIGAND) and bool(ring_substituents(molecule))


def ring_substituents(molecule: Molecule) -> list[list[int]]:
    """Heavy atoms of every substituent of a ring: what one single bond outside rings leads to."""
    mol = sanitized(molecule)
    heavy = molecule.num_heavy_atoms
    found = []
    for bond in mol.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if max(ends) >= heavy or bond.IsInRing() or bond.GetBondType() != Chem.BondType.SINGLE:
            continue
        for ring, first in (ends, ends[::-1]):
            part = _beyond(mol, first, ring, heavy)
            if mol.GetAtomWithIdx(ring).IsInRing() and len(part) <= min(_MAX_REMOVED, heavy // 2):
                found.append(part)
    return found


def _beyond(mol: Chem.Mol, first: int, barred: int, heavy: int) -> list[int]:
    """Heavy atoms that are reached from `first` without the atom `barred`."""
    reached, edge = {first}, [first]
    while edge:
        atom = mol.GetAtomWithIdx(edge.pop())
        new = [n.GetIdx() for n in atom.GetNeighbors() if n.GetIdx() < heavy and n.GetIdx() not in (*reached, barred)]
        reached.update(new)
        edge += new
    return sorted(reached)
