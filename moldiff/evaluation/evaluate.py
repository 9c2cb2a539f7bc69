"""Judging a file of molecules, whoever made it: `moldiff evaluate input=FILE` and the same from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.validity import MARGINS_PM, ValidityReport
from moldiff.evaluation.molecule_set import (
    Entry,
    MoleculeRow,
    MoleculeSet,
    Reference,
    ReferenceSet,
    is_placed,
    known_item,
    score,
)
from moldiff.evaluation.report import Comparison, Report
from moldiff.evaluation.suite import Choice, OnMetric, choose, run_metrics
from moldiff.molecules.convert import atom_order, lacks_hydrogens
from moldiff.molecules.formats.reader import ReadResult, is_one_file, read_set, records
from moldiff.molecules.formats.record import Record, guarded
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.validity import Oddity, odd_bonds, odd_smiles
from moldiff.molecules.vocabulary import Vocabulary

Source = str | Path | ReadResult | Sequence[Entry] | Sequence[str]
"""A file, a folder or pattern of files, what was read of one, or molecules."""

HYDROGENS_MISSING = "hydrogens are missing (hydrogens=add adds them)"
REFERENCE_SIZE = 10_000  # molecules of the reference that are compared with


def evaluate(
    source: Source,
    *,
    reference: Reference | None = None,
    metrics: Choice = "fast",
    out: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
    reference_size: int = REFERENCE_SIZE,
    hydrogens: str = "keep",
    on_progress: OnMetric | None = None,
) -> Report:
    """Score molecules by protocols P1 and P2, uniqueness and, with a reference, novelty; and by further metrics.

    Every record counts: one that cannot be read is a row with the reason, and is in every per-molecule denominator.
    A file of coordinates alone (XYZ) has no P2 results, a file of SMILES no P1 results; they are None with a note.
    With reference molecules every number also comes for these: for as many as were evaluated, or, where a metric
    compares with the reference, for one half of them against the other.

    Args:
        source: a file that `moldiff.molecules.formats` reads (hydrogens explicit), a folder or pattern of files with
            a record each, what `moldiff.read` made of one, molecules of this package or of RDKit, or SMILES.
        reference: known molecules: a prepared folder, a file, folder or pattern, SMILES or molecules. A model's
            folder or a `novelty.safetensors` serves for novelty only.
        metrics: "fast" or "full" (see `SETS`), any of `moldiff.evaluation.suite.SUITE`, a metric with settings of its
            own, such as `moldiff.evaluation.metrics.relaxation.Relaxation(limit=60)`, or a list of such.
        out: folder for `report.json`, `report.md` and `molecules.csv`, or the name of the first (NAME.json, the
            others beside it); None = nothing is written.
        vocabulary: brings valences, observed in the data, that the table of protocol P2 lacks.
        reference_size: at most so many molecules of the reference are compared with, chosen at random.
        hydrogens: "keep" = as they stand; "add" = those that a 3D structure lacks, here and in the reference, are added
            with coordinates, as `moldiff prepare` does.
        on_progress: called with the name of a metric and how many of its steps are finished.

    Returns:
        The report; `report["p2_valid"].value` is a number or None, `report.tables()` is for a terminal. After Ctrl-C
        within the further metrics it holds what was finished, and `report.interrupted` is true.

    Raises:
        MoldiffError: when `source` or `reference` is a path that cannot be read, `hydrogens` is none of the two, a
            metric is not known, or one that was asked for by name needs a package that is not installed.
    """
    chosen, skipped = choose(metrics)
    if reference_size < 1:
        raise MoldiffError(f"reference_size: got {reference_size}, expected a whole number of at least 1")
    if hydrogens not in ("keep", "add"):
        raise MoldiffError(f"hydrogens: got {hydrogens!r}, expected keep or add")
    known = ReferenceSet.of(reference, reference_size, complete=hydrogens == "add")
    notes = _Notes()
    molecules = MoleculeSet.of(_items(source, complete=hydrogens == "add"), vocabulary, notes.add)
    scores = score(molecules, known.index)
    rows = [notes.added_to(row) for row in scores.rows]
    protocols = {one.name: one.name.partition("_")[0] for one in scores.results}
    missing = {name: why for name, protocol in protocols.items() if (why := molecules.missing.get(protocol))}
    report = Report(
        [replace(one, numerator=0, denominator=0) if one.name in missing else one for one in scores.results],
        [asdict(row) for row in rows],
        _options(source, reference, known, rows) | {"hydrogens": hydrogens, "metrics": {}},
        notes={**scores.notes, **missing},
        reference_results=_scores_of_known(known, len(rows), vocabulary) if known.beside else [],
        skipped=skipped,
        remarks=dict(notes.kinds.most_common()),
    )
    run_metrics(chosen, molecules, known.molecules, report, on_progress, beside=known.beside)
    if out is not None:
        report.write(out)
    return report


def compare(
    sets: Mapping[str, ReadResult],
    *,
    reference: Reference | None = None,
    metrics: Choice = "fast",
    out: str | Path | None = None,
    reference_size: int = REFERENCE_SIZE,
    hydrogens: str = "keep",
    on_progress: OnMetric | None = None,
) -> Comparison:
    """Score several sets of molecules, as `read_sets` gives them by name, side by side; all else is as of `evaluate`.

    Numbers of the reference come with the largest set, for as many of the reference.
    """
    known = ReferenceSet.of(reference, reference_size, complete=hydrogens == "add")
    known = replace(known, path=str(reference) if isinstance(reference, str | Path) else None)
    largest = max(sets, key=lambda name: len(sets[name].records))
    reports: dict[str, Report] = {}
    for name, found in sets.items():
        reports[name] = evaluate(
            found,
            reference=replace(known, beside=name == largest),
            metrics=metrics,
            hydrogens=hydrogens,
            on_progress=on_progress and partial(_show_of, on_progress, name),
        )
        if reports[name].interrupted:
            break
    comparison = Comparison(reports)
    if out is not None:
        comparison.write(out)
    return comparison


def _show_of(on_progress: OnMetric, name: str, metric: str, done: int, total: int) -> None:
    on_progress(f"{name}: {metric}", done, total)


def _items(source: Source, *, complete: bool) -> Iterator[Record | Entry]:
    """What there is to evaluate, one at a time, with hydrogens if `complete`."""
    items: Iterable[Any]
    if isinstance(source, str | Path):
        items = records(source) if is_one_file(source) else read_set(source).records
    else:
        items = source.records if isinstance(source, ReadResult) else source
        if all(isinstance(item, str) for item in items):
            items = [smiles_record(number, str(text), "", {}) for number, text in enumerate(items, start=1)]
    for item in map(known_item, count(), items):
        yield item.completed() if complete and isinstance(item, Record) else item


class _Notes:
    """What is said of records beside what the protocols say, gathered while each is at hand."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()  # how many records are odd, by what is odd about them
        self._titles: dict[int, str] = {}
        self._remarks: dict[int, str] = {}
        self._problems: dict[int, InvalidMolecule] = {}  # with the atom at fault as the file counts it
        self._number = 0

    def add(self, item: Any, entry: Molecule | InvalidMolecule, verdict: ValidityReport) -> None:
        """Note the title and problem of a record, and what is odd about any molecule."""
        self._number += 1
        if found := _remarks(item, entry):
            self._remarks[self._number] = "; ".join(map(str, found))
            self.kinds.update(list(dict.fromkeys(oddity.kind for oddity in found)))
        if isinstance(item, Record):
            self._titles[self._number] = item.name
            problem = None if verdict.problem is None else item.molecule()
            if isinstance(problem, InvalidMolecule):
                self._problems[self._number] = problem

    def added_to(self, row: MoleculeRow) -> MoleculeRow:
        """The row with its notes."""
        problem = self._problems.get(row.number)
        reason = problem.reason if problem is not None and problem.status is row.status else row.reason
        name = self._titles.get(row.number) or row.name
        return replace(row, name=name, reason=reason, remarks=self._remarks.get(row.number))


