"""Writing files of molecules, or to standard output; and which records an SDF that was cut short holds whole."""

import gzip
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self, cast

from moldiff.errors import MoldiffError, require
from moldiff.molecules.convert import sanitized_copy, to_rdkit
from moldiff.molecules.formats.record import PARQUET, Value, field_text, field_values, file_suffix
from moldiff.molecules.formats.sdf import END_OF_BLOCK, END_OF_RECORD, sdf_fields, sdf_text
from moldiff.molecules.formats.smiles import smiles_text
from moldiff.molecules.formats.storage import encoded, is_standard, set_aside, temporary_of
from moldiff.molecules.formats.table import (
    MAX_SHEET_ROWS,
    TableFile,
    atom_lists,
    csv_blocks,
    parquet_blocks,
    xlsx_blocks,
)
from moldiff.molecules.formats.xyz import extxyz_text, xyz_text
from moldiff.molecules.identity import smiles
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.processes import uninterrupted

MEMBER_RECORDS = 64
"""Records of a member of a compressed file: enough for a good compression, and the most a killed program loses."""


class Recorded(Protocol):
    """A molecule with data fields of its own, such as one drawn by `moldiff.sampling.run`."""

    @property
    def molecule(self) -> Molecule: ...

    def record(self) -> Mapping[str, Value | None]: ...


def write(path: str | Path, molecules: Iterable[Molecule | Recorded]) -> int:
    """Write molecules to a file, each with its properties or record as data; how many there were. See `Writer`."""
    with writer_of(path) as writer:
        for item in molecules:
            writer.write(*(item, None) if isinstance(item, Molecule) else (item.molecule, item.record()))
    return writer.count


class Writer:
    """Writes molecules to a file whose suffix says the type: .sdf, .xyz, .extxyz, .smi, .csv, .parquet or .xlsx.

    All but the last two may be compressed (.gz).

    Records go to a temporary file beside the target, which takes the target's place when the writer is closed. If
    the work inside the `with` block is cut short (Ctrl-C), the file holds all records finished until then; if there
    is none, an older file is left as it was.

    A streamed file takes the target's place with its first record and grows record by record, so that it is complete
    up to its last one whenever the program ends. Two types grow in larger steps: compressed ones by 64 records, each a
    gzip member of its own, and tables, whose columns are known in the end only, all at once.

    `-` is standard output, to which an SDF goes record by record; `-.csv` is another type.

    With `keep_older`, a file that is there gets another name (`set_aside`), `older`, rather than being replaced.

    Example:
        with Writer("out.sdf") as writer:
            writer.write(molecule, {"seed": 1})

    Raises:
        MoldiffError: for an unknown suffix, or a folder that does not exist.
        OSError: naming the target, for example when the disk is full; a streamed file then holds whole records.
    """

    def __init__(self, path: str | Path, *, streamed: bool = False, keep_older: bool = False) -> None:
        self.path, self.count = check_target(path), 0
        self.older: Path | None = None
        self._streamed, self._keep_older = streamed, keep_older
        suffix, standard = file_suffix(self.path, _TYPES), is_standard(self.path)
        self._format, self._table = _FORMATS.get(suffix), _TABLES.get(suffix)
        self._rows = TableFile(None if standard else self.path.parent) if self._table else None
        self._member: list[bytes] = []  # whole records that are not in the file yet
        self._packed = self.path.suffix.lower() == ".gz"
        self._temporary: Path | None = None
        if standard:
            self._streamed = False  # what is written cannot be taken back
            self._raw = _standard_output()
        else:
            self._temporary = temporary_of(self.path)
            self._raw = _open(self._temporary, "wb", streamed)

    @classmethod
    def behind(cls, path: str | Path, size: int, count: int) -> Self:
        """Go on with a streamed file behind its first `size` bytes, which hold `count` records; the rest is cut off."""
        writer = cls(path, streamed=True)
        writer._discard()
        os.truncate(writer.path, size)
        writer.count, writer._temporary = count, None
        writer._raw = _open(writer.path, "ab", streamed=True)
        return writer

    def write(self, molecule: Molecule, fields: Mapping[str, Value | None] | None = None) -> None:
        """Add one record with the molecule's properties and `fields` as its data; None and NaN are left out.

        Raises MoldiffError for coordinates that are not finite, a field name that SDF cannot hold, or (.smi) a graph
        that has no SMILES.
        """
        values = field_values(molecule, fields)
        with uninterrupted(), self._named():  # a record is in the file and counted, or neither
            if self._format is not None:
                self._add(self._format(molecule, {name: field_text(value) for name, value in values.items()}))
            elif self._rows is not None and self._table is not None:
                if self.count >= self._table.most:
                    raise MoldiffError(f"{self.path}: holds {self._table.most} records at most, expected .csv for more")
                self._rows.add(_row(molecule, values) | (atom_lists(molecule) if self._table.in_3d else {}))
            self.count += 1

    def _add(self, record: str | bytes) -> None:
        self._member.append(encoded(record) if isinstance(record, str) else record)
        if len(self._member) == (MEMBER_RECORDS if self._packed else 1):
            self._end_member()

    def _end_member(self) -> None:
        """Write the whole records that wait, all of them or none.

        A gzip member has neither name nor time, so that equal molecules give equal files.
        """
        data = b"".join(self._member)
        data = gzip.compress(data, mtime=0) if self._packed else data
        self._member.clear()
        place = self._raw.tell() if self._streamed else 0
        try:
            while data:
                data = data[self._raw.write(data) :]
        except OSError:
            if self._streamed:
                self._raw.truncate(place)
            raise
        if self._streamed:
            self._publish()

    def _publish(self) -> None:
        """Put the file in its place, where it goes on growing."""
        if self._temporary is not None:
            self._raw.close()
            if self._keep_older:
                self.older = set_aside(self.path)
            self._temporary.replace(self.path)
            self._temporary = None
            self._raw = _open(self.path, "ab", self._streamed)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the target in what the system says of a write."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Finish the file and put it in its place."""
        with self._named():
            if self._rows is not None and self._table is not None:
                for block in self._table.blocks(self._rows):
                    self._add(block)
                self._rows.close()
            if self._member or not self.count:  # a file of no bytes would be no gzip file
                self._end_member()
            self._publish()
            self._raw.close()

    def _discard(self) -> None:
        """Take the temporary file away."""
        with suppress(OSError):  # what a full disk did not take
            self._raw.close()
            if self._rows is not None:
                self._rows.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with uninterrupted():
            if kind is not None and self.count == 0:
                self._discard()
                return
            try:
                self.close()
            except Exception:
                self._discard()
                raise


