"""Molecules that a user gives to a task: a file, a SMILES, or objects from Python; atoms keep their numbers.

Which atoms a user means: by their numbers, or by a SMARTS.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.conformers import embed_conformer
from moldiff.molecules.convert import from_rdkit, to_rdkit
from moldiff.molecules.elements import SYMBOLS
from moldiff.molecules.formats.reader import SUFFIXES, records
from moldiff.molecules.formats.record import Record, finished, total_charge, unexpected
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.formats.storage import shown
from moldiff.molecules.molecule import InvalidMolecule, Molecule

Source = str | Path | Molecule | Chem.Mol
"""One or more molecules: a file's name, a SMILES, "-" for SMILES from standard input, or an object from Python."""

T = TypeVar("T")

Atoms = tuple[np.ndarray, np.ndarray, int, str]
"""Atomic numbers [a], coordinates [a, 3] (Å), total charge (e) and name of a molecule."""

_INDEX = "_moldiff_input_index"
_ANCHOR = "_moldiff_anchor"
_FIRST_ISOTOPE = 4
"""Of hydrogens that stand for anchors: one that no input has."""


@dataclass(frozen=True, eq=False)
class InputMolecule:
    """One molecule as it was given, with all its hydrogens.

    Attributes:
        molecule: heavy atoms in the input's order (Å); without coordinates of its own they mean nothing.
        mol: the same for RDKit, all hydrogens explicit, stereo marks as given, anchor marks taken away.
        index: the input's number of every heavy atom [n], from 0.
        size: atoms of the input, hydrogens and anchor marks included.
        anchors: rows of heavy atoms that carried the mark `*`, once for each.
        placed: whether the coordinates are 3D: the input's own, or ETKDG's for a SMILES.
        name: its title, SMILES or file.
        number: of its record, from 1.
    """

    molecule: Molecule
    mol: Chem.Mol
    index: np.ndarray
    size: int
    anchors: tuple[int, ...]
    placed: bool
    name: str
    number: int

    def label(self, row: int) -> str:
        """Number and element of a heavy atom, as in "3 (N)"."""
        return f"{self.index[row]} ({self.symbol(row)})"

    def symbol(self, row: int) -> str:
        """The element of a heavy atom."""
        return SYMBOLS[int(self.molecule.atomic_number[row])]


def given(
    name: str, source: Source | Iterable[Source] | None, *, coordinates: bool = True
) -> tuple[list[InputMolecule], list[tuple[int, str]]]:
    """All molecules of a source, and the number (from 1) and reason of each that cannot be used.

    Args:
        name: of the option, for messages.
        source: see `Source`; also several of them.
        coordinates: whether 3D is needed. A SMILES then gets a conformer (ETKDGv3, MMFF94s), a drawing is refused.

    Raises:
        MoldiffError: when nothing is given, a file cannot be opened, or not one molecule can be used.
    """
    found: list[InputMolecule] = []
    rejected: list[tuple[int, str]] = []
    for number, record in enumerate(_records(name, source), start=1):
        one = _prepared_or_why(record, number, coordinates)
        if isinstance(one, InputMolecule):
            found.append(one)
        else:
            rejected.append((number, one))
    if not found:
        reason = f"record {rejected[0][0]}: {rejected[0][1]}" if len(rejected) > 1 else rejected[0][1]
        raise MoldiffError(f"{name}: {reason}")
    return found, rejected


def usable(
    name: str, source: Source | Iterable[Source] | None, use: Callable[[InputMolecule], T], *, coordinates: bool = True
) -> tuple[tuple[T, ...], tuple[tuple[int, str], ...]]:
    """What `use` makes of the molecules of a source, and number and reason of each that cannot be used; see `given`.

    Raises:
        MoldiffError: when not one molecule can be used; `use` raises it for one.
    """
    found, rejected = given(name, source, coordinates=coordinates)
    used = []
    for one in found:
        try:
            used.append(use(one))
        except MoldiffError as error:
            rejected.append((one.number, str(error)))
    if not used:
        raise MoldiffError(rejected[0][1])
    return tuple(used), tuple(rejected)


def _records(name: str, source: Any) -> Iterator[Record]:
    if source is None or (isinstance(source, str) and not source.strip()):
        raise MoldiffError(f"{name}: nothing given, expected a file ({', '.join(SUFFIXES)}) or a SMILES")
    if isinstance(source, str | Path):
        yield from _text_records(name, source)
    elif isinstance(source, Molecule):
        yield finished(1, source.name, to_rdkit(source))  # sanitised like a record of a file
    elif isinstance(source, Chem.Mol):
        yield finished(1, source.GetProp("_Name") if source.HasProp("_Name") else "", Chem.Mol(source))
    elif isinstance(source, Iterable):
        for entry in source:
            yield from _records(name, entry)
    else:
        raise MoldiffError(f"{name}: got {source!r}, expected a file or a SMILES")


def names_file(text: str) -> bool:
    """Whether a text is the name of a file, be there one or not, rather than a SMILES."""
    return text.lower().removesuffix(".gz").endswith(SUFFIXES) or os.path.isfile(text)


