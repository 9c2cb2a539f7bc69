"""The RDKit border: molecules to and from RDKit, validity of explicit graphs with a reason, and canonical keys.

RDKit is asked to change nothing: every atom is marked no-implicit before sanitising, so that a missing hydrogen
stays missing and a radical is never completed to a closed shell.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from moldiff.batch import Molecule
from moldiff.errors import MoldiffError
from moldiff.results import InvalidMolecule, Status
from moldiff.vocabulary import MAX_HYDROGENS, SYMBOLS, VALENCES, Vocabulary

_BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
_ORDERS = {bond_type: order for order, bond_type in _BOND_TYPES.items()}
_NO_HAND = Chem.ChiralType.CHI_UNSPECIFIED
_HANDS = (_NO_HAND, Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_HYPERVALENT = frozenset({15, 16, 33, 34, 51, 52})
_SANITIZE_WITHOUT_CLEANUP = Chem.SanitizeFlags.SANITIZE_ALL ^ Chem.SanitizeFlags.SANITIZE_CLEANUP


def to_rdkit(molecule: Molecule, *, stereo: bool = True) -> Chem.Mol:
    """The explicit graph as an RDKit molecule with one 3D conformer, **not sanitised**.

    Heavy atoms come in their order, then the hydrogens, those of atom 0 first. Bonds are Kekulé orders, formal
    charges are kept, every atom is no-implicit, and the name goes to `_Name`. With `stereo`, centres and double bonds
    are marked as the coordinates have them.
    """
    mol = _explicit_graph(molecule)
    if stereo:
        _copy_stereo(_with_stereo(mol), mol)
    return mol


def _explicit_graph(molecule: Molecule) -> Chem.Mol:
    mol = Chem.RWMol()
    elements = molecule.atomic_number.tolist()
    for atomic_number, charge in zip(elements, molecule.formal_charge.tolist(), strict=True):
        mol.AddAtom(_explicit_atom(atomic_number, charge))
    for i, j, order in molecule.bonds.tolist():
        mol.AddBond(i, j, _BOND_TYPES[order])
    positions = [np.asarray(molecule.pos, dtype=np.float64)]
    for heavy, count in enumerate(molecule.num_hydrogens.tolist()):
        for slot in range(count):
            mol.AddBond(heavy, mol.AddAtom(_explicit_atom(1, 0)), Chem.BondType.SINGLE)
            positions.append(positions[0][heavy : heavy + 1] + molecule.hydrogen_offset[heavy, slot])
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.concatenate(positions))
    mol.AddConformer(conformer, assignId=True)
    mol.SetProp("_Name", molecule.name)
    return mol.GetMol()


def _explicit_atom(atomic_number: int, charge: int) -> Chem.Atom:
    atom = Chem.Atom(atomic_number)
    atom.SetFormalCharge(charge)
    atom.SetNoImplicit(True)
    return atom


def _with_stereo(mol: Chem.Mol) -> Chem.Mol:
    """A copy of an explicit graph, sanitised as far as that goes, with the stereo of its coordinates.

    Marks need the symmetry of the aromatic graph: one Kekulé form alone would make centres that are none.
    """
    sanitized = _sanitized(mol)
    if isinstance(sanitized, InvalidMolecule):
        sanitized = Chem.Mol(mol)
        sanitized.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(sanitized)
    stereo_of_coordinates(sanitized)
    return sanitized


def _copy_stereo(source: Chem.Mol, target: Chem.Mol) -> None:
    """Put the stereo marks of a molecule onto another of the same atoms and bonds.

    RDKit wants double bonds marked twice: it forgets their sides where the single bonds beside them say nothing.
    """
    for atom in atoms(source):
        if atom.GetChiralTag() != _NO_HAND:
            target.GetAtomWithIdx(atom.GetIdx()).SetChiralTag(atom.GetChiralTag())
    for bond in source.GetBonds():
        same = target.GetBondWithIdx(bond.GetIdx())
        same.SetBondDir(bond.GetBondDir())
        if len(bond.GetStereoAtoms()) == 2:
            same.SetStereoAtoms(*bond.GetStereoAtoms())
            same.SetStereo(bond.GetStereo())


def stereo_of_coordinates(mol: Chem.Mol) -> None:
    """Mark centres and double bonds as the 3D coordinates have them, in place; other marks are dropped.

    That holds for a double bond marked as "either" too. Only tetrahedral centres are marked: neither do files that
    people exchange have words for others, nor are they what the model learns.
    """
    for bond in mol.GetBonds():
        if bond.GetBondType() == Chem.BondType.DOUBLE:
            bond.SetBondDir(Chem.BondDir.NONE)
            bond.SetStereo(Chem.BondStereo.STEREONONE)
    with rdBase.BlockLogs():
        Chem.AssignStereochemistryFrom3D(mol, replaceExistingTags=True)
    _drop_exotic(mol)


def assign_stereo(mol: Chem.Mol) -> None:
    """Mark the stereo of a sanitised molecule as its record means it, in place.

    3D coordinates decide where there are any (`stereo_of_coordinates`); flat ones do for double bonds, while centres
    are those of the wedges. Otherwise the marks of the SMILES or of the drawing count. Marks without a meaning, such
    as on an atom with two equal substituents, are dropped.
    """
    solid = mol.GetNumConformers() > 0 and mol.GetConformer().Is3D()
    if solid and np.ptp(mol.GetConformer().GetPositions()[:, 2]) > 0:
        stereo_of_coordinates(mol)
        return
    with rdBase.BlockLogs():
        if solid:
            Chem.DetectBondStereochemistry(mol)
        Chem.SetDoubleBondNeighborDirections(mol)  # which RDKit reads, and marks set from Python lack
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    _drop_exotic(mol)


def _drop_exotic(mol: Chem.Mol) -> None:
    """Take away marks of centres that are not tetrahedral (RDKit's `[P@TB18]`)."""
    for atom in atoms(mol):
        if atom.GetChiralTag() not in _HANDS:
            atom.SetChiralTag(_NO_HAND)
            atom.ClearProp("_chiralPermutation")


def from_rdkit(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    """Read the graph as it is drawn: explicit hydrogens and the first conformer, which must be 3D.

    Charges are kept, aromatic bonds are kekulised, isotopes and stereo marks are dropped (handedness is in the
    coordinates), and data fields that are finite numbers become `properties`. Valences are not judged here: that is
    `check`'s task, so a broken graph can be read and counted.

    Returns:
        The molecule, or the reason why it cannot be one: no heavy atom, dummy atom, no 3D coordinates, a hydrogen
        without exactly one single bond to a heavy atom, more than four hydrogens on an atom, a bond that is not
        single, double, triple or aromatic, or an aromatic system that cannot be kekulised.
    """
    problem = _coordinate_problem(mol)
    if problem is not None:
        return problem
    kekulized = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.Kekulize(kekulized, clearAromaticFlags=True)
    except Chem.MolSanitizeException as error:
        return InvalidMolecule(Status.UNSANITIZABLE, f"cannot kekulise: {_one_line(error)}")
    return _graph(kekulized)


def _coordinate_problem(mol: Chem.Mol) -> InvalidMolecule | None:
    """Why the atoms or coordinates of `mol` cannot be used; None = they can."""
    elements = [atom.GetAtomicNum() for atom in atoms(mol)]
    if 0 in elements:
        return InvalidMolecule(Status.UNREADABLE, f"atom {elements.index(0)} (*): dummy atom", elements.index(0))
    if not any(element > 1 for element in elements):
        return InvalidMolecule(Status.UNREADABLE, "no heavy atom")
    if mol.GetNumConformers() == 0:
        return InvalidMolecule(Status.UNREADABLE, "no 3D coordinates")
    conformer = mol.GetConformer()
    pos = conformer.GetPositions()
    finite = np.isfinite(pos).all(1)
    if not finite.all():
        bad = int((~finite).argmax())
        return InvalidMolecule(Status.NON_FINITE, f"atom {bad} ({_symbol(mol, bad)}): coordinate not finite", bad)
    if len(pos) > 1 and (not conformer.Is3D() or np.ptp(pos, axis=0).max() == 0):
        return InvalidMolecule(Status.UNREADABLE, "no 3D coordinates")
    return None


def _graph(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    """The molecule of a kekulised RDKit molecule whose coordinates are fine."""
    pos = mol.GetConformer().GetPositions()
    everything = atoms(mol)
    carriers = [atom for atom in everything if atom.GetAtomicNum() != 1]
    index = {atom.GetIdx(): row for row, atom in enumerate(carriers)}
    count = np.zeros(len(carriers), dtype=np.int64)
    offset = np.zeros((len(carriers), MAX_HYDROGENS, 3))
    for hydrogen in everything:
        if hydrogen.GetAtomicNum() != 1:
            continue
        heavy = _carrier(hydrogen)
        if heavy not in index:
            return _stray(hydrogen)
        row = index[heavy]
        if count[row] == MAX_HYDROGENS:
            reason = f"atom {heavy} ({_symbol(mol, heavy)}): more than {MAX_HYDROGENS} hydrogens"
            return InvalidMolecule(Status.VALENCE, reason, heavy)
        offset[row, count[row]] = pos[hydrogen.GetIdx()] - pos[heavy]
        count[row] += 1
    bonds = []
    for bond in (mol.GetBondWithIdx(number) for number in range(mol.GetNumBonds())):
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i not in index or j not in index:
            continue
        order = _ORDERS.get(bond.GetBondType())
        if order is None:
            what = f"atom {i} ({_symbol(mol, i)}): bond to {_symbol(mol, j)} of type {bond.GetBondType()}"
            reason = f"{what}, expected single, double, triple or aromatic"
            return InvalidMolecule(Status.UNREADABLE, reason, i)
        bonds.append((*sorted((index[i], index[j])), order))
    return Molecule(
        pos=pos[list(index)],
        atomic_number=np.array([atom.GetAtomicNum() for atom in carriers], dtype=np.int64),
        formal_charge=np.array([atom.GetFormalCharge() for atom in carriers], dtype=np.int64),
        num_hydrogens=count,
        hydrogen_offset=offset,
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 3),
        properties=_numbers(mol),
        name=_text(mol, "_Name"),
    )


def atom_order(mol: Chem.Mol) -> np.ndarray:
    """Index in `mol` of every atom [a] as `from_rdkit` orders them: heavy ones, then the hydrogens of each of these."""
    heavy = [atom for atom in atoms(mol) if not _is_hydrogen(atom)]
    neighbours = [sorted(other.GetIdx() for other in atom.GetNeighbors() if _is_hydrogen(other)) for atom in heavy]
    return np.array([*(atom.GetIdx() for atom in heavy), *chain.from_iterable(neighbours)], dtype=np.int64)


def _is_hydrogen(atom: Chem.Atom) -> bool:
    return bool(atom.GetAtomicNum() == 1)


def atoms(mol: Chem.Mol) -> list[Chem.Atom]:
    """The atoms; a list takes a third of the time that RDKit's own sequence does."""
    return [mol.GetAtomWithIdx(index) for index in range(mol.GetNumAtoms())]


def _carrier(hydrogen: Chem.Atom) -> int | None:
    """The atom that a hydrogen may ride on: its only neighbour, by a single bond."""
    if hydrogen.GetDegree() != 1 or hydrogen.GetFormalCharge():
        return None
    bond = hydrogen.GetBonds()[0]
    single = bond.GetBondType() == Chem.BondType.SINGLE
    return int(bond.GetOtherAtomIdx(hydrogen.GetIdx())) if single else None


def _stray(hydrogen: Chem.Atom) -> InvalidMolecule:
    """What is said of a hydrogen that cannot ride on a heavy atom."""
    index = hydrogen.GetIdx()
    reason = f"atom {index} (H): {hydrogen.GetDegree()} bonds, charge {hydrogen.GetFormalCharge():+d}"
    return InvalidMolecule(Status.VALENCE, f"{reason}, expected one single bond to a heavy atom and charge 0", index)


def _symbol(mol: Chem.Mol, atom: int) -> str:
    return str(mol.GetAtomWithIdx(atom).GetSymbol())


def _text(mol: Chem.Mol, key: str) -> str:
    """A string property, "" when it is missing or not UTF-8 (RDKit decodes only when asked, and then raises)."""
    try:
        return str(mol.GetProp(key)) if mol.HasProp(key) else ""
    except UnicodeDecodeError:
        return ""


def _numbers(mol: Chem.Mol) -> dict[str, float]:
    """The data fields of a record that are finite numbers."""
    values = {}
    for key in mol.GetPropNames(includePrivate=False, includeComputed=False):
        try:
            value = float(mol.GetProp(key))
        except (ValueError, KeyError):  # text, or bytes that are not UTF-8
            continue
        if math.isfinite(value):
            values[str(key)] = value
    return values


def check(molecule: Molecule, vocabulary: Vocabulary | None = None) -> InvalidMolecule | None:
    """Protocol P2 on the explicit graph: why the molecule is not valid; None = valid.

    Valid: coordinates are finite, every atom's sum of Kekulé orders (hydrogens included) is in the valence table,
    RDKit sanitises the graph and finds no radical, and all atoms hang together in one fragment.

    Args:
        molecule: the molecule to judge.
        vocabulary: brings valences, observed in the data, for (element, charge) pairs that the table lacks.
    """
    if molecule.num_heavy_atoms == 0:
        return InvalidMolecule(Status.UNREADABLE, "no heavy atom")
    finite = np.isfinite(molecule.pos).all(1) & np.isfinite(molecule.hydrogen_offset).all((1, 2))
    if not finite.all():
        return _at_atom(molecule, int((~finite).argmax()), Status.NON_FINITE, "coordinate not finite")
    problem = _valence_problem(molecule, vocabulary)
    if problem is not None:
        return problem
    sanitized = _sanitized(to_rdkit(molecule, stereo=False))
    if isinstance(sanitized, InvalidMolecule):
        return sanitized
    for atom in sanitized.GetAtoms():
        if atom.GetNumRadicalElectrons():
            return _at_atom(molecule, atom.GetIdx(), Status.RADICAL, "unpaired electron")
    fragments = len(Chem.GetMolFrags(sanitized))
    if fragments > 1:
        return InvalidMolecule(Status.DISCONNECTED, f"{fragments} fragments, expected one")
    return None


def is_stable(molecule: Molecule, vocabulary: Vocabulary | None = None) -> bool:
    """Whether every atom obeys the valence table on the explicit graph (P2 "molecule stability")."""
    return molecule.num_heavy_atoms > 0 and _valence_problem(molecule, vocabulary) is None


def _valence_problem(molecule: Molecule, vocabulary: Vocabulary | None) -> InvalidMolecule | None:
    """The first atom with too many bonds, else the first with too few; None = all are fine."""
    short = None
    sums = molecule.bond_sums().tolist()
    keys = zip(molecule.atomic_number.tolist(), molecule.formal_charge.tolist(), sums, strict=True)
    extra = {} if vocabulary is None else vocabulary.extra_valences
    for index, (atomic_number, charge, total) in enumerate(keys):
        allowed = VALENCES.get((atomic_number, charge)) or tuple(extra.get((atomic_number, charge), ()))
        if total in allowed:
            continue
        if not allowed:
            return _at_atom(molecule, index, Status.VALENCE, f"no valence known for charge {charge:+d}")
        at_charge = f" at charge {charge:+d}" if charge else ""
        reason = f"bond orders sum to {total}, expected {' or '.join(map(str, allowed))}{at_charge}"
        if total > max(allowed):
            return _at_atom(molecule, index, Status.VALENCE, reason)
        # Short of a valence that the atom could still reach: an open shell rather than too many bonds.
        short = short or _at_atom(molecule, index, Status.RADICAL, reason)
    return short


def _at_atom(molecule: Molecule, atom: int, status: Status, reason: str) -> InvalidMolecule:
    heavy = atom < molecule.num_heavy_atoms
    atomic_number = int(molecule.atomic_number[atom]) if heavy else 1
    symbol = SYMBOLS[atomic_number]
    return InvalidMolecule(status, f"atom {atom} ({symbol}): {reason}", atom)


def _sanitized(mol: Chem.Mol) -> Chem.Mol | InvalidMolecule:
    """A sanitised copy of an explicit graph; RDKit's clean-up is left out, for it would change the graph."""
    mol = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol, sanitizeOps=_SANITIZE_WITHOUT_CLEANUP)
    except Chem.MolSanitizeException as error:
        cause: Any = error.cause if hasattr(error, "cause") else None
        atom = cause.GetAtomIdx() if hasattr(cause, "GetAtomIdx") else None
        return InvalidMolecule(Status.UNSANITIZABLE, _one_line(error), atom)
    return mol


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
        _drop_exotic(mol)
        return mol
    sanitized = _sanitized(to_rdkit(source, stereo=False) if isinstance(source, Molecule) else source)
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
