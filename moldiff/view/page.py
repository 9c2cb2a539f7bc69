"""Puts the page together: a table of all records, drawings, numbers and scripts in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from html import escape
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rdkit import Chem

from moldiff import __version__
from moldiff.errors import MoldiffError
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.molecule_set import is_placed
from moldiff.evaluation.report import Report
from moldiff.evaluation.scores import MoleculeRow
from moldiff.evaluation.suite import Choice, OnMetric
from moldiff.molecules.formats.reader import ReadResult, read
from moldiff.molecules.formats.record import Record
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.formats.writer import Recorded, write
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.sampling.sample import beside, trajectory_path, write_trajectories
from moldiff.view.depict import draw, facing, films, molblock, render
from moldiff.view.histograms import Distributions, plots, reference_distributions

_TILES = {
    "p2_valid": "valid (P2)",
    "p2_unique": "unique",
    "p2_novel": "novel",
    "p2_molecule_stable": "stable (P2)",
    "p1_molecule_stable": "stable (P1)",
}
"""The few numbers that everyone asks for first."""


class Page(str):
    """The HTML of a page, which a notebook shows."""

    def __repr__(self) -> str:
        return f"<Page of {len(self) / 1e6:.1f} MB; view(molecules, 'page.html') writes it to a file>"

    def _repr_html_(self) -> str:
        frame = "width:100%;height:640px;border:1px solid #8884;border-radius:6px"
        return f'<iframe style="{frame}" sandbox="allow-scripts allow-downloads" srcdoc="{escape(self)}"></iframe>'


def view(
    source: str | Path | Sequence[Molecule | Recorded],
    out: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    metrics: Choice = "fast",
    hydrogens: str = "keep",
    on_progress: OnMetric | None = None,
) -> Path | Page:
    """Write molecules as one HTML page that works offline, or show it in a notebook.

    Args:
        source: a file that `moldiff.molecules.formats` reads, or molecules. Films come from the trajectories that
            `moldiff sample trajectory=true` writes beside its file, or that the molecules carry.
        out: the page; None = the file's name with .html, and of molecules from Python no file but a `Page`, which a
            notebook shows. It is returned.
        reference: known molecules for novelty and to compare distributions with: a file of molecules, a prepared
            folder, or a model's folder.
        metrics: what else is measured; this, `hydrogens` and `on_progress` as of `moldiff.evaluate`.
        hydrogens: "add" or "keep".
        on_progress: called with the name of a metric and how many of its steps are finished.

    Raises:
        MoldiffError: when `source` or `reference` cannot be read, or the page cannot be written there.
    """
    with TemporaryDirectory() as folder:
        target: Path | None = None
        if isinstance(source, str | Path):
            path, target = Path(source), target_of(source, out)
            name = path.name
        else:
            name = f"{len(source)} molecules"
            if out is not None:
                target, name = target_of(out, out), Path(out).stem
            path = Path(folder) / "molecules.sdf"
            write(path, source)
            write_trajectories(trajectory_path(path), (item for item in source if not isinstance(item, Molecule)))
        found = read(path)
        if hydrogens == "add":
            found = ReadResult(path, [record.completed() for record in found.records])
        report = evaluate(found, reference=reference, metrics=metrics, hydrogens=hydrogens, on_progress=on_progress)
        page = _page(found, name, report, reference)
    if target is None:
        return Page(page)
    write_atomically(target, page.encode("utf-8", "replace"))
    return target


def target_of(source: str | Path, out: str | Path | None) -> Path:
    """Where the page of a file goes; a `MoldiffError` when it cannot be written there."""
    target = beside(source, "html") if out is None else Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise MoldiffError(f"out: got {target}, expected a name that ends in .html")
    if not target.parent.is_dir():
        raise MoldiffError(f"{target}: the folder {target.parent} does not exist")
    return target


def _page(found: ReadResult, name: str, report: Report, reference: str | Path | None) -> str:
    """The page of a file as HTML; its `name` is what readers see."""
    records, rows = found.records, report.to_dict()["molecules"]
    data = [_fields(record) for record in records]
    columns, pairs = _columns(rows, data), zip(rows, data, strict=True)
    cells = [[(known if column.field else row).get(column.key) for column in columns] for row, known in pairs]
    blocks, shown = [molblock(record) for record in records], films(found.path, records)
    tables = report.groups()
    tiles = {row.result.name: row for table in tables for row in table.rows if row.result.value is not None}
    scripts = [_asset(name) for name in ("3Dmol-min.js", "viewer.js", "gallery.js")]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    drawn = Distributions.of(record.mol for record in records if record.mol is not None)
    return render(
        "page.html",
        name=name,
        hashes=[f"'sha256-{digest}'" for digest in hashes],  # as a content security policy names scripts that may run
        style=_asset("page.css"),
        num_records=len(records),
        unreadable=sum(record.mol is None for record in records),
        tiles=[(label, tiles[key]) for key, label in _TILES.items() if key in tiles],
        reference=None if reference is None else Path(reference).name,
        plots=plots(drawn, None if reference is None else reference_distributions(reference)),
        tables=tables,
        constants=[(c.label, cells[0][k]) for k, c in enumerate(columns) if c.constant and not c.hidden],
        cards=[
            _card(record, row)
            | {"index": k, "facts": _facts(columns, cells[k]), "has_block": bool(blocks[k]), "has_film": k in shown}
            for k, (record, row) in enumerate(zip(records, rows, strict=True))
        ],
        data={
            "name": name,
            "columns": [{key: value for key, value in vars(column).items() if key != "on_card"} for column in columns],
            "rows": cells,
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


def _card(record: Record, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of a record shows: its drawing and the most telling of its values."""
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
        "picture": mol and draw(mol, f"2D drawing of {record.name}", fault),
        "suggested": mol is not record.mol,
        "status": status,
        "reason": reason if mol is record.mol else "",
        "smiles": smiles,
        "solid": record.mol is not None and is_placed(record.mol),
    }


