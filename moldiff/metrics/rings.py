"""Ring systems: rings that share atoms, taken as one."""

from __future__ import annotations

from rdkit import Chem, rdBase


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
