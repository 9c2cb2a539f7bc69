"""Salts and mixtures: which part of a record is the molecule."""

from __future__ import annotations

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from moldiff.chem import atoms

_NON_METALS = frozenset({5, 6, 7, 8, 14, 15, 16})
"""Elements of which a molecule can have one heavy atom alone, rather than be a counter-ion."""

_FILE_INDEX = "_moldiff_file_index"


def largest_fragment(mol: Chem.Mol) -> Chem.Mol:
    """The organic fragment with the most heavy atoms, sanitised, with the name and data fields of the whole.

    Organic is what has a carbon. Where nothing has, a lone halide or metal comes last, so that of ammonium chloride the
    ammonium is kept. Of several fragments, it is the one with the greatest mass, then the one whose SMILES comes first
    in the alphabet, then the one that comes first in the file. Charges stay as they are: an acetate is not made an
    acid.
    """
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetIntProp(_FILE_INDEX, atom.GetIdx())
    pieces = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False)
    kept = min(enumerate(pieces), key=lambda item: (_rank(item[1]), item[0]))[1]
    for key in mol.GetPropNames(includePrivate=True, includeComputed=False):
        kept.SetProp(key, mol.GetProp(key))
    with rdBase.BlockLogs():
        Chem.SanitizeMol(kept)
    return Chem.Mol(kept)


def _rank(piece: Chem.Mol) -> tuple[bool, bool, int, float, str]:
    """Order of fragments: the one to keep comes first."""
    piece.UpdatePropertyCache(strict=False)
    elements = {atom.GetAtomicNum() for atom in atoms(piece)}
    lone = piece.GetNumHeavyAtoms() <= 1 and not elements & _NON_METALS
    mass = round(float(rdMolDescriptors.CalcExactMolWt(piece)), 3)
    return 6 not in elements, lone, -int(piece.GetNumHeavyAtoms()), -mass, str(Chem.MolToSmiles(piece))


def file_order(mol: Chem.Mol) -> np.ndarray:
    """Index of every atom [a], from 0, in the record that the molecule was taken from."""
    return np.array([file_index(atom) for atom in atoms(mol)], dtype=np.int64)


def file_index(atom: Chem.Atom) -> int:
    """Index of an atom, from 0, in the record that its fragment was taken from."""
    return int(atom.GetIntProp(_FILE_INDEX) if atom.HasProp(_FILE_INDEX) else atom.GetIdx())
