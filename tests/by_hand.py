"""Molecules whose metrics can be counted by hand."""

from __future__ import annotations

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from moldiff.molecules import convert
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

UNREADABLE = InvalidMolecule(Status.UNREADABLE, "record 3: no atom block")


def molecule(z, pos, bonds=(), hydrogens=None, charges=None, offsets=None) -> Molecule:
    """Heavy atoms, bonds (i, j, order) and hydrogen counts; offsets default to distinct directions of 1 Å."""
    n = len(z)
    count = np.array(hydrogens if hydrogens is not None else [0] * n)
    if offsets is None:
        directions = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) / 3**0.5
        offsets = np.where((np.arange(4) < count[:, None])[..., None], directions, 0.0)
    charge = np.array(charges if charges is not None else [0] * n)
    bond = np.array(bonds, dtype=np.int64).reshape(-1, 3)
    return Molecule(np.array(pos, dtype=float), np.array(z), charge, count, np.array(offsets, dtype=float), bond)


def from_smiles(text: str, *, embed_conformer: bool = False) -> Molecule:
    """The explicit graph of a SMILES; coordinates are arbitrary unless `embed_conformer`."""
    mol = Chem.AddHs(Chem.MolFromSmiles(text))
    if embed_conformer:
        assert rdDistGeom.EmbedMolecule(mol, randomSeed=7) == 0
    else:
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.SetPositions(np.random.default_rng(0).normal(size=(mol.GetNumAtoms(), 3)) * 5)
        mol.AddConformer(conformer)
    converted = convert.from_rdkit(mol)
    assert isinstance(converted, Molecule)
    return converted


WATER_OFFSETS = [[[0.0, 0.7572, -0.5865], [0.0, -0.7572, -0.5865], [0, 0, 0], [0, 0, 0]]]


def water(at=(0.0, 0.0, 0.0)) -> Molecule:
    return molecule([8], [at], hydrogens=[2], offsets=WATER_OFFSETS)


def too_many_bonds() -> Molecule:
    """C(C)(C)(C)(C)C: a carbon with five methyl groups."""
    pos = [[0, 0, 0], [1.5, 0, 0], [-1.5, 0, 0], [0, 1.5, 0], [0, -1.5, 0], [0, 0, 1.5]]
    return molecule([6] * 6, pos, [(0, k, 1) for k in range(1, 6)], [0, 3, 3, 3, 3, 3])


def values(results) -> dict[str, float | None]:
    return {result.name: result.value for result in results}


def fractions(results) -> dict[str, tuple[float, float]]:
    return {result.name: (result.numerator, result.denominator) for result in results}


def samples() -> list[Molecule | InvalidMolecule]:
    """CCO, OCC, CCO, C(C)(C)(C)(C)C, CC, and C1CC, which is no SMILES."""
    ethanol = [from_smiles(text) for text in ("CCO", "OCC", "CCO")]
    return [*ethanol, too_many_bonds(), from_smiles("CC"), InvalidMolecule(Status.UNREADABLE, "ring not closed")]
