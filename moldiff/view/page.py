"""Puts the page together: a table of all records, drawings, numbers and scripts in one file that loads nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rdkit import Chem
from rdkit.Geometry import Point2D

from moldiff import __version__
from moldiff.errors import MoldiffError
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.molecule_set import is_placed
from moldiff.evaluation.report import Report
from moldiff.evaluation.suite import Choice, OnMetric
from moldiff.molecules.descriptors import DESCRIPTORS
from moldiff.molecules.formats.reader import ReadResult, name_of, read, read_sets
from moldiff.molecules.formats.record import Record, guarded
from moldiff.molecules.formats.storage import is_standard, write_atomically
from moldiff.molecules.formats.writer import Recorded, write
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.sampling.notebook import framed
from moldiff.sampling.sample import beside, trajectory_path, write_trajectories
from moldiff.tasks.inputs import Source
from moldiff.view.depict import draw, facing, films, molblock, render
from moldiff.view.histograms import Distributions, plots, reference_distributions
from moldiff.view.leads import Lead, Leads, Pocket, pockets_of
from moldiff.view.table import Cell, Column, columns_of, data_fields, facts

_TILES = {
    "p2_valid": "valid (P2)",
    "p2_unique": "unique",
    "p2_novel": "novel",
    "p2_molecule_stable": "stable (P2)",
    "p1_molecule_stable": "stable (P1)",
}
"""The few numbers that everyone asks for first."""

_PACKED = {"3Dmol-min.js": "stage", "RDKit_minimal.js": "rdkit"}
"""Scripts of others that run only when they are needed: compressed in the page, in the element of this id."""
_LICENCES = ("3Dmol", "RDKit", "fzstd")
_MAX_DRUGLIKE = 100  # heavy atoms of molecules whose drug-likeness is worth the time it takes

Sources = str | Path | Sequence[str | Path] | Sequence[Molecule | Recorded]
"""A file, several, or molecules."""


class Page(str):
    """The HTML of a page, which a notebook shows."""

    def __repr__(self) -> str:
        return f"<Page of {len(self) / 1e6:.1f} MB; view(molecules, 'page.html') writes it to a file>"

    def _repr_html_(self) -> str:
        return framed(self, "width:100%;height:640px")


@dataclass(frozen=True)
class _File:
    """A file on the page, and what was found of it."""

    name: str
    found: ReadResult
    report: Report
    leads: Leads
    pockets: Sequence[Pocket | None]  # of each record


@dataclass(frozen=True)
class _Entry:
    """A record on the page: what the evaluation says of it, its lead, and where atoms lie that both have."""

    record: Record
    row: Mapping[str, Any]
    file: int
    lead: Lead | None
    core: Mapping[int, Point2D]


def view(
    source: Sources,
    out: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    lead: Source | None = None,
    receptor: str | Path | None = None,
    metrics: Choice = "fast",
    hydrogens: str = "keep",
    on_progress: OnMetric | None = None,
) -> Path | Page:
    """Write molecules as one HTML page that works offline, or show it in a notebook.

    Args:
        source: a file, folder or pattern that `moldiff.evaluate` reads, several to be shown side by side, or molecules.
            Films come from the trajectories that `moldiff sample trajectory=true` writes beside its file, or that the
            molecules carry.
        out: the page; None = the file's name with .html, and of molecules from Python no file but a `Page`, which a
            notebook shows. It is returned.
        reference: known molecules for novelty and to compare distributions with: a file, folder or pattern, a prepared
            folder, or a model's folder.
        lead: a file or a SMILES of the molecule that all others are laid out after and that is shown beside them;
            None = what each record says that it was made from.
        receptor: a PDB or mmCIF file of the protein to show around the molecules; None = the one that each record says
            it was drawn into.
        metrics: what else is measured; this, `hydrogens` and `on_progress` as of `moldiff.evaluate`. QED, synthetic
            accessibility and logP are shown unless all molecules are as small as those of QM9.
        hydrogens: "add" or "keep".
        on_progress: called with the name of a metric and how many of its steps are finished.

    Raises:
        MoldiffError: when `source`, `reference`, `lead` or `receptor` cannot be read, or the page cannot be written.
    """
    with TemporaryDirectory() as folder:
        files = _given(source)
        target = None if out is None and not files else target_of(files, out)
        found = read_sets(files)
        if not files:
            drawn: Sequence[Any] = list(source)  # type: ignore[arg-type]  # molecules, as it is no name of a file
            path = Path(folder) / "molecules.sdf"
            write(path, drawn)
            if films_of := [one for one in drawn if getattr(one, "trajectory", None)]:
                write_trajectories(trajectory_path(path), films_of)
            found = {f"{len(drawn)} molecules" if target is None else target.stem: read(path)}
        names, sets = list(found), list(found.values())
        if hydrogens == "add":
            sets = [ReadResult(one.path, [record.completed() for record in one.records]) for one in sets]
        lookup = all(map(_as_in_qm9, sets))
        shared: Any = {"reference": reference, "metrics": metrics, "hydrogens": hydrogens, "on_progress": on_progress}
        leads = [Leads.of(one.path.parent, lead) for one in sets]  # before what takes long
        pockets = [pockets_of(one.path.parent, one.records, receptor) for one in sets]
        reports = [evaluate(one, **shared) for one in sets]
        parts = zip(names, sets, reports, leads, pockets, strict=True)
        page = _page([_File(*one) for one in parts], reference, lookup)
    if target is None:
        return Page(page)
    write_atomically(target, page.encode("utf-8", "replace"))
    return target


def _given(source: Sources) -> list[Path]:
    """The files of a source; none if it is molecules."""
    if isinstance(source, str | Path):
        return [Path(source)]
    return list(dict.fromkeys(Path(one) for one in source if isinstance(one, str | Path)))


def target_of(source: str | Path | Sequence[str | Path], out: str | Path | None) -> Path:
    """Where the page of a file, or of several, goes; a `MoldiffError` when it cannot be written there."""
    paths = [source] if isinstance(source, str | Path) else source
    if out is None:
        more = f"_and_{len(paths) - 1}_more" if len(paths) > 1 else ""
        first = Path("molecules" if is_standard(paths[0]) else name_of(paths[0]))
        out = beside(paths[0], "html") if Path(paths[0]).is_file() else first
        out = out.with_name(f"{out.stem}{more}.html")
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise MoldiffError(f"out: got {target}, expected a name that ends in .html")
    if not target.parent.is_dir():
        raise MoldiffError(f"{target}: the folder {target.parent} does not exist")
    return target


def _as_in_qm9(found: ReadResult) -> bool:
    """Whether molecules are such that bonds can be looked up from distances: at most nine atoms of C, N, O and F."""
    mols = (record.mol for record in found.records if record.mol is not None)
    return all(
        mol.GetNumHeavyAtoms() <= 9 and {atom.GetAtomicNum() for atom in mol.GetAtoms()} <= {1, 6, 7, 8, 9}
        for mol in mols
    )


def _druglike(smiles: str | None) -> dict[str, float]:
    """QED, synthetic accessibility and logP of a valid molecule, under the names that `metrics=druglike` gives them."""
    mol = Chem.MolFromSmiles(smiles) if smiles else None
    if mol is None or mol.GetNumHeavyAtoms() > _MAX_DRUGLIKE:
        return {}
    return {f"druglike_{name}": float(DESCRIPTORS[name].of(mol)) for name in ("qed", "sa", "logp")}


def _page(files: Sequence[_File], reference: str | Path | None, lookup: bool) -> str:
    """The page of files as HTML; `lookup`: whether what protocol P1 says means something."""
    entries = _entries(files, druglike=not lookup)
    data = [data_fields(entry.record) for entry in entries]
    columns = columns_of([entry.row for entry in entries], data, lookup=lookup)
    pairs = zip(entries, data, strict=True)
    cells = [[(known if column.field else entry.row).get(column.key) for column in columns] for entry, known in pairs]
    blocks, shown = [molblock(entry.record) for entry in entries], _films(files)
    known = {text: lead for file in files for text, lead in file.leads.known.items()}
    order = {text: index for index, text in enumerate(known)}
    lead_of = [order.get(entry.lead.text) if entry.lead and entry.lead.known else None for entry in entries]
    scripts = [
        _asset(name) for name in ("fzstd.js", "chemistry.js", "viewer.js", "plots.js", "exports.js", "gallery.js")
    ]
    runs = [*scripts, *map(_asset, _PACKED)]
    return render(
        "page.html",
        name=", ".join(file.name for file in files),
        hashes=[f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'" for script in runs],
        style=_asset("page.css"),
        num_records=len(entries),
        unreadable=sum(entry.record.mol is None for entry in entries),
        files=_summaries(files, reference, lookup),
        tables=_tables(files),
        reference=None if reference is None else Path(reference).name,
        leads=[(lead.name, draw(lead.given or lead.mol, f"lead {lead.name}")) for lead in known.values()],
        constants=[(c.label, cells[0][k]) for k, c in enumerate(columns) if c.constant and not c.hidden],
        cards=[
            _card(entry) | {"index": k, "facts": facts(columns, cells[k]), "has_film": k in shown}
            for k, entry in enumerate(entries)
        ],
        data=_data(files, entries, columns, cells) | {"blocks": blocks, "films": shown, "leads": lead_of},
        scripts=scripts,
        packed={place: _base64(gzip.compress(_asset(name).encode(), mtime=0)) for name, place in _PACKED.items()},
        wasm=_base64(resources.files("moldiff.view").joinpath("assets", "RDKit_minimal.wasm.zst").read_bytes()),
        licences=[(name, _asset(f"{name}-LICENSE.txt")) for name in _LICENCES],
        version=__version__,
    )


def _data(
    files: Sequence[_File], entries: Sequence[_Entry], columns: Sequence[Column], cells: Sequence[Sequence[Cell]]
) -> dict[str, Any]:
    """The table behind the page for its scripts, and for each record its file, core, pocket and best side."""
    pockets = [pocket for file in files for pocket in file.pockets]
    distinct = list({id(pocket): pocket for pocket in pockets if pocket}.values())
    return {
        "name": files[0].name if len(files) == 1 else "molecules",
        "columns": [{key: value for key, value in vars(column).items() if key != "on_card"} for column in columns],
        "rows": cells,
        "views": [facing(entry.record) for entry in entries],
        "files": [file.name for file in files],
        "file": [entry.file for entry in entries],
        "cores": [sorted(entry.core) for entry in entries],
        "pockets": [vars(pocket) for pocket in distinct],
        "pocket": [distinct.index(pocket) if pocket else None for pocket in pockets],
    }


def _entries(files: Sequence[_File], *, druglike: bool) -> list[_Entry]:
    """The records of all files, one file after the other; `druglike`: with the numbers of drug-like molecules."""
    found = []
    for number, file in enumerate(files):
        for record, row in zip(file.found.records, file.report.to_dict()["molecules"], strict=True):
            named = {"file": file.name} if len(files) > 1 else {}
            more = _druglike(row.get("smiles")) if druglike and "druglike_qed" not in row else {}
            known = guarded(file.leads.of_record, record)
            lead, core = (None, {}) if isinstance(known, InvalidMolecule) else known
            found.append(_Entry(record, {**named, **row, **more}, number, lead, core))
    return found


def _films(files: Sequence[_File]) -> dict[int, Any]:
    """The films of all records by their place on the page."""
    found: dict[int, Any] = {}
    first = 0
    for file in files:
        found |= {first + index: film for index, film in films(file.found.path, file.found.records).items()}
        first += len(file.found.records)
    return found


def _summaries(files: Sequence[_File], reference: str | Path | None, lookup: bool) -> list[dict[str, Any]]:
    """The main numbers, plots and tables of each file."""
    known = None if reference is None else reference_distributions(reference)
    found = []
    for file in files:
        rows = {row.result.name: row for group in file.report.groups() for row in group.rows}
        rows = {name: row for name, row in rows.items() if row.result.value is not None}
        keys = [key for key in _TILES if key in rows and (lookup or not key.startswith("p1_"))]
        drawn = Distributions.of(record.mol for record in file.found.records if record.mol is not None)
        found.append(
            {"name": file.name, "tiles": [(_TILES[key], rows[key]) for key in keys], "plots": plots(drawn, known)}
        )
    return found


def _tables(files: Sequence[_File]) -> list[dict[str, Any]]:
    """All numbers by protocol; of several files those of each in a column."""
    tables: dict[str, dict[str, Any]] = {}
    alone = len(files) == 1
    for column, file in enumerate(files):
        for group in file.report.groups():
            heads = group.heads if alone else [one.name for one in files]
            table = tables.setdefault(group.title, {"title": group.title, "heads": heads, "rows": {}})
            for row in group.rows:
                empty = {"label": row.label, "what": row.note or row.result.definition, "cells": [""] * len(files)}
                entry = table["rows"].setdefault(row.result.name, empty)
                if alone:
                    entry["cells"] = row.cells
                else:
                    entry["cells"][column] = " ".join(row.cells[:2])
    return list(tables.values())


def _asset(name: str) -> str:
    return resources.files("moldiff.view").joinpath("assets", name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _card(entry: _Entry) -> dict[str, Any]:
    """What the card of a record shows: its drawing and the most telling of its values."""
    record, row = entry.record, entry.row
    status, reason = str(row.get("status")), str(row.get("reason") or "")
    geometry, suggested = row.get("geometry_status"), row.get("p1_smiles")
    if status == "ok" and geometry not in (None, "ok"):
        reason = f"geometry: {geometry}"
    mol, smiles = record.mol, str(row.get("smiles") or "")
    problem = None if status == "ok" else record.molecule()
    bare = mol is not None and mol.GetNumAtoms() > 1 and mol.GetNumBonds() == 0
    if bare and record.problem is None and suggested:  # of coordinates alone, what their distances suggest
        mol = Chem.MolFromSmiles(str(suggested)) or mol
        smiles = "" if mol is record.mol else str(Chem.MolToSmiles(mol))
    fault = problem.atom if isinstance(problem, InvalidMolecule) else None  # as the record counts it
    return {
        "name": record.name or f"record {record.number}",
        "picture": mol and draw(mol, f"2D drawing of {record.name}", fault, entry.core if mol is record.mol else {}),
        "suggested": mol is not record.mol,
        "status": status,
        "reason": reason if mol is record.mol else "",
        "smiles": smiles,
        "usable": bool(smiles) or record.mol is not None,
        "solid": record.mol is not None and is_placed(record.mol),
        "file": entry.file,
        "file_name": row.get("file"),
    }
