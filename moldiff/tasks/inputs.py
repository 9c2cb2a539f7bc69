"""Molecules that a user gives to a task: a file, a SMILES, or objects from Python; atoms keep their numbers.

Which atoms a user means, by their numbers or by a SMARTS, and the part of a molecule that they make up.
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

from moldiff.diffusion.shipped import advice
from moldiff.errors import MoldiffError
from moldiff.molecules.conformers import embed_conformer
from moldiff.molecules.convert import from_rdkit, set_positions, text_property, to_rdkit
from moldiff.molecules.formats.reader import SUFFIXES, records
from moldiff.molecules.formats.record import Record, finished, unexpected
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.formats.storage import is_standard, shown
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.molecules.vocabulary import SYMBOLS, AtomClass, Vocabulary
from moldiff.tasks.task import Input

Source = str | Path | Molecule | Chem.Mol
"""One or more molecules: a file's name, a SMILES, "-" for SMILES from standard input, or an object from Python."""

Choice = int | str | Sequence[int]
"""Numbers of atoms as in the input, from 0 (3, [0, 1, 2], "0,1,2"), or a SMARTS."""

T = TypeVar("T")

_NUMBERS = re.compile(r"\s*-?\d+([\s,]+-?\d+)*\s*")
_INDEX = "_moldiff_input_index"
_ANCHOR = "_moldiff_anchor"
_FIRST_ISOTOPE = 4
"""Of hydrogens that stand for anchors: one that no input has."""


@dataclass(frozen=True, eq=False)
class InputMolecule(Input):
    """One molecule as it was given, with all its hydrogens; without coordinates of its own, those mean nothing."""

    mol: Chem.Mol  # the same for RDKit, all hydrogens explicit, stereo marks as given, anchor marks taken away
    index: np.ndarray  # the input's number of every heavy atom [n], from 0
    size: int  # atoms of the input, hydrogens and anchor marks included
    anchors: tuple[int, ...]  # rows of heavy atoms that carried the mark `*`, once for each
    placed: bool  # whether its coordinates are its own, or a conformer's

    def label(self, row: int) -> str:
        """Number and element of a heavy atom, as in "3 (N)"."""
        return f"{self.index[row]} ({SYMBOLS[int(self.molecule.atomic_number[row])]})"


def usable(
    name: str, source: Source | Iterable[Source] | None, use: Callable[[InputMolecule], T], *, coordinates: bool = True
) -> tuple[tuple[T, ...], tuple[tuple[int, str], ...]]:
    """What `use` makes of the molecules of a source or several; number (from 1) and reason of each that is of no use.

    Where 3D `coordinates` are needed, a SMILES gets a conformer (ETKDGv3, MMFF94s), and a drawing is refused.

    Raises:
        MoldiffError: when nothing is given, a file cannot be opened, or not one molecule can be used.
    """
    found: list[T] = []
    rejected: list[tuple[int, str]] = []
    for number, record in enumerate(given_records(name, source), start=1):
        try:
            found.append(use(_prepared(record, number, coordinates)))
        except MoldiffError as error:
            rejected.append((number, str(error)))
        except MemoryError:
            raise
        except Exception as error:  # RDKit raises of all kinds, and no record may take the others with it
            rejected.append((number, unexpected(error).reason))
    if not found:
        number, reason = rejected[0]
        where = f"record {number}: " if len(rejected) > 1 else ""
        raise MoldiffError(reason if reason.startswith(f"{name}: ") else f"{name}: {where}{reason}")
    return tuple(found), tuple(rejected)


def given(
    name: str, source: Source | Iterable[Source] | None, *, coordinates: bool = True
) -> tuple[tuple[InputMolecule, ...], tuple[tuple[int, str], ...]]:
    """All molecules of a source or several, and why others cannot be used; see `usable`."""
    return usable(name, source, lambda one: one, coordinates=coordinates)


