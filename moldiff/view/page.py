"""Puts the page together: data, drawings, numbers and scripts in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rdkit import Chem

from moldiff import __version__
from moldiff.errors import MoldiffError
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.report import Report, by_protocol, format_fraction, format_value, title
from moldiff.evaluation.suite import Choice, OnMetric
from moldiff.molecules.formats.reader import ReadResult, read
from moldiff.molecules.formats.record import Record
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.formats.writer import Recorded, write
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.sampling.trajectory import trajectory_path, write_trajectories
from moldiff.view.depict import draw, facing, films, is_solid, molblock, render
from moldiff.view.histograms import Distributions, plots, reference_distributions
from moldiff.view.page import Table

_SCRIPTS = ("3Dmol-min.js", "viewer.js", "gallery.js")


def view(
    source: str | Path | Sequence[Molecule | Recorded],
    out: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    metrics: Choice = "fast",
    hydrogens: str = "keep",
    on_progress: OnMetric | None = None,
) -> Path:
    """Write molecules as one HTML page that works offline.

    Args:
        source: a file that `moldiff.molecules.formats` reads, or molecules. Films come from the trajectories that
            `moldiff sample trajectory=true` writes beside its file, or that the molecules carry.
        out: the page; None = the file's name with .html, which molecules from Python do not have.
        reference: known molecules for novelty and to compare distributions with: a file of molecules, a prepared
            folder, or a model's folder.
        metrics: what else is measured, see `moldiff.evaluation.evaluate.evaluate`; each molecule's numbers become
            columns.
        hydrogens: "add" = those that a 3D structure lacks are added, as by `moldiff evaluate`; "keep" = none are.
        on_progress: called with the name of a metric and how many of its steps are finished.

    Returns:
        Where the page is.

    Raises:
        MoldiffError: when `source` or `reference` cannot be read, or the page cannot be written there.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        target = target_of(path, out)
        page = _page(path, path.name, reference, metrics, hydrogens, on_progress)
    elif out is None:
        raise MoldiffError("out: nothing given, expected the name of the page, for example molecules.html")
    else:
        target = target_of(Path(out), out)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "molecules.sdf"
            write(path, source)
            write_trajectories(trajectory_path(path), (item for item in source if not isinstance(item, Molecule)))
            page = _page(path, target.stem, reference, metrics, hydrogens, on_progress)
    write_atomically(target, page.encode("utf-8", "replace"))
    return target


def page_of(source: str | Path) -> Path:
    """The page of a file where no other is asked for: beside it, of its name."""
    path = Path(source)
    return path.with_name(f"{path.name.removesuffix('.gz').rpartition('.')[0]}.html")


def target_of(source: str | Path, out: str | Path | None) -> Path:
    """Where the page of a file goes.

    Raises:
        MoldiffError: when it cannot be written there.
    """
    target = page_of(source) if out is None else Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise MoldiffError(f"out: got {target}, expected a name that ends in .html")
    if not target.parent.is_dir():
        raise MoldiffError(f"{target}: the folder {target.parent} does not exist")
    return target


def _page(
    path: Path,
    name: str,
    reference: str | Path | None,
    metrics: Choice,
    hydrogens: str,
    on_progress: OnMetric | None,
) -> str:
    """The page of a file as HTML; its `name` is what readers see."""
    found = read(path)
    if hydrogens == "add":
        found = ReadResult(path, [record.completed() for record in found.records])
    records = found.records
    report = evaluate(found, reference=reference, metrics=metrics, hydrogens=hydrogens, on_progress=on_progress)
    table = Table.of(records, report.to_dict()["molecules"])
    blocks = [molblock(record) for record in records]
    shown = films(path, records)
    scripts = [_asset(name) for name in _SCRIPTS]
    drawn = Distributions.of(record.mol for record in records if record.mol is not None)
    return render(
        "page.html",
        name=name,
        hashes=[_hash(script) for script in scripts],
        style=_asset("page.css"),
        num_records=len(records),
        unreadable=sum(record.mol is None for record in records),
        tiles=_tiles(report),
        reference=None if reference is None else Path(reference).name,
        plots=plots(drawn, None if reference is None else reference_distributions(reference)),
        tables=[_table(protocol, group, report) for protocol, group in by_protocol(report.results).items()],
        constants=table.constants,
        cards=[
            _card(index, record, table) | {"has_block": blocks[index] is not None, "has_film": index in shown}
            for index, record in enumerate(records)
        ],
        data={
            "name": name,
            "columns": [column.to_dict() for column in table.columns],
            "rows": table.rows,
            "blocks": blocks,
            "views": [facing(record) for record in records],
            "films": shown,
        },
        scripts=scripts,
        licence=_asset("3Dmol-LICENSE.txt"),
        version=__version__,
    )


