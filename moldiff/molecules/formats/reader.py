"""Reading files of molecules, with every record accounted for.

Files are read as a stream and parted into records that are not parsed yet, so that other processes can do the parsing
and a broken record cannot take its neighbours with it. Bytes that are not UTF-8 are replaced; any line ending will do.
Also which files are meant by a path, a folder or a pattern, and which of them belong together.
"""

import glob
import gzip
import io
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

from rdkit import Chem

from moldiff.errors import MoldiffError
from moldiff.molecules.formats.mol2 import mol2_parts
from moldiff.molecules.formats.record import DEFAULT_COLUMNS, PARQUET, Columns, Lines, Part, Record, file_suffix
from moldiff.molecules.formats.sdf import END_OF_BLOCK, END_OF_RECORD, sdf_parts
from moldiff.molecules.formats.smiles import smiles_parts, table_parts
from moldiff.molecules.formats.storage import is_standard, shown
from moldiff.molecules.formats.table import parquet_parts
from moldiff.molecules.formats.xyz import is_xyz, xyz_parts

_READERS: dict[str, Callable[[Lines], Iterator[Part]]] = {
    **dict.fromkeys((".sdf", ".sd", ".mol"), sdf_parts),
    ".mol2": mol2_parts,
    **dict.fromkeys((".xyz", ".extxyz"), xyz_parts),
}
_TABLES: dict[str, Callable[[Lines, Path, Columns], Iterator[Part]]] = {
    **dict.fromkeys((".smi", ".smiles", ".txt"), smiles_parts),
    **dict.fromkeys((".csv", ".tsv"), table_parts),
}

SUFFIXES = (*_READERS, *_TABLES, *PARQUET)  # types of files that can be read
_HEAD = 1 << 16
"""Characters by which the type of a file is found out."""


def parts(path: str | Path, columns: Columns = DEFAULT_COLUMNS) -> Iterator[Part]:
    """The records of a file of any type, one at a time; `columns` says where a table has what.

    `-` is standard input, whose type shows in its content, and `-.csv` one of this type. Text (.txt) is SMILES or XYZ.

    Raises MoldiffError when the file is missing, empty, a folder or of an unknown type, or a table has no such column.
    """
    path = Path(path)
    if path.is_dir():
        raise MoldiffError(f"{path}: is a folder, expected a file ({', '.join(SUFFIXES)})")
    if str(path) != "-":
        file_suffix(path, SUFFIXES)
    place = file_of(path)
    if not place.is_file():
        raise MoldiffError(f"{path}: no such file")
    if place.stat().st_size == 0:
        raise MoldiffError(f"{path}: the file is empty")
    suffix, packed = _type_of(path, place)
    if suffix in PARQUET:
        yield from parquet_parts(path, place, columns)
        return
    with _open_text(path, place, packed) as file:
        lines = Lines(file)
        yield from _READERS[suffix](lines) if suffix in _READERS else _TABLES[suffix](lines, path, columns)


def file_of(path: str | Path) -> Path:
    """The file of a path: of standard input a temporary one that holds all of it."""
    return Path(_received(sys.stdin).name) if is_standard(path) else Path(path)


@lru_cache(maxsize=1)
def _received(stream: Any) -> Any:
    """A temporary file, as long as it is needed, of what comes on standard input."""
    try:
        if stream is None:
            raise ValueError
        file = tempfile.NamedTemporaryFile(prefix="moldiff-")  # noqa: SIM115
        shutil.copyfileobj(stream.buffer, file)
    except (ValueError, OSError):  # closed
        raise MoldiffError("-: standard input is closed, expected molecules") from None
    file.flush()
    return file


def _type_of(path: Path, place: Path) -> tuple[str, bool]:
    """The type of a file, by its name or where that does not tell by its content, and whether it is compressed."""
    packed = path.name.lower().endswith(".gz")
    suffix = "" if str(path) == "-" else file_suffix(path, SUFFIXES)
    if suffix not in ("", ".txt"):
        return suffix, packed
    with place.open("rb") as file:
        start = file.read(4)
    if not suffix:
        packed = start[:2] == b"\x1f\x8b"
        if start == b"PAR1":
            return PARQUET[0], False
    with _open_text(path, place, packed) as text:
        lines = list(islice(Lines(text, _HEAD), 1000))
    if is_xyz(lines):
        return ".xyz", packed
    if suffix:
        return suffix, packed
    if any(line.startswith("@<TRIPOS>") for line in lines):
        return ".mol2", packed
    is_sdf = any(line.startswith((END_OF_BLOCK, END_OF_RECORD)) for line in lines) or "V2000" in "".join(lines[3:4])
    return ".sdf" if is_sdf else ".smi", packed


