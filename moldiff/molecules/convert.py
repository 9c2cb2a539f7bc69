"""The RDKit border: molecules to and from RDKit, the stereo of their coordinates, and hydrogens that are left out.

Every atom is marked no-implicit before sanitising, so that a missing hydrogen stays missing and a radical open.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import COVALENT, MAX_HYDROGENS, covalent_radii

BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}  # by Kekulé order
BOND_ORDERS = {bond_type: order for order, bond_type in BOND_TYPES.items()}
_NO_HAND = Chem.ChiralType.CHI_UNSPECIFIED
# Found by RDKit's own search, a third of the cost of a loop in Python.
_DOUBLE_BOND, _FOUR_ARMS, _INNER_ATOM = map(Chem.MolFromSmarts, ("*=*", "[D4]", "[!D1]"))
_HANDS = (_NO_HAND, Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_THREE_OF_FOUR = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
_LEAST_TURN = 0.1  # least triple product of three unit arms that says how a centre turns; 0.77 in a tetrahedron
_LEAST_VOLUME = 0.5  # sum of the four triple products below which a centre is flat; 3.08 in a tetrahedron
BOND_LENGTHS = (0.9, 1.17)
"""Times the sum of covalent radii, between which a bond to a hydrogen is sound: 0.96 to 1.25 Å of C, 0.87 to 1.14 of O;
the 1.2 million of QM9 have 0.98 to 1.17."""
_SANITIZE_WITHOUT_CLEANUP = Chem.SanitizeFlags.SANITIZE_ALL ^ Chem.SanitizeFlags.SANITIZE_CLEANUP


def to_rdkit(molecule: Molecule, *, stereo: bool = True) -> Chem.Mol:
    """The explicit graph as an RDKit molecule with one 3D conformer, **not sanitised**.

    Heavy atoms come in their order, then the hydrogens, those of atom 0 first. Bonds are Kekulé orders, formal
    charges are kept, every atom is no-implicit, and the name goes to `_Name`. With `stereo`, centres and double bonds
    are marked as the coordinates have them, and bonds come in an order in which RDKit reads these marks off them.
    """
    mol = _explicit_graph(molecule, in_reading_order=stereo)
    if not stereo:
        return mol
    # Marks need the symmetry of the aromatic graph: one Kekulé form alone would make centres that are none.
    marked = sanitized_copy(mol)
    if isinstance(marked, InvalidMolecule):
        marked = Chem.Mol(mol)
        marked.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(marked)
    stereo_of_coordinates(marked)
    for atom in atoms(marked):
        mol.GetAtomWithIdx(atom.GetIdx()).SetChiralTag(atom.GetChiralTag())
    for bond in bonds(marked):
        # Marked twice: RDKit forgets the sides of a double bond where the single bonds beside it say nothing.
        same = mol.GetBondWithIdx(bond.GetIdx())
        same.SetBondDir(bond.GetBondDir())
        if len(bond.GetStereoAtoms()) == 2:
            same.SetStereoAtoms(*bond.GetStereoAtoms())
            same.SetStereo(bond.GetStereo())
    return mol


def _explicit_graph(molecule: Molecule, *, in_reading_order: bool) -> Chem.Mol:
    mol = Chem.RWMol()
    for atomic_number, charge in zip(molecule.atomic_number.tolist(), molecule.formal_charge.tolist(), strict=True):
        mol.AddAtom(explicit_atom(atomic_number, charge))
    rows = molecule.bonds.tolist()
    positions = [np.asarray(molecule.pos, dtype=np.float64)]
    for heavy, count in enumerate(molecule.num_hydrogens.tolist()):
        for slot in range(count):
            rows.append([heavy, mol.AddAtom(explicit_atom(1)), 1])
            positions.append(positions[0][heavy : heavy + 1] + molecule.hydrogen_offset[heavy, slot])
    pos = np.concatenate(positions)
    for i, j, order in _in_reading_order(rows, pos) if in_reading_order else rows:
        mol.AddBond(i, j, BOND_TYPES[order])
    set_positions(mol, pos)
    mol.SetProp("_Name", molecule.name)
    return mol.GetMol()


def _in_reading_order(rows: list[list[int]], pos: np.ndarray) -> list[list[int]]:
    """Bonds [b][3] in an order in which RDKit reads the right hand of every centre off the coordinates [a, 3].

    It looks at the first three bonds of a centre. In a strained cage these can lie in one plane or be turned inside
    out; a bond whose absence among the three makes them so comes first then.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for place, (i, j, _) in enumerate(rows):
        places[i].append(place)
        places[j].append(place)
    centres = {atom: own for atom, own in places.items() if len(own) == 4}
    neighbours = [[sum(rows[place][:2]) - atom for place in own] for atom, own in centres.items()]
    turns = _turns(pos, list(centres), neighbours)
    misleading = turns * np.sign(turns.sum(1, keepdims=True)) < _LEAST_TURN
    found = zip(centres.values(), misleading, strict=True)
    first = {own[arm] for own, arms in found if arms[3] for arm in np.flatnonzero(arms)}
    return [rows[place] for place in sorted(range(len(rows)), key=lambda place: place not in first)]


