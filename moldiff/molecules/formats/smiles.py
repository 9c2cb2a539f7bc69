"""SMILES: files of lines, and tables (CSV and TSV with any usual separator, header or not, and Parquet)."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.record import (
    DEFAULT_COLUMNS,
    SMILES_NAMES,
    Columns,
    Lines,
    Part,
    Record,
    finished,
    gathered,
    plain,
    rejected,
    rejected_part,
    set_fields,
)
from moldiff.molecules.formats.storage import encoded
from moldiff.molecules.identity import smiles
from moldiff.molecules.molecule import Molecule

_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?$')
"""The first line that Excel reads and writes to say how cells are separated."""

INCHI_NAMES = ("inchi", "standard_inchi", "std_inchi", "inchi_string")
_NAME_NAMES = ("name", "title", "id", "identifier", "compound", "iupac")
_SAMPLE_ROWS = 20
_MAX_FIELD = 2**24
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


class _Layout(NamedTuple):
    """Where a table has its SMILES (or InChI) and names, and how to read its cells.

    `has_header` = the first row is no molecule; `decimal_comma` = numbers are written like 0,25.
    """

    header: list[str]
    smiles: int
    name: int | None
    has_header: bool = True
    decimal_comma: bool = False


def table_parts(lines: Iterable[str], path: Path, columns: Columns) -> Iterator[Part]:
    """The records of a CSV or TSV file; blank lines and leading lines that start with # are left out.

    A first line such as `sep=;` says what the separator is. Where cells are not separated by commas, numbers may have
    a decimal comma, unless one of the first rows has a decimal point.

    Raises:
        MoldiffError: naming the columns found, when none holds SMILES or has the name asked for.
    """
    stream = _without_comments(line for line in lines if line.strip())
    sample = list(islice(stream, 1))
    said = _SEPARATOR_LINE.match(sample[0].strip("\r\n ")) if sample else None
    sample = [*([] if said else sample), *islice(stream, _SAMPLE_ROWS)]
    if not sample:
        return
    separator, layout = _find_layout(sample, path, columns, said[1] if said else None)
    layout = layout._replace(decimal_comma=_has_decimal_commas(sample, separator))
    text = (f"{line}\n" for line in chain(sample, stream))
    rows = _rows(text, separator, skipinitialspace=True)
    number = 0
    try:
        if layout.has_header:
            next(rows)
        for number, cells in enumerate(rows, start=1):
            yield _row_part(number, cells, layout)
    except csv.Error as error:
        yield rejected_part(number + 1, "", f"malformed table: {error}; the rest of the file is not read")


def _rows(lines: Iterable[str], separator: str, *, skipinitialspace: bool = False) -> Iterator[list[str]]:
    """Rows of a table whose cells may be long; the limit that all users of `csv` share is as before behind each."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=skipinitialspace)
    while True:
        before = csv.field_size_limit(_MAX_FIELD)
        try:
            cells = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if cells is None:
            return
        yield cells


def _without_comments(lines: Iterator[str]) -> Iterator[str]:
    first = next((line for line in lines if not line.startswith("#")), None)
    return lines if first is None else chain([first], lines)


def names_smiles(line: str) -> bool:
    """Whether a line is the header of a table, with separators, that names a column of SMILES."""
    rows = [_cells(line, separator) for separator in _SEPARATORS]
    return any(len(row) > 1 and _find(row, SMILES_NAMES, "smiles") is not None for row in rows)


def _find_layout(sample: Sequence[str], path: Path, columns: Columns, said: str | None) -> tuple[str, _Layout]:
    """The separator, which the file may have said, and the layout that fit the first lines of a table."""
    header = {separator: _cells(sample[0], separator) for separator in ([said] if said else _SEPARATORS)}
    # The separator with the most cells comes first, but a header that names the SMILES decides.
    order = sorted(header, key=lambda separator: -len(header[separator]))
    if path.name.lower().removesuffix(".gz").endswith(".tsv") and not said:
        order = ["\t"]
    several = [separator for separator in order if len(header[separator]) > 1]
    spaced = [" "] if sample[0].split()[0].lower() in SMILES_NAMES else []
    for separator in [*several, *spaced, order[0]]:
        cells = sample[0].split() if separator == " " else header[separator]
        if _has(cells, columns.smiles) and _has(cells, columns.name):
            column = _molecule_column(cells, columns.smiles)
            if column is not None:
                return separator, _Layout(cells, column, _name_column(cells, columns.name))
    if columns == DEFAULT_COLUMNS:
        for separator in order:
            found = _headless(list(_rows(sample, separator)))
            if found is not None:
                return separator, found
    raise _no_column(path, header[order[0]], columns)