@contextmanager
def _open_text(path: Path, place: Path, packed: bool) -> Iterator[TextIO]:
    try:
        with cast("io.BufferedReader", (gzip.open if packed else open)(place, "rb")) as raw:
            encoding = "utf-16" if raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with io.TextIOWrapper(raw, encoding=encoding, errors="replace") as file:
                yield file
    except gzip.BadGzipFile:
        raise MoldiffError(f"{path}: ends in .gz but is not a gzip file") from None
    except EOFError:
        raise MoldiffError(f"{path}: a compressed file cut off before its first record") from None
    except zlib.error:
        raise MoldiffError(f"{path}: a compressed file damaged before its first record") from None
    except OSError as error:
        raise MoldiffError(f"{path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class ReadResult:
    """All records of a file, in order."""

    path: Path
    records: list[Record]

    @property
    def rejected(self) -> list[Record]:
        """The records with a problem."""
        return [record for record in self.records if record.problem is not None]

    @property
    def mols(self) -> list[Chem.Mol]:
        """The RDKit molecules of the records without a problem."""
        return [record.mol for record in self.records if record.mol is not None and record.problem is None]

    def __str__(self) -> str:
        bad = len(self.rejected)
        return f"{self.path}: {len(self.records)} records, {len(self.records) - bad} read, {bad} rejected"


def read(path: str | Path) -> ReadResult:
    """Read a whole file; see `records`."""
    return ReadResult(Path(path), list(records(path)))


def records(path: str | Path) -> Iterator[Record]:
    """The records of an SDF, MOL, MOL2, XYZ, SMILES, CSV, TSV or Parquet file, one at a time.

    All but Parquet may be compressed (.gz). A table's column of SMILES is found by its name or its content. Raises
    MoldiffError when the file is missing, empty, a folder, of an unknown type, or holds no record.
    """
    none = True
    for part in parts(path):
        yield part.parse()
        none = False
    if none:
        raise MoldiffError(f"{path}: no record found, expected at least one molecule")


def find_files(path: str | Path) -> list[Path]:
    """The files of molecules that a path means, in alphabetical order. Raises MoldiffError when there are none."""
    text = os.path.expanduser(str(path))
    place = Path(text)
    if place.is_dir():
        found = [file for file in place.rglob("*") if file.is_file() and _is_readable(file, file.relative_to(place))]
        problem = f"no file of molecules in this folder, expected any of {', '.join(SUFFIXES)}"
    elif place.exists() or not glob.has_magic(text):
        found = [place] if place.is_file() else []
        problem = "no such file or folder"
    else:
        found = [Path(name) for name in glob.glob(text, recursive=True) if os.path.isfile(name)]
        problem = "no file matches this pattern"
    if not found:
        raise MoldiffError(f"{path}: {problem}")
    return sorted(found)


def records_at(path: str | Path) -> Iterator[Record]:
    """The records of all files that a path means, one at a time.

    A file of several that cannot be read is one record with the reason. Raises MoldiffError where there is no file, or
    the only one cannot be read.
    """
    files = [Path(path)] if is_standard(path) else find_files(path)
    for file in files:
        try:
            yield from records(file)
        except MoldiffError as error:
            if len(files) == 1:
                raise
            yield _unreadable(file, error)


def _unreadable(file: Path, error: MoldiffError) -> Record:
    return Record.rejected(1, "", str(error).removeprefix(f"{file}: "))


def _is_readable(file: Path, inside: Path) -> bool:
    """Whether a file of a folder is one of molecules, and neither it nor a folder on the way is hidden.

    Text (.txt) in a folder is more often no list of SMILES, but may be XYZ, as the molecules that EDM writes are.
    """
    name = file.name.lower().removesuffix(".gz")
    if any(part.startswith(".") for part in inside.parts) or not name.endswith(SUFFIXES):
        return False
    with suppress(MoldiffError):  # an archive that is none
        return not name.endswith(".txt") or (file.stat().st_size > 0 and _type_of(file, file)[0] == ".xyz")
    return False


def name_of(path: str | Path) -> str:
    """A name for the set of what is at a path: that of the file or folder without suffix."""
    text = str(path).rstrip("/")
    if glob.has_magic(text) and not Path(text).exists():
        text = text[: next(k for k, letter in enumerate(text) if letter in "*?[")].rpartition("/")[0]
    name = Path(text).resolve().name.removesuffix(".gz")
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return shown(name) or "molecules"


def read_sets(source: str | Path | Sequence[str | Path]) -> dict[str, ReadResult]:
    """What is at a path, or at several: files, folders (with all below) and patterns; by the name of each set.

    A file is a set of its own, but files of one record each in the same folder, such as those of EDM, are one together,
    unless they are named one by one. A file of a folder or pattern that cannot be read is one record with the reason.

    Raises MoldiffError when nothing is found at a path, or a file that is named itself cannot be read.
    """
    sets: dict[Path, ReadResult] = {}
    for path in [source] if isinstance(source, str | Path) else source:
        for found in [read(path)] if is_standard(path) else _sets_at(path):
            sets[found.path] = found
    names = [shown(path.name) for path in sets]
    return {
        name if names.count(name) == 1 else shown(path): found
        for (path, found), name in zip(sets.items(), names, strict=True)
    }


def is_one_file(path: str | Path) -> bool:
    """Whether a path means a file, or standard input, whose records can be had one at a time."""
    return is_standard(path) or Path(path).is_file()


def read_set(source: str | Path) -> ReadResult:
    """What is at a path that has one set; raises MoldiffError also where there are several."""
    sets = read_sets(source)
    if len(sets) > 1:
        raise MoldiffError(f"{source}: got {len(sets)} sets of molecules ({', '.join(sets)}), expected one")
    return next(iter(sets.values()))


def _sets_at(path: str | Path) -> Iterator[ReadResult]:
    files = find_files(path)
    if files == [Path(os.path.expanduser(str(path)))]:
        yield read(files[0])
        return
    alone: dict[Path, list[ReadResult]] = {}
    for file in files:
        try:
            found = read(file)
        except MoldiffError as error:
            found = ReadResult(file, [_unreadable(file, error)])
        if len(found.records) == 1:
            alone.setdefault(file.parent, []).append(found)
        else:
            yield found
    for folder, several in alone.items():
        records = [one.records[0] for one in several]
        if len(several) == 1 or all(record.mol is None for record in records):
            yield from several
            continue
        names = [record.name or shown(one.path.name) for record, one in zip(records, several, strict=True)]
        pairs = enumerate(zip(records, names, strict=True), start=1)
        yield ReadResult(folder, [replace(record, number=number, name=name) for number, (record, name) in pairs])
