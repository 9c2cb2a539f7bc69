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
from moldiff.completion import completed_record
from moldiff.errors import MoldiffError
from moldiff.evaluation import evaluate
from moldiff.io import Recorded, read, write
from moldiff.metrics.suite import Choice, OnMetric
from moldiff.records import Record
from moldiff.report import Report
from moldiff.storage import write_atomically
from moldiff.trajectory import trajectory_path, write_trajectories
from moldiff.view.cards import card
from moldiff.view.coordinates import facing, molblock
from moldiff.view.films import films
from moldiff.view.plots import Distributions, plots, reference_distributions
from moldiff.view.summary import constants, legend, subtitle, tables, tiles
from moldiff.view.table import Table

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
        source: a file that `moldiff.io` reads, or molecules. Films come from the trajectories that
            `moldiff sample trajectory=true` writes beside its file, or that the molecules carry.
        out: the page; None = the file's name with .html, which molecules from Python do not have.
        reference: known molecules for novelty and to compare distributions with: a file of molecules, a prepared
            folder, or a model's folder.
        metrics: what else is measured, see `moldiff.evaluation.evaluate`; each molecule's numbers become columns.
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
