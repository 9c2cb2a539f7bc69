"""SMILES: files of lines, and tables (CSV and TSV with any usual separator, header or not)."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, dropwhile, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.record import DEFAULT_COLUMNS, Columns, Fields, Lines, Part, Record, finished, is_number
from moldiff.molecules.identity import SMILES_NAMES, plain, smiles
from moldiff.molecules.molecule import Molecule

_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?$')  # first line by which Excel says how cells are separated
_INCHI_NAMES = ("inchi", "standard_inchi", "std_inchi", "inchi_string")
_NAME_NAMES = ("name", "title", "id", "identifier", "compound", "iupac")
_SAMPLE_ROWS = 20
_MAX_FIELD = 2**24
_INCHI = "InChI="
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_MAX_SMILES = 100_000  # characters of a SMILES; RDKit would take gigabytes to find out that longer ones are none


class Layout(NamedTuple):
    """Where a table has its SMILES (or InChI) and names, and how to read its cells."""

    header: list[str]
    smiles: int
    name: int | None
    has_header: bool = True  # else the first row is a molecule
    decimal_comma: bool = False  # numbers are written like 0,25


def table_parts(lines: Iterable[str], path: Path, columns: Columns) -> Iterator[Part]:
    """The records of a CSV or TSV file; blank lines and leading lines that start with # are left out.

    A first line such as `sep=;` says what the separator is. Where cells are not separated by commas, numbers may have a
    decimal comma, unless one of the first rows has a decimal point. Raises MoldiffError naming the columns found, when
    none holds SMILES or has the name asked for.
    """
    filled = (line for line in lines if line.strip())
    stream = dropwhile(lambda line: line.startswith("#"), filled)
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
            yield row_part(number, cells, layout)
    except csv.Error as error:
        yield Part.rejected(number + 1, "", f"malformed table: {error}; the rest of the file is not read")


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


def _find_layout(sample: Sequence[str], path: Path, columns: Columns, said: str | None) -> tuple[str, Layout]:
    """The separator, which the file may have said, and the layout that fit the first lines of a table."""
    header = {separator: _cells(sample[0], separator) for separator in ([said] if said else _SEPARATORS)}
    # The separator with the most cells comes first, but a header that names the SMILES decides.
    order = sorted(header, key=lambda separator: -len(header[separator]))
    if path.name.lower().endswith((".tsv", ".tsv.gz")) and not said:
        order = ["\t"]
    several = [separator for separator in order if len(header[separator]) > 1]
    spaced = [" "] if sample[0].split()[0].lower() in SMILES_NAMES else []
    for separator in [*several, *spaced, order[0]]:
        if layout := header_layout(sample[0].split() if separator == " " else header[separator], columns):
            return separator, layout
    for separator in order if columns == DEFAULT_COLUMNS else ():
        if layout := _headless(list(_rows(sample, separator))):
            return separator, layout
    raise no_column(path, header[order[0]], columns)


def _cells(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(_rows([line], separator), [])]
    except csv.Error:
        return []


def header_layout(header: list[str], columns: Columns) -> Layout | None:
    """The layout of a table with a header, if that has the columns named and one of molecules."""
    if _missing(header, columns):
        return None
    smiles = chain(_find(header, SMILES_NAMES, "smiles"), _find(header, _INCHI_NAMES))
    found = next(smiles, None) if columns.smiles is None else header.index(columns.smiles)
    names = chain(_find(header, _NAME_NAMES, "name"), _find(header, (), "_id"))
    name = next(names, None) if columns.name is None else header.index(columns.name)
    return None if found is None else Layout(header, found, name)


def _missing(header: Sequence[str], columns: Columns) -> list[str]:
    return [name for name in (columns.smiles, columns.name) if name is not None and name not in header]


def _find(header: Sequence[str], known: Sequence[str], part: str = "") -> Iterator[int]:
    """The cells that are one of the known names, in their order, then those that contain `part`."""
    names = [plain(cell) for cell in header]
    yield from (names.index(name) for name in known if name in names)
    yield from (k for k, name in enumerate(names) if part and part in name)


def no_column(path: Path, header: Sequence[str], columns: Columns) -> MoldiffError:
    """What to say of a table without the columns that are needed."""
    found = f"columns found: {', '.join(repr(cell[:40]) for cell in header[:20])}"
    if missing := _missing(header, columns):
        return MoldiffError(f"{path}: no column {missing[0]!r}; {found}")
    return MoldiffError(f"{path}: no column of SMILES found; {found}; smiles_column=NAME says which one it is")


def _headless(rows: Sequence[Sequence[str]]) -> Layout | None:
    """The layout of a table without header: its SMILES are the longest column of which every cell is one."""
    width = min(map(len, rows), default=0)
    sizes = [[_num_atoms(row[column].strip()) for row in rows] for column in range(width)]
    # One cell in five may be broken, but not the first, which else is a header.
    fitting = [k for k, column in enumerate(sizes) if column[0] and column.count(0) <= len(column) // 5]
    if not fitting:
        return None
    smiles = max(fitting, key=lambda k: sum(sizes[k]))
    name = next((k for k in range(width) if k != smiles and not is_number(rows[0][k])), None)
    return Layout([f"column_{k + 1}" for k in range(width)], smiles, name, has_header=False)


def _num_atoms(text: str) -> int:
    """Atoms of a SMILES or InChI, 0 if it is none."""
    mol = _parsed(text) if text and not any(c.isspace() for c in text) else None
    return 0 if mol is None else int(mol.GetNumAtoms())


def _has_decimal_commas(sample: Sequence[str], separator: str) -> bool:
    """Whether cells of the first rows are numbers with a decimal comma, and none with a decimal point."""
    cells = [] if separator == "," else [cell.strip() for row in _rows(sample, separator) for cell in row]
    commas = any(_DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    return commas and not any("." in cell and is_number(cell) for cell in cells)


def row_part(number: int, cells: Sequence[str], layout: Layout) -> Part:
    """A row of a table: its SMILES, its name, and the other cells as data fields."""
    surplus = len(cells) - len(layout.header)
    if surplus > 0 and layout.smiles < len(cells) and cells[layout.smiles].startswith(_INCHI):  # its own commas
        end = layout.smiles + surplus + 1
        cells = [*cells[: layout.smiles], ",".join(cells[layout.smiles : end]), *cells[end:]]
    row = list(zip_longest(layout.header, (cell.strip() for cell in cells), fillvalue=""))
    taken = (layout.smiles, layout.name)
    smiles, name = (row[k][1] if k is not None and k < len(row) else "" for k in taken)
    others = [(key, cell) for k, (key, cell) in enumerate(row) if k not in taken and cell]
    if layout.decimal_comma:
        others = [(key, cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell) for key, cell in others]
    return Part(number, smiles_record, (smiles, name, *Fields.gathered(others)), name)


def _parsed(text: str) -> Chem.Mol | None:
    """The molecule of a SMILES or an InChI, not sanitised; None for any other text."""
    with rdBase.BlockLogs():
        mol: Chem.Mol | None = (
            Chem.MolFromInchi(text, sanitize=False, removeHs=False)  # type: ignore[no-untyped-call]
            if text.startswith(_INCHI)
            else Chem.MolFromSmiles(text, sanitize=False)
        )
    return mol


def smiles_record(
    number: int, text: str, name: str, fields: Mapping[str, str], remarks: tuple[str, ...] = ()
) -> Record:
    """A SMILES or InChI with data fields, and what is odd about these: a molecule without coordinates."""
    if not text:
        return Record.rejected(number, name, "no SMILES")
    if len(text) > _MAX_SMILES:
        return Record.rejected(number, name, f"SMILES of {len(text)} characters, more than {_MAX_SMILES}")
    mol = _parsed(text)
    if mol is None or mol.GetNumAtoms() == 0:
        what = "InChI" if text.startswith(_INCHI) else "SMILES"
        return Record.rejected(number, name, f"cannot read {text[:80]!r} as {what}")
    return finished(number, name, mol, Fields(fields, remarks))


def smiles_parts(lines: Lines, path: Path, columns: Columns) -> Iterator[Part]:
    """The records of a file of SMILES and names, which may be a table after all."""
    filled = (line for line in lines if line.strip() and not line.startswith("#"))
    first = next(filled, None)
    if first is None:
        return
    headers = [_cells(first, separator) for separator in _SEPARATORS]
    if columns != DEFAULT_COLUMNS or any(len(row) > 1 and list(_find(row, SMILES_NAMES, "smiles")) for row in headers):
        yield from table_parts(chain([first], filled), path, columns)
        return
    stream = filled if first.split()[0].lower() in SMILES_NAMES else chain([first], filled)
    for number, line in enumerate(stream, start=1):
        text, *rest = line.split(maxsplit=1)
        title = rest[0].strip() if rest else ""
        yield Part(number, smiles_record, (text, title, {}), title)


def smiles_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    """A line of SMILES and name."""
    return f"{smiles(molecule, stereo=True)}\t{' '.join(molecule.name.split())}\n"