Cell = str | float | int | bool | None

_LABELS = {
    "number": "record",
    "smiles": "SMILES",
    "num_heavy_atoms": "heavy atoms",
    "num_atoms": "atoms",
    "num_fragments": "fragments",
    "druglike_qed": "QED",
    "druglike_sa": "SA score",
    "druglike_logp": "logP",
    "druglike_tpsa": "TPSA",
    "druglike_mw": "MW",
}
_ROW = {field.name for field in fields(MoleculeRow)}
_ON_CARD = ("num_heavy_atoms", "p1_stable", "unique", "novel")
_MAX_EXTRA_ON_CARD = 4  # further results of the evaluation and data fields
_ORIGIN = ("seed", "index", "size", "steps")  # by which molecules can be drawn again: no reader compares them by these


@dataclass(frozen=True)
class Column:
    """A column of the table behind the page, under the name that it has in the evaluation's rows or the file."""

    key: str
    label: str
    kind: str  # "number", "bool" or "text"
    field: bool = False  # a data field of the records, not a result of the evaluation
    constant: bool = False  # the same in all of several records, so not worth a place on the cards
    hidden: bool = False  # repeats a result of the evaluation; exported all the same
    on_card: bool = False


def _columns(rows: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, str]]) -> list[Column]:
    """The columns of the table: what the evaluation says of each record, then the data fields of the file."""
    columns, shown = [], 0
    for key, values in _by_column(rows).items():
        if any(value is not None for value in values) or key in ("name", "reason"):
            kind = _kind(values)
            extra = kind == "number" and key not in _ROW and shown < _MAX_EXTRA_ON_CARD
            shown += extra
            columns.append(Column(key, _label(key), kind, on_card=key in _ON_CARD or extra))
    taken = {column.label.casefold(): column for column in columns}
    for key, values in _by_column(data).items():
        constant = len(rows) > 1 and len(set(values)) == 1
        twin = taken.get(key.casefold())
        meant = [typed(value) for value in values]
        same = twin is not None and (key == "reason" or meant == [row.get(twin.key) for row in rows])
        kind, label = _kind(meant), key if twin is None else f"{key} (in the file)"
        telling = kind != "text" and key not in _ORIGIN and not constant and twin is None
        on_card = telling and shown < _MAX_EXTRA_ON_CARD
        shown += on_card
        columns.append(Column(key, label, kind, True, constant, same, on_card))
    return columns


def _facts(columns: Sequence[Column], cells: Sequence[Cell]) -> list[tuple[str, str, Cell]]:
    """Kind, label and value of what the card of a record shows."""
    pairs = zip(columns, cells, strict=True)
    shown = [(c, typed(value) if isinstance(value, str) else value) for c, value in pairs if c.on_card]
    return [(c.kind, c.label, value) for c, value in shown if value is not None]


def _by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _label(key: str) -> str:
    protocol, _, rest = key.partition("_")
    readable = f"{protocol.upper()} {rest}" if protocol in ("p1", "p2", "p3") and rest else key
    return _LABELS.get(key, readable.replace("_", " ").replace(" smiles", " SMILES"))


def _kind(values: Sequence[Cell]) -> str:
    kinds = {type(value) for value in values} - {type(None)}
    return "bool" if kinds == {bool} else "number" if kinds and kinds <= {int, float} else "text"


def typed(text: str | None) -> Cell:
    """The value that the text of a data field stands for."""
    if text in (None, "true", "false"):
        return text and text == "true"
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _fields(record: Record) -> dict[str, str]:
    """The data fields of a record as text; what cannot be decoded is left out."""
    if record.mol is None:
        return {}
    found = {}
    for key in record.mol.GetPropNames(includePrivate=False, includeComputed=False):
        with suppress(UnicodeDecodeError, KeyError):
            found[str(key)] = str(record.mol.GetProp(key))
    return found
