"""Tables: rows wait in a nameless file until all columns are known; CSV and XLSX are written, Parquet is read, too.

Parquet has a row for each molecule with its SMILES, name and data fields. A column `atomic_numbers` has a list of
numbers, `formal_charges` one of charges (e), `coordinates` one of x, y and z of every atom (Å), `bonds` one of both
atoms, from 0, and Kekulé order of every bond.
"""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff.errors import MoldiffError, first_line
from moldiff.molecules.convert import BOND_TYPES, explicit_atom, set_positions, to_rdkit
from moldiff.molecules.formats.record import MAX_ATOMS, Columns, Fields, Part, Record, Value, field_text, finished
from moldiff.molecules.formats.smiles import Layout, header_layout, no_column, row_part
from moldiff.molecules.molecule import Molecule

_BLOCK = 1 << 20
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # which XML, and so XLSX, cannot hold
MAX_SHEET_ROWS = 2**20 - 1
"""Rows that a sheet of XLSX holds below its header."""
_ELEMENTS, _CHARGES, _PLACES, _BONDS = ATOM_COLUMNS = ("atomic_numbers", "formal_charges", "coordinates", "bonds")
_GROUP = 4096
"""Rows of a row group: some 20 MB of drug-like molecules while they are written."""


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


def atom_lists(molecule: Molecule) -> dict[str, list[Any]]:
    """The columns of a molecule's atoms, hydrogens included, and of its bonds."""
    mol = to_rdkit(molecule)
    return {
        _ELEMENTS: [atom.GetAtomicNum() for atom in mol.GetAtoms()],
        _CHARGES: [atom.GetFormalCharge() for atom in mol.GetAtoms()],
        _PLACES: mol.GetConformer().GetPositions().tolist(),
        _BONDS: [
            [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondTypeAsDouble())] for bond in mol.GetBonds()
        ],
    }


def parquet_blocks(table: TableFile) -> Iterator[bytes]:
    """The bytes of a Parquet file, which is made of one row group after the other."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    lists = (pa.int16(), pa.int8(), pa.list_(pa.float64()), pa.list_(pa.int32()))
    types = {name: pa.list_(kind) for name, kind in zip(ATOM_COLUMNS, lists, strict=True)}
    names = [*(name for name in table.columns if name not in types), *(name for name in types if name in table.columns)]
    schema = pa.schema([(name, types.get(name) or kinds[table.columns[name]]) for name in names])
    with tempfile.TemporaryFile() as file:
        with ParquetWriter(file, schema, compression="zstd") as writer:
            waiting = table.rows()
            while rows := list(islice(waiting, _GROUP)):
                columns = {name: [row.get(name) for row in rows] for name in names}
                for name in (one.name for one in schema if one.type == pa.string()):
                    columns[name] = [None if value is None else field_text(value) for value in columns[name]]
                writer.write_table(pa.table(columns, schema))
        yield from blocks(file)


def parquet_parts(path: Path, place: Path, columns: Columns) -> Iterator[Part]:
    """The records of the Parquet file at a place, read in batches: of its atoms where it has such columns, or SMILES.

    Raises MoldiffError when pyarrow is not installed, the file is no Parquet file, or it has neither.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = 'pip install "moldiff[parquet]"'
        raise MoldiffError(f"{path}: reading Parquet needs pyarrow, which is not installed: {advice}") from None
    number = 0
    try:
        file = ParquetFile(place)
        header = [field.name for field in file.schema_arrow]
        layout = header_layout(header, columns)
        if layout is None and columns.smiles is None and {_ELEMENTS, _PLACES} <= set(header):
            layout = Layout(header, -1, header.index("name") if "name" in header else None)
        if layout is None:
            raise no_column(path, header, columns)
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(1024))
        for number, values in enumerate(rows, start=1):
            yield _part(number, values, layout)
    except (ArrowException, OSError) as error:
        reason = f"cannot be read as Parquet ({first_line(error)})"
        if not number:
            raise MoldiffError(f"{path}: {reason}") from None
        yield Part.rejected(number + 1, "", f"{reason}; the rest of the file is not read")


def _part(number: int, values: Mapping[str, Any], layout: Layout) -> Part:
    """A row: of its atoms if it has them."""
    # Lists, nested tables and missing values are empty.
    cells = [field_text(value) if isinstance(value, str | int | float) else "" for value in values.values()]
    elements, places = values.get(_ELEMENTS), values.get(_PLACES)
    if not (isinstance(elements, list) and isinstance(places, list)):
        return row_part(number, cells, layout)
    name = "" if layout.name is None else cells[layout.name]
    others = zip(layout.header, cells, strict=True)
    fields = {key: cell for k, (key, cell) in enumerate(others) if k not in (layout.smiles, layout.name) and cell}
    if layout.smiles >= 0 and cells[layout.smiles]:
        fields["SMILES"] = cells[layout.smiles]
    return Part(number, _record, (name, fields, *map(values.get, ATOM_COLUMNS)), name)


def _record(
    number: int,
    name: str,
    fields: Mapping[str, str],
    elements: Sequence[int],
    charges: Sequence[int] | None,
    places: Sequence[Sequence[float]],
    bonds: Sequence[Sequence[int]] | None,
) -> Record:
    """A molecule of its lists; without bonds one of elements and coordinates alone, as of an XYZ file."""
    charges = [0] * len(elements) if charges is None else charges
    if len(elements) > MAX_ATOMS:
        return Record.rejected(number, name, f"{len(elements)} atoms, more than {MAX_ATOMS}")
    try:
        pos = np.array(places, dtype=np.float64).reshape(len(places), 3)
        mol = Chem.RWMol()
        if not len(pos) == len(elements) > 0 or not all(0 < element < 119 for element in elements):
            raise ValueError
        for element, charge in zip(elements, charges, strict=True):
            mol.AddAtom(explicit_atom(element, charge))
        for first, second, order in bonds or ():
            mol.AddBond(first, second, BOND_TYPES[order])
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError):
        expected = (
            f"{_ELEMENTS}, {_CHARGES}, {_PLACES} (x, y, z) and {_BONDS} (atom, atom, order 1 to 3) of one molecule"
        )
        return Record.rejected(number, name, f"the lists of its atoms do not fit together, expected {expected}")
    set_positions(mol, pos)
    if bonds is None:
        Fields(fields).set_on(mol)
        mol.SetProp("_Name", name)
        return Record(number, name, mol.GetMol())
    return finished(number, name, mol.GetMol(), Fields(fields))
