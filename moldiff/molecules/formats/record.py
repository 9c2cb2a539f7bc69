"""One record of a file of molecules: parsed on its own, with a reason where that fails."""

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO, TypeVar

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError, first_line
from moldiff.molecules.convert import assign_stereo, atom_order, atoms, from_rdkit, one_line, with_missing_hydrogens
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.validity import check
from moldiff.molecules.vocabulary import NUMBERS, covalent_radii

_TOO_MANY_BONDS = re.compile(r"Explicit valence for atom # (\d+) (\w+), (\d+), is greater than permitted")

MAX_ATOMS = 2_500
"""Atoms of a record. Memory grows with their square and RDKit's time with their third power: at this number both are a
few seconds and some 100 MB, whatever the graph, and so it is a limit on both."""

_SHORTEST, _LONGEST_MULTIPLE = 0.72, 0.96
"""Times the sum of covalent radii: C#C has 0.79, an aromatic bond 0.92, and a drawing's bonds are all of one length."""

_MAX_LINE, _MAX_BLOCK = 2**24, 2**27
"""Characters of a line, and bytes of the lines of a record, that are kept: no file can fill the memory, not even one
that is small until it is unpacked."""

_LINE_BYTES = 64  # that a line takes in memory besides its characters
_SHOWN = 40  # characters of the name of a field

_Result = TypeVar("_Result")
Value = str | float | int | bool  # what a data field of a written record may hold
PARQUET = (".parquet", ".pq")
_NEVER_PACKED = (*PARQUET, ".xlsx", ".pdbqt")  # which are compressed themselves
HYDROGENS_ADDED = "hydrogens added"
NAMELESS = "data field without a name, left out"


def field_values(molecule: Molecule, fields: Mapping[str, Any] | None) -> dict[str, Value]:
    """The properties of a molecule and further data in Python's own types by name; None and NaN are left out.

    Raises MoldiffError for coordinates that are not finite, which no file can hold, or a name that SDF cannot.
    """
    if not molecule.is_finite:
        raise MoldiffError(f"molecule {molecule.name!r}: got a coordinate that is not finite, so it is not written")
    found: dict[str, Value] = {}
    for name, value in {**molecule.properties, **(fields or {})}.items():
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if not name or re.search(r"[<>\r\n]", name):
            raise MoldiffError(f"field name {name!r}: expected a name without <, > and line ends")
        found[name] = value if isinstance(value, bool | int | float) else str(value)
    return found


