"""Coordinates for hydrogens that a set of heavy atoms only counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rdkit import Chem, rdBase

from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.elements import COVALENT, covalent_radii
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS

BOND_LENGTHS = (0.9, 1.17)
"""Times the sum of covalent radii, between which a bond to a hydrogen is sound: 0.96 to 1.25 Å of C, 0.87 to 1.14 of O.

The 1.2 million of QM9 have 0.98 to 1.17.
"""


def off_their_bonds(molecule: Molecule) -> np.ndarray:
    """Heavy atoms [n] with a hydrogen nearer or farther than a bond to it can be."""
    low, high = BOND_LENGTHS
    expected = (covalent_radii(molecule.atomic_number) + COVALENT[1])[:, None]
    length = np.linalg.norm(molecule.hydrogen_offset, axis=-1)
    used = np.arange(MAX_HYDROGENS) < molecule.num_hydrogens[:, None]
    found: np.ndarray = (used & ((length < low * expected) | (length > high * expected))).any(1)
    return found


def with_ideal_hydrogens(molecule: Molecule, atoms: np.ndarray | None = None) -> Molecule:
    """The same molecule with its hydrogens where RDKit puts them: ideal lengths and angles, given the heavy atoms.

    Args:
        molecule: coordinates of its heavy atoms have to be finite.
        atoms: heavy atoms [n] whose hydrogens are meant; None = all.
    """
    bare = replace(
        molecule,
        num_hydrogens=np.zeros_like(molecule.num_hydrogens),
        hydrogen_offset=np.zeros_like(molecule.hydrogen_offset),
    )
    mol = to_rdkit(bare, stereo=False)
    for index, count in enumerate(molecule.num_hydrogens.tolist()):
        mol.GetAtomWithIdx(index).SetNumExplicitHs(count)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        Chem.SetConjugation(mol)
        Chem.SetHybridization(mol)
        mol = Chem.AddHs(mol, addCoords=True)
    pos = mol.GetConformer().GetPositions()
    offset = np.zeros_like(molecule.hydrogen_offset)
    used = np.zeros(molecule.num_heavy_atoms, dtype=np.int64)
    for index in range(molecule.num_heavy_atoms, mol.GetNumAtoms()):
        heavy = mol.GetAtomWithIdx(index).GetNeighbors()[0].GetIdx()
        offset[heavy, used[heavy]] = pos[index] - pos[heavy]
        used[heavy] += 1
    if atoms is not None:
        offset = np.where(atoms[:, None, None], offset, molecule.hydrogen_offset)
    return replace(molecule, hydrogen_offset=offset)
