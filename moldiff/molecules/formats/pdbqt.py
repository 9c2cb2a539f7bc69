"""PDBQT, what AutoDock Vina docks: a folder with one file for each molecule, made by meeko."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import sanitized_copy, to_rdkit
from moldiff.molecules.formats.record import Value, field_text, field_values
from moldiff.molecules.formats.storage import encoded, set_aside
from moldiff.molecules.molecule import InvalidMolecule, Molecule


class PdbqtFolder:
    """A folder "NAME.pdbqt" that gets a file with the first record and one with each further one, by their names.

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
