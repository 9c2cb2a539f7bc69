"""Records and molecules as the protocols need them: graphs for P2, elements and coordinates for P1 and P3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rdkit import Chem

from moldiff import chem
from moldiff.batch import Molecule
from moldiff.errors import MoldiffError
from moldiff.io import Recorded
from moldiff.metrics.distance_lookup import Atoms, all_atoms
from moldiff.metrics.subjects import Subjects
from moldiff.records import Record, guarded
from moldiff.results import InvalidMolecule, Status

NO_COORDINATES = "no record has 3D coordinates, so that no distance can be looked up"
NO_BONDS = "no record has bonds, only elements and coordinates"


Entry = Molecule | InvalidMolecule | Recorded | Chem.Mol | None
"""A molecule from Python: one of ours, one that was sampled, one of RDKit's, or one that could not be read."""


@dataclass(frozen=True, eq=False)
class Intake:
    """What there is to evaluate.

    Attributes:
        entries: what protocol P2 judges; the graph as drawn, broken valences included, so that its atoms count.
        atoms: elements and coordinates; None = none.
        strict: strict keys of the entries whose coordinates are placeholders; None = the coordinates say it.
        missing: by protocol that this kind of record does not support ("p1", "p2"), the reason.
    """

    entries: Sequence[Molecule | InvalidMolecule]
    atoms: Sequence[Atoms | None]
    strict: Sequence[str | None]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_molecules(cls, molecules: Sequence[Entry]) -> Intake:
        """Molecules from Python; None is one that could not be read, as RDKit's readers give it.

        Raises:
            MoldiffError: for anything else.
        """
        entries = [_molecule(place, entry) for place, entry in enumerate(molecules)]
        atoms = [all_atoms(entry) if isinstance(entry, Molecule) else None for entry in entries]
        return cls(entries, atoms, [None] * len(entries))

    @classmethod
    def of_records(cls, records: Sequence[Record]) -> Intake:
        """The records of a file."""
        drawn = [record.mol for record in records if record.mol is not None]
        without_coordinates = bool(drawn) and not any(mol.GetNumConformers() for mol in drawn)
        missing = {"p1": NO_COORDINATES} if without_coordinates else {}
        if any(mol.GetNumAtoms() > 1 for mol in drawn) and not any(mol.GetNumBonds() for mol in drawn):
            missing["p2"] = NO_BONDS
        entries = [_entry(record, missing) for record in records]
        atoms = [_atoms_of(record) for record in records]
        return cls(entries, atoms, [_strict_key(record) if "p1" in missing else None for record in records], missing)

    def subjects(self, smiles: Sequence[str | None]) -> Subjects:
        """For metrics, with the SMILES of the valid ones."""
        return Subjects(
            self.entries,
            self.atoms,
            smiles,
            has_coordinates="p1" not in self.missing,
            has_bonds="p2" not in self.missing,
        )


def _molecule(place: int, entry: Entry) -> Molecule | InvalidMolecule:
    if isinstance(entry, Molecule | InvalidMolecule):
        return entry
    if entry is None:
        return InvalidMolecule(Status.UNREADABLE, "no molecule")
    if isinstance(entry, Chem.Mol):
        return chem.from_rdkit(entry)
    molecule = getattr(entry, "molecule", None)
    if not isinstance(molecule, Molecule):
        raise MoldiffError(f"molecules: got {type(entry).__name__} in place {place}, expected a molecule")
    return molecule


def _entry(record: Record, missing: Mapping[str, str]) -> Molecule | InvalidMolecule:
    if record.mol is None or "p2" in missing:
        return record.problem or InvalidMolecule(Status.UNREADABLE, missing.get("p2", "no molecule"))
    return guarded(_graph_of, record.mol) if "p1" in missing else record.as_drawn()


def _graph_of(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    """The molecule of a graph without coordinates: hydrogens are made explicit, coordinates are placeholders."""
    mol = Chem.Mol(mol)
    mol.UpdatePropertyCache(strict=False)
    mol = Chem.AddHs(mol)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.arange(3.0 * mol.GetNumAtoms()).reshape(-1, 3))
    mol.AddConformer(conformer)
    return chem.from_rdkit(mol)


def _strict_key(record: Record) -> str | None:
    return None if record.mol is None or record.problem is not None else chem.strict_key(record.mol)


def _atoms_of(record: Record) -> Atoms | None:
    """Elements and coordinates of a record as they stand in the file; P1 needs no bonds."""
    mol = record.mol
    if mol is None or not mol.GetNumConformers() or (mol.GetNumAtoms() > 1 and not mol.GetConformer().Is3D()):
        return None
    elements = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if 0 in elements:  # a dummy atom is no element, so that there is nothing to look up
        return None
    return np.array(elements, dtype=np.int64), mol.GetConformer().GetPositions()
