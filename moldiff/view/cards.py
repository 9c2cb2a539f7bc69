"""The card of a record: its drawing and the most telling of its values."""

from __future__ import annotations

import html
from collections.abc import Callable

from rdkit import Chem

from moldiff.records import Record
from moldiff.results import InvalidMolecule
from moldiff.view.coordinates import is_solid
from moldiff.view.drawing import draw
from moldiff.view.table import Cell, Table, typed


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
