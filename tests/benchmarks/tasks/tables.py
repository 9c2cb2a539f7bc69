"""Tables of documents, written from the JSON of measurements: a number in them was never typed.

A document has a place for each table, between `<!-- benchmark: NAME -->` and `<!-- end -->`; the numbers are those of
`benchmarks/NAME.json` beside the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.report import MISSING, markdown

_PLACE = re.compile(r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

_WIDTH = 120

PUBLISHED: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "EDM": ("arXiv:2203.17003", {"alpha": 2.76, "gap": 655, "homo": 356, "lumo": 584, "mu": 1.111, "cv": 1.101}),
    "JODO": ("arXiv:2305.12347", {"alpha": 1.42, "gap": 335, "homo": 226, "lumo": 256, "mu": 0.628, "cv": 0.581}),
    "EDM's number of atoms": (
        "arXiv:2203.17003",
        {"alpha": 3.86, "gap": 866, "homo": 426, "lumo": 813, "mu": 1.053, "cv": 1.971},
    ),
    "EDM's classifier on real molecules": (
        "arXiv:2203.17003",
        {"alpha": 0.10, "gap": 64, "homo": 39, "lumo": 36, "mu": 0.043, "cv": 0.040},
    ),
}
"""Mean absolute errors that others print, in the units of `tests.benchmarks.tasks.properties.SHOWN_UNITS`."""


def refresh(folder: Path) -> list[Path]:
    """Write the tables of all documents of a folder anew; returns the documents that have changed."""
    changed = []
    for path in sorted(folder.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = _PLACE.sub(lambda found: f"{found[1]}{_table(folder, found[2])}{found[3]}", before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def keep(folder: Path, name: str, document: Mapping[str, Any]) -> Path:
    """Put the JSON of a measurement where the documents of a folder look for it."""
    target = folder / "benchmarks" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: value for key, value in document.items() if key != "details"}, indent=1, ensure_ascii=False)
    target.write_text(text + "\n", encoding="utf-8")
    return target


def into_card(folder: Path, card: Path) -> None:
    """Put the table of the property targets into a model's card, behind the rest of it or where it was before.

    Args:
        folder: of the documents whose numbers are taken.
        card: `card.md` of the model; made if there is none.
    """
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {card.parent.name}\n"
    places = {found[2] for found in _PLACE.finditer(text)}
    for name, heading in _ERRORS.items():
        if name not in places and (folder / "benchmarks" / f"{name}.json").is_file():
            text = f"{text.rstrip()}\n\n{heading}\n\n<!-- benchmark: {name} -->\n<!-- end -->\n"
    written = _PLACE.sub(lambda found: f"{found[1]}{_table(folder, found[2])}{found[3]}", text)
    card.write_text(written, encoding="utf-8")


_ERRORS = {
    "properties": """## Property targets

Mean absolute errors of molecules that were drawn for sizes and values of training molecules, as a
predictor judges them that has learnt from the other half of the data; the protocol is that of arXiv:2203.17003.""",
    "candidates": """## Property targets, chosen among candidates

The same where several candidates are drawn for each molecule, and the nearest to the values is taken. Another
predictor, which has learnt from the generator's half of the data, says which that is.""",
}
"""Measurements that are tables of errors, and how they are introduced in a card."""


def _table(folder: Path, name: str) -> str:
    path = folder / "benchmarks" / f"{name}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    document = json.loads(path.read_text(encoding="utf-8"))
    columns = {column: [_result(row) for row in rows] for column, rows in document["results"].items()}
    text = errors(columns) if name in _ERRORS else markdown(columns).partition("\n\n")[2].strip() + "\n"
    return f"{text}\n{_made_with(document['options'], document['versions'])}\n"


def _result(row: Mapping[str, Any]) -> MetricResult:
    numerator = float("nan") if row["numerator"] is None else row["numerator"]  # of a median of nothing
    return MetricResult(row["name"], numerator, row["denominator"], row["definition"], row["counted"], row["unit"])


def _made_with(options: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """One line that says what the numbers were made with."""
    parts = [f"{name} {value}" for name, value in options.items()]
    parts += [f"{name} {version}" for name, version in versions.items()]
    return fill(f"Made with: {', '.join(parts)}.", _WIDTH, break_on_hyphens=False)


def errors(columns: Mapping[str, Sequence[MetricResult]]) -> str:
    """Mean absolute errors: a column for each property, a row for each maker, and for what others print."""
    own = {maker: {one.name.removesuffix("_mae"): one for one in results} for maker, results in columns.items()}
    names = [one.name.removesuffix("_mae") for one in columns["moldiff"] if one.name.endswith("_mae")]
    heads = [f"{name} ({own['moldiff'][name].unit})" for name in names]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(names) + 1) + "|"]
    for maker, found in own.items():
        lines.append(f"| {_OWN[maker]} | " + " | ".join(_number(found[name].value) for name in names) + " |")
    for maker, (source, values) in PUBLISHED.items():
        lines.append(f"| {maker} ({source}) | " + " | ".join(_number(values.get(name)) for name in names) + " |")
    for kind, what in (("valid", "P2-valid"), ("judged", "with atoms that the predictor knows")):
        shares = [own["moldiff"][f"{name}_{kind}"] for name in names]
        cells = [MISSING if one.value is None else f"{100 * one.value:.1f} %" for one in shares]
        lines.append(f"| of moldiff's molecules {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_OWN = {
    "moldiff": "**moldiff**",
    "predictor on test": "our predictor on real molecules (the floor)",
    "number of atoms": "from the number of atoms alone, ours",
    "random": "values of other molecules, ours",
}


def _number(value: float | None) -> str:
    """Three digits, and none behind the point that mean nothing."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
