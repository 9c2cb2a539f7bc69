"""When two molecules are the same: SMILES, canonical and strict keys, and hashes of them."""

import hashlib
import re
from functools import cache

from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import (
    assign_stereo,
    atoms,
    drop_exotic_stereo,
    sanitized_copy,
    stereo_of_coordinates,
    to_rdkit,
)
from moldiff.molecules.molecule import InvalidMolecule, Molecule

SMILES_NAMES = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "cansmiles", "isosmiles")
"""Names, as `plain` gives them, of a column or field that holds a SMILES."""

_HYPERVALENT = frozenset({15, 16, 33, 34, 51, 52})  # P, S, As, Se, Sb, Te


def smiles(molecule: Molecule, *, stereo: bool = False) -> str:
    """Canonical SMILES without hydrogens; with `stereo`, the handedness is read off the coordinates.

    Raises MoldiffError when RDKit cannot sanitise the graph; ask `check` first.
    """
    if stereo:
        return strict_key(molecule)
    return str(Chem.MolToSmiles(Chem.RemoveHs(_parsed(molecule, stereo), sanitize=False), isomericSmiles=False))


def plain(name: str) -> str:
    """The name of a field or column in lower case, its words joined by underscores."""
    return re.sub(r"[\s_-]+", "_", name.lower())


def canonical_key(source: Molecule | Chem.Mol | str, *, stereo: bool = False) -> str:
    """The normalised form on which uniqueness and novelty are decided.

    Hydrogens are implicit, isotopes and atom maps are dropped, stereo too unless it is wanted, functional groups are
    normalised by RDKit's `Normalizer`, and hypervalent S and P are written with double bonds. Charges and tautomers
    are left as they are.

    >>> canonical_key("C[S+](C)[O-]"), canonical_key("[H]C([H])([H])[OH:1]")
    ('CS(C)=O', 'CO')

    Raises MoldiffError when the SMILES cannot be read or the graph cannot be sanitised.
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

    Raises MoldiffError when the SMILES cannot be read or the graph cannot be sanitised.
    """
    with rdBase.BlockLogs():
        return isomeric_smiles(Chem.RemoveHs(_parsed(source, stereo=True)))


def both_keys(molecule: Molecule) -> tuple[str, str]:
    """Canonical and strict key, at half the cost.

    Raises MoldiffError when RDKit cannot sanitise the graph; ask `check` first.
    """
    with rdBase.BlockLogs():
        heavy = Chem.RemoveHs(_parsed(molecule, stereo=True))
    return canonical_key(heavy), isomeric_smiles(heavy)


def isomeric_smiles(mol: Chem.Mol) -> str:
    """Canonical isomeric SMILES of a molecule with its stereo marked, the same as of the molecule read from it.

    RDKit marks rings such as bicyclo[1.1.1]pentane in two ways by coordinates, but in one when it reads them again;
    such centres have no label R or S.
    """
    text = str(Chem.MolToSmiles(mol))
    twofold = "@" in text and any(int(atom.GetChiralTag()) and not atom.HasProp("_CIPCode") for atom in atoms(mol))
    again = Chem.MolFromSmiles(text) if twofold else None
    return text if again is None else str(Chem.MolToSmiles(again))


def key_hash(key: str) -> int:
    """A signed 64-bit number of a key, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def _parsed(source: Molecule | Chem.Mol | str, stereo: bool) -> Chem.Mol:
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
    if stereo:
        (stereo_of_coordinates if isinstance(source, Molecule) else assign_stereo)(sanitized)
    return sanitized


_normalizer = cache(rdMolStandardize.Normalizer)


def _neutralize_hypervalent(mol: Chem.RWMol) -> bool:
    """Write X+-Y- as X=Y for hypervalent X, in place; whether anything changed."""
    changed = False
    for bond in mol.GetBonds():
        plus, minus = sorted((bond.GetBeginAtom(), bond.GetEndAtom()), key=lambda atom: -atom.GetFormalCharge())
        opposite = plus.GetFormalCharge() > 0 > minus.GetFormalCharge()
        if opposite and plus.GetAtomicNum() in _HYPERVALENT and bond.GetBondType() == Chem.BondType.SINGLE:
            plus.SetFormalCharge(plus.GetFormalCharge() - 1)
            minus.SetFormalCharge(minus.GetFormalCharge() + 1)
            bond.SetBondType(Chem.BondType.DOUBLE)
            changed = True
    return changed
