"""Files parted into records that are not parsed yet, so that other processes can do the parsing."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from moldiff.errors import MoldiffError
from moldiff.fields import SMILES_NAMES
from moldiff.io import tables
from moldiff.io.mol2 import mol2_record
from moldiff.io.tables import Columns
from moldiff.records import (
    END_OF_BLOCK,
    END_OF_RECORD,
    MOL2_START,
    QM9_TAIL,
    Record,
    qm9_values,
    rejected,
    sdf_record,
    smiles_record,
    unexpected,
    whole_number,
    xyz_record,
)

_MAX_LINE, _MAX_BLOCK = 2**24, 2**27
"""Characters of a line, and bytes of the lines of a record, that are kept: no file can fill the memory, not even one
that is small until it is unpacked."""

_LINE_BYTES = 64  # that a line takes in memory besides its characters
_MAX_ATOMS = 1_000_000


class Part(NamedTuple):
    """One record of a file, not parsed yet; cheap to make and to send to another process.

    Attributes:
        number: position in the file, from 1.
        build: makes the record of the number and `arguments`.
        arguments: its text.
        title: its name as far as that shows without parsing.
    """

    number: int
    build: Callable[..., Record]
    arguments: tuple[Any, ...]
    title: str = ""

    def parse(self) -> Record:
        """The record itself; whatever goes wrong is its problem."""
        try:
            return self.build(self.number, *self.arguments)
        except MemoryError:
            raise
        except Exception as error:  # RDKit raises of all kinds, and no record may take the others with it
            return Record(self.number, self.title, None, unexpected(error))


def parts(path: str | Path, columns: Columns = tables.DEFAULT_COLUMNS) -> Iterator[Part]:
    """The records of a file of any type, one at a time; `columns` says where a table has what.

    Raises:
        MoldiffError: when the file is missing, empty, a folder or of an unknown type, or a table has no such column.
    """
    path = Path(path)
    if path.is_dir():
        raise MoldiffError(f"{path}: is a folder, expected a file ({', '.join(SUFFIXES)})")
    suffix = file_suffix(path, SUFFIXES)
    if not path.is_file():
        raise MoldiffError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise MoldiffError(f"{path}: the file is empty")
    if suffix in PARQUET:
        yield from _of_rows(tables.parquet_rows(path, columns))
        return
    with _open_text(path) as file:
        yield from _READERS[suffix](_Lines(file), path, columns)


def file_suffix(path: Path, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """The suffix of `path` without ".gz", in lower case.

    Raises:
        MoldiffError: when it is not among `known`.
    """
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    suffix = "." + plain.rpartition(".")[2] if "." in plain else ""
    if suffix not in known or (suffix in PARQUET and plain != name):
        raise MoldiffError(f"{path}: unknown type of file, expected one of {', '.join(known)} or one of these with .gz")
    return suffix


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        raw = cast("io.BufferedReader", opener(path, "rb"))
        with raw, io.TextIOWrapper(raw, encoding=_encoding(raw.peek(2)[:2]), errors="replace") as file:
            yield file
    except gzip.BadGzipFile:
        raise MoldiffError(f"{path}: ends in .gz but is not a gzip file") from None
    except EOFError:
        raise MoldiffError(f"{path}: a compressed file cut off before its first record") from None
    except zlib.error:
        raise MoldiffError(f"{path}: a compressed file damaged before its first record") from None
    except OSError as error:
        raise MoldiffError(f"{path}: {error.strerror or error}") from None


def _encoding(start: bytes) -> str:
    return "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


class _Lines:
    """Lines without their ends; `cut` is set when a compressed file breaks off."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.cut = False

    def __iter__(self) -> Iterator[str]:
        started = False
        try:
            while line := self._file.readline(_MAX_LINE):
                started = True
                yield line.rstrip("\r\n")
                while len(line) == _MAX_LINE and not line.endswith("\n"):
                    line = self._file.readline(_MAX_LINE)
        except (EOFError, zlib.error):
            self.cut = True
        except gzip.BadGzipFile:  # a wrong checksum at its end, or no gzip file at all
            if not started:
                raise
            self.cut = True


