"""Writing files of molecules: SDF, XYZ, SMILES and CSV."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

import numpy as np
from rdkit import Chem

from moldiff.batch import Molecule
from moldiff.chem import smiles, to_rdkit
from moldiff.errors import MoldiffError
from moldiff.io.parts import file_suffix

Value = str | float | int | bool
"""What a data field of a written record may hold."""


class Recorded(Protocol):
    """A molecule with data of its own, such as one drawn by `moldiff.generate`."""

    @property
    def molecule(self) -> Molecule: ...

    def record(self) -> Mapping[str, Value | None]:
        """The data fields of its record."""
        ...


def write(path: str | Path, molecules: Iterable[Molecule | Recorded]) -> int:
    """Write molecules to a file, each with its properties or record as data; how many there were. See `Writer`."""
    with Writer(path) as writer:
        for item in molecules:
            if isinstance(item, Molecule):
                writer.write(item)
            else:
                writer.write(item.molecule, item.record())
    return writer.count


class Writer:
    """Writes molecules to a file whose suffix says the type: .sdf, .xyz, .smi or .csv, each also with .gz.

    Records go to a temporary file beside the target, which takes the target's place when the writer is closed. If
    the work inside the `with` block is cut short (Ctrl-C), the file holds all records finished until then; if there
    is none, an older file is left as it was.

    Example:
        with Writer("out.sdf") as writer:
            writer.write(molecule, {"seed": 1})

    Raises:
        MoldiffError: for an unknown suffix, or a folder that does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._format = _FORMATS[file_suffix(self.path, _FORMATS)]
        if self.path.is_dir():
            raise MoldiffError(f"{path}: is a folder, expected the name of a file")
        if not self.path.parent.is_dir():
            raise MoldiffError(f"{path}: the folder {self.path.parent} does not exist")
        self.count = 0
        self._rows: list[dict[str, str]] = []
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._raw = self._temporary.open("wb")
        if self.path.name.lower().endswith(".gz"):
            # No name and no time inside, so that equal molecules make equal files.
            packed = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", mtime=0)
            self._file: TextIO = io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
        else:
            self._file = io.TextIOWrapper(self._raw, encoding="utf-8", newline="\n")

    def write(self, molecule: Molecule, fields: Mapping[str, Value | None] | None = None) -> None:
        """Add one record with the molecule's properties and `fields` as its data; None and NaN are left out.

        Raises:
            MoldiffError: for coordinates that are not finite, a field name that SDF cannot hold, or (.smi) a graph
                that has no SMILES.
        """
        if not (np.isfinite(molecule.pos).all() and np.isfinite(molecule.hydrogen_offset).all()):
            raise MoldiffError(f"molecule {molecule.name!r}: got a coordinate that is not finite, so it is not written")
        values = {**molecule.properties, **(fields or {})}
        text = {key: _field_text(key, value) for key, value in values.items() if not _is_missing(value)}
        if self._format is None:
            self._rows.append(_csv_row(molecule, text))
        else:
            self._file.write(self._format(molecule, text))
        self.count += 1

    def close(self) -> None:
        """Finish the file and put it in its place."""
        if self._rows:
            columns = list(dict.fromkeys(key for row in self._rows for key in row))
            table = csv.DictWriter(self._file, columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(self._rows)
        self._release()
        self._temporary.replace(self.path)

    def _release(self) -> None:
        self._file.close()
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.count == 0:
            self._release()
            self._temporary.unlink()
        else:
            self.close()


def _is_missing(value: Value | None) -> bool:
    return value is None or (isinstance(value, float | np.floating) and not math.isfinite(value))


def _field_text(key: str, value: Value | None) -> str:
    if not key or re.search(r"[<>\r\n]", key):
        raise MoldiffError(f"field name {key!r}: expected a name without <, > and line ends")
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return f"{float(value):.8g}"
    return " ".join(str(value).split())


def _sdf_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    mol = to_rdkit(replace(molecule, name=" ".join(molecule.name.split())))
    mol.UpdatePropertyCache(strict=False)
    # V2000 counts atoms and bonds with three digits.
    large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > 999
    block = Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False, forceV3000=large)
    data = "".join(f">  <{key}>\n{text}\n\n" for key, text in fields.items())
    return f"{block}{data}$$$$\n"


def _xyz_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    mol = to_rdkit(molecule)
    atoms = zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True)
    lines = [f"{atom.GetSymbol():<2s} {x:14.8f} {y:14.8f} {z:14.8f}\n" for atom, (x, y, z) in atoms]
    return f"{len(lines)}\n{' '.join(molecule.name.split())}\n{''.join(lines)}"


def _smiles_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    return f"{smiles(molecule, stereo=True)}\t{' '.join(molecule.name.split())}\n"


def _csv_row(molecule: Molecule, fields: Mapping[str, str]) -> dict[str, str]:
    """A row of the table; a graph that has no SMILES leaves that cell empty."""
    try:
        text = smiles(molecule, stereo=True)
    except MoldiffError:
        text = ""
    return {"smiles": text, "name": molecule.name, **fields}


_FORMATS: dict[str, Callable[[Molecule, Mapping[str, str]], str] | None] = {
    ".sdf": _sdf_text,
    ".xyz": _xyz_text,
    ".smi": _smiles_text,
    ".csv": None,  # rows are kept until all columns are known
}
