"""What is odd about records that can be read, as far as an evaluation looks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from moldiff.evaluation.molecule_set import Entry, Intake
from moldiff.molecules.convert import atom_order
from moldiff.molecules.formats.record import Record, guarded
from moldiff.molecules.hydrogens import lacks_hydrogens
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.molecules.oddities import Oddity, odd_bonds, odd_smiles

HYDROGENS_MISSING = "hydrogens are missing (hydrogens=add adds them)"


def remarks(items: Sequence[Record | Entry], intake: Intake) -> list[list[Oddity]]:
    """Of every item that `intake` is of: odd data fields, missing hydrogens, odd bonds, a SMILES of another graph."""
    return [
        [*(_of_record(item) if isinstance(item, Record) else []), *_bonds(intake, place)]
        for place, item in enumerate(items)
    ]


def remark_counts(found: Sequence[Sequence[Oddity]]) -> dict[str, int]:
    """How many records have each kind of oddity, the commonest first."""
    return dict(Counter(kind for some in found for kind in {oddity.kind: None for oddity in some}).most_common())


def _of_record(record: Record) -> list[Oddity]:
    found = [Oddity(remark) for remark in record.remarks]
    if record.mol is None or record.problem is not None:
        return found
    if guarded(lacks_hydrogens, record.mol) is True:
        found.append(Oddity(HYDROGENS_MISSING))
    contradictions = guarded(odd_smiles, record.mol)
    return found if isinstance(contradictions, InvalidMolecule) else [*found, *contradictions]


def _bonds(intake: Intake, place: int) -> list[Oddity]:
    entry, atoms, source = intake.entries[place], intake.atoms[place], intake.sources[place]
    if not isinstance(entry, Molecule) or atoms is None or not np.isfinite(atoms[1]).all():
        return []
    return odd_bonds(entry, None if source is None else atom_order(source))
