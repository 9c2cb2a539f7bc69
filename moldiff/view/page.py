"""Puts the page together: data, drawings, numbers and scripts in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from moldiff import __version__
from moldiff.batch import Molecule
from moldiff.errors import MoldiffError
from moldiff.evaluate import evaluate
from moldiff.io import Recorded, read, write
from moldiff.records import Record
from moldiff.report import TITLES, Report, by_protocol, format_fraction, format_value
from moldiff.results import MetricResult
from moldiff.trajectory import trajectory_path, write_trajectories
from moldiff.view.cards import card
from moldiff.view.coordinates import facing, molblock
from moldiff.view.films import films
from moldiff.view.plots import Distributions, plots, reference_distributions
from moldiff.view.table import Table

_SCRIPTS = ("3Dmol-min.js", "viewer.js", "gallery.js")
_TILES = {
    "p2_valid": "valid (P2)",
    "p2_unique": "unique",
    "p2_novel": "novel",
    "p2_molecule_stable": "stable (P2)",
    "p1_molecule_stable": "stable (P1)",
}


def view(
    source: str | Path | Sequence[Molecule | Recorded],
    out: str | Path | None = None,
    *,
    reference: str | Path | None = None,
) -> Path:
    """Write molecules as one HTML page that works offline.

    Args:
        source: a file that `moldiff.io` reads, or molecules. Films come from the trajectories that
            `moldiff sample trajectory=true` writes beside its file, or that the molecules carry.
        out: the page; None = the file's name with .html, which molecules from Python do not have.
        reference: known molecules for novelty and to compare distributions with: a file of molecules, a prepared
            folder, or a model's folder.

    Returns:
        Where the page is.

    Raises:
        MoldiffError: when `source` or `reference` cannot be read, or the page cannot be written there.
    """
    if isinstance(source, str | Path):
        return _view_file(Path(source), _target(Path(source), out), Path(source).name, reference)
    if out is None:
        raise MoldiffError("out: nothing given, expected the name of the page, for example molecules.html")
    target = _target(Path(out), out)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "molecules.sdf"
        write(path, source)
        write_trajectories(trajectory_path(path), (item for item in source if not isinstance(item, Molecule)))
        return _view_file(path, target, target.stem, reference)


def _target(source: Path, out: str | Path | None) -> Path:
    target = (
        source.with_name(f"{source.name.removesuffix('.gz').rpartition('.')[0]}.html") if out is None else Path(out)
    )
    if target.suffix.lower() not in (".html", ".htm"):
        raise MoldiffError(f"out: got {target}, expected a name that ends in .html")
    if not target.parent.is_dir():
        raise MoldiffError(f"{target}: the folder {target.parent} does not exist")
    return target


def _view_file(path: Path, target: Path, title: str, reference: str | Path | None) -> Path:
    report = evaluate(path, reference=reference)
    found = read(path).records
    page = _page(title, found, report, films(path, found), reference)
    target.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return target


def _page(
    title: str, records: Sequence[Record], report: Report, shown: Mapping[int, Any], reference: str | Path | None
) -> str:
    table = Table.of(records, report.rows)
    blocks = [molblock(record) for record in records]
    cards = [
        card(index, record, table, has_block=blocks[index] is not None, has_film=index in shown)
        for index, record in enumerate(records)
    ]
    drawn = Distributions.of(record.mol for record in records if record.mol is not None)
    known = None if reference is None else reference_distributions(reference)
    data = {
        "name": title,
        "columns": [column.to_dict() for column in table.columns],
        "rows": table.rows,
        "blocks": blocks,
        "views": [facing(record) for record in records],
        "films": shown,
    }
    scripts = [_asset(name) for name in _SCRIPTS]
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        policy=" ".join(_hash(script) for script in scripts),
        style=_asset("page.css"),
        subtitle=html.escape(_subtitle(report)),
        tiles=_tiles(report),
        plots=plots(drawn, known),
        legend=_legend(title, reference),
        tables="".join(_table(*entry, report.notes) for entry in by_protocol(report.results).items()),
        constants=_constants(table),
        cards="".join(cards),
        data=_json(data),
        scripts="".join(f"<script>{script}</script>\n" for script in scripts),
        licence=html.escape(_asset("3Dmol-LICENSE.txt")),
        version=__version__,
    )


def _asset(name: str) -> str:
    return resources.files("moldiff").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that holds no character which could end its script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _subtitle(report: Report) -> str:
    count, unreadable = report.options.get("records", len(report.rows)), report.options.get("records_unreadable", 0)
    return f"{count} records" + (f", {unreadable} of them unreadable" if unreadable else "")


def _tiles(report: Report) -> str:
    found = {result.name: result for result in report.results}
    tiles = [(label, found[name]) for name, label in _TILES.items() if name in found and found[name].value is not None]
    return "".join(
        f'<div class="tile" title="{html.escape(result.definition)}"><dt>{label}</dt>'
        f"<dd>{format_value(result)} <small>{format_fraction(result)}</small></dd></div>"
        for label, result in tiles
    )


def _legend(title: str, reference: str | Path | None) -> str:
    if reference is None:
        return ""
    name = html.escape(Path(reference).name)
    return (
        f'<p class="legend"><span class="key bar"></span> {html.escape(title)} <span class="key ref"></span> {name}</p>'
    )


def _table(protocol: str, results: Sequence[MetricResult], notes: Mapping[str, str]) -> str:
    rows = [
        f"<tr><th scope='row'>{html.escape(result.name.partition('_')[2].replace('_', ' ') or result.name)}</th>"
        f"<td>{format_value(result)}</td><td>{format_fraction(result)}</td>"
        f"<td>{html.escape(notes.get(result.name) or result.definition)}</td></tr>"
        for result in results
        if "_status_" not in result.name or result.numerator
    ]
    titles = "".join(f"<th scope='col'>{title}</th>" for title in ("metric", "value", "counted", "what is counted"))
    title = html.escape(TITLES.get(protocol, protocol))
    return f"<table><caption>{title}</caption><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _constants(table: Table) -> str:
    """Data fields that are the same in all records, as a list."""
    same = [
        (column.label, table.rows[0][index])
        for index, column in enumerate(table.columns)
        if column.constant and not column.hidden
    ]
    return "".join(f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd></div>" for key, value in same)
