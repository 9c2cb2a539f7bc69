"""Reading and writing files of molecules, with every record accounted for.

Files are read as a stream and parted into records here, so that a broken record cannot take its neighbours with it;
bytes that are not UTF-8 are replaced, and any line ending will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem

from moldiff.errors import MoldiffError
from moldiff.io.parts import SUFFIXES, Part, parts
from moldiff.io.writer import Recorded, Value, Writer, write
from moldiff.records import Record

__all__ = ["SUFFIXES", "Part", "ReadResult", "Recorded", "Value", "Writer", "parts", "read", "records", "write"]


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
    """Read a whole file; see `records`.

    Raises:
        MoldiffError: when the file is missing, empty, a folder, of an unknown type, or holds no record.
    """
    found = list(records(path))
    if not found:
        raise MoldiffError(f"{path}: no record found, expected at least one molecule")
    return ReadResult(Path(path), found)


def records(path: str | Path) -> Iterator[Record]:
    """The records of an SDF, MOL, MOL2, XYZ, SMILES, CSV, TSV or Parquet file, one at a time.

    All but Parquet may be compressed (.gz). A table's column of SMILES is found by its name or its content.

    Raises:
        MoldiffError: when the file is missing, empty, a folder or of an unknown type.
    """
    for part in parts(path):
        yield part.parse()
