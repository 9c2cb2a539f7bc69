"""What the page knows of each record: its table of columns, and the card that shows the most telling ones."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from scipy.spatial.transform import Rotation

from moldiff.records import Record
from moldiff.results import InvalidMolecule
from moldiff.view.drawing import draw

Cell = str | float | int | bool | None

_LABELS = {
    "number": "record",
    "smiles": "SMILES",
    "num_heavy_atoms": "heavy atoms",
    "num_atoms": "atoms",
    "num_fragments": "fragments",
}
_ON_CARD = ("num_heavy_atoms", "p1_stable", "unique", "novel")
_MAX_FIELDS_ON_CARD = 4
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
        fields = [_fields(record) for record in records]
        columns = [
            Column(key, _label(key), _kind(values), on_card=key in _ON_CARD)
            for key, values in _by_column(rows).items()
            if any(value is not None for value in values) or key in ("name", "reason")
        ]
        taken = {column.label.casefold(): column for column in columns}
        shown = 0
        for key, values in _by_column(fields).items():
            constant = len(records) > 1 and len(set(values)) == 1
            twin = taken.get(key.casefold())
            typed = [_typed(value) for value in values]
            same = twin is not None and (key == "reason" or typed == [row.get(twin.key) for row in rows])
            kind = _kind(typed)
            telling = kind != "text" and key not in _ORIGIN and not constant and twin is None
            on_card = telling and shown < _MAX_FIELDS_ON_CARD
            shown += on_card
            label = key if twin is None else f"{key} (in the file)"
            columns.append(Column(key, label, kind, True, constant, same, on_card))
        cells = [
            [known.get(c.key) if c.field else row.get(c.key) for c in columns]
            for row, known in zip(rows, fields, strict=True)
        ]
        return cls(columns, cells)

    def cell(self, row: int, key: str) -> Cell:
        """A result of the evaluation; None when there is none of that name."""
        return next(
            (v for c, v in zip(self.columns, self.rows[row], strict=True) if c.key == key and not c.field), None
        )


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


def _typed(text: str | None) -> Cell:
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
    fields = {}
    for key in record.mol.GetPropNames(includePrivate=False, includeComputed=False):
        try:
            fields[str(key)] = str(record.mol.GetProp(key))
        except (UnicodeDecodeError, KeyError):
            continue
    return fields


def molblock(record: Record) -> str | None:
    """The record's MOL block; None when it could not be parsed or has no 3D coordinates."""
    if record.mol is None or not has_coordinates(record.mol):
        return None
    mol = Chem.Mol(record.mol)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > 999
        try:
            return str(Chem.MolToMolBlock(mol, includeStereo=False, forceV3000=large))
        except Chem.KekulizeException:
            return str(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False, forceV3000=large))


def facing(record: Record) -> list[float] | None:
    """The quaternion (x, y, z, w) that turns the molecule's broadest side to the viewer; None without coordinates."""
    if record.mol is None or not has_coordinates(record.mol):
        return None
    pos = record.mol.GetConformer().GetPositions()
    if len(pos) < 3 or not np.isfinite(pos).all():
        return None
    axes = np.linalg.svd(pos - pos.mean(0), full_matrices=True)[2]
    axes[2] *= np.linalg.det(axes)  # a rotation, not a mirror
    return [round(float(number), 4) for number in Rotation.from_matrix(axes).as_quat()]


def has_coordinates(mol: Chem.Mol) -> bool:
    """Whether the molecule lies in space."""
    return bool(mol.GetNumConformers()) and (mol.GetNumAtoms() == 1 or bool(mol.GetConformer().Is3D()))


def card(index: int, record: Record, table: Table, *, has_block: bool, has_film: bool) -> str:
    """The card of a record as HTML; all text from the file is escaped."""
    name = html.escape(record.name or f"record {record.number}")
    status, reason = str(table.cell(index, "status")), str(table.cell(index, "reason") or "")
    geometry = table.cell(index, "geometry_status")
    if status == "ok" and geometry not in (None, "ok"):
        reason = f"geometry: {geometry}"
    only_distances = record.mol is not None and record.mol.GetNumBonds() == 0
    smiles = html.escape(str(table.cell(index, "p1_smiles" if only_distances else "smiles") or ""))
    picture = None if record.mol is None else draw(record.mol, f"2D drawing of {record.name}", _fault(record, status))
    verdict = (
        '<span class="ok">✓ valid</span>' if status == "ok" else f'<span class="bad">✗ {html.escape(status)}</span>'
    )
    details = "3D and details" if has_block else "Details"
    film = '<span class="film" title="has a film from noise to molecule">▶ film</span>' if has_film else ""
    return (
        f'<li class="card" id="m{index}"><div class="pic">{picture or "<p>no drawing</p>"}</div>'
        f'<h3 title="{name}">{name}</h3>'
        f'<p class="status">{verdict}{film}<span class="reason">{html.escape(reason)}</span></p>'
        f'<p class="smiles" title="{smiles}"><code>{smiles}</code></p><ul class="facts">{_facts(index, table)}</ul>'
        f'<p class="acts"><label><input type="checkbox" class="pick" data-i="{index}"'
        f' aria-label="Select {name}"{"" if has_block else " disabled"}> Select</label>'
        f'<button type="button" class="open" data-i="{index}" aria-label="{details} of {name}">{details}</button>'
        "</p></li>"
    )


def _fault(record: Record, status: str) -> int | None:
    """The atom that the check names, as the record counts it."""
    problem = None if status == "ok" else record.molecule()
    return problem.atom if isinstance(problem, InvalidMolecule) else None


def _facts(index: int, table: Table) -> str:
    parts = []
    for column, value in zip(table.columns, table.rows[index], strict=True):
        shown = _typed(value) if isinstance(value, str) else value
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