def _text_records(name: str, source: str | Path) -> Iterator[Record]:
    text = str(source)
    if text == "-":
        lines = [line.split(maxsplit=1) for line in sys.stdin if line.strip()]
        if not lines:
            raise MoldiffError(f"{name}: got nothing on standard input, expected a SMILES a line")
        for number, words in enumerate(lines, start=1):
            yield smiles_record(number, words[0], words[1].strip() if len(words) > 1 else words[0], {})
    elif isinstance(source, Path) or names_file(text):
        read = list(records(text))
        if not read:
            raise MoldiffError(f"{name}: {text}: no record found, expected at least one molecule")
        label = shown(Path(text).name)
        yield from (replace(record, name=record.name or f"{label}:{record.number}") for record in read)
    else:
        record = smiles_record(1, text, text, {})
        if record.mol is None:
            raise MoldiffError(
                f"{name}: got {text[:80]!r}, which is neither a file ({', '.join(SUFFIXES)}) nor a SMILES"
            )
        yield record


def _prepared_or_why(record: Record, number: int, coordinates: bool) -> InputMolecule | str:
    try:
        return _prepared(record, number, coordinates)
    except (MemoryError, MoldiffError):
        raise
    except Exception as error:  # RDKit raises of all kinds, and no record may take the others with it
        return unexpected(error).reason


def _prepared(record: Record, number: int, coordinates: bool) -> InputMolecule | str:
    """The molecule of a record, or why it cannot be used."""
    if record.mol is None or record.problem is not None:
        return record.problem.reason if record.problem is not None else "no molecule"
    mol = Chem.RWMol(record.mol)
    for atom in mol.GetAtoms():
        atom.SetIntProp(_INDEX, atom.GetIdx())
    size = mol.GetNumAtoms()
    problem = _mark_anchors(mol)
    if problem is not None:
        return problem
    complete = _complete(mol.GetMol(), coordinates)
    if isinstance(complete, str):
        return complete
    mol, placed = complete
    molecule, bare, anchors = _without_anchors(mol)
    if isinstance(molecule, InvalidMolecule):
        return molecule.reason
    heavy = [atom for atom in bare.GetAtoms() if atom.GetAtomicNum() != 1]
    index = np.array([atom.GetIntProp(_INDEX) for atom in heavy], dtype=np.int64)
    molecule = replace(molecule, name=record.name, properties={})
    return InputMolecule(molecule, bare, index, size, anchors, placed, record.name, number)


def _mark_anchors(mol: Chem.RWMol) -> str | None:
    """Turn every `*` into a hydrogen that is known to stand for an anchor; why one cannot be, else None."""
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() != 0:
            continue
        single = atom.GetDegree() == 1 and atom.GetBonds()[0].GetBondType() == Chem.BondType.SINGLE
        if not single or atom.GetNeighbors()[0].GetAtomicNum() <= 1:
            return f"atom {atom.GetIdx()} (*): an anchor mark * needs one single bond to a heavy atom"
        atom.SetAtomicNum(1)
        atom.SetIsotope(_FIRST_ISOTOPE + atom.GetIdx())  # unlike other hydrogens, so that stereo stays what it is
        atom.SetAtomMapNum(0)
        atom.SetNoImplicit(True)
        atom.SetIntProp(_ANCHOR, 1)
    return None


def _complete(mol: Chem.Mol, coordinates: bool) -> tuple[Chem.Mol, bool] | str:
    """The molecule with all hydrogens, and whether its coordinates are 3D; or why that cannot be had."""
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        if mol.GetNumConformers() and mol.GetNumAtoms() > 1:
            pos = mol.GetConformer().GetPositions()
            if not np.isfinite(pos).all():
                return "a coordinate is not finite"
            flat = not mol.GetConformer().Is3D() or np.ptp(pos, axis=0).max() == 0
        else:
            flat = False
        if mol.GetNumConformers() and not flat:
            # A structure with a hydrogen is taken as complete: what it lacks is an open end.
            drawn = any(atom.GetAtomicNum() == 1 and not atom.HasProp(_ANCHOR) for atom in mol.GetAtoms())
            return (mol if drawn else Chem.AddHs(mol, addCoords=True)), True
        if flat and coordinates:
            return "2D coordinates, expected 3D ones, or a SMILES (which gets a conformer)"
        if not coordinates:
            return _with_any_coordinates(Chem.AddHs(mol)), False
        if len(Chem.GetMolFrags(mol)) > 1:
            return "several pieces without coordinates, expected 3D ones that say how the pieces lie"
        embedded, _ = embed_conformer(mol, 0)
    return (embedded, True) if isinstance(embedded, Chem.Mol) else embedded.reason


def _with_any_coordinates(mol: Chem.Mol) -> Chem.Mol:
    """Coordinates that mean nothing, for what wants to see some."""
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.arange(3.0 * mol.GetNumAtoms()).reshape(-1, 3))
    conformer.Set3D(True)
    mol.AddConformer(conformer, assignId=True)
    return mol


