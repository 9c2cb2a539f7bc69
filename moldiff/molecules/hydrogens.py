"""Hydrogens that are only counted, or left out: whether there are any, and coordinates for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rdkit import Chem, rdBase

from moldiff.molecules.convert import atoms as atoms_of
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.elements import COVALENT, covalent_radii
from moldiff.molecules.molecule import Molecule

BOND_LENGTHS = (0.9, 1.17)
"""Times the sum of covalent radii, between which a bond to a hydrogen is sound: 0.96 to 1.25 Å of C, 0.87 to 1.14 of O;
the 1.2 million of QM9 have 0.98 to 1.17."""


def off_their_bonds(molecule: Molecule) -> np.ndarray:
    """Heavy atoms [n] with a hydrogen nearer or farther than a bond to it can be."""
    low, high = BOND_LENGTHS
    expected = (covalent_radii(molecule.atomic_number) + COVALENT[1])[:, None]
    length = np.linalg.norm(molecule.hydrogen_offset, axis=-1)
    found: np.ndarray = (molecule.hydrogen_mask & ((length < low * expected) | (length > high * expected))).any(1)
    return found


def with_ideal_hydrogens(molecule: Molecule, atoms: np.ndarray | None = None) -> Molecule:
    """The same molecule with its hydrogens where RDKit puts them: ideal lengths and angles, given the heavy atoms.

    Their coordinates have to be finite. `atoms` [n] says whose hydrogens are meant; None = all.
    """
    mol = to_rdkit(replace(molecule, num_hydrogens=np.zeros_like(molecule.num_hydrogens)), stereo=False)
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


def has_hydrogen(mol: Chem.Mol) -> bool:
    """Whether any hydrogen is an atom of its own."""
    return any(atom.GetAtomicNum() == 1 for atom in atoms_of(mol))


def closed_where_drawn(mol: Chem.Mol) -> Chem.Mol:
    """The molecule with implicit hydrogens only where a drawing may leave them out.

    An atom that is drawn with hydrogens has all it is meant to have; and where a carbon of a 3D structure has some,
    so has every atom.
    """
    open_atoms = [atom for atom in atoms_of(mol) if atom.GetNumImplicitHs()]
    if not open_atoms:
        return mol
    drawn = [atom for atom in atoms_of(mol) if any(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())]
    if not (mol.GetConformer().Is3D() and any(atom.GetAtomicNum() == 6 for atom in drawn)):
        with_hydrogens = {atom.GetIdx() for atom in drawn}
        open_atoms = [atom for atom in open_atoms if atom.GetIdx() in with_hydrogens]
    mol = Chem.Mol(mol) if open_atoms else mol
    for open_atom in open_atoms:
        atom = mol.GetAtomWithIdx(open_atom.GetIdx())
        atom.SetNoImplicit(True)
        atom.UpdatePropertyCache(strict=False)
    return mol


def lacks_hydrogens(mol: Chem.Mol) -> bool:
    """Whether a sanitised 3D structure leaves out hydrogens that its valences ask for, as files of heavy atoms do."""
    lone = mol.GetNumAtoms() == 1
    if mol.GetNumConformers() == 0 or not (lone or (mol.GetConformer().Is3D() and mol.GetNumBonds() > 0)):
        return False
    return any(atom.GetTotalNumHs() for atom in atoms_of(closed_where_drawn(mol)))


def with_missing_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """The structure with the hydrogens that it lacks, with coordinates; itself if it lacks none."""
    return Chem.AddHs(closed_where_drawn(mol), addCoords=True) if lacks_hydrogens(mol) else mol
