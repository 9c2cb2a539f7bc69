"""Coordinates for hydrogens that a set of heavy atoms only counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rdkit import Chem, rdBase

from moldiff.batch import Molecule
from moldiff.chem import to_rdkit


def with_ideal_hydrogens(molecule: Molecule) -> Molecule:
    """The same molecule with its hydrogens where RDKit puts them: ideal lengths and angles, given the heavy atoms.

    For molecules of a model that was trained on heavy atoms alone, whose hydrogens have no places of their own.
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
    return replace(molecule, hydrogen_offset=offset)
