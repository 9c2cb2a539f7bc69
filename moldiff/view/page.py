"""Puts the page together: data, drawings, numbers and scripts in one file that loads nothing.

The card of a record: its drawing and the most telling of its values.

The numbers of the evaluation as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from rdkit import Chem

from moldiff import __version__
from moldiff.errors import MoldiffError
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.report import Report, by_protocol, format_fraction, format_value, title
from moldiff.evaluation.result import MetricResult
from moldiff.evaluation.suite import Choice, OnMetric
from moldiff.molecules.formats.completion import completed_record
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.record import Record
from moldiff.molecules.formats.storage import write_atomically
from moldiff.molecules.formats.writer import Recorded, write
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.sampling.trajectory import trajectory_path, write_trajectories
from moldiff.view.conformers3d import facing, films, is_solid, molblock
from moldiff.view.depict import draw
from moldiff.view.histograms import Distributions, plots, reference_distributions
from moldiff.view.table import Cell, Table, typed

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
        report = evaluate(path, reference=reference, metrics=metrics, hydrogens=hydrogens, on_progress=on_progress)
        return _write(path, target, path.name, report, reference)
    if out is None:
        raise MoldiffError("out: nothing given, expected the name of the page, for example molecules.html")
    target = target_of(Path(out), out)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "molecules.sdf"
        write(path, source)
        write_trajectories(trajectory_path(path), (item for item in source if not isinstance(item, Molecule)))
        report = evaluate(path, reference=reference, metrics=metrics, hydrogens=hydrogens, on_progress=on_progress)
        return _write(path, target, target.stem, report, reference)


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


def _write(path: Path, target: Path, name: str, report: Report, reference: str | Path | None) -> Path:
    found = read(path).records
    if report.options["hydrogens"] == "add":
        found = [completed_record(record) for record in found]
    page = _page(name, found, report, films(path, found), reference)
    write_atomically(target, page.encode("utf-8", "replace"))
    return target


def _page(
    name: str, records: Sequence[Record], report: Report, shown: Mapping[int, Any], reference: str | Path | None
) -> str:
    table = Table.of(records, report.to_dict()["molecules"])
    blocks = [molblock(record) for record in records]
    cards = [
        card(index, record, table, has_block=blocks[index] is not None, has_film=index in shown)
        for index, record in enumerate(records)
    ]
    drawn = Distributions.of(record.mol for record in records if record.mol is not None)
    known = None if reference is None else reference_distributions(reference)
    data = {
        "name": name,
        "columns": [column.to_dict() for column in table.columns],
        "rows": table.rows,
        "blocks": blocks,
        "views": [facing(record) for record in records],
        "films": shown,
    }
    scripts = [_asset(name) for name in _SCRIPTS]
    return Template(_asset("page.html")).substitute(
        title=html.escape(name),
        policy=" ".join(_hash(script) for script in scripts),
        style=_asset("page.css"),
        subtitle=html.escape(subtitle(records)),
        tiles=tiles(report),
        plots=plots(drawn, known),
        legend=legend(name, reference),
        tables=tables(report),
        constants=constants(table),
        cards="".join(cards),
        data=_json(data),
        scripts="".join(f"<script>{script}</script>\n" for script in scripts),
        licence=html.escape(_asset("3Dmol-LICENSE.txt")),
        version=__version__,
    )


def _asset(name: str) -> str:
    return resources.files("moldiff.view").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that holds no character which could end its script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def card(index: int, record: Record, table: Table, *, has_block: bool, has_film: bool) -> str:
    """The card of a record as HTML; all text from the file is escaped.

    Args:
        index: of the record, from 0.
        record: the record.
        table: holds its numbers.
        has_block: it can be exported.
        has_film: there is a film of it.
    """
    name = html.escape(record.name or f"record {record.number}")
    status, reason = str(table.cell(index, "status")), str(table.cell(index, "reason") or "")
    geometry = table.cell(index, "geometry_status")
    if status == "ok" and geometry not in (None, "ok"):
        reason = f"geometry: {geometry}"
    drawn, text = _drawn(index, record, table)
    smiles = html.escape(text)
    picture = None if drawn is None else draw(drawn, f"2D drawing of {record.name}", _fault(record, status))
    verdict = (
        '<span class="ok">✓ valid</span>' if status == "ok" else f'<span class="bad">✗ {html.escape(status)}</span>'
    )
    if drawn is not record.mol:
        verdict, reason = "<span>bonds looked up from distances</span>", ""
    details = "Details" if record.mol is None or not is_solid(record.mol) else "3D and details"
    film = '<span class="film" title="has a film from noise to molecule">▶ film</span>' if has_film else ""
    return (
        f'<li class="card" id="m{index}"><div class="pic">{picture or "<p>no drawing</p>"}</div>'
        f'<h2 title="{name}">{name}</h2>'
        f'<p class="status">{verdict}{film}<span class="reason">{html.escape(reason)}</span></p>'
        f'<p class="smiles" title="{smiles}"><code>{smiles}</code></p><ul class="facts">{_facts(index, table)}</ul>'
        f'<p class="acts"><label><input type="checkbox" class="pick" data-i="{index}"'
        f' aria-label="Select {name}"{"" if has_block else " disabled"}> Select</label>'
        f'<button type="button" class="open" data-i="{index}" aria-label="{details} of {name}">{details}</button>'
        "</p></li>"
    )


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


def _facts(index: int, table: Table) -> str:
    parts = []
    for column, value in zip(table.columns, table.rows[index], strict=True):
        shown = typed(value) if isinstance(value, str) else value
        if column.on_card and shown is not None:
            parts.append(_FACTS[column.kind](html.escape(column.label), shown))
    return "".join(parts)


def _number_fact(label: str, value: Cell) -> str:
    return f"<li>{label} <b>{value:.4g}</b></li>" if isinstance(value, float) else f"<li>{label} <b>{value}</b></li>"


def _bool_fact(label: str, value: Cell) -> str:
    return f'<li class="yes">✓ {label}</li>' if value else f'<li class="no">✗ {label}</li>'


_FACTS: dict[str, Callable[[str, Cell], str]] = {
    "number": _number_fact,
    "bool": _bool_fact,
    "text": lambda label, value: f"<li>{label} <b>{html.escape(str(value))}</b></li>",
}

_TILES = {
    "p2_valid": "valid (P2)",
    "p2_unique": "unique",
    "p2_novel": "novel",
    "p2_molecule_stable": "stable (P2)",
    "p1_molecule_stable": "stable (P1)",
}


def subtitle(records: Sequence[Record]) -> str:
    """How many records there are."""
    unreadable = sum(record.mol is None for record in records)
    return f"{len(records)} records" + (f", {unreadable} of them unreadable" if unreadable else "")


def tiles(report: Report) -> str:
    """The few numbers that everyone asks for first."""
    found = {result.name: result for result in report.results}
    shown = [(label, found[name]) for name, label in _TILES.items() if name in found and found[name].value is not None]
    return "".join(
        f'<div class="tile" title="{html.escape(result.definition)}"><dt>{label}</dt>'
        f"<dd>{format_value(result)} <small>{format_fraction(result)}</small></dd></div>"
        for label, result in shown
    )


def legend(name: str, reference: str | Path | None) -> str:
    """What the colours of the plots mean; empty without a reference."""
    if reference is None:
        return ""
    known = html.escape(Path(reference).name)
    return (
        f'<p class="legend"><span class="key bar"></span> {html.escape(name)} <span class="key ref"></span> {known}</p>'
    )


def tables(report: Report) -> str:
    """All numbers, a table for every protocol."""
    return "".join(_table(name, group, report) for name, group in by_protocol(report.results).items())


def _table(protocol: str, results: Sequence[MetricResult], report: Report) -> str:
    """The numbers of a protocol, with those of the reference beside them where there are any."""
    beside = {result.name: result for result in report.reference_results if result.name.startswith(f"{protocol}_")}
    rows = []
    for result in results:
        both = [result, beside.get(result.name)] if beside else [result]
        if "_status_" in result.name and not any(one.numerator for one in both if one):
            continue
        label = result.name.partition("_")[2].replace("_", " ") or result.name
        cells = [cell for one in both for cell in ((format_value(one), format_fraction(one)) if one else ("", ""))]
        shown = "".join(f"<td class='number'>{html.escape(cell)}</td>" for cell in cells)
        what = html.escape(report.notes.get(result.name) or result.definition)
        rows.append(f"<tr><th scope='row'>{html.escape(label)}</th>{shown}<td class='what'>{what}</td></tr>")
    heads = ["metric", "value", "counted", *(("reference", "counted") if beside else ()), "what is counted"]
    head = "".join(f"<th scope='col'>{text}</th>" for text in heads)
    caption = html.escape(title(protocol))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def constants(table: Table) -> str:
    """Data fields that are the same in all records, as a list."""
    same = [
        (column.label, table.rows[0][index])
        for index, column in enumerate(table.columns)
        if column.constant and not column.hidden
    ]
    return "".join(f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd></div>" for key, value in same)
