"""What an evaluation came to, as terminal tables, strict JSON, CSV and Markdown.

Results are grouped by protocol, the part of their name before the first underscore. Counts (integers above and below
the line) are shown in per cent.
"""

import csv
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Column, Table

from moldiff.evaluation.metric import MetricOutput, MetricResult
from moldiff.molecules.formats.storage import encoded, shown, write_atomically

FORMAT_VERSION = 1
TOOLS = ("moldiff", "rdkit", "numpy")
TITLES = {
    "p1": "P1: bonds looked up from distances",
    "p2": "P2: bonds and charges as generated",
    "p3": "P3: bonds perceived by RDKit",
    "geometry": "Geometry: clashes and torn bonds",
    "diversity": "Diversity",
    "distribution": "Distributions against the reference",
    "neighbours": "Nearest known molecules",
    "druglike": "Drug-likeness",
    "posebusters": "PoseBusters, configuration mol",
    "fcd": "Fréchet ChemNet Distance",
    "mmff": "Relaxation with MMFF94s",
    "xtb": "Relaxation with GFN2-xTB",
    "bound": "Variational bound",
}
MISSING = "–"


class Row(NamedTuple):
    """A number in a table."""

    result: MetricResult
    label: str
    cells: list[str]  # texts of its value and of what it was taken over
    note: str | None


class Group(NamedTuple):
    """A table of one protocol."""

    title: str
    heads: list[str]  # of the cells
    rows: list[Row]


@dataclass(eq=False, repr=False)
class Report:
    """Everything an evaluation says."""

    results: list[MetricResult]
    rows: list[dict[str, Any]] = field(default_factory=list)  # one per record, in order
    options: dict[str, Any] = field(default_factory=dict)  # what was evaluated and how
    notes: dict[str, str] = field(default_factory=dict)  # why a result has no value, or what limits it, by name
    reference_results: list[MetricResult] = field(default_factory=list)  # the same numbers of reference molecules
    details: list[MetricResult] = field(default_factory=list)  # e.g. the distance of one type of bond; not in tables
    skipped: dict[str, str] = field(default_factory=dict)  # why a metric was left out, by its name
    interrupted: bool = False  # whether it ended before all was evaluated
    remarks: dict[str, int] = field(default_factory=dict)  # how many records are odd, by what is odd about them

    def add(self, name: str, found: MetricOutput) -> None:
        """Put in what a metric found."""
        for result in found.results:
            (self.details if result.name.endswith("]") else self.results).append(result)
        for column, values in found.columns.items():
            for row, value in zip(self.rows, values, strict=False):  # none, where only numbers are wanted
                row[column] = value
        self.notes |= found.notes
        self.options.setdefault("metrics", {})[name] = found.options
        self.interrupted |= found.interrupted

    def __repr__(self) -> str:
        main = [one for one in self.results if one.name in ("p2_valid", "p2_unique", "p2_novel") and one.denominator]
        said = [f"{format_value(one)} {one.name.removeprefix('p2_')}" for one in main]
        return f"<Report on {len(self.rows)} molecules: {', '.join([*said, f'{len(self.results)} numbers'])}>"

    def __getitem__(self, name: str) -> MetricResult:
        """The result or detail of that name; a `KeyError` when there is none."""
        return {result.name: result for result in (*self.details, *self.results)}[name]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; no number in it is NaN or infinite."""
        as_they_are = {name: getattr(self, name) for name in ("options", "interrupted", "skipped", "remarks")}
        document = {
            "format_version": FORMAT_VERSION,
            "versions": versions(),
            **as_they_are,
            "results": [{**result.to_dict(), "note": self.notes.get(result.name)} for result in self.results],
            "reference_results": [result.to_dict() for result in self.reference_results],
            "details": [result.to_dict() for result in self.details],
            "molecules": self.rows,
        }
        return {key: _plain(value) for key, value in document.items()}

    def tables(self) -> list[Table]:
        """One table per protocol, for a rich console."""
        tables = []
        for group in self.groups():
            heads = [Column(name, justify="right") for name in group.heads]
            table = Table("metric", *heads, title=escape(group.title), caption=_caption(group.rows))
            for row in group.rows:
                table.add_row(escape(row.label), *row.cells)
            tables.append(table)
        return tables

    def groups(self) -> list[Group]:
        """What a table of each protocol shows, the reference beside it; without counts of reasons that are 0."""
        groups = []
        for protocol, found in _by_protocol([self.results, self.reference_results]).items():
            beside = any(reference for _, reference in found.values())
            rows = []
            for name, (result, reference) in found.items():
                if result is not None:
                    texts = [format_value(result), format_fraction(result)]
                    if beside:
                        texts += [format_value(reference), format_fraction(reference)] if reference else [MISSING, ""]
                    rows.append(Row(result, _label(name), texts, self.notes.get(name)))
            heads = ["value", "counted", *(("reference", "counted") if beside else ())]
            groups += [Group(title(protocol), heads, rows)] if rows else []
        return groups

    def remark_lines(self) -> list[str]:
        """How many records have what is odd about them, a line for each kind."""
        return [f"{count} of {len(self.rows)} records: {remark}" for remark, count in self.remarks.items()]

    def markdown(self, column: str = "value") -> str:
        """The results as Markdown tables with one column of values, and one of the reference's if there are any."""
        reference = {"reference": self.reference_results} if self.reference_results else {}
        return markdown({column: self.results, **reference})

    def write(self, target: str | Path) -> list[Path]:
        """Write the report as JSON and Markdown and the rows as CSV; returns the paths.

        They are `report.json`, `report.md` and `molecules.csv` of a folder, which is made if needed; or, where `target`
        is the name of the first, NAME.json, with NAME.md and NAME.csv beside it.
        """
        return _write(target, self.to_dict(), f"{self.markdown()}\n{self.appendix()}", self.rows)

    def appendix(self) -> str:
        """What every number means, and what it was made with, as Markdown lists."""
        shown = {result.name: result.definition for result in self.results if not _is_empty_status(result)}
        lines = ["### Definitions", "", *(f"- `{name}`: {definition}" for name, definition in shown.items())]
        lines += [f"- `{name}`: {note}" for name, note in self.notes.items() if name in shown]
        lines += [f"- `{name}` left out: {reason}" for name, reason in self.skipped.items()]
        lines += ["", "### Remarks", "", *(f"- {line}" for line in self.remark_lines())] if self.remarks else []
        lines += ["", "### Made with", "", *(f"- {name} {version}" for name, version in versions().items())]
        lines += [f"- `{name}`: {value}" for name, value in _flat(self.options)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, eq=False)