class Fields(NamedTuple):
    """Text by name, and what is odd about them, each remark once."""

    values: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    @classmethod
    def gathered(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Fields in the order in which they are given.

        Of one that is given more than once the last value that is not empty counts, and one without a name is left
        out. Both are said of the record unless nothing is lost by them.
        """
        values: dict[str, str] = {}
        remarks: dict[str, None] = {}
        for name, text in pairs:
            if not name:
                remarks |= {NAMELESS: None} if text.strip() else {}
            elif name not in values or text.strip():
                if values.get(name, text) not in (text, ""):
                    remarks[f"data field {name[:_SHOWN]} given twice, the last counts"] = None
                values[name] = text
        return cls(values, tuple(remarks))

    def set_on(self, mol: Chem.Mol) -> None:
        """Put them on a molecule as its properties."""
        for key, value in self.values.items():
            mol.SetProp(key, value)


@dataclass(frozen=True)
class Record:
    """One record of a file; atoms in its problem count from 0, as in the file."""

    number: int  # position, from 1
    name: str  # title, "" without one
    mol: Chem.Mol | None  # with data fields as properties, sanitised unless there is a problem; None = cannot be parsed
    problem: InvalidMolecule | None = None  # why it is no sound molecule; None = nothing wrong so far
    remarks: tuple[str, ...] = ()  # what is odd about its data fields

    @classmethod
    def rejected(cls, number: int, name: str, reason: str) -> Self:
        """A record that could not be parsed."""
        return cls(number, name, None, InvalidMolecule(Status.UNREADABLE, reason))

    def molecule(self) -> Molecule | InvalidMolecule:
        """The molecule if it has 3D coordinates and passes protocol P2 (`validity.check`), else why not."""
        return guarded(_checked, self.mol) if self.problem is None else self.problem

    def completed(self) -> Self:
        """With the hydrogens that it lacks and a remark on them; itself if it lacks none or has a problem."""
        mol = self.mol if self.problem else guarded(with_missing_hydrogens, self.mol)
        if isinstance(mol, InvalidMolecule) or mol is self.mol:
            return self
        return replace(self, mol=mol, remarks=(*self.remarks, HYDROGENS_ADDED))

    def as_drawn(self) -> Molecule | InvalidMolecule:
        """The graph as it stands in the file, broken valences and loose fragments included."""
        if self.mol is None:
            return self.problem or InvalidMolecule(Status.UNREADABLE, "no molecule")
        return guarded(from_rdkit, self.mol)


def guarded(function: Callable[..., _Result], *arguments: Any) -> _Result | InvalidMolecule:
    """What a function makes of a molecule; whatever goes wrong is why there is none, and no other record's concern."""
    try:
        return function(*arguments)
    except MemoryError:
        raise
    except Exception as error:  # RDKit raises of all kinds
        return unexpected(error)


def unexpected(error: Exception) -> InvalidMolecule:
    """What is said of a record with which something went wrong that nobody had thought of."""
    return InvalidMolecule(Status.UNREADABLE, f"unexpected {type(error).__name__}: {one_line(error)[:200]}")


def total_charge(mol: Chem.Mol) -> int:
    """The charge (e) that a data field gives, else the sum of the charges on atoms."""
    for key in ("charge", "total_charge", "net_charge"):
        with suppress(KeyError, ValueError, OverflowError):
            return int(float(mol.GetProp(key)))
    return int(Chem.GetFormalCharge(mol))


def whole_number(text: str) -> int | None:
    """A number without sign, of which the first 12 digits are read; None for any other text."""
    return int(text[:12]) if text.isdecimal() else None


def is_number(text: str) -> bool:
    """Whether Python takes a text for a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def atomic_number(symbol: str) -> int | None:
    """The atomic number of a symbol or of its own digits; None for any other text."""
    number = whole_number(symbol)
    return NUMBERS.get(symbol.capitalize()) if number is None else number if 0 < number < 119 else None


def finished(number: int, name: str, mol: Chem.Mol, fields: Fields | None = None) -> Record:
    """Sanitise; where that fails keep the molecule as drawn and say why, naming the atom if there is one.

    Sanitising includes RDKit's clean-up, so that a nitro group drawn with two double bonds becomes charge-separated;
    stereo is marked as the record means it (`moldiff.molecules.convert.assign_stereo`).
    """
    fields = fields or Fields({})
    fields.set_on(mol)
    mol.SetProp("_Name", name)
    return Record(number, name, *_sanitized(mol), fields.remarks)


def _sanitized(mol: Chem.Mol) -> tuple[Chem.Mol | None, InvalidMolecule | None]:
    """What a record has for its molecule, and its problem."""
    if mol.GetNumAtoms() > MAX_ATOMS:
        return None, InvalidMolecule(Status.UNREADABLE, f"{mol.GetNumAtoms()} atoms, more than {MAX_ATOMS}")
    sanitized = Chem.Mol(mol)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(sanitized)
        assign_stereo(sanitized)
    except Chem.KekulizeException as error:
        advice = "draw single and double bonds, or the hydrogen of the ring atom that has one"
        return mol, InvalidMolecule(Status.UNSANITIZABLE, f"{one_line(error)}: {advice}")
    except Chem.MolSanitizeException as error:
        drawn = _checked(mol) if mol.GetNumConformers() else None
        if isinstance(drawn, InvalidMolecule) and drawn.status != Status.UNREADABLE:
            return mol, drawn
        if found := _TOO_MANY_BONDS.match(one_line(error)):
            atom, symbol, valence = found.groups()
            reason = f"valence {valence} is greater than permitted"
            return mol, InvalidMolecule.at(int(atom), symbol, Status.UNSANITIZABLE, reason)
        return mol, InvalidMolecule(Status.UNSANITIZABLE, one_line(error))
    except (RuntimeError, ValueError) as error:  # valences beyond what RDKit thinks of
        reason = f"RDKit cannot work with it: {first_line(error)}"
        return None, InvalidMolecule(Status.UNSANITIZABLE, reason)
    if sanitized.GetNumConformers() and _is_drawing(sanitized):
        sanitized.GetConformer().Set3D(False)
    return sanitized, None


def _is_drawing(mol: Chem.Mol) -> bool:
    """Whether coordinates that may say they are 3D are those of a drawing: flat, though the molecule cannot be.

    A molecule with all its hydrogens, which is one with a C-H, is flat only where no atom has four neighbours. One that
    lacks some may have its other atoms in a plane; then it is a drawing if an atom with four neighbours is within its
    chain or ring, or if its bonds are all as long as single ones.
    """
    pos = mol.GetConformer().GetPositions()
    if mol.GetNumAtoms() < 3 or np.ptp(pos[:, 2]) > 0:
        return False
    with_hydrogens = [other for atom in atoms(mol) if atom.GetAtomicNum() == 1 for other in atom.GetNeighbors()]
    complete = any(atom.GetAtomicNum() == 6 for atom in with_hydrogens)
    closed = {atom.GetIdx() for atom in (atoms(mol) if complete else with_hydrogens)}
    open_atoms = [atom for atom in atoms(mol) if atom.GetIdx() not in closed and atom.GetTotalNumHs()]
    tetrahedral = [atom for atom in open_atoms if atom.GetTotalDegree() >= 4]
    if any(atom.GetDegree() >= 4 for atom in atoms(mol)) or any(atom.GetDegree() >= 2 for atom in tetrahedral):
        return True
    if not open_atoms or not mol.GetNumBonds():
        return False
    ends = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()])
    radii = covalent_radii(np.array([atom.GetAtomicNum() for atom in atoms(mol)]))
    share = np.linalg.norm(pos[ends[:, 0]] - pos[ends[:, 1]], axis=1) / radii[ends].sum(axis=1)
    multiple = np.array([bond.GetBondType() != Chem.BondType.SINGLE for bond in mol.GetBonds()])
    return bool(((share < _SHORTEST) | (multiple & (share > _LONGEST_MULTIPLE))).any())


def _checked(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if len(elements) > 1 and mol.GetNumBonds() == 0 and 1 in elements:
        return InvalidMolecule(Status.UNREADABLE, "no bonds, only elements and coordinates")
    molecule = from_rdkit(mol)
    problem = molecule if isinstance(molecule, InvalidMolecule) else check(molecule)
    if problem is None or problem is molecule:
        return molecule
    if problem.status == Status.RADICAL and 1 not in elements:
        return InvalidMolecule(Status.RADICAL, "hydrogens are missing, expected explicit ones with coordinates")
    return problem.renumbered(atom_order(mol))


@dataclass(frozen=True)
class Columns:
    """Headers of the columns of a table that hold SMILES and names; None = found by name."""

    smiles: str | None = None
    name: str | None = None


DEFAULT_COLUMNS = Columns()


class Part(NamedTuple):
    """One record of a file, not parsed yet; cheap to make and to send to another process.

    `build` makes the record of its `number` in the file, from 1, and `arguments`, its text; `title` is its name as far
    as that shows without parsing.
    """

    number: int
    build: Callable[..., Record]
    arguments: tuple[Any, ...]
    title: str = ""

    @classmethod
    def rejected(cls, number: int, title: str, reason: str) -> Self:
        """What stands for a record of which nothing is parsed."""
        return cls(number, Record.rejected, (title, reason), title)

    def parse(self) -> Record:
        """The record itself; whatever goes wrong is its problem."""
        found = guarded(self.build, self.number, *self.arguments)
        return found if isinstance(found, Record) else Record(self.number, self.title, None, found)


def file_suffix(path: Path, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """The suffix of `path` without ".gz", in lower case. Raises MoldiffError when it is not among `known`."""
    name = path.name.lower()
    unpacked = name.removesuffix(".gz")
    suffix = "." + unpacked.rpartition(".")[2] if "." in unpacked else ""
    if suffix not in known or (suffix in _NEVER_PACKED and unpacked != name):
        raise MoldiffError(f"{path}: unknown type of file, expected one of {', '.join(known)} or one of these with .gz")
    return suffix


def field_text(value: Value) -> str:
    """A value as files hold it that know text alone: on one line, numbers with eight digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.8g}" if isinstance(value, float) else " ".join(str(value).split())


class Lines:
    """Lines without their ends, of `longest` characters; `cut` is set when a compressed file breaks off."""

    def __init__(self, file: TextIO, longest: int | None = None) -> None:
        self._file, self._longest = file, longest or _MAX_LINE
        self.cut = False

    def __iter__(self) -> Iterator[str]:
        started = False
        try:
            while line := self._file.readline(self._longest):
                started = True
                yield line.rstrip("\r\n")
                while len(line) == self._longest and not line.endswith("\n"):
                    line = self._file.readline(self._longest)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if isinstance(error, gzip.BadGzipFile) and not started:
                raise  # no gzip file at all, rather than a wrong checksum at its end
            self.cut = True


class Block:
    """The lines of one record, as many as may be kept; `full` says that some are left out."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.full = False
        self._room = _MAX_BLOCK

    def add(self, line: str) -> None:
        self._room -= len(line) + _LINE_BYTES
        self.full = self.full or self._room < 0
        if not self.full:
            self.lines.append(line)

    def line(self, index: int) -> str:
        """A line without the spaces around it; "" behind the last one."""
        return self.lines[index].strip() if index < len(self.lines) else ""