def _no_column(path: Path, header: Sequence[str], columns: Columns) -> MoldiffError:
    asked = [name for name in (columns.smiles, columns.name) if name is not None and not _has(header, name)]
    missing = f"no column {asked[0]!r}" if asked else "no column of SMILES found"
    hint = "" if asked else "; smiles_column=NAME says which one it is"
    shown = ", ".join(repr(cell[:40]) for cell in header[:20])
    return MoldiffError(f"{path}: {missing}; columns found: {shown}{hint}")


def _cells(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(_rows([line], separator), [])]
    except csv.Error:
        return []


def _has(cells: Sequence[str], name: str | None) -> bool:
    return name is None or name in cells


def _position(cells: Sequence[str], asked: str | None, known: Sequence[str], part: str = "") -> int | None:
    return cells.index(asked) if asked is not None else _find(cells, known, part)


def _molecule_column(cells: Sequence[str], asked: str | None) -> int | None:
    """The column of molecules: the one asked for, else that of SMILES, else that of InChI."""
    column = _position(cells, asked, SMILES_NAMES, "smiles")
    return _find(cells, INCHI_NAMES) if column is None else column


def _name_column(cells: Sequence[str], asked: str | None) -> int | None:
    """The column of names: the one asked for, one with a usual header, else one with "name" or "_id" in it."""
    column = _position(cells, asked, _NAME_NAMES, "name")
    return _find(cells, (), "_id") if column is None else column


def _find(cells: Sequence[str], known: Sequence[str], part: str = "") -> int | None:
    """The first cell that is one of the known names, in their order, else the first that contains `part`."""
    names = [plain(cell) for cell in cells]
    for name in known:
        if name in names:
            return names.index(name)
    return next((k for k, name in enumerate(names) if part and part in name), None)


def _headless(rows: Sequence[Sequence[str]]) -> _Layout | None:
    """The layout of a table without header: its SMILES are the longest column of which every cell is one."""
    width = min(map(len, rows), default=0)
    best: tuple[int, int] | None = None
    for column in range(width):
        sizes = [_num_atoms(row[column].strip()) for row in rows]
        # One cell in five may be broken, but not the first, which else is a header.
        if sizes[0] and sizes.count(0) <= len(sizes) // 5:
            best = max(best or (0, 0), (sum(sizes), -column))
    if best is None:
        return None
    smiles = -best[1]
    texts = (k for k in range(width) if k != smiles and not _is_number(rows[0][k]))
    header = [f"column_{k + 1}" for k in range(width)]
    return _Layout(header, smiles, next(texts, None), has_header=False)


