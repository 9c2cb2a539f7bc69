"""Reading a written file with foreign eyes: RDKit and numpy alone say whether it holds what it says.

`findings(path)` lists all that is wrong with an SDF, SMILES, CSV or XYZ file that a command has written, by kind:

graph     RDKit cannot read it, an unpaired electron, a missing hydrogen, several pieces
charge    the total charge is another than the one expected
stereo    marks or the SMILES field differ from the coordinates, a lost mark, a word other than @ and @@
field     a data field or the title differs from the molecule
x-h       a bond to hydrogen of a length that none has
bond      any other bond of a length that none has, a double bond twisted by more than 60 degrees
clash     atoms that touch without a bond
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from scipy.spatial.distance import pdist, squareform

KINDS = ("graph", "charge", "stereo", "field", "x-h", "bond", "clash")

TO_HYDROGEN = {5: (1.0, 1.4), 14: (1.3, 1.65), 15: (1.25, 1.6), 16: (1.2, 1.5), 34: (1.3, 1.65)}
"""Shortest and longest bond to hydrogen (Å) of B, Si, P, S and Se."""
TO_HYDROGEN_ELSE = (0.85, 1.35)
"""The same of C, N, O and all others."""

_BOND_RATIO = (0.75, 1.3)  # of the sum of covalent radii
_TOUCHING = 1.1  # times the sum of covalent radii, without a bond; 1.23 in bicyclo[1.1.1]pentane
_TOUCHING_HYDROGEN = 1.3  # Å, two atoms of which one is a hydrogen
_EXOTIC = re.compile(r"@[A-Z]{2}-?\d")
_EITHER_V2000, _EITHER_V3000 = "  3", " CFG=2"


class Finding(NamedTuple):
    """Something wrong with a record, counted from 1."""

    record: int
    kind: str
    detail: str


Found = Iterator[tuple[str, str]]
"""Kinds and details."""


def findings(path: str | Path, charge: int | None = 0) -> list[Finding]:
    """All that is wrong with a file (.sdf, .smi, .csv, .xyz, each also with .gz) whose molecules have this charge (e).

    A record whose own `status` is not ok is only asked for what its coordinates are.
    """
    path = Path(path)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    with rdBase.BlockLogs():
        records = _READERS[Path(path.name.removesuffix(".gz")).suffix](text, charge)
        return [Finding(number, *found) for number, record in enumerate(records, 1) for found in record]


def counts(found: list[Finding]) -> dict[str, int]:
    """Records with findings of each kind."""
    return {kind: len({one.record for one in found if one.kind == kind}) for kind in KINDS}


def num_records(path: str | Path) -> int:
    """Records of a file that is not compressed, as its format counts them."""
    text = Path(path).read_text()
    suffix = Path(path).suffix
    if suffix == ".sdf":
        return text.count("$$$$\n")
    if suffix == ".xyz":
        return len(list(_frames(text)))
    return len(text.splitlines()) - (suffix == ".csv")


def _sdf(text: str, charge: int | None) -> Iterator[Found]:
    *blocks, end = text.split("$$$$\n")
    if end:
        yield iter([("graph", "no $$$$ at the end")])
    for block in blocks:
        yield _sdf_record(block, charge)


def _sdf_record(block: str, charge: int | None) -> Found:
    fields = dict(re.findall(r"^> +<(.+)>\n(.*)\n\n", block, re.MULTILINE))
    mol = Chem.MolFromMolBlock(block, removeHs=False)
    if fields.get("status", "ok") != "ok":
        return
    if mol is None:
        yield "graph", "RDKit cannot read it"
        return
    yield from _graph(mol, charge)
    yield from _marks(mol)
    yield from _lost_marks(mol, block)
    yield from _fields(mol, block.partition("\n")[0], fields)
    yield from _lengths(mol)
    yield from _clashes(mol)


def _graph(mol: Chem.Mol, charge: int | None) -> Found:
    for atom in mol.GetAtoms():
        name = f"atom {atom.GetIdx()} ({atom.GetSymbol()})"
        if atom.GetNumRadicalElectrons():
            yield "graph", f"{name} has an unpaired electron"
        if mol.GetNumConformers() and atom.GetTotalNumHs():
            yield "graph", f"{name} lacks {atom.GetTotalNumHs()} hydrogens"
    pieces = len(Chem.GetMolFrags(mol))
    if pieces > 1:
        yield "graph", f"{pieces} pieces"
    total = Chem.GetFormalCharge(mol)
    if charge is not None and total != charge:
        yield "charge", f"{total:+d}, expected {charge:+d}"


def _marks(mol: Chem.Mol) -> Found:
    """Double bonds and centres whose marks, as RDKit read them, are not what the coordinates [a, 3] say."""
    pos = mol.GetConformer().GetPositions()
    for bond in mol.GetBonds():
        if bond.GetStereo() in (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOE):
            first, last = bond.GetStereoAtoms()
            angle = dihedral(pos[[first, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), last]])
            if 60 < angle < 120:
                yield "bond", f"bond {bond.GetIdx()} is double and twisted: {angle:.0f} degrees"
            elif (angle < 90) != (bond.GetStereo() == Chem.BondStereo.STEREOZ):
                yield "stereo", f"bond {bond.GetIdx()} is marked {bond.GetStereo().name}, its dihedral is {angle:.0f}"
    for atom in mol.GetAtoms():
        if atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED and atom.GetChiralTag() != hand_of(atom, pos):
            yield "stereo", f"atom {atom.GetIdx()} ({atom.GetSymbol()}) is marked {atom.GetChiralTag().name}"


def dihedral(pos: np.ndarray) -> float:
    """The dihedral of four atoms in a chain [4, 3], 0 to 180 degrees."""
    axis = pos[2] - pos[1]
    first, last = (np.cross(axis, arm) for arm in (pos[0] - pos[1], pos[3] - pos[2]))
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, last)), first @ last)))


def hand_of(atom: Chem.Atom, pos: np.ndarray) -> Chem.ChiralType:
    """The tag of a centre: seen from its first neighbour, or its lone pair, the others are clockwise or not."""
    arms = [pos[bond.GetOtherAtomIdx(atom.GetIdx())] - pos[atom.GetIdx()] for bond in atom.GetBonds()]
    directions = np.array([arm / np.linalg.norm(arm) for arm in arms])
    # Of the tetrahedron of all four, for three arms of a small ring can lie in one plane.
    volume = np.linalg.det(directions[1:] - directions[0]) if len(arms) == 4 else -np.linalg.det(directions)
    clockwise = Chem.ChiralType.CHI_TETRAHEDRAL_CW
    return clockwise if volume > 0 else Chem.ChiralType.CHI_TETRAHEDRAL_CCW


def _lost_marks(mol: Chem.Mol, block: str) -> Found:
    """A double bond flagged as "either" although its coordinates have a side."""
    lines = block.splitlines(keepends=True)
    if "V3000" in lines[3]:
        plain = block.replace(_EITHER_V3000, "")
    else:
        num_atoms, num_bonds = int(lines[3][:3]), int(lines[3][3:6])
        bonds = slice(4 + num_atoms, 4 + num_atoms + num_bonds)
        lines[bonds] = [line[:9] + line[9:12].replace(_EITHER_V2000, "  0") + line[12:] for line in lines[bonds]]
        plain = "".join(lines)
    if plain == block:
        return
    meant, read = isomer(Chem.MolFromMolBlock(plain, removeHs=False)), isomer(mol)
    if meant != read:
        yield "stereo", f"flagged as either: a reader gets {read}, the coordinates are those of {meant}"


def isomer(mol: Chem.Mol) -> str:
    """Isomeric SMILES, read once more, for RDKit writes some molecules in two ways."""
    return str(Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol))))


def _fields(mol: Chem.Mol, title: str, fields: Mapping[str, str]) -> Found:
    text = fields.get("SMILES")
    if text is not None:
        said, found = Chem.MolFromSmiles(text), isomer(mol)
        if said is None:
            yield "field", f"SMILES {text} cannot be read"
        elif (same := _plain(said)) != _plain(mol):
            yield "field", f"SMILES {same}, the bonds are those of {_plain(mol)}"
        elif Chem.CanonSmiles(text) != found:
            yield "stereo", f"SMILES {text}, the coordinates are those of {found}"
        yield from _words(text)
    size = fields.get("size")
    if size is not None and int(size) != mol.GetNumHeavyAtoms():
        yield "field", f"size {size}, {mol.GetNumHeavyAtoms()} heavy atoms"
    drawn = [fields.get(key) for key in ("model", "seed", "index")]
    if None not in drawn and title != "-".join(map(str, drawn)):
        yield "field", f"title {title!r}, drawn as {drawn}"


def _plain(mol: Chem.Mol) -> str:
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False))


def _words(smiles: str) -> Found:
    if _EXOTIC.search(smiles):
        yield "stereo", f"{smiles} has a word of stereo other than @ and @@"


def _lengths(mol: Chem.Mol) -> Found:
    pos = mol.GetConformer().GetPositions()
    for bond in mol.GetBonds():
        ends = sorted((bond.GetBeginAtom(), bond.GetEndAtom()), key=lambda atom: atom.GetAtomicNum())
        one, other = (atom.GetAtomicNum() for atom in ends)
        length = float(np.linalg.norm(pos[ends[0].GetIdx()] - pos[ends[1].GetIdx()]))
        total = _radius(one) + _radius(other)
        low, high = (ratio * total for ratio in _BOND_RATIO)
        if one == 1:
            low, high = TO_HYDROGEN.get(other, TO_HYDROGEN_ELSE)
        if not low <= length <= high:
            yield "x-h" if one == 1 else "bond", f"{ends[1].GetSymbol()}-{ends[0].GetSymbol()} of {length:.3f} Å"


def _radius(number: int) -> float:
    return float(Chem.GetPeriodicTable().GetRcovalent(number))


def _clashes(mol: Chem.Mol) -> Found:
    """Atoms without a bond that are as near as if they had one."""
    number = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    radius = np.array([_radius(int(one)) for one in number])
    limit = _TOUCHING * (radius[:, None] + radius)
    limit[(number[:, None] == 1) | (number == 1)] = _TOUCHING_HYDROGEN
    distance = squareform(pdist(mol.GetConformer().GetPositions()))
    near = np.triu(distance < limit, 1) & ~Chem.GetAdjacencyMatrix(mol).astype(bool)
    for i, j in np.argwhere(near).tolist():
        yield "clash", f"atoms {i} and {j} are {distance[i, j]:.2f} Å apart"


def _smiles_lines(text: str, charge: int | None) -> Iterator[Found]:
    for line in text.splitlines():
        yield _smiles(line.split("\t")[0], charge)


def _smiles(text: str, charge: int | None) -> Found:
    mol = Chem.MolFromSmiles(text)
    if mol is None or not text:
        yield "graph", f"RDKit cannot read {text!r}"
        return
    yield from _graph(mol, charge)
    yield from _words(text)
    if Chem.MolToSmiles(mol) != text:
        yield "field", f"{text} is no canonical SMILES, expected {Chem.MolToSmiles(mol)}"


def _table(text: str, charge: int | None) -> Iterator[Found]:
    for row in csv.DictReader(text.splitlines()):
        yield _row(row, charge)


def _row(row: Mapping[str, str], charge: int | None) -> Found:
    if row.get("status", "ok") != "ok":
        return
    yield from _smiles(row["smiles"], charge)
    if row.get("SMILES", row["smiles"]) != row["smiles"]:
        yield "field", f"smiles {row['smiles']}, SMILES {row['SMILES']}"
    mol = Chem.MolFromSmiles(row["smiles"])
    if mol is not None:
        yield from _fields(mol, row["name"], {key: cell for key, cell in row.items() if key != "SMILES" and cell})


def _frames(text: str) -> Iterator[tuple[list[str], np.ndarray]]:
    lines = iter(text.splitlines())
    for count in lines:
        next(lines)
        words = [next(lines).split() for _ in range(int(count))]
        yield [one[0] for one in words], np.array([one[1:4] for one in words], dtype=float)


def _xyz(text: str, charge: int | None) -> Iterator[Found]:
    for symbols, pos in _frames(text):
        yield _frame(symbols, pos)


def _frame(symbols: list[str], pos: np.ndarray) -> Found:
    """Without bonds: every hydrogen has one heavy atom at the distance of a bond, and no atoms lie on one another."""
    table = Chem.GetPeriodicTable()
    number = np.array([table.GetAtomicNumber(symbol) for symbol in symbols])
    distance = squareform(pdist(pos)) + np.diag(np.full(len(pos), np.inf))
    for hydrogen in np.flatnonzero(number == 1):
        heavy = np.flatnonzero(number != 1)
        nearest = heavy[distance[hydrogen, heavy].argmin()]
        low, high = TO_HYDROGEN.get(int(number[nearest]), TO_HYDROGEN_ELSE)
        if not low <= distance[hydrogen, nearest] <= high:
            yield "x-h", f"atom {hydrogen} (H) is {distance[hydrogen, nearest]:.3f} Å from the nearest heavy atom"
    bonded = _BOND_RATIO[0] * np.array([[_radius(int(a)) + _radius(int(b)) for b in number] for a in number])
    for i, j in np.argwhere(np.triu(distance < bonded)).tolist():
        if 1 not in (number[i], number[j]):
            yield "clash", f"atoms {i} and {j} are {distance[i, j]:.2f} Å apart"


_READERS: dict[str, Callable[[str, int | None], Iterator[Found]]] = {
    ".sdf": _sdf,
    ".smi": _smiles_lines,
    ".csv": _table,
    ".xyz": _xyz,
}
