"""The table behind the page: what the evaluation says of each record, then the data fields of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from moldiff.evaluation.scores import MoleculeRow
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
}
_ROW = {field.name for field in fields(MoleculeRow)}
_ON_CARD = ("num_heavy_atoms", "p1_stable", "unique", "novel")
_MAX_EXTRA_ON_CARD = 4
"""Further results of the evaluation and data fields on a card."""
_ORIGIN = ("seed", "index", "size", "steps")
"""Data fields by which our own molecules can be drawn again: no reader compares molecules by them."""


@dataclass(frozen=True)
class Column:
    """A column of the table behind the page.

    Attributes:
        key: name in the evaluation's rows or of the data field.
        label: what people read.
        kind: "number", "bool" or "text".
        field: a data field of the records, not a result of the evaluation.
        constant: the same in all of several records, so not worth a place on the cards.
        hidden: repeats a result of the evaluation; exported all the same.
        on_card: shown on the cards.
    """

    key: str
    label: str
    kind: str
    field: bool = False
    constant: bool = False
    hidden: bool = False
    on_card: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what the page does not need."""
        return {name: getattr(self, name) for name in ("key", "label", "kind", "field", "constant", "hidden")}


@dataclass(frozen=True)
class Table:
    """The columns and the rows of cells in their order; data fields are the text of the file."""

    columns: list[Column]
    rows: list[list[Cell]]

    @classmethod
    def of(cls, records: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> Table:
        """Results of the evaluation first, then data fields."""
        data = [_fields(record) for record in records]
        columns, shown = [], 0
        for key, values in _by_column(rows).items():
            if any(value is not None for value in values) or key in ("name", "reason"):
                kind = _kind(values)
                extra = kind == "number" and key not in _ROW and shown < _MAX_EXTRA_ON_CARD
                shown += extra
                columns.append(Column(key, _label(key), kind, on_card=key in _ON_CARD or extra))
        taken = {column.label.casefold(): column for column in columns}
        for key, values in _by_column(data).items():
            constant = len(records) > 1 and len(set(values)) == 1
            twin = taken.get(key.casefold())
            meant = [typed(value) for value in values]
            same = twin is not None and (key == "reason" or meant == [row.get(twin.key) for row in rows])
            kind = _kind(meant)
            telling = kind != "text" and key not in _ORIGIN and not constant and twin is None
            on_card = telling and shown < _MAX_EXTRA_ON_CARD
            shown += on_card
            label = key if twin is None else f"{key} (in the file)"
            columns.append(Column(key, label, kind, True, constant, same, on_card))
        cells = [
            [known.get(c.key) if c.field else row.get(c.key) for c in columns]
            for row, known in zip(rows, data, strict=True)
        ]
        return cls(columns, cells)

    def cell(self, row: int, key: str) -> Cell:
        """A result of the evaluation; None when there is none of that name."""
        return next(
            (v for c, v in zip(self.columns, self.rows[row], strict=True) if c.key == key and not c.field), None
        )

    @property
    def constants(self) -> list[tuple[str, Cell]]:
        """Label and value of the data fields that are the same in all records."""
        return [(c.label, self.rows[0][k]) for k, c in enumerate(self.columns) if c.constant and not c.hidden]

    def facts(self, row: int) -> list[tuple[str, str, Cell]]:
        """Kind, label and value of what the card of a record shows."""
        pairs = zip(self.columns, self.rows[row], strict=True)
        shown = [(c, typed(value) if isinstance(value, str) else value) for c, value in pairs if c.on_card]
        return [(c.kind, c.label, value) for c, value in shown if value is not None]


def _by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def _label(key: str) -> str:
    protocol, _, rest = key.partition("_")
    readable = f"{protocol.upper()} {rest}" if protocol in ("p1", "p2", "p3") and rest else key
    return _LABELS.get(key, readable.replace("_", " ").replace(" smiles", " SMILES"))


def _kind(values: Sequence[Cell]) -> str:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return "bool"
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return "number"
    return "text"


def typed(text: str | None) -> Cell:
    """The value that the text of a data field stands for."""
    if text is None or text in ("true", "false"):
        return None if text is None else text == "true"
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
        try:
            found[str(key)] = str(record.mol.GetProp(key))
        except (UnicodeDecodeError, KeyError):
            continue
    return found