def _has_decimal_commas(sample: Sequence[str], separator: str) -> bool:
    """Whether cells of the first rows are numbers with a decimal comma, and none with a decimal point."""
    if separator == ",":
        return False
    cells = [cell.strip() for row in _rows(sample, separator) for cell in row]
    commas = any(_DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    return commas and not any("." in cell and _is_number(cell) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _num_atoms(text: str) -> int:
    """Atoms of a SMILES or InChI, 0 if it is none."""
    mol = parsed(text) if text and not any(c.isspace() for c in text) else None
    return 0 if mol is None else int(mol.GetNumAtoms())


def _row_part(number: int, cells: Sequence[str], layout: _Layout) -> Part:
    """A row of a table: its SMILES, its name, and the other cells as data fields."""
    surplus = len(cells) - len(layout.header)
    if surplus > 0 and layout.smiles < len(cells) and is_inchi(cells[layout.smiles]):  # its commas are no separators
        end = layout.smiles + surplus + 1
        cells = [*cells[: layout.smiles], ",".join(cells[layout.smiles : end]), *cells[end:]]
    smiles = cells[layout.smiles].strip() if layout.smiles < len(cells) else ""
    name = cells[layout.name].strip() if layout.name is not None and layout.name < len(cells) else ""
    taken = (layout.smiles, layout.name)
    named = enumerate(zip_longest(layout.header, cells, fillvalue=""))
    others = ((key, cell.strip()) for k, (key, cell) in named if k not in taken)
    fields = gathered((key, _with_point(cell) if layout.decimal_comma else cell) for key, cell in others if cell)
    return Part(number, smiles_record, (smiles, name, *fields), name)


def _with_point(cell: str) -> str:
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def parquet_parts(path: Path, columns: Columns) -> Iterator[Part]:
    """The records of a Parquet file, read in batches.

    Raises:
        MoldiffError: when pyarrow is not installed, the file is no Parquet file, or it has no column of SMILES.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = 'pip install "moldiff[parquet]"'
        raise MoldiffError(f"{path}: reading Parquet needs pyarrow, which is not installed: {advice}") from None
    number = 0
    try:
        file = ParquetFile(path)
        header = [field.name for field in file.schema_arrow]
        smiles = _molecule_column(header, columns.smiles) if _has(header, columns.smiles) else None
        if smiles is None or not _has(header, columns.name):
            raise _no_column(path, header, columns)
        layout = _Layout(header, smiles, _name_column(header, columns.name))
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(1024))
        for number, values in enumerate(rows, start=1):
            yield _row_part(number, [_cell_text(values[key]) for key in header], layout)
    except (ArrowException, OSError) as error:
        reason = f"cannot be read as Parquet ({str(error).splitlines()[0]})"
        if not number:
            raise MoldiffError(f"{path}: {reason}") from None
        yield rejected_part(number + 1, "", f"{reason}; the rest of the file is not read")


def _cell_text(value: object) -> str:
    """A scalar as text; lists, nested tables and missing values are empty."""
    return str(value) if isinstance(value, str | int | float) else ""


_MAX_SMILES = 100_000
"""Characters of a SMILES; what is longer is no molecule, and RDKit would take gigabytes to find that out."""


def is_inchi(text: str) -> bool:
    """Whether a text is meant to be an InChI."""
    return text.startswith("InChI=")


def parsed(text: str) -> Chem.Mol | None:
    """The molecule of a SMILES or an InChI, not sanitised; None for any other text."""
    with rdBase.BlockLogs():
        mol: Chem.Mol | None = (
            Chem.MolFromInchi(text, sanitize=False, removeHs=False)  # type: ignore[no-untyped-call]
            if is_inchi(text)
            else Chem.MolFromSmiles(text, sanitize=False)
        )
    return mol


def smiles_record(
    number: int, text: str, name: str, fields: Mapping[str, str], remarks: tuple[str, ...] = ()
) -> Record:
    """A SMILES or InChI with data fields, and what is odd about these: a molecule without coordinates."""
    if not text:
        return rejected(number, name, "no SMILES")
    if len(text) > _MAX_SMILES:
        return rejected(number, name, f"SMILES of {len(text)} characters, more than {_MAX_SMILES}")
    mol = parsed(text)
    if mol is None or mol.GetNumAtoms() == 0:
        return rejected(number, name, f"cannot read {text[:80]!r} as {'InChI' if is_inchi(text) else 'SMILES'}")
    set_fields(mol, fields)
    return replace(finished(number, name, mol), remarks=remarks)


def smiles_parts(lines: Lines, path: Path, columns: Columns) -> Iterator[Part]:
    """The records of a file of SMILES and names, which may be a table after all."""
    filled = (line for line in lines if line.strip() and not line.startswith("#"))
    first = next(filled, None)
    if first is None:
        return
    stream = chain([first], filled)
    if columns != DEFAULT_COLUMNS or names_smiles(first):
        yield from table_parts(stream, path, columns)
        return
    if first.split()[0].lower() in SMILES_NAMES:
        next(stream)
    for number, line in enumerate(stream, start=1):
        text, *rest = line.split(maxsplit=1)
        title = rest[0].strip() if rest else ""
        yield Part(number, smiles_record, (text, title, {}), title)


class TableFile:
    """The rows of a table, in a nameless file until all columns are known."""

    def __init__(self, folder: Path) -> None:
        self._columns: dict[str, None] = {}
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115

    def add(self, row: Mapping[str, str]) -> None:
        self._columns |= dict.fromkeys(row)
        self._file.write(json.dumps(row) + "\n")

    def lines(self) -> Iterator[bytes]:
        """The header, then the rows."""
        if not self._columns:
            return
        line = io.StringIO()
        table = csv.DictWriter(line, list(self._columns), restval="", lineterminator="\n")
        table.writeheader()
        self._file.seek(0)
        for text in self._file:
            table.writerow(json.loads(text))
            yield encoded(line.getvalue())
            line.seek(0)
            line.truncate()

    def close(self) -> None:
        self._file.close()


def smiles_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    """A line of SMILES and name."""
    return f"{smiles(molecule, stereo=True)}\t{' '.join(molecule.name.split())}\n"


def csv_row(molecule: Molecule, fields: Mapping[str, str]) -> dict[str, str]:
    """A row of the table; a graph that has no SMILES leaves that cell empty."""
    try:
        text = smiles(molecule, stereo=True)
    except MoldiffError:
        text = ""
    return {"smiles": text, "name": molecule.name, **fields}