class PdbqtFolder:
    """A folder "NAME.pdbqt" for AutoDock Vina: a file with the first record and one with each further, by their names.

    Vina reads one molecule from a file, and several files with `--batch`. An older folder is renamed (`keep_older`), or
    the PDBQT files in it are removed.
    """

    def __init__(self, path: Path, *, keep_older: bool = False) -> None:
        self.path, self.count = path, 0
        self.older: Path | None = None
        self._keep_older = keep_older

    def write(self, molecule: Molecule, fields: Mapping[str, Value | None] | None = None) -> None:
        """Add one record. Raises MoldiffError where meeko has no types for its atoms, or it is not valid."""
        values = field_values(molecule, fields)
        text = pdbqt_text(molecule, {name: field_text(value) for name, value in values.items()})
        if self.count == 0:
            self.older = set_aside(self.path) if self._keep_older else None
            self.path.mkdir(exist_ok=True)
            for old in self.path.glob("*.pdbqt"):
                old.unlink()
        name = re.sub(r"[^\w.-]+", "_", molecule.name) or "molecule"
        file = self.path / f"{name}.pdbqt"
        if file.exists():
            file = self.path / f"{name}_{self.count}.pdbqt"
        file.write_bytes(encoded(text))
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Every file is finished already."""


def pdbqt_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    """A molecule with AutoDock's atom types, Gasteiger charges and its rotatable bonds; `fields` as remarks."""
    from meeko import MoleculePreparation, PDBQTWriterLegacy

    mol = sanitized_copy(to_rdkit(molecule))
    if isinstance(mol, InvalidMolecule):
        raise MoldiffError(f"molecule {molecule.name!r}: {mol.reason}")
    (setup, *_) = MoleculePreparation().prepare(mol)
    text, is_fine, problem = PDBQTWriterLegacy.write_string(setup)
    if not is_fine:
        raise MoldiffError(f"molecule {molecule.name!r}: {' '.join(problem.split())}")
    remarks = "".join(f"REMARK moldiff {name} = {value}\n" for name, value in fields.items())
    return f"REMARK Name = {molecule.name}\n{remarks}{text}"


def writer_of(path: str | Path, *, streamed: bool = False, keep_older: bool = False) -> Writer | PdbqtFolder:
    """What writes molecules to `path`: a `Writer`, or for .pdbqt a folder of files."""
    if (path := check_target(path)).suffix.lower() == ".pdbqt":
        return PdbqtFolder(path, keep_older=keep_older)
    return Writer(path, streamed=streamed, keep_older=keep_older)


def is_table(path: str | Path) -> bool:
    """Whether a file of that name is written at once, for its columns are known in the end only."""
    return str(path) != "-" and file_suffix(Path(path), _TYPES) in _TABLES


