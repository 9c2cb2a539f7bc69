"""The numbers of the evaluation as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from moldiff.records import Record
from moldiff.report import Report, by_protocol, format_fraction, format_value, title
from moldiff.results import MetricResult
from moldiff.view.table import Table

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
