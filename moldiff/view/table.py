"""The table behind a page: what the evaluation says of each record, and the data fields of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from moldiff.evaluation.molecule_set import MoleculeRow
from moldiff.molecules.formats.record import Record

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
    "druglike_pains": "PAINS",
    "druglike_nibr": "NIBR alert",
    "druglike_unstable": "unstable",
}
_ROW = {field.name for field in fields(MoleculeRow)}
_ON_CARD = ("num_heavy_atoms", "druglike_qed", "druglike_sa", "druglike_logp", "unique", "novel")
ALERTS = ("druglike_pains", "druglike_nibr", "druglike_unstable", "hazard")
"""Columns whose text is a warning."""
_MAX_EXTRA_ON_CARD = 4  # further results of the evaluation and data fields
_ORIGIN = ("seed", "index", "size", "steps")  # by which molecules can be drawn again: no reader compares them by these
# Of how they were drawn.
_DETAILS = ("replaced_hydrogens", "restarts", "attach", "input_record", "noise", "stable", "attached")


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


def columns_of(rows: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, str]], *, lookup: bool) -> list[Column]:
    """The columns: what the evaluation says of each record, then the data fields.

    `lookup`: whether what protocol P1 says, which knows only the bonds of QM9, belongs on the cards.
    """
    columns, shown = [], 0
    on_card = {*_ON_CARD, *ALERTS, *(["p1_stable"] if lookup else [])}
    for key, values in _by_column(rows).items():
        if any(value is not None for value in values) or key in ("name", "reason"):
            kind = _kind(values)
            other = kind == "number" and key not in _ROW and not key.startswith("druglike_")
            extra = other and shown < _MAX_EXTRA_ON_CARD
            shown += extra
            same = kind == "bool" and len(rows) > 1 and len(set(values)) == 1
            columns.append(Column(key, _label(key), kind, on_card=(key in on_card and not same) or extra))
    taken = {column.label.casefold(): column for column in columns}
    for key, values in _by_column(data).items():
        constant = len(rows) > 1 and len(set(values)) == 1
        twin = taken.get(key.casefold())
        meant = [typed(value) for value in values]
        same = twin is not None and (key == "reason" or meant == [row.get(twin.key) for row in rows])
        kind, label = _kind(meant), key if twin is None else f"{key} (in the file)"
        telling = kind != "text" and key not in (*_ORIGIN, *_DETAILS) and not constant and twin is None
        extra = telling and shown < _MAX_EXTRA_ON_CARD
        shown += extra
        columns.append(Column(key, label, kind, True, constant, same, extra or key in ALERTS))
    return columns


def facts(columns: Sequence[Column], cells: Sequence[Cell]) -> list[tuple[str, str, Cell]]:
    """Kind, label and value of what the card of a record shows; the kind of a warning is "alert"."""
    found: list[tuple[str, str, Cell]] = []
    for column, value in zip(columns, cells, strict=True):
        shown = typed(value) if isinstance(value, str) else value
        if column.on_card and shown not in (None, "", "none"):
            found.append(("alert" if column.key in ALERTS else column.kind, column.label, shown))
    return found


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


def data_fields(record: Record) -> dict[str, str]:
    """The data fields of a record as text; what cannot be decoded is left out."""
    if record.mol is None:
        return {}
    found = {}
    for key in record.mol.GetPropNames(includePrivate=False, includeComputed=False):
        with suppress(UnicodeDecodeError, KeyError):
            found[str(key)] = str(record.mol.GetProp(key))
    return found
