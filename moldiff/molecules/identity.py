"""When two molecules are the same: SMILES, canonical and strict keys, and hashes of them."""

from __future__ import annotations

import hashlib
from functools import cache

from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import assign_stereo, drop_exotic_stereo, sanitized_copy, stereo_of_coordinates, to_rdkit
from moldiff.molecules.molecule import InvalidMolecule, Molecule

_HYPERVALENT = frozenset({15, 16, 33, 34, 51, 52})


def smiles(molecule: Molecule, *, stereo: bool = False) -> str:
    """Canonical SMILES without hydrogens; with `stereo`, the handedness is read off the coordinates.

    Raises:
        MoldiffError: when RDKit cannot sanitise the graph; ask `check` first.
    """
    if stereo:
        return strict_key(molecule)
    return str(Chem.MolToSmiles(Chem.RemoveHs(_parsed(molecule, stereo), sanitize=False), isomericSmiles=False))


def canonical_key(source: Molecule | Chem.Mol | str, *, stereo: bool = False) -> str:
    """The normalised form on which uniqueness and novelty are decided.

    Hydrogens are implicit, isotopes and atom maps are dropped, stereo too unless asked for, functional groups are
    normalised by RDKit's `Normalizer`, and hypervalent S and P are written with double bonds, so that
    `C[S+](C)[O-]` and `CS(C)=O` agree. Charges and tautomers are left as they are.

    Example:
        >>> canonical_key("C[S+](C)[O-]"), canonical_key("[H]C([H])([H])[OH:1]")
        ('CS(C)=O', 'CO')

    Raises:
        MoldiffError: when the SMILES cannot be read or the graph cannot be sanitised.
    """
    mol = Chem.RWMol(_parsed(source, stereo))
    with rdBase.BlockLogs():
        for atom in mol.GetAtoms():
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
        if not stereo:
            Chem.RemoveStereochemistry(mol)
        mol = Chem.RWMol(_normalizer().normalize(Chem.RemoveHs(mol)))
        if _neutralize_hypervalent(mol):
            Chem.SanitizeMol(mol)
        return str(Chem.MolToSmiles(mol, isomericSmiles=stereo))


def strict_key(source: Molecule | Chem.Mol | str) -> str:
    """Plain canonical isomeric SMILES without hydrogens; stereo is that of 3D coordinates where there are any.

    Raises:
        MoldiffError: when the SMILES cannot be read or the graph cannot be sanitised.
    """
    with rdBase.BlockLogs():
        return isomeric_smiles(Chem.RemoveHs(_parsed(source, stereo=True)))


def isomeric_smiles(mol: Chem.Mol) -> str:
    """Canonical isomeric SMILES of a molecule with its stereo marked, the same as of the molecule read from it.

    RDKit marks rings such as bicyclo[1.1.1]pentane in two ways by coordinates, but in one when it reads them again.
    """
    text = str(Chem.MolToSmiles(mol))
    again = Chem.MolFromSmiles(text) if "@" in text else None
    return text if again is None else str(Chem.MolToSmiles(again))


def key_hash(key: str) -> int:
    """A signed 64-bit number of a key, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def _parsed(source: Molecule | Chem.Mol | str, stereo: bool) -> Chem.Mol:
    """A sanitised RDKit molecule of any of the accepted forms."""
    if isinstance(source, str):
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(source)
        if mol is None or mol.GetNumAtoms() == 0:
            raise MoldiffError(f"cannot read {source!r} as SMILES")
        drop_exotic_stereo(mol)
        return mol
    sanitized = sanitized_copy(to_rdkit(source, stereo=False) if isinstance(source, Molecule) else source)
    if isinstance(sanitized, InvalidMolecule):
        raise MoldiffError(f"cannot write a SMILES: {sanitized.reason}")
    if stereo and isinstance(source, Molecule):
        stereo_of_coordinates(sanitized)
    elif stereo:
        assign_stereo(sanitized)
    return sanitized


@cache
def _normalizer() -> rdMolStandardize.Normalizer:
    return rdMolStandardize.Normalizer()


def _neutralize_hypervalent(mol: Chem.RWMol) -> bool:
    """Write X+-Y- as X=Y for X in P, S, As, Se, Sb, Te, in place; whether anything changed."""
    changed = False
    for bond in mol.GetBonds():
        if bond.GetBondType() != Chem.BondType.SINGLE:
            continue
        for plus, minus in ((bond.GetBeginAtom(), bond.GetEndAtom()), (bond.GetEndAtom(), bond.GetBeginAtom())):
            if plus.GetAtomicNum() in _HYPERVALENT and plus.GetFormalCharge() > 0 > minus.GetFormalCharge():
                plus.SetFormalCharge(plus.GetFormalCharge() - 1)
                minus.SetFormalCharge(minus.GetFormalCharge() + 1)
                bond.SetBondType(Chem.BondType.DOUBLE)
                changed = True
                break
    return changed