class _Block:
    """The lines of one record, as many as may be kept; `full` says that some are left out."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.full = False
        self._room = _MAX_BLOCK

    def add(self, line: str) -> None:
        self._room -= len(line) + _LINE_BYTES
        self.full = self.full or self._room < 0
        if not self.full:
            self.lines.append(line)


def _rejected(number: int, name: str, reason: str) -> Part:
    return Part(number, rejected, (name, reason), name)


def _line(block: list[str], index: int) -> str:
    return block[index].strip() if index < len(block) else ""


def _sdf_parts(lines: _Lines, path: Path, columns: Columns) -> Iterator[Part]:
    block, number = _Block(), 1
    for line in lines:
        if line.startswith(END_OF_RECORD):
            yield Part(number, sdf_record, (block.lines,), _line(block.lines, 0))
            block, number = _Block(), number + 1
        else:
            block.add(line)
    if any(line.strip() for line in block.lines):
        # A lone MOL block needs no end mark; behind a finished record its absence means that the file was cut.
        whole = number == 1 and not lines.cut and any(line.startswith(END_OF_BLOCK) for line in block.lines)
        title = _line(block.lines, 0)
        cut = _rejected(number, title, f"truncated at record {number}")
        yield Part(number, sdf_record, (block.lines,), title) if whole else cut


def _mol2_parts(lines: _Lines, path: Path, columns: Columns) -> Iterator[Part]:
    block, number = _Block(), 0
    for line in lines:
        if line.startswith(MOL2_START):
            if number:
                yield Part(number, mol2_record, (block.lines,), _line(block.lines, 1))
            block, number = _Block(), number + 1
        if number:
            block.add(line)
        elif line.strip() and not line.startswith("#"):
            reason = f"got {line.strip()[:40]!r}, expected {MOL2_START}; the rest of the file is not read"
            yield _rejected(1, "", reason)
            return
    if number:
        title = _line(block.lines, 1)
        cut = _rejected(number, title, f"truncated at record {number}")
        yield cut if lines.cut else Part(number, mol2_record, (block.lines,), title)


def _xyz_parts(lines: _Lines, path: Path, columns: Columns) -> Iterator[Part]:
    stream = iter(lines)
    number, tail = 0, 0
    for line in stream:
        if not line.strip():
            continue
        if tail and whole_number(line.strip()) is None:
            tail -= 1
            continue
        number += 1
        count = whole_number(line.split()[0])
        if count is None:
            reason = f"got {line.strip()[:40]!r}, expected a number of atoms; the rest of the file is not read"
            yield _rejected(number, "", reason)
            return
        if count > _MAX_ATOMS:
            yield _rejected(number, "", f"{count} atoms, more than {_MAX_ATOMS}; the rest of the file is not read")
            return
        frame = _Block()
        for _, text in zip(range(count + 1), stream, strict=False):
            frame.add(text)
        title = _line(frame.lines, 0)
        if len(frame.lines) < count + 1:
            lost = "lines longer than those of atoms" if frame.full else f"truncated at record {number}"
            yield _rejected(number, title, lost)
        else:
            yield Part(number, xyz_record, (frame.lines[0], frame.lines[1:]), title)
        tail = QM9_TAIL if qm9_values(title) else 0


def _smiles_parts(lines: _Lines, path: Path, columns: Columns) -> Iterator[Part]:
    filled = (line for line in lines if line.strip() and not line.startswith("#"))
    first = next(filled, None)
    if first is None:
        return
    stream = chain([first], filled)
    if columns != tables.DEFAULT_COLUMNS or tables.names_smiles(first):
        yield from _of_rows(tables.text_rows(stream, path, columns))
        return
    if first.split()[0].lower() in SMILES_NAMES:
        next(stream)
    for number, line in enumerate(stream, start=1):
        text, *rest = line.split(maxsplit=1)
        title = rest[0].strip() if rest else ""
        yield Part(number, smiles_record, (text, title, {}), title)


def _table_parts(lines: _Lines, path: Path, columns: Columns) -> Iterator[Part]:
    yield from _of_rows(tables.text_rows(iter(lines), path, columns))


def _of_rows(rows: Iterator[tables.Row | tables.BrokenTable]) -> Iterator[Part]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, tables.BrokenTable):
            yield _rejected(number, "", row.reason)
        else:
            yield Part(number, smiles_record, tuple(row), row.name)


_READERS: dict[str, Callable[[_Lines, Path, Columns], Iterator[Part]]] = {
    ".sdf": _sdf_parts,
    ".sd": _sdf_parts,
    ".mol": _sdf_parts,
    ".mol2": _mol2_parts,
    ".xyz": _xyz_parts,
    ".extxyz": _xyz_parts,
    ".smi": _smiles_parts,
    ".smiles": _smiles_parts,
    ".txt": _smiles_parts,
    ".csv": _table_parts,
    ".tsv": _table_parts,
}
PARQUET = (".parquet", ".pq")
SUFFIXES = (*_READERS, *PARQUET)
"""Types of files that can be read."""
