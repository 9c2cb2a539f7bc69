"""Tables of SMILES: CSV and TSV with any usual separator, header or not, and Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError

_SEPARATORS = (",", ";", "\t", "|")
SMILES_NAMES = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "cansmiles", "isosmiles")
_NAME_NAMES = ("name", "title", "id", "identifier", "compound", "iupac")
_SAMPLE_ROWS = 20
_MAX_FIELD = 2**24


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; None = found by name.

    Attributes:
        smiles: header of the column of SMILES.
        name: header of the column of names.
    """

    smiles: str | None = None
    name: str | None = None


DEFAULT_COLUMNS = Columns()


class Row(NamedTuple):
    """One row of a table: its SMILES, name and the other cells by header."""

    smiles: str
    name: str
    fields: dict[str, str]


class BrokenTable(NamedTuple):
    """What stands for the rest of a table that cannot be read on."""

    reason: str


class _Layout(NamedTuple):
    """Where a table has its SMILES and names, and whether its first row is a header rather than a molecule."""

    header: list[str]
    smiles: int
    name: int | None
    has_header: bool = True


def text_rows(lines: Iterator[str], path: Path, columns: Columns) -> Iterator[Row | BrokenTable]:
    """Rows of a CSV or TSV file; blank lines and leading lines that start with # are left out.

    Raises:
        MoldiffError: naming the columns found, when none holds SMILES or has the name asked for.
    """
    stream = _without_comments(line for line in lines if line.strip())
    sample = list(islice(stream, _SAMPLE_ROWS))
    if not sample:
        return
    separator, layout = _find_layout(sample, path, columns)
    text = (f"{line}\n" for line in chain(sample, stream))
    rows = _rows(text, separator, skipinitialspace=True)
    try:
        if layout.has_header:
            next(rows)
        for cells in rows:
            yield _row(cells, layout)
    except csv.Error as error:
        yield BrokenTable(f"malformed table: {error}; the rest of the file is not read")


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


def _find_layout(sample: Sequence[str], path: Path, columns: Columns) -> tuple[str, _Layout]:
    """The separator and layout that fit the first lines of a table."""
    header = {separator: _cells(sample[0], separator) for separator in _SEPARATORS}
    # The separator with the most cells comes first, but a header that names the SMILES decides.
    order = sorted(_SEPARATORS, key=lambda separator: -len(header[separator]))
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        order = ["\t"]
    several = [separator for separator in order if len(header[separator]) > 1]
    spaced = [" "] if sample[0].split()[0].lower() in SMILES_NAMES else []
    for separator in [*several, *spaced, order[0]]:
        cells = sample[0].split() if separator == " " else header[separator]
        if _has(cells, columns.smiles) and _has(cells, columns.name):
            column = _position(cells, columns.smiles, SMILES_NAMES, "smiles")
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


def _name_column(cells: Sequence[str], asked: str | None) -> int | None:
    """The column of names: the one asked for, one with a usual header, else one with "name" or "_id" in it."""
    column = _position(cells, asked, _NAME_NAMES, "name")
    return _find(cells, (), "_id") if column is None else column


def _find(cells: Sequence[str], known: Sequence[str], part: str = "") -> int | None:
    """The first cell that is one of the known names, in their order, else the first that contains `part`."""
    plain = [re.sub(r"[\s_-]+", "_", cell.lower()) for cell in cells]
    for name in known:
        if name in plain:
            return plain.index(name)
    return next((k for k, cell in enumerate(plain) if part and part in cell), None)


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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _num_atoms(text: str) -> int:
    """Atoms of a SMILES, 0 if it is none."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text, sanitize=False) if text and not any(c.isspace() for c in text) else None
    return 0 if mol is None else int(mol.GetNumAtoms())


def _row(cells: Sequence[str], layout: _Layout) -> Row:
    smiles = cells[layout.smiles].strip() if layout.smiles < len(cells) else ""
    name = cells[layout.name].strip() if layout.name is not None and layout.name < len(cells) else ""
    taken = (layout.smiles, layout.name)
    named = enumerate(zip(layout.header, cells, strict=False))
    fields = {key: cell.strip() for k, (key, cell) in named if k not in taken}
    return Row(smiles, name, {key: cell for key, cell in fields.items() if key and cell})


def parquet_rows(path: Path, columns: Columns) -> Iterator[Row | BrokenTable]:
    """Rows of a Parquet file, read in batches.

    Raises:
        MoldiffError: when pyarrow is not installed, the file is no Parquet file, or it has no column of SMILES.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = 'pip install "moldiff[parquet]"'
        raise MoldiffError(f"{path}: reading Parquet needs pyarrow, which is not installed: {advice}") from None
    whole = False
    try:
        file = ParquetFile(path)
        header = [field.name for field in file.schema_arrow]
        smiles = _position(header, columns.smiles, SMILES_NAMES, "smiles") if _has(header, columns.smiles) else None
        if smiles is None or not _has(header, columns.name):
            raise _no_column(path, header, columns)
        layout = _Layout(header, smiles, _name_column(header, columns.name))
        for batch in file.iter_batches(1024):
            for values in batch.to_pylist():
                whole = True
                yield _row([_cell_text(values[key]) for key in header], layout)
    except (ArrowException, OSError) as error:
        reason = f"cannot be read as Parquet ({str(error).splitlines()[0]})"
        if not whole:
            raise MoldiffError(f"{path}: {reason}") from None
        yield BrokenTable(f"{reason}; the rest of the file is not read")


def _cell_text(value: object) -> str:
    """A scalar as text; lists, nested tables and missing values are empty."""
    return str(value) if isinstance(value, str | int | float) else ""