@np.errstate(all="ignore")  # what is not finite turns nowhere
def _turns(pos: np.ndarray, centres: Sequence[int] | np.ndarray, neighbours: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Triple products of three of the four unit arms of each centre, by which is left out [c, 4].

    Their signs are those with which they add up to the volume that all four span: positive for a centre marked `@@`.
    """
    arms = pos[np.array(neighbours, dtype=np.int64).reshape(-1, 4)] - pos[np.array(centres, dtype=np.int64), None]
    arms /= np.sqrt((arms * arms).sum(2, keepdims=True)).clip(1e-6)
    return np.asarray(np.linalg.det(arms[:, _THREE_OF_FOUR]) * (1, -1, 1, -1))


def set_positions(mol: Chem.Mol, pos: np.ndarray) -> None:
    """Give a molecule coordinates [a, 3] (Å) in 3D and no others, in place."""
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.asarray(pos, dtype=np.float64))
    mol.AddConformer(conformer, assignId=True)


def explicit_atom(element: int | str, charge: int = 0) -> Chem.Atom:
    """An atom, of an atomic number or symbol, to which RDKit adds no hydrogen."""
    atom = Chem.Atom(element)
    atom.SetFormalCharge(charge)
    atom.SetNoImplicit(True)
    return atom


def stereo_of_coordinates(mol: Chem.Mol) -> None:
    """Mark centres and double bonds as the 3D coordinates have them, in place; other marks are dropped.

    That holds for a double bond marked as "either" too. Only tetrahedral centres are marked: common files have no words
    for others, and the model does not learn them.
    """
    for ends in mol.GetSubstructMatches(_DOUBLE_BOND, maxMatches=mol.GetNumBonds()):
        bond = mol.GetBondBetweenAtoms(*ends)
        bond.SetBondDir(Chem.BondDir.NONE)
        bond.SetStereo(Chem.BondStereo.STEREONONE)
    with rdBase.BlockLogs():
        Chem.DetectBondStereochemistry(mol)
        Chem.AssignAtomChiralTagsFromStructure(mol, replaceExistingTags=True)
        _hands_by_all_four(mol)
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    drop_exotic_stereo(mol)


def _hands_by_all_four(mol: Chem.Mol) -> None:
    """Correct the hands that RDKit read off three bonds where all four say otherwise, in place."""
    centres = np.array(mol.GetSubstructMatches(_FOUR_ARMS, maxMatches=mol.GetNumAtoms()), dtype=np.int64).ravel()
    pos = mol.GetConformer().GetPositions()
    turns = _turns(pos, centres, np.nonzero(Chem.GetAdjacencyMatrix(mol)[centres])[1])
    doubtful = (turns * np.sign(turns.sum(1, keepdims=True)) < _LEAST_TURN).any(1)
    for atom in map(mol.GetAtomWithIdx, centres[doubtful].tolist()):
        in_order = [other.GetIdx() for other in atom.GetNeighbors()]
        volume = _turns(pos, [atom.GetIdx()], in_order).sum()
        if abs(volume) > _LEAST_VOLUME and atom.GetChiralTag() in _HANDS:
            atom.SetChiralTag(_HANDS[1] if volume > 0 else _HANDS[2])


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
    drop_exotic_stereo(mol)


def drop_exotic_stereo(mol: Chem.Mol) -> None:
    """Take away marks of centres that are not tetrahedral (RDKit's `[P@TB18]`)."""
    for (index,) in mol.GetSubstructMatches(_INNER_ATOM, maxMatches=mol.GetNumAtoms()):
        atom = mol.GetAtomWithIdx(index)
        if atom.GetChiralTag() not in _HANDS:
            atom.SetChiralTag(_NO_HAND)
            atom.ClearProp("_chiralPermutation")


def from_rdkit(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    """Read the graph as it is drawn: explicit hydrogens and the first conformer, which must be 3D.

    Charges are kept, aromatic bonds are kekulised, isotopes and stereo marks are dropped (handedness is in the
    coordinates), and data fields that are finite numbers become `properties`. Valences are not judged here: that is
    `check`'s task, so a broken graph can be read and counted. What cannot be written as a `Molecule` at all gives the
    reason: no heavy atom, no 3D coordinates, a hydrogen between two atoms, a bond of another order, and the like.
    """
    if problem := _coordinate_problem(mol):
        return problem
    kekulized = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.Kekulize(kekulized, clearAromaticFlags=True)
    except Chem.MolSanitizeException as error:
        return InvalidMolecule(Status.UNSANITIZABLE, f"cannot kekulise: {one_line(error)}")
    return _graph(kekulized)


def _coordinate_problem(mol: Chem.Mol) -> InvalidMolecule | None:
    elements = [atom.GetAtomicNum() for atom in atoms(mol)]
    if 0 in elements:
        return InvalidMolecule.at(elements.index(0), "*", Status.UNREADABLE, "dummy atom")
    if not any(element > 1 for element in elements):
        return InvalidMolecule(Status.UNREADABLE, "no heavy atom")
    if mol.GetNumConformers() == 0:
        return InvalidMolecule(Status.UNREADABLE, "no 3D coordinates")
    conformer = mol.GetConformer()
    pos = conformer.GetPositions()
    finite = np.isfinite(pos).all(1)
    if not finite.all():
        bad = int((~finite).argmax())
        return InvalidMolecule.at(bad, _symbol(mol, bad), Status.NON_FINITE, "coordinate not finite")
    if len(pos) > 1 and (not conformer.Is3D() or np.ptp(pos, axis=0).max() == 0):
        return InvalidMolecule(Status.UNREADABLE, "no 3D coordinates")
    return None


def _graph(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    """The molecule of a kekulised RDKit molecule whose coordinates are fine."""
    pos = mol.GetConformer().GetPositions()
    heavy_atoms = [atom for atom in atoms(mol) if atom.GetAtomicNum() != 1]
    row_of = {atom.GetIdx(): row for row, atom in enumerate(heavy_atoms)}
    count = np.zeros(len(heavy_atoms), dtype=np.int64)
    offset = np.zeros((len(heavy_atoms), MAX_HYDROGENS, 3))
    for hydrogen in atoms(mol):
        if (index := hydrogen.GetIdx()) in row_of:
            continue
        heavy = _carrier(hydrogen)
        if heavy not in row_of:
            found = f"{hydrogen.GetDegree()} bonds, charge {hydrogen.GetFormalCharge():+d}"
            reason = f"{found}, expected one single bond to a heavy atom and charge 0"
            return InvalidMolecule.at(index, "H", Status.VALENCE, reason)
        row = row_of[heavy]
        if count[row] == MAX_HYDROGENS:
            reason = f"more than {MAX_HYDROGENS} hydrogens"
            return InvalidMolecule.at(heavy, _symbol(mol, heavy), Status.VALENCE, reason)
        offset[row, count[row]] = pos[index] - pos[heavy]
        count[row] += 1
    rows = []
    for bond in bonds(mol):
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i in row_of and j in row_of:
            if (kind := bond.GetBondType()) not in BOND_ORDERS:
                reason = f"bond to {_symbol(mol, j)} of type {kind}, expected single, double, triple or aromatic"
                return InvalidMolecule.at(i, _symbol(mol, i), Status.UNREADABLE, reason)
            rows.append((*sorted((row_of[i], row_of[j])), BOND_ORDERS[kind]))
    return Molecule(
        pos=pos[list(row_of)],
        atomic_number=np.array([atom.GetAtomicNum() for atom in heavy_atoms], dtype=np.int64),
        formal_charge=np.array([atom.GetFormalCharge() for atom in heavy_atoms], dtype=np.int64),
        num_hydrogens=count,
        hydrogen_offset=offset,
        bonds=np.array(sorted(rows), dtype=np.int64).reshape(-1, 3),
        properties=_numbers(mol),
        name=text_property(mol, "_Name"),
    )


def _carrier(hydrogen: Chem.Atom) -> int | None:
    """The atom that a hydrogen may ride on: its only neighbour, by a single bond."""
    if hydrogen.GetDegree() != 1 or hydrogen.GetFormalCharge():
        return None
    bond = hydrogen.GetBonds()[0]
    single = bond.GetBondType() == Chem.BondType.SINGLE
    return int(bond.GetOtherAtomIdx(hydrogen.GetIdx())) if single else None


def _symbol(mol: Chem.Mol, atom: int) -> str:
    return str(mol.GetAtomWithIdx(atom).GetSymbol())


def text_property(mol: Chem.Mol, key: str) -> str:
    """A string property, "" when it is missing or not UTF-8 (RDKit decodes only when it is read, and then raises)."""
    with suppress(KeyError, UnicodeDecodeError):
        return str(mol.GetProp(key))
    return ""


def _numbers(mol: Chem.Mol) -> dict[str, float]:
    """The data fields of a record that are finite numbers."""
    values = {}
    for key in mol.GetPropNames(includePrivate=False, includeComputed=False):
        with suppress(ValueError, KeyError):  # text, or bytes that are not UTF-8
            values[str(key)] = float(mol.GetProp(key))
    return {key: value for key, value in values.items() if math.isfinite(value)}


def atom_order(mol: Chem.Mol) -> np.ndarray:
    """Index in `mol` of every atom [a] as `from_rdkit` orders them: heavy ones, then the hydrogens of each of these."""
    order = [atom.GetIdx() for atom in atoms(mol) if atom.GetAtomicNum() != 1]
    for heavy in order[:]:
        neighbours = mol.GetAtomWithIdx(heavy).GetNeighbors()
        order += sorted(other.GetIdx() for other in neighbours if other.GetAtomicNum() == 1)
    return np.array(order, dtype=np.int64)


def atoms(mol: Chem.Mol) -> list[Chem.Atom]:
    """The atoms, in a third of the time that RDKit's own sequence takes."""
    return [mol.GetAtomWithIdx(index) for index in range(mol.GetNumAtoms())]


def bonds(mol: Chem.Mol) -> list[Chem.Bond]:
    """The bonds, for the same reason."""
    return [mol.GetBondWithIdx(index) for index in range(mol.GetNumBonds())]


def sanitized_copy(mol: Chem.Mol) -> Chem.Mol | InvalidMolecule:
    """A sanitised copy of an explicit graph; RDKit's clean-up is left out, for it would change the graph."""
    mol = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol, sanitizeOps=_SANITIZE_WITHOUT_CLEANUP)
    except Chem.MolSanitizeException as error:
        cause: Any = getattr(error, "cause", None)
        atom = cause.GetAtomIdx() if hasattr(cause, "GetAtomIdx") else None
        return InvalidMolecule(Status.UNSANITIZABLE, one_line(error), atom)
    return mol


def one_line(error: Exception) -> str:
    """The message of an error without its line ends."""
    return " ".join(str(error).split())


def off_their_bonds(molecule: Molecule) -> np.ndarray:
    """Heavy atoms [n] with a hydrogen nearer or farther than a bond to it can be."""
    low, high = BOND_LENGTHS
    expected = (covalent_radii(molecule.atomic_number) + COVALENT[1])[:, None]
    length = np.linalg.norm(molecule.hydrogen_offset, axis=-1)
    return np.asarray((molecule.hydrogen_mask & ((length < low * expected) | (length > high * expected))).any(1))


def with_positions(molecule: Molecule, pos: np.ndarray) -> Molecule:
    """The same molecule with its atoms at pos [a, 3] (Å): heavy atoms first, then the hydrogens in their order."""
    heavy, hydrogens = np.split(pos, [molecule.num_heavy_atoms])
    offset = molecule.hydrogen_offset.copy()
    offset[molecule.hydrogen_mask] = hydrogens - np.repeat(heavy, molecule.num_hydrogens, axis=0)
    return replace(molecule, pos=heavy, hydrogen_offset=offset)


def with_ideal_hydrogens(molecule: Molecule, chosen: np.ndarray | None = None) -> Molecule:
    """The same molecule with its hydrogens where RDKit puts them: ideal lengths and angles, given the heavy atoms.

    Their coordinates have to be finite. `chosen` [n] says whose hydrogens are meant; None = all.
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
    heavy, _ = np.nonzero(molecule.hydrogen_mask)  # RDKit adds the hydrogens in the order of their atoms
    offset[molecule.hydrogen_mask] = pos[molecule.num_heavy_atoms :] - pos[heavy]
    if chosen is not None:
        offset = np.where(chosen[:, None, None], offset, molecule.hydrogen_offset)
    return replace(molecule, hydrogen_offset=offset)


def has_hydrogen(mol: Chem.Mol) -> bool:
    """Whether any hydrogen is an atom of its own."""
    return any(atom.GetAtomicNum() == 1 for atom in atoms(mol))


def closed_where_drawn(mol: Chem.Mol) -> Chem.Mol:
    """The molecule with implicit hydrogens only where a drawing may leave them out.

    An atom that is drawn with hydrogens has all it is meant to have; and where a carbon of a 3D structure has some,
    so has every atom.
    """
    closed = {atom.GetIdx() for atom in atoms(mol) if atom.GetNumImplicitHs()}
    if not closed:
        return mol
    drawn = [atom for atom in atoms(mol) if any(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())]
    if not (mol.GetConformer().Is3D() and any(atom.GetAtomicNum() == 6 for atom in drawn)):
        closed &= {atom.GetIdx() for atom in drawn}
    mol = Chem.Mol(mol) if closed else mol
    for index in sorted(closed):
        atom = mol.GetAtomWithIdx(index)
        atom.SetNoImplicit(True)
        atom.UpdatePropertyCache(strict=False)
    return mol


def lacks_hydrogens(mol: Chem.Mol) -> bool:
    """Whether a sanitised 3D structure leaves out hydrogens that its valences ask for, as files of heavy atoms do."""
    lone = mol.GetNumAtoms() == 1
    if mol.GetNumConformers() == 0 or not (lone or (mol.GetConformer().Is3D() and mol.GetNumBonds() > 0)):
        return False
    return any(atom.GetTotalNumHs() for atom in atoms(closed_where_drawn(mol)))


def with_missing_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """The structure with the hydrogens that it lacks, with coordinates; itself if it lacks none."""
    return Chem.AddHs(closed_where_drawn(mol), addCoords=True) if lacks_hydrogens(mol) else mol
