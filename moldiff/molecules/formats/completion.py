"""Hydrogens that a record of a file leaves out: whether there are any, and records that have them."""

from __future__ import annotations

from dataclasses import replace

from rdkit import Chem

from moldiff.molecules.convert import atoms
from moldiff.molecules.formats.record import Record, guarded
from moldiff.molecules.molecule import InvalidMolecule

HYDROGENS_ADDED = "hydrogens added"


def has_hydrogen(mol: Chem.Mol) -> bool:
    """Whether any hydrogen is an atom of its own."""
    return any(atom.GetAtomicNum() == 1 for atom in atoms(mol))


def closed_where_drawn(mol: Chem.Mol) -> Chem.Mol:
    """The molecule with implicit hydrogens only where a drawing may leave them out.

    An atom that is drawn with hydrogens has all it is meant to have; and where a carbon of a 3D structure has some,
    so has every atom.
    """
    open_atoms = [atom for atom in atoms(mol) if atom.GetNumImplicitHs()]
    if not open_atoms:
        return mol
    drawn = [atom for atom in atoms(mol) if any(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())]
    complete = mol.GetConformer().Is3D() and any(atom.GetAtomicNum() == 6 for atom in drawn)
    with_hydrogens = {atom.GetIdx() for atom in drawn}
    closed = [atom.GetIdx() for atom in open_atoms if complete or atom.GetIdx() in with_hydrogens]
    if not closed:
        return mol
    mol = Chem.Mol(mol)
    for index in closed:
        atom = mol.GetAtomWithIdx(index)
        atom.SetNoImplicit(True)
        atom.UpdatePropertyCache(strict=False)
    return mol


def lacks_hydrogens(mol: Chem.Mol) -> bool:
    """Whether a sanitised 3D structure leaves out hydrogens that its valences ask for, as files of heavy atoms do."""
    lone = mol.GetNumAtoms() == 1
    placed = mol.GetNumConformers() > 0 and (lone or mol.GetConformer().Is3D())
    return (
        placed
        and (lone or mol.GetNumBonds() > 0)
        and any(atom.GetTotalNumHs() for atom in atoms(closed_where_drawn(mol)))
    )


def completed(mol: Chem.Mol) -> Chem.Mol:
    """The structure with the hydrogens that it lacks, with coordinates; itself if it lacks none."""
    return Chem.AddHs(closed_where_drawn(mol), addCoords=True) if lacks_hydrogens(mol) else mol


def completed_record(record: Record) -> Record:
    """The record with the hydrogens that it lacks and a remark on them; itself if it lacks none or is not sound."""
    if record.mol is None or record.problem is not None:
        return record
    mol = guarded(completed, record.mol)
    if isinstance(mol, InvalidMolecule) or mol is record.mol:
        return record
    return replace(record, mol=mol, remarks=(*record.remarks, HYDROGENS_ADDED))
