"""Tables that are written: rows wait in a nameless file until all columns are known; CSV and XLSX."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moldiff.molecules.formats.record import Value, field_text

_BLOCK = 1 << 20
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # which XML, and so XLSX, cannot hold
MAX_SHEET_ROWS = 2**20 - 1
"""Rows that a sheet of XLSX holds below its header."""


class TableFile:
    """The rows of a table, in a nameless file until all columns, and the kinds of their values, are known.

    `columns` are the types of their values by name: one type if all are of it, `float` of whole and other numbers, else
    `str`.
    """

    def __init__(self, folder: Path | None) -> None:
        self.columns: dict[str, type] = {}
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            kind = str if type(value) is int and not -(2**63) <= value < 2**63 else type(value)
            before = self.columns.setdefault(name, kind)
            if kind is not before:
                self.columns[name] = float if {kind, before} == {int, float} else str
        self._file.write(json.dumps(row) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, each with the values that it has."""
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)

    def close(self) -> None:
        self._file.close()


def csv_blocks(table: TableFile) -> Iterator[bytes]:
    """The bytes of a CSV file, a line at a time."""
    line = io.StringIO()
    writer = csv.DictWriter(line, list(table.columns), restval="", lineterminator="\n")
    if table.columns:
        writer.writeheader()
    for row in table.rows():
        writer.writerow({name: field_text(value) for name, value in row.items()})
        yield line.getvalue().encode("utf-8", "backslashreplace")
        line.seek(0)
        line.truncate()


def xlsx_blocks(table: TableFile) -> Iterator[bytes]:
    """The bytes of an XLSX file of one sheet; numbers are numbers, and no text is taken for a formula."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("molecules")
    sheet.freeze_panes = "A2"

    def cell(value: Value | None) -> Any:
        made = WriteOnlyCell(sheet, value=_UNPRINTABLE.sub("", value) if isinstance(value, str) else value)
        made.data_type = "s" if isinstance(value, str) else made.data_type
        return made

    sheet.append([cell(name) for name in table.columns])
    for row in table.rows():
        sheet.append([cell(_of_kind(row.get(name), kind)) for name, kind in table.columns.items()])
    with tempfile.TemporaryFile() as file:
        book.save(file)
        yield from blocks(file)


def _of_kind(value: Value | None, kind: type) -> Value | None:
    """A value as its column has it."""
    return field_text(value) if kind is str and value is not None else value


def blocks(file: Any) -> Iterator[bytes]:
    """The bytes of a file from its start, a megabyte at a time."""
    file.seek(0)
    while data := file.read(_BLOCK):
        yield data