def check_target(path: str | Path) -> Path:
    """The path, if molecules can be written to a file of that name; `-` is `-.sdf`.

    Raises MoldiffError for an unknown suffix, a folder that does not exist, or a type whose library is not installed.
    """
    path = Path("-.sdf" if str(path) == "-" else path)
    suffix = file_suffix(path, _TYPES)
    is_folder = suffix == ".pdbqt"
    if suffix in _NEEDS:
        require(*_NEEDS[suffix])
    if is_standard(path) and not is_folder:
        return path
    if path.is_dir() != is_folder and path.exists():
        if is_folder:
            raise MoldiffError(f"{path}: is a file, expected the name of a folder")
        raise MoldiffError(f"{path}: is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise MoldiffError(f"{path}: the folder {path.parent} does not exist")
    return path


def _open(path: Path, mode: str, streamed: bool) -> BinaryIO:
    """Open for writing; without a buffer where every record is to reach the file at once."""
    return cast(BinaryIO, path.open(mode, buffering=0 if streamed else -1))


def _standard_output() -> BinaryIO:
    """Standard output without a buffer, so that every record goes out at once."""
    try:
        if sys.stdout is None:  # closed, and its number may be that of another file by now
            raise OSError
        return os.fdopen(os.dup(1), "wb", buffering=0)
    except OSError:
        raise MoldiffError("out: standard output is closed, expected a file or an open pipe") from None


def _row(molecule: Molecule, values: dict[str, Value]) -> dict[str, Any]:
    """The row of a table: one SMILES, in the first column, the name, and the data fields."""
    known = values.pop("SMILES", None)
    if known is None:
        with suppress(MoldiffError):  # a graph that has none
            known = smiles(molecule, stereo=True)
    return {"smiles": known or "", "name": molecule.name} | values


class _Table(NamedTuple):
    """A type of table."""

    blocks: Callable[[TableFile], Iterator[bytes]]
    in_3d: bool = False  # whether rows have atoms, bonds and coordinates
    most: float = math.inf  # rows that it holds


_FORMATS: dict[str, Callable[[Molecule, Mapping[str, str]], str]] = {
    ".sdf": sdf_text,
    ".xyz": xyz_text,
    ".smi": smiles_text,
    ".extxyz": extxyz_text,
}
_TABLES = {
    ".csv": _Table(csv_blocks),
    **dict.fromkeys(PARQUET, _Table(parquet_blocks, in_3d=True)),
    ".xlsx": _Table(xlsx_blocks, most=MAX_SHEET_ROWS),
}
_NEEDS = {
    **dict.fromkeys(PARQUET, ("pyarrow", "parquet")),
    ".xlsx": ("openpyxl", "xlsx"),
    ".pdbqt": ("meeko", "dock"),
}
"""Packages that types need, and the extras that install these."""

_TYPES = (".sdf", ".xyz", ".smi", ".csv", ".extxyz", *PARQUET, ".xlsx", ".pdbqt")

_END = f"\n{END_OF_RECORD}\n".encode()
_BYTES = 1 << 20


@dataclass(eq=False)
class FinishedRecords:
    """Data, by name, of each of the whole records of a streamed SDF, and the bytes of the file that hold them.

    `rest` is that of the whole records behind them, in a compressed member that is not full.
    """

    size: int = 0
    fields: list[Mapping[str, str]] = field(default_factory=list)
    rest: list[Mapping[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.fields)


def finished_records(path: str | Path) -> FinishedRecords:
    """The whole records of a file that a `Writer` streamed; of a compressed file those of its full members.

    Who is ended before the first record leaves no file, so that one that is missing has no records. Raises MoldiffError
    for a file of another type, or one that has content but no whole record.
    """
    path = Path(path)
    if file_suffix(path, _TYPES) != ".sdf":
        raise MoldiffError(f"{path}: only .sdf, .sdf.gz, .csv, .parquet and .xlsx can be continued")
    found, packed = FinishedRecords(), path.suffix.lower() == ".gz"
    if not path.exists():
        return found
    for size, text in _members(path) if packed else _plain(path):
        blocks = (block.decode("utf-8", errors="replace") for block in text.split(_END)[:-1])
        fields = [sdf_fields(block.partition(END_OF_BLOCK)[2].split("\n")).values for block in blocks]
        if packed and len(fields) != MEMBER_RECORDS:
            found.rest = fields
            break  # the last one of a run that came to its end, or was stopped before it was full
        found.size = size
        found.fields += fields
    if path.stat().st_size and not (found.fields or found.rest):
        why = "for it holds no whole record of one; it is left as it is"
        raise MoldiffError(f"resume: {path} is not the file of an ended run, {why}")
    return found


def _plain(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole records a megabyte at a time, each time with the number of bytes up to their end."""
    size, rest = 0, b""
    with path.open("rb") as file:
        while data := file.read(_BYTES):
            whole, end, rest = (rest + data).rpartition(_END)
            if end:
                size += len(whole + end)
                yield size, whole + end


def _members(path: Path) -> Iterator[tuple[int, bytes]]:
    """The content of every whole gzip member, each with the number of bytes up to its end."""
    size, rest = 0, b""
    with path.open("rb") as file:
        while True:
            unpack, content = zlib.decompressobj(wbits=31), b""
            while not unpack.eof:
                rest = rest or file.read(_BYTES)
                if not rest:
                    return
                try:
                    content += unpack.decompress(rest)
                except zlib.error:
                    return
                size += len(rest) - len(unpack.unused_data)
                rest = unpack.unused_data
            yield size, content