def given_records(name: str, source: Any) -> Iterator[Record]:
    """The records of a source, as they were read."""
    if source is None or (isinstance(source, str) and not source.strip()):
        raise MoldiffError(f"{name}: nothing given, expected a file ({', '.join(SUFFIXES)}) or a SMILES")
    if isinstance(source, str | Path):
        yield from _text_records(name, source)
    elif isinstance(source, Molecule):
        yield finished(1, source.name, to_rdkit(source))  # sanitised like a record of a file
    elif isinstance(source, Chem.Mol):
        yield finished(1, text_property(source, "_Name"), Chem.Mol(source))
    elif isinstance(source, Iterable):
        for entry in source:
            yield from given_records(name, entry)
    else:
        raise MoldiffError(f"{name}: got {source!r}, expected a file or a SMILES")


def names_file(text: str) -> bool:
    """Whether a text is the name of a file, be there one or not, rather than a SMILES."""
    return text.lower().removesuffix(".gz").endswith(SUFFIXES) or is_standard(text) or os.path.isfile(text)


def _text_records(name: str, source: str | Path) -> Iterator[Record]:
    text = str(source)
    if text == "-" and name == "smiles":
        lines = [line.split(maxsplit=1) for line in sys.stdin if line.strip()]
        if not lines:
            raise MoldiffError(f"{name}: got nothing on standard input, expected a SMILES a line")
        for number, words in enumerate(lines, start=1):
            yield smiles_record(number, words[0], words[1].strip() if len(words) > 1 else words[0], {})
    elif isinstance(source, Path) or names_file(text):
        label = shown(Path(text).name)
        yield from (replace(record, name=record.name or f"{label}:{record.number}") for record in records(text))
    else:
        record = smiles_record(1, text, text, {})
        if record.mol is None:
            neither = f"neither a file ({', '.join(SUFFIXES)}) nor a SMILES"
            raise MoldiffError(f"{name}: got {text[:80]!r}, which is {neither}")
        yield record


def mol_of(record: Record) -> Chem.Mol:
    """The molecule of a record; raises why it has none."""
    if record.mol is None or record.problem is not None:
        raise MoldiffError(record.problem.reason if record.problem else "no molecule")
    return record.mol


def _prepared(record: Record, number: int, coordinates: bool) -> InputMolecule:
    """The molecule of a record; raises why it cannot be used."""
    marked = Chem.RWMol(mol_of(record))
    for atom in marked.GetAtoms():
        atom.SetIntProp(_INDEX, atom.GetIdx())
    _mark_anchors(marked)
    whole, placed = _complete(marked.GetMol(), coordinates)
    bare = Chem.RWMol(whole)
    rows = {atom.GetIdx(): row for row, atom in enumerate(heavy_atoms(bare))}
    marks = [atom for atom in bare.GetAtoms() if atom.HasProp(_ANCHOR)]
    anchors = tuple(sorted(rows[atom.GetNeighbors()[0].GetIdx()] for atom in marks))
    if marks:  # bonds become single and double while all are there: a pyrrole without its N-substituent has no answer
        Chem.Kekulize(bare, clearAromaticFlags=True)
    for mark in sorted((atom.GetIdx() for atom in marks), reverse=True):
        bare.RemoveAtom(mark)
    mol = bare.GetMol()
    molecule = from_rdkit(mol)
    if isinstance(molecule, InvalidMolecule):
        raise MoldiffError(molecule.reason)
    index = np.array([atom.GetIntProp(_INDEX) for atom in heavy_atoms(mol)], dtype=np.int64)
    molecule = replace(molecule, name=record.name, properties={})
    return InputMolecule(molecule, number, mol, index, marked.GetNumAtoms(), anchors, placed)


def heavy_first(mol: Chem.Mol) -> Chem.Mol:
    """The molecule without conformers, its heavy atoms first, then the hydrogens, those of atom 0 first."""
    heavy = heavy_atoms(mol)
    hydrogens = [n.GetIdx() for atom in heavy for n in atom.GetNeighbors() if n.GetAtomicNum() == 1]
    ordered = Chem.RenumberAtoms(mol, [*(atom.GetIdx() for atom in heavy), *hydrogens])
    ordered.RemoveAllConformers()
    return ordered