class Comparison:
    """The reports on several sets of molecules, by name, side by side."""

    reports: Mapping[str, Report]

    @property
    def interrupted(self) -> bool:
        """Whether it ended before all was evaluated."""
        return any(report.interrupted for report in self.reports.values())

    @property
    def skipped(self) -> dict[str, str]:
        """Why a metric was left out, of the sets that all leave it out for that reason, by its name."""
        return dict(pair for report in self.reports.values() for pair in report.skipped.items())

    def columns(self) -> dict[str, list[MetricResult]]:
        """The results of each set and of the reference, by name."""
        found = {name: report.results for name, report in self.reports.items()}
        for report in self.reports.values():
            found |= {"reference": report.reference_results} if report.reference_results else {}
        return found

    def tables(self) -> list[Table]:
        """One table per protocol with a column for each set, for a rich console."""
        columns, tables = self.columns(), []
        for protocol, rows in _by_protocol(list(columns.values())).items():
            heads = [Column(escape(name), justify="right", overflow="fold") for name in columns]
            tables.append(Table("metric", *heads, title=escape(title(protocol))))
            for name, row in rows.items():
                tables[-1].add_row(escape(_label(name)), *map(_cell, row))
        return tables

    def remark_lines(self) -> list[str]:
        """How many records of each set have what is odd about them, a line for each kind."""
        return [f"{name}: {line}" for name, report in self.reports.items() for line in report.remark_lines()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the documents of the reports by name, under `reports`."""
        reports = {name: report.to_dict() for name, report in self.reports.items()}
        return {"format_version": FORMAT_VERSION, "versions": versions(), "reports": reports}

    def write(self, target: str | Path) -> list[Path]:
        """Write what `Report.write` does; rows begin with a column `set`."""
        text = markdown(self.columns())
        for name, report in self.reports.items():
            text += f"\n## {name}\n\n{report.appendix()}"
        rows = [{"set": name, **row} for name, report in self.reports.items() for row in report.rows]
        return _write(target, self.to_dict(), text, rows)


def _write(target: str | Path, document: Mapping[str, Any], text: str, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    target = Path(target)
    paths = [target / name for name in ("report.json", "report.md", "molecules.csv")]
    if target.suffix.lower() == ".json":
        paths = [target, target.with_suffix(".md"), target.with_suffix(".csv")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    write_json(paths[0], document)
    write_atomically(paths[1], encoded(text))
    write_csv(paths[2], rows)
    return paths


def _flat(options: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested options by dotted name."""
    pairs: list[tuple[str, Any]] = []
    for name, value in options.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return pairs


def versions() -> dict[str, str]:
    """Versions of the tools that decide the numbers."""
    return {"python": platform.python_version(), **{tool: metadata.version(tool) for tool in TOOLS}}


def write_json(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write strict JSON: numbers that are not finite become null."""
    text = json.dumps(_plain(document), allow_nan=False, indent=1, ensure_ascii=False)
    write_atomically(Path(path), encoded(text + "\n"))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per row under the names that rows have; None is an empty cell."""
    file = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(_plain(rows))
    write_atomically(Path(path), encoded(file.getvalue()))


def _by_protocol(columns: Sequence[Sequence[MetricResult]]) -> dict[str, dict[str, list[MetricResult | None]]]:
    """Results of the same name beside one another, by protocol; without counts of reasons that are 0 in all."""
    by_name: dict[str, list[MetricResult | None]] = {}
    for k, results in enumerate(columns):
        for result in results:
            by_name.setdefault(result.name, [None] * len(columns))[k] = result
    groups: dict[str, dict[str, list[MetricResult | None]]] = {}
    for name, row in by_name.items():
        rows = groups.setdefault(name.partition("_")[0], {})
        if not all(map(_is_empty_status, row)):
            rows[name] = row
    return groups


def format_value(result: MetricResult) -> str:
    """The value for people: counts in per cent, anything else in four digits and its unit, a dash for none."""
    value = result.value
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.2f} %" if _is_count(result) else f"{value:.4g} {result.unit}".rstrip()


def format_fraction(result: MetricResult) -> str:
    """Numerator / denominator for people, or over how many items the number was taken."""
    if _is_count(result):
        return f"{result.numerator:.0f}/{result.denominator:.0f}"
    return f"{result.numerator:g}/{result.denominator:g}" if result.counted is None else f"{result.counted}"


def markdown(columns: Mapping[str, Sequence[MetricResult]]) -> str:
    """Markdown tables, one per protocol, with a column per list of results and a row per metric.

    A metric that a column lacks shows a dash; counts of reasons (`*_status_*`) that are 0 in all are left out.
    """
    lines: list[str] = []
    for protocol, rows in _by_protocol(list(columns.values())).items():
        lines += [f"### {title(protocol)}", "", "| metric | " + " | ".join(columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        lines += [f"| {_label(name)} | " + " | ".join(map(_cell, row)) + " |" for name, row in rows.items()]
        lines.append("")
    return "\n".join(lines)


def _cell(result: MetricResult | None) -> str:
    if result is None or result.value is None:
        return MISSING
    taken_over = format_fraction(result) if _is_count(result) else f"over {result.counted}" if result.counted else ""
    return f"{format_value(result)} ({taken_over})" if taken_over else format_value(result)


def summary_table(results: Sequence[MetricResult], *, asked: int, drawn: int, path: str | Path | None) -> Table:
    """What a sampling run came to: asked, drawn (the rejected included), valid, unique, novel, reasons and the file."""
    table = Table("", Column(justify="right"), Column(justify="right"), title="Sampling", show_header=False)
    table.add_row("asked", str(asked), "")
    table.add_row("drawn", str(drawn), "")
    found = {result.name: result for result in results}
    of_task = [name for name in found if name.startswith(("repair_", "task_")) and "_status_" not in name]
    for name in ("p2_valid", "p2_connected", "p2_unique", "p2_novel", *of_task):
        if name in found:
            table.add_row(escape(_label(name)), format_fraction(found[name]), format_value(found[name]))
    for name, result in found.items():
        if "_status_" in name and result.numerator:
            table.add_row(escape(f"rejected: {name.partition('_status_')[2]}"), f"{result.numerator:.0f}", "")
    table.add_row("written to", MISSING if path is None else escape(shown(path)), "")
    return table


def title(protocol: str) -> str:
    """The heading of a group of results; options in the name, as in "p3[charge=-1]", are shown."""
    name, bracket, options = protocol.partition("[")
    return TITLES.get(name, name) + (f" ({options.removesuffix(']')})" if bracket else "")


def _caption(rows: Sequence[Row]) -> str | None:
    """Why results have no value, each reason once; None = all have one."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.note is not None and row.result.value is None and not _is_empty_status(row.result):
            labels.setdefault(row.note, []).append(row.label)
    return escape("\n".join(f"{MISSING} {', '.join(names)}: {note}" for note, names in labels.items())) or None


def _label(name: str) -> str:
    """A readable name without the protocol, which the table's title gives."""
    return name.partition("_")[2].replace("status_", "rejected: ").replace("_", " ") or name


def _is_count(result: MetricResult) -> bool:
    return isinstance(result.numerator, int) and isinstance(result.denominator, int)


def _is_empty_status(result: MetricResult | None) -> bool:
    return result is None or ("_status_" in result.name and not result.numerator)


def _plain(value: Any) -> Any:
    """JSON-ready copy: mappings, sequences and NumPy scalars become plain, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
