"""Parts of molecules: which fragment of a salt or mixture is the molecule, Murcko scaffolds, and ring systems.

A set is parted by scaffold, so that test molecules have ring systems that training never showed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors
from rdkit.Chem.Scaffolds import MurckoScaffold

from moldiff.molecules.convert import atoms
from moldiff.molecules.identity import key_hash

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


RULE = (
    "by Murcko scaffold (without stereo; a molecule without rings is its own): test where the 64-bit BLAKE2b number of "
    "'SEED SCAFFOLD', scaled to [0, 1), is below test_share, valid where below test_share + valid_share, else train"
)
"""How `part_of` decides; a molecule's part does not depend on the others."""

_scaffold: Any = MurckoScaffold.GetScaffoldForMol  # untyped part of RDKit


def scaffold(key: str) -> str:
    """SMILES of the Murcko scaffold (Bemis and Murcko 1996) of a canonical key; the key itself without rings.

    Example:
        >>> scaffold("CCOc1ccccc1"), scaffold("CCO")
        ('c1ccccc1', 'CCO')
    """
    with rdBase.BlockLogs():
        found = str(Chem.MolToSmiles(_scaffold(Chem.MolFromSmiles(key)), isomericSmiles=False))
    return found or key


def part_of(key: str, *, valid_share: float, test_share: float, seed: int) -> str:
    """The part, "train", "valid" or "test", of the molecule with a canonical key, by `RULE`."""
    share = (key_hash(f"{seed} {scaffold(key)}") + 2**63) / 2**64
    return "test" if share < test_share else "valid" if share < test_share + valid_share else "train"


def ring_systems(mol: Chem.Mol) -> list[str]:
    """Canonical SMILES, without stereo, of every ring system of a sanitised molecule.

    Rings that share an atom (fused, bridged or spiro) are one system; atoms on it by a double bond belong to it, and
    hydrogens stand in for all else that is bonded to it.

    >>> ring_systems(Chem.MolFromSmiles("O=C1CCCCC1Cc1ccc2ccccc2c1"))
    ['O=C1CCCCC1', 'c1ccc2ccccc2c1']
    """
    systems: list[set[int]] = []
    for ring in map(set, mol.GetRingInfo().AtomRings()):
        joined = [system for system in systems if system & ring]
        systems = [system for system in systems if not system & ring] + [ring.union(*joined)]
    bare = Chem.Mol(mol)
    for atom in bare.GetAtoms():
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(int(_is_of_pyrrole(atom)))
    return sorted(
        Chem.MolFragmentToSmiles(bare, sorted(system | _by_double_bonds(mol, system)), isomericSmiles=False)
        for system in systems
    )


def largest_ring(smiles: str) -> int:
    """Atoms of the largest ring of RDKit's symmetrised smallest set; 0 without rings, or for what cannot be read.

    >>> largest_ring("C1CC1c1ccccc1")
    6
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    return 0 if mol is None else max((len(ring) for ring in mol.GetRingInfo().AtomRings()), default=0)


def _is_of_pyrrole(atom: Chem.Atom) -> bool:
    """Whether SMILES has to say that something is bonded to the atom outside its rings."""
    in_ring = sum(bond.IsInRing() for bond in atom.GetBonds())
    neutral = atom.GetAtomicNum() == 7 and not atom.GetFormalCharge()
    return bool(atom.GetIsAromatic() and neutral and atom.GetTotalDegree() == 3 and in_ring == 2)


def _by_double_bonds(mol: Chem.Mol, system: set[int]) -> set[int]:
    """Neighbours of a ring system on double bonds."""
    bonds = (bond for index in system for bond in mol.GetAtomWithIdx(index).GetBonds())
    return {
        atom
        for bond in bonds
        if bond.GetBondType() == Chem.BondType.DOUBLE
        for atom in (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    }