def _without_anchors(mol: Chem.Mol) -> tuple[Molecule | InvalidMolecule, Chem.Mol, tuple[int, ...]]:
    """Molecule and RDKit molecule without the hydrogens that stand for anchors, and the rows that carried them."""
    rows: dict[int, int] = {}
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() != 1:
            rows[atom.GetIdx()] = len(rows)
    marks = [atom for atom in mol.GetAtoms() if atom.HasProp(_ANCHOR)]
    anchors = tuple(sorted(rows[atom.GetNeighbors()[0].GetIdx()] for atom in marks))
    # Bonds become single and double while all atoms are there: a pyrrole without its N-substituent has no answer.
    bare = Chem.RWMol(mol)
    if marks:
        Chem.Kekulize(bare, clearAromaticFlags=True)
    for index in sorted((atom.GetIdx() for atom in marks), reverse=True):
        bare.RemoveAtom(index)
    done = bare.GetMol()
    return from_rdkit(done), done, anchors


def atom_records(name: str, source: Source | Iterable[Source] | None) -> Iterator[Atoms | str]:
    """Elements and coordinates of every record; or why it has none.

    Bonds are left out of account; the total charge is that of a field, else the sum of the charges on atoms.
    """
    for record in _records(name, source):
        mol = record.mol
        if mol is None or not mol.GetNumConformers():
            yield record.problem.reason if record.problem is not None else "no coordinates"
            continue
        element = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
        pos = mol.GetConformer().GetPositions()
        if (element == 0).any():
            yield f"atom {int((element == 0).argmax())} (*): a dummy atom, expected an element"
        elif not np.isfinite(pos).all():
            yield "a coordinate is not finite"
        elif len(pos) > 1 and not (pos - pos[0]).any():
            yield "no 3D coordinates, all atoms are at one place"
        else:
            yield element, pos, total_charge(mol), record.name


Choice = int | str | Sequence[int]
"""Numbers of atoms as in the input, from 0 (3, [0, 1, 2], "0,1,2"), or a SMARTS."""

_NUMBERS = re.compile(r"\s*-?\d+([\s,]+-?\d+)*\s*")


def select(name: str, choice: Choice, source: InputMolecule) -> tuple[int, ...]:
    """Rows of the heavy atoms that are meant, in the input's order.

    Args:
        name: of the option, for messages.
        choice: see `Choice`.
        source: the molecule they belong to.

    Raises:
        MoldiffError: for a number that is no heavy atom or comes twice, a SMARTS that cannot be read, matches nowhere
            or at several places, or no atom at all.
    """
    if isinstance(choice, str) and not _NUMBERS.fullmatch(choice):
        return _by_smarts(name, choice, source)
    if isinstance(choice, str):
        numbers: Sequence[int] = [int(word) for word in re.split(r"[\s,]+", choice.strip())]
    else:
        numbers = [choice] if isinstance(choice, int) else list(choice)
    return _by_number(name, numbers, source)


def _by_number(name: str, numbers: Sequence[int], source: InputMolecule) -> tuple[int, ...]:
    if not numbers:
        raise MoldiffError(f"{name}: got no atom, expected at least one")
    rows = {int(number): row for row, number in enumerate(source.index)}
    for place, number in enumerate(numbers):
        if not isinstance(number, int) or isinstance(number, bool):
            raise MoldiffError(f"{name}: got {number!r}, expected numbers of atoms, or a SMARTS as text")
        if not 0 <= number < source.size:
            raise MoldiffError(f"{name}: got atom {number}, expected 0 to {source.size - 1}; atoms count from 0")
        if number not in rows:
            raise MoldiffError(f"{name}: atom {number} is a hydrogen or *, expected the heavy atom it is bonded to")
        if number in numbers[:place]:
            raise MoldiffError(f"{name}: got atom {number} ({source.symbol(rows[number])}) twice")
    return tuple(sorted(rows[number] for number in numbers))


def _by_smarts(name: str, smarts: str, source: InputMolecule) -> tuple[int, ...]:
    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(smarts)
    if pattern is None or pattern.GetNumAtoms() == 0:
        raise MoldiffError(f"{name}: got {smarts!r}, expected numbers of atoms, or a SMARTS")
    mol = Chem.Mol(source.mol)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
        Chem.SetAromaticity(mol)
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
    rows = {index: row for row, index in enumerate(heavy)}
    matches = mol.GetSubstructMatches(pattern, uniquify=True, maxMatches=100)
    found = list(dict.fromkeys(tuple(sorted(rows[index] for index in match if index in rows)) for match in matches))
    if not found or not found[0]:
        raise MoldiffError(f"{name}: {smarts} matches no heavy atom of {source.name}")
    if len(found) > 1:
        places = " or ".join(str([int(source.index[row]) for row in place]).replace(" ", "") for place in found[:3])
        raise MoldiffError(f"{name}: {smarts} matches {len(found)} places, expected one; say which: {places}")
    return found[0]