def _asset(name: str) -> str:
    return resources.files("moldiff.view").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _card(index: int, record: Record, table: Table) -> dict[str, Any]:
    """What the card of a record shows: its drawing and the most telling of its values."""
    status, reason = str(table.cell(index, "status")), str(table.cell(index, "reason") or "")
    geometry = table.cell(index, "geometry_status")
    if status == "ok" and geometry not in (None, "ok"):
        reason = f"geometry: {geometry}"
    mol, smiles = _drawn(index, record, table)
    suggested = mol is not record.mol
    return {
        "index": index,
        "name": record.name or f"record {record.number}",
        "picture": None if mol is None else draw(mol, f"2D drawing of {record.name}", _fault(record, status)),
        "suggested": suggested,
        "status": status,
        "reason": "" if suggested else reason,
        "smiles": smiles,
        "facts": table.facts(index),
        "solid": record.mol is not None and is_solid(record.mol),
    }


def _drawn(index: int, record: Record, table: Table) -> tuple[Chem.Mol | None, str]:
    """The molecule to draw and its SMILES; for coordinates alone, the one that their distances suggest."""
    suggested = table.cell(index, "p1_smiles")
    bare = record.mol is not None and record.mol.GetNumAtoms() > 1 and record.mol.GetNumBonds() == 0
    if bare and record.problem is None and suggested:
        mol = Chem.MolFromSmiles(str(suggested))
        return (record.mol, "") if mol is None else (mol, str(Chem.MolToSmiles(mol)))
    return record.mol, str(table.cell(index, "smiles") or "")


def _fault(record: Record, status: str) -> int | None:
    """The atom that the check names, as the record counts it."""
    problem = None if status == "ok" else record.molecule()
    return problem.atom if isinstance(problem, InvalidMolecule) else None


_TILES = {
    "p2_valid": "valid (P2)",
    "p2_unique": "unique",
    "p2_novel": "novel",
    "p2_molecule_stable": "stable (P2)",
    "p1_molecule_stable": "stable (P1)",
}


def _tiles(report: Report) -> list[dict[str, str]]:
    """The few numbers that everyone asks for first."""
    found = {result.name: result for result in report.results if result.value is not None}
    return [
        {
            "label": label,
            "value": format_value(found[name]),
            "fraction": format_fraction(found[name]),
            "definition": found[name].definition,
        }
        for name, label in _TILES.items()
        if name in found
    ]


def _table(protocol: str, results: Sequence[MetricResult], report: Report) -> dict[str, Any]:
    """The numbers of a protocol, with those of the reference beside them where there are any."""
    beside = {result.name: result for result in report.reference_results if result.name.startswith(f"{protocol}_")}
    rows = []
    for result in results:
        both = [result, beside.get(result.name)] if beside else [result]
        if "_status_" in result.name and not any(one.numerator for one in both if one):
            continue
        rows.append(
            {
                "label": result.name.partition("_")[2].replace("_", " ") or result.name,
                "cells": [
                    text for one in both for text in ((format_value(one), format_fraction(one)) if one else ("", ""))
                ],
                "what": report.notes.get(result.name) or result.definition,
            }
        )
    heads = ["metric", "value", "counted", *(("reference", "counted") if beside else ()), "what is counted"]
    return {"caption": title(protocol), "heads": heads, "rows": rows}