def heavy_atoms(mol: Chem.Mol) -> list[Chem.Atom]:
    """All atoms but hydrogens."""
    return [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]


def _mark_anchors(mol: Chem.RWMol) -> None:
    """Turn every `*` into a hydrogen that is known to stand for an anchor."""
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() != 0:
            continue
        single = atom.GetDegree() == 1 and atom.GetBonds()[0].GetBondType() == Chem.BondType.SINGLE
        if not single or atom.GetNeighbors()[0].GetAtomicNum() <= 1:
            raise MoldiffError(f"atom {atom.GetIdx()} (*): an anchor mark * needs one single bond to a heavy atom")
        atom.SetAtomicNum(1)
        atom.SetIsotope(_FIRST_ISOTOPE + atom.GetIdx())  # unlike other hydrogens, so that stereo stays what it is
        atom.SetAtomMapNum(0)
        atom.SetNoImplicit(True)
        atom.SetIntProp(_ANCHOR, 1)


def _complete(mol: Chem.Mol, coordinates: bool) -> tuple[Chem.Mol, bool]:
    """The molecule with all hydrogens, in 3D where coordinates are needed or given, and whether it is."""
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        flat = False
        if mol.GetNumConformers() and mol.GetNumAtoms() > 1:
            pos = mol.GetConformer().GetPositions()
            if not np.isfinite(pos).all():
                raise MoldiffError("a coordinate is not finite")
            flat = not mol.GetConformer().Is3D() or np.ptp(pos, axis=0).max() == 0
        if mol.GetNumConformers() and not flat:
            # A structure with a hydrogen is taken as complete: what it lacks is an open end.
            drawn = any(atom.GetAtomicNum() == 1 and not atom.HasProp(_ANCHOR) for atom in mol.GetAtoms())
            return mol if drawn else Chem.AddHs(mol, addCoords=True), True
        if not coordinates:
            mol = Chem.AddHs(mol)
            set_positions(mol, np.arange(3.0 * mol.GetNumAtoms()).reshape(-1, 3))  # without a meaning
            return mol, False
        if flat:
            raise MoldiffError("2D coordinates, expected 3D ones, or a SMILES (which gets a conformer)")
        if len(Chem.GetMolFrags(mol)) > 1:
            raise MoldiffError("several pieces without coordinates, expected 3D ones that say how the pieces lie")
        embedded, _ = embed_conformer(mol, 0)
    if isinstance(embedded, InvalidMolecule):
        raise MoldiffError(embedded.reason)
    return embedded, True


def select(name: str, choice: Choice, source: InputMolecule) -> tuple[int, ...]:
    """Rows of the heavy atoms of `source` that are meant, in the input's order; `name` is the option's, for messages.

    A SMARTS has to match at one place alone.
    """
    if isinstance(choice, str) and not _NUMBERS.fullmatch(choice):
        return _by_smarts(name, choice, source)
    if isinstance(choice, str):
        numbers = [int(word) for word in re.split(r"[\s,]+", choice.strip())]
    else:
        numbers = [choice] if isinstance(choice, int) else list(choice)
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
            raise MoldiffError(f"{name}: got atom {source.label(rows[number])} twice")
    return tuple(sorted(rows[number] for number in numbers))


def _by_smarts(name: str, smarts: str, source: InputMolecule) -> tuple[int, ...]:
    mol = Chem.Mol(source.mol)
    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(smarts)
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
        Chem.SetAromaticity(mol)
    if pattern is None or pattern.GetNumAtoms() == 0:
        raise MoldiffError(f"{name}: got {smarts!r}, expected numbers of atoms, or a SMARTS")
    rows = {atom.GetIdx(): row for row, atom in enumerate(heavy_atoms(mol))}
    matches = mol.GetSubstructMatches(pattern, uniquify=True, maxMatches=100)
    found = list(dict.fromkeys(tuple(sorted(rows[index] for index in match if index in rows)) for match in matches))
    if not found or not found[0]:
        raise MoldiffError(f"{name}: {smarts} matches no heavy atom of {source.molecule.name}")
    if len(found) > 1:
        places = " or ".join(str([int(source.index[row]) for row in place]).replace(" ", "") for place in found[:3])
        raise MoldiffError(f"{name}: {smarts} matches {len(found)} places, expected one; say which: {places}")
    return found[0]


