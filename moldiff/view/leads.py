"""What molecules were made from: the lead of each record, the atoms it has in common with it, and its pocket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdFMCS
from rdkit.Geometry import Point2D

from moldiff.errors import MoldiffError
from moldiff.evaluation.molecule_set import is_placed
from moldiff.molecules.convert import text_property
from moldiff.molecules.formats.reader import records
from moldiff.molecules.formats.record import Record
from moldiff.molecules.receptor import read_receptor
from moldiff.sampling.notebook import flat
from moldiff.tasks.inputs import Source, given_records
from moldiff.tasks.task import file_digest
from moldiff.view.depict import MAX_HEAVY

_LIMIT, _LIMIT_OF_ALL = 1, 60  # s that looking for a common part, and for those of all records, may take
_MIN_COMMON = 5  # atoms that are worth a colour where nothing was kept
_GIVEN = ("core", "of", "smiles", "input", "reference")  # options of tasks, and of `like`, that say what was given
_LONGEST = 1000  # letters of a SMILES that a record says it was made from
_MOST_COMMON = 80  # heavy atoms of molecules whose common part is looked for
_AROUND = 5.0  # Å from a molecule to the residues that are shown around it


@dataclass(frozen=True, eq=False)
class Lead:
    """A molecule in 2D that others are laid out after.

    Attributes:
        mol: without hydrogens, with 2D coordinates.
        number: what its heavy atoms are called in `kept_from`.
        known: it is what was given; otherwise a molecule of the file stands in for it.
        given: what was given, where others are laid out after another molecule, for it is in pieces.
    """

    mol: Chem.Mol
    number: Mapping[int, int]
    name: str = ""
    known: bool = True
    given: Chem.Mol | None = None

    @property
    def text(self) -> str:
        """A SMILES that tells leads apart."""
        return str(Chem.MolToSmiles(self.given or self.mol))


@dataclass
class Leads:
    """The leads of the records of a file, each looked up once; `chosen` is the lead of all."""

    folder: Path
    chosen: Lead | None = None
    found: dict[tuple[str, ...], Lead] = field(default_factory=dict)
    spent: float = 0.0  # s on common parts

    @classmethod
    def of(cls, folder: Path, lead: Source | None) -> Leads:
        """With a file's first molecule or a SMILES as the lead of all records; None = what they were drawn from.

        Raises:
            MoldiffError: when the lead cannot be read.
        """
        if lead is None:
            return cls(folder)
        record = next(given_records("lead", lead), None)
        if record is None or record.mol is None:
            reason = record.problem.reason if record and record.problem else "no molecule there"
            raise MoldiffError(f"lead: {reason}")
        return cls(folder, _lead(record.mol, record.name or "lead"))

    def of_record(self, record: Record) -> tuple[Lead | None, dict[int, Point2D]]:
        """The lead of a record, and the places of the atoms that both have by their number in the record."""
        mol = record.mol
        if mol is None or record.problem is not None:
            return None, {}
        pairs = zip(text_property(mol, "kept").split(), text_property(mol, "kept_from").split(), strict=False)
        numbers = {int(atom): int(number) for atom, number in pairs if (atom + number).isdecimal()}
        kept = {atom: number for atom, number in numbers.items() if atom < mol.GetNumAtoms()}
        lead = self.chosen or self._given(mol, kept)
        if lead is None:
            return None, {}
        if self.chosen is None and kept:
            rows = {number: row for row, number in lead.number.items()}
            shared: Sequence[tuple[int, int]] = [(rows[n], atom) for atom, n in kept.items() if n in rows]
        else:
            shared = self._common(lead.mol, mol)
        pos = lead.mol.GetConformer()
        return lead, {atom: Point2D(pos.GetAtomPosition(row)) for row, atom in shared}

    def _given(self, mol: Chem.Mol, kept: Mapping[int, int]) -> Lead | None:
        """What a molecule was drawn from as its `task` says; where that is gone, the molecule itself if it has a core.

        Others are laid out after pieces as they lie in the first molecule that links them.
        """
        key = (text_property(mol, "task"), text_property(mol, "input_record"), text_property(mol, "kept_from"))
        if key in self.found or not any(key):
            return self.found.get(key)
        lead = None
        with suppress(MoldiffError, ValueError, OSError, AttributeError), rdBase.BlockLogs():
            name, given = self._asked(json.loads(key[0]), int(key[1] or 1))
            if given is not None and given.GetNumBonds():
                lead = _lead(given, "core" if name == "core" else text_property(mol, "input") or "lead")
        if kept and (lead is None or len(Chem.GetMolFrags(lead.mol)) > 1):
            stand_in = _lead(mol, "", kept)
            lead = stand_in if lead is None else replace(stand_in, name=lead.name, known=True, given=lead.mol)
        if lead is not None:
            self.found[key] = lead
        return lead

    def _asked(self, task: Mapping[str, Any], number: int) -> tuple[str, Chem.Mol | None]:
        """Which option of a task says what its molecules were made from or ranked by, and the molecule; all its pieces.

        A file is looked at only if it is still the one that was given, for anyone can have written a record.
        """
        options = next((one for one in (task, task.get("like") or {}) for name in _GIVEN if name in one), task)
        name = next((name for name in _GIVEN if name in options), "")
        given, digests = options.get(name), options.get(f"{name}_sha256")
        sources = given if isinstance(given, list) else [given] if given else []
        of_each = digests if isinstance(digests, list) else [digests] * len(sources)
        each = [self._molecules(str(source), digest) for source, digest in zip(sources, of_each, strict=True)]
        found = [mol for several in each for mol in several] if all(each) else []
        if name == "core" and None not in found:
            return name, reduce(Chem.CombineMols, found) if found else None
        return name, found[number - 1] if number <= len(found) else None

    def _molecules(self, text: str, digest: str | None) -> list[Chem.Mol | None]:
        """Those of a SMILES or a file; none if the file is gone or another."""
        if digest is None and len(text) <= _LONGEST:
            params: Any = Chem.SmilesParserParams()
            params.removeHs = False
            return [Chem.MolFromSmiles(text, params)]
        path = _same_file(text, digest, self.folder)
        return [] if path is None else [record.mol for record in records(path)]

    def _common(self, lead: Chem.Mol, mol: Chem.Mol) -> Sequence[tuple[int, int]]:
        """Pairs of atoms of the largest connected part that both have, whole rings only."""
        if max(mol.GetNumHeavyAtoms(), lead.GetNumAtoms()) > _MOST_COMMON or self.spent > _LIMIT_OF_ALL:
            return []
        started, heavy = monotonic(), flat(mol)
        both = [Chem.Mol(lead), Chem.Mol(heavy)]
        for one in both:
            Chem.SanitizeMol(one)
        found = rdFMCS.FindMCS(both, timeout=_LIMIT, ringMatchesRingOnly=True, completeRingsOnly=True)
        self.spent += monotonic() - started
        if found.numAtoms < _MIN_COMMON:
            return []
        part = Chem.MolFromSmarts(found.smartsString)
        matches = (one.GetSubstructMatch(part) for one in both)
        return [(row, heavy.GetAtomWithIdx(k).GetIntProp("_index")) for row, k in zip(*matches, strict=True)]

    @property
    def known(self) -> dict[str, Lead]:
        """Those that were given, each once, by their `text`."""
        leads = [self.chosen] if self.chosen else self.found.values()
        return {lead.text: lead for lead in leads if lead.known}


@dataclass(frozen=True)
class Pocket:
    """Residues of a protein around molecules, as a page holds them."""

    xyz: str  # their heavy atoms, of metals too, as an XYZ file
    residues: list[tuple[str, float, float, float]]  # chain and number, such as A:85, and the middle (Å)


def pockets_of(folder: Path, given: Sequence[Record], receptor: str | Path | None) -> list[Pocket | None]:
    """What is around the records of a file: of `receptor`, or without one of the protein that each was drawn into.

    Raises:
        MoldiffError: when `receptor` cannot be read, or is far from all of them.
    """
    rows: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row, record in enumerate(given):
        if record.mol is not None and is_placed(record.mol):
            protein = _receptor_of(record.mol, folder) if receptor is None else (str(receptor), ())
            rows.setdefault(protein, []).append(row)
    found: list[Pocket | None] = [None] * len(given)
    for (path, also), several in rows.items():
        if path:
            pocket = _around(path, also, [given[row].mol for row in several], known=receptor is None)
            for row in several:
                found[row] = pocket
    return found


def _receptor_of(mol: Chem.Mol, folder: Path) -> tuple[str, tuple[str, ...]]:
    """The file of the protein that a molecule was drawn into, and what stayed in it; "" if it is gone or another."""
    with suppress(ValueError, OSError, AttributeError, KeyError, TypeError):
        task = json.loads(text_property(mol, "task"))
        if path := _same_file(task["receptor"], task["receptor_sha256"], folder):
            return str(path), tuple(task.get("also") or ())
    return "", ()


def _around(path: str, also: Sequence[str], mols: Sequence[Any], *, known: bool) -> Pocket | None:
    """What of a protein is around molecules; None where it is `known` from their records and is not there after all."""
    try:
        protein = read_receptor(path, also=also)
        near = protein.within(np.concatenate([mol.GetConformer().GetPositions() for mol in mols]), _AROUND)
        if not len(near):
            raise MoldiffError(f"receptor: nothing of {protein.name} within {_AROUND:g} Å of the molecules")
    except MoldiffError:
        if known:
            return None
        raise
    protein = protein.rows(np.isin(protein.residue, protein.residue[near]))
    atoms = [
        f"{element} {x:.2f} {y:.2f} {z:.2f}" for element, (x, y, z) in zip(protein.element, protein.pos, strict=True)
    ]
    middles = {name: protein.pos[protein.residue == name].mean(0).round(2).tolist() for name in protein.residue}
    return Pocket("\n".join([str(len(atoms)), "", *atoms]), [(str(name), *middle) for name, middle in middles.items()])


def _same_file(text: str, digest: str | None, folder: Path) -> Path | None:
    """A file that a record names, there or beside the record's own, if it is still the one that was given."""
    return next((path for path in (Path(text), folder / Path(text).name) if file_digest(path) == digest), None)


def _lead(mol: Chem.Mol, name: str, kept: Mapping[int, int] | None = None) -> Lead:
    """A lead of a molecule as it was read; of one that stands in for it, `kept` says what its atoms are called."""
    if mol.GetNumHeavyAtoms() > MAX_HEAVY:
        raise MoldiffError(f"lead: got {mol.GetNumHeavyAtoms()} heavy atoms, expected at most {MAX_HEAVY}")
    drawn = flat(mol)
    rows = {atom.GetIntProp("_index"): atom.GetIdx() for atom in drawn.GetAtoms()}
    if kept is None:
        return Lead(drawn, {row: index for index, row in rows.items()}, name)
    return Lead(drawn, {rows[atom]: number for atom, number in kept.items() if atom in rows}, name, known=False)
