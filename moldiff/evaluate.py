"""Judging a file of molecules, whoever made it: `moldiff evaluate input=FILE` and the same from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff import chem
from moldiff.batch import Molecule
from moldiff.io import read, records
from moldiff.metrics.distance_lookup import MARGINS_PM, Atoms
from moldiff.metrics.novelty import NoveltyIndex
from moldiff.metrics.summary import MoleculeRow, Scores, score
from moldiff.records import Record
from moldiff.report import Report
from moldiff.results import InvalidMolecule, MetricResult, Status
from moldiff.vocabulary import Vocabulary

Entry = Molecule | InvalidMolecule
Reference = str | Path | NoveltyIndex | Sequence[Molecule | str]

NO_COORDINATES = "no record has 3D coordinates, so that no distance can be looked up"
NO_BONDS = "no record has bonds, only elements and coordinates"


def evaluate(
    source: str | Path | Sequence[Entry],
    *,
    reference: Reference | None = None,
    out: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
) -> Report:
    """Score molecules by protocols P1 and P2, uniqueness and, with a reference, novelty.

    Every record counts: one that cannot be read is a row with the reason, and is in every per-molecule denominator.
    A file of coordinates alone (XYZ) has no P2 results, a file of SMILES no P1 results; they are None with a note.

    Args:
        source: a file that `moldiff.io` reads (SDF, XYZ, SMILES; hydrogens explicit), or molecules.
        reference: known molecules for novelty: a prepared folder or its `novelty.safetensors`, a file of molecules,
            SMILES or molecules.
        out: folder for `report.json`, `report.md` and `molecules.csv`; None = nothing is written.
        vocabulary: brings valences, observed in the data, that the table of protocol P2 lacks.

    Returns:
        The report; `report["p2_valid"].value` is a number or None, `report.tables()` is for a terminal.

    Raises:
        MoldiffError: when `source` or `reference` is a path that cannot be read.
    """
    index = _index(reference)
    if isinstance(source, str | Path):
        scores, missing = _score_file(source, index, vocabulary)
    else:
        scores, missing = score(source, index, vocabulary=vocabulary), {}
    results = [_blank(result, missing) for result in scores.results]
    notes = dict(scores.notes)
    notes.update((result.name, missing[_protocol(result)]) for result in results if _protocol(result) in missing)
    report = Report(results, [asdict(row) for row in scores.rows], _options(source, reference, index, scores), notes)
    if out is not None:
        report.write(out)
    return report


def _score_file(
    path: str | Path, index: NoveltyIndex | None, vocabulary: Vocabulary | None
) -> tuple[Scores, dict[str, str]]:
    """Scores of the records of a file, and the protocols that its kind of record does not support, with the reason."""
    found = read(path).records
    drawn = [record.mol for record in found if record.mol is not None]
    without_coordinates = bool(drawn) and not any(mol.GetNumConformers() for mol in drawn)
    missing = {"p1": NO_COORDINATES} if without_coordinates else {}
    if any(mol.GetNumAtoms() > 1 for mol in drawn) and not any(mol.GetNumBonds() for mol in drawn):
        missing["p2"] = NO_BONDS
    entries = [_entry(record, missing) for record in found]
    atoms = [_atoms_of(record) for record in found]
    scores = score(entries, index, vocabulary=vocabulary, atoms=atoms)
    rows = [_with_record(row, record) for row, record in zip(scores.rows, found, strict=True)]
    return replace(scores, rows=rows), missing


def _entry(record: Record, missing: Mapping[str, str]) -> Entry:
    """What protocol P2 judges; the graph as drawn, broken valences included, so that its atoms count."""
    if record.mol is None or "p2" in missing:
        return record.problem or InvalidMolecule(Status.UNREADABLE, missing.get("p2", "no molecule"))
    return _graph_of(record.mol) if "p1" in missing else record.as_drawn()


def _graph_of(mol: Chem.Mol) -> Entry:
    """The molecule of a graph without coordinates: hydrogens are made explicit, coordinates are placeholders."""
    mol = Chem.Mol(mol)
    mol.UpdatePropertyCache(strict=False)
    mol = Chem.AddHs(mol)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.arange(3.0 * mol.GetNumAtoms()).reshape(-1, 3))
    mol.AddConformer(conformer)
    return chem.from_rdkit(mol)


def _atoms_of(record: Record) -> Atoms | None:
    """Elements and coordinates of a record as they stand in the file; P1 needs no bonds."""
    mol = record.mol
    if mol is None or not mol.GetNumConformers() or (mol.GetNumAtoms() > 1 and not mol.GetConformer().Is3D()):
        return None
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if 0 in elements:  # a dummy atom is no element, so that there is nothing to look up
        return None
    return np.array(elements, dtype=np.int64), mol.GetConformer().GetPositions()


def _with_record(row: MoleculeRow, record: Record) -> MoleculeRow:
    """The row with the record's title, and with the atom at fault as the file counts it."""
    problem = record.molecule() if row.status is not Status.OK else None
    reason = problem.reason if isinstance(problem, InvalidMolecule) and problem.status is row.status else row.reason
    return replace(row, name=record.name, reason=reason)


def _index(reference: Reference | None) -> NoveltyIndex | None:
    if reference is None or isinstance(reference, NoveltyIndex):
        return reference
    if not isinstance(reference, str | Path):
        return NoveltyIndex.of(reference)
    path = Path(reference)
    if path.is_dir() or path.suffix == ".safetensors":
        return NoveltyIndex.load(path)
    return NoveltyIndex.of(_known(record) for record in records(path))


def _known(record: Record) -> Chem.Mol | InvalidMolecule:
    if record.problem is not None:
        return record.problem
    assert record.mol is not None
    return record.mol


def _protocol(result: MetricResult) -> str:
    return result.name.partition("_")[0]


def _blank(result: MetricResult, missing: Mapping[str, str]) -> MetricResult:
    """The result, emptied when its protocol does not apply to the records."""
    return replace(result, numerator=0, denominator=0) if _protocol(result) in missing else result


def _options(
    source: str | Path | Sequence[Entry], reference: Reference | None, index: NoveltyIndex | None, scores: Scores
) -> dict[str, Any]:
    return {
        "input": str(source) if isinstance(source, str | Path) else "molecules from Python",
        "records": len(scores.rows),
        "records_unreadable": sum(row.status is Status.UNREADABLE for row in scores.rows),
        "reference": str(reference) if isinstance(reference, str | Path) else None,
        "reference_molecules": None if index is None else len(index),
        "reference_skipped": None if index is None else index.num_skipped,
        "p1_margins_pm": list(MARGINS_PM),
        "p2_sanitize": "explicit graph, no implicit hydrogens",
    }