@dataclass(frozen=True, eq=False)
class FixedPart:
    """Heavy atoms that stay, with their hydrogens and the bonds among them."""

    molecule: Molecule  # the kept atoms (Å)
    open: np.ndarray  # bond orders that each of them [n] has to gain to reach a valence
    rows: tuple[int, ...]  # of the kept atoms in `source`
    source: InputMolecule  # what they are a part of

    @classmethod
    def of(cls, name: str, source: InputMolecule, rows: Sequence[int], vocabulary: Vocabulary) -> FixedPart:
        """The part of `source` in `rows`; refuses an atom with more bonds than any of its valences."""
        whole, chosen = source.molecule, np.array(sorted(rows), dtype=np.int64)
        place = np.full(whole.num_heavy_atoms, -1)
        place[chosen] = np.arange(len(chosen))
        inside = (place[whole.bonds[:, :2]] >= 0).all(1)
        bonds = np.concatenate([place[whole.bonds[inside, :2]], whole.bonds[inside, 2:]], axis=1)
        of_atoms = ("pos", "atomic_number", "formal_charge", "num_hydrogens", "hydrogen_offset")
        part = replace(whole, bonds=bonds, **{field: getattr(whole, field)[chosen] for field in of_atoms})
        # What an atom had before the cut is what it is to have again; a drawing that left ends open is completed.
        sums, target = whole.bond_sums().tolist(), []
        for row in chosen.tolist():
            allowed = vocabulary.allowed_valences(int(whole.atomic_number[row]), int(whole.formal_charge[row]))
            fitting = [valence for valence in allowed if valence >= sums[row] + source.anchors.count(row)]
            if allowed and not fitting:
                expected = f"expected at most {max(allowed)}"
                raise MoldiffError(f"{name}: atom {source.label(row)}: bond orders sum to {sums[row]}, {expected}")
            target.append(min(fitting, default=sums[row]))  # the smallest valence that holds all bonds of the input
        return cls(part, np.array(target) - part.bond_sums(), tuple(chosen.tolist()), source)

    @property
    def size(self) -> int:
        """Heavy atoms that stay."""
        return len(self.rows)

    def label(self, atom: int) -> str:
        """Number and element of a kept atom in the input, as in "3 (N)"."""
        return self.source.label(self.rows[atom])

    def classes(self, losing: Sequence[int] = ()) -> list[AtomClass]:
        """What each kept atom is, those of `losing` with one hydrogen fewer."""
        part = self.molecule
        atoms = np.column_stack([part.atomic_number, part.formal_charge, part.num_hydrogens]).tolist()
        return [AtomClass(z, charge, count - (atom in losing)) for atom, (z, charge, count) in enumerate(atoms)]

    def check_known(self, name: str, vocabulary: Vocabulary, losing: Sequence[int] = ()) -> None:
        """Refuse atoms that the model does not know as they are, or (`losing`) with one hydrogen fewer."""
        classes, known = self.classes(losing), vocabulary.atom_classes
        atom = next((atom for atom, wanted in enumerate(classes) if wanted not in known), None)
        if atom is None:
            return
        same = [str(one) for one in known if one.atomic_number == classes[atom].atomic_number]
        elements = sorted({SYMBOLS[one.atomic_number] for one in known} | {"H"})
        only = f"of this element only {' '.join(same)}" if same else f"only {' '.join(elements)}"
        unknown = f"the model does not know {self.classes()[atom]}, {only}{advice({one} for one in classes)}"
        raise MoldiffError(f"{name}: atom {self.label(atom)}: {unknown}")