def _remarks(item: Any, entry: Molecule | InvalidMolecule) -> list[Oddity]:
    """What is odd about an item that can be read: data fields, missing hydrogens, bonds, a SMILES of another graph."""
    mol = item.mol if isinstance(item, Record) else None
    found = [Oddity(remark) for remark in item.remarks] if isinstance(item, Record) else []
    if mol is not None and item.problem is None:
        found += [Oddity(HYDROGENS_MISSING)] if guarded(lacks_hydrogens, mol) is True else []
        if mol.HasProp("relax") and mol.HasProp("relaxed") and mol.GetProp("relaxed") == "ok":
            found.append(Oddity(f"not as drawn but relaxed by {mol.GetProp('relax')}"))
        contradictions = guarded(odd_smiles, mol)
        found += [] if isinstance(contradictions, InvalidMolecule) else contradictions
    if isinstance(entry, Molecule) and entry.is_finite and (mol is None or is_placed(mol)):
        found += odd_bonds(entry, None if mol is None else atom_order(mol))
    return found


def _scores_of_known(known: ReferenceSet, count: int, vocabulary: Vocabulary | None) -> list[MetricResult]:
    """P1, P2 and uniqueness of as many known molecules; novelty only against others than themselves."""
    if known.molecules is None:
        return []
    some = known.molecules[:count]
    index = None if known.index is None else replace(known.index, texts=None)  # parents are not asked of known ones
    return [
        result
        for result in score(some, index, vocabulary).results
        if result.name.partition("_")[0] not in some.missing
        and result.name != "p2_novel_parent"
        and (known.trained_on or "novel" not in result.name)
    ]


def _options(
    source: Source, reference: Reference | None, known: ReferenceSet, rows: Sequence[MoleculeRow]
) -> dict[str, Any]:
    path, index = source.path if isinstance(source, ReadResult) else source, known.index
    return {
        "input": str(path) if isinstance(path, str | Path) else "molecules from Python",
        "records": len(rows),
        "records_unreadable": sum(row.status is Status.UNREADABLE for row in rows),
        "reference": str(reference) if isinstance(reference, str | Path) else known.path,
        "reference_molecules": None if index is None else len(index),
        "reference_skipped": None if index is None else index.num_skipped,
        "reference_compared": known.source,
        "p1_margins_pm": list(MARGINS_PM),
        "p2_sanitize": "explicit graph, no implicit hydrogens",
    }
