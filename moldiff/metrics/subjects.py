"""What a metric is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from rdkit import Chem, rdBase

from moldiff import chem
from moldiff.batch import Molecule
from moldiff.errors import MoldiffError
from moldiff.metrics.distance_lookup import Atoms
from moldiff.results import InvalidMolecule, MetricResult, Status

OnProgress = Callable[[int, int], None]
"""Called with the number of finished and of all steps."""

WORKER_FAILURES = (Status.FAILED, Status.TIME_OUT)
"""How the check of a molecule in a worker process can end other than well."""


@dataclass(frozen=True, eq=False)
class Subjects:
    """The records under evaluation, as every metric sees them.

    Attributes:
        entries: the graphs as drawn, broken valences included, or why there is none.
        atoms: elements and coordinates (Å) of all atoms, hydrogens included; None = no coordinates.
        smiles: isomeric SMILES of the records that are valid by protocol P2; None = not valid.
        sources: the molecules as RDKit read them; None for those of this package.
        drawings: those whose stereo is in their marks, for they have no 3D coordinates; None = the others.
        has_coordinates: False for a file of SMILES, whose entries have placeholders instead.
        has_bonds: False for a file of elements and coordinates alone.
    """

    entries: Sequence[Molecule | InvalidMolecule]
    atoms: Sequence[Atoms | None]
    smiles: Sequence[str | None]
    sources: Sequence[Chem.Mol | None] = ()
    drawings: Sequence[Chem.Mol | None] = ()
    has_coordinates: bool = True
    has_bonds: bool = True

    def __len__(self) -> int:
        return len(self.entries)

    def first(self, count: int) -> Subjects:
        """The first so many of them."""
        return self._part(slice(count))

    def every_other(self, start: int) -> Subjects:
        """Every second of them from place 0 or 1."""
        return self._part(slice(start, None, 2))

    def _part(self, part: slice) -> Subjects:
        fields = ("entries", "atoms", "smiles", "sources", "drawings")
        return replace(self, **{name: getattr(self, name)[part] for name in fields})

    @cached_property
    def valid(self) -> list[int]:
        """Places of the records that are valid by protocol P2."""
        return [place for place, text in enumerate(self.smiles) if text is not None]

    @cached_property
    def mols(self) -> dict[int, Chem.Mol]:
        """Sanitised RDKit molecules by place, of the valid records in 3D; explicit hydrogens, one conformer."""
        return {place: _sanitized(self.entries[place]) for place in self.valid if self.atoms[place] is not None}

    def order(self, place: int) -> np.ndarray:
        """The file's number of every atom [a] of a record's graph, whose heavy atoms come before its hydrogens."""
        source = self.sources[place] if self.sources else None
        if source is not None:
            return chem.atom_order(source)
        entry = self.entries[place]
        return np.arange(0 if isinstance(entry, InvalidMolecule) else entry.num_atoms)

    def problem(self, place: int) -> InvalidMolecule | None:
        """Why the coordinates of a record cannot be used; None = they can."""
        entry, atoms = self.entries[place], self.atoms[place]
        if atoms is None:
            return entry if isinstance(entry, InvalidMolecule) else InvalidMolecule(Status.UNREADABLE, "no coordinates")
        if not np.isfinite(atoms[1]).all():
            return InvalidMolecule(Status.NON_FINITE, "coordinate not finite")
        return None


def _sanitized(entry: Molecule | InvalidMolecule) -> Chem.Mol:
    assert isinstance(entry, Molecule)
    mol = chem.to_rdkit(entry, stereo=False)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
    return mol


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Attributes:
        results: numbers with numerator, denominator and definition; those whose name ends in "[...]" are details.
        columns: by name, one value per record; None = not asked or no answer.
        notes: why a result has no value or what limits it, by name of the result.
        options: settings and tool versions that decide the numbers.
        interrupted: whether Ctrl-C ended it before all records were through.
    """

    results: Sequence[MetricResult]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False


class Measure(Protocol):
    """A metric beyond P1, P2, uniqueness and novelty; settings are attributes of a frozen dataclass."""

    @property
    def name(self) -> str:
        """Prefix of the names of its results up to the first underscore, and of its columns."""
        ...

    @property
    def needs(self) -> Sequence[str]:
        """What it cannot do without: any of "coordinates", "bonds", "reference"."""
        ...

    @property
    def package(self) -> str | None:
        """The optional package that it needs."""
        ...

    def __call__(self, subjects: Subjects, reference: Subjects | None, on_progress: OnProgress | None) -> Measured:
        """The numbers of `subjects`, compared with `reference` where that is what the metric does."""
        ...


def require(package: str) -> None:
    """Check that an optional package is there.

    Raises:
        MoldiffError: when it is not.
    """
    if find_spec(package) is None:
        raise MoldiffError(f'{package} is not installed; to install it: pip install "moldiff[eval]"')


def count_statuses(
    name: str, statuses: Sequence[Status | None], total: int, expected: Sequence[Status] = WORKER_FAILURES
) -> list[MetricResult]:
    """One count for every expected way to fail, and for every other one that occurred, over `total` records."""
    occurred = {status for status in statuses if status is not None and status is not Status.OK}
    return [
        MetricResult(
            f"{name}_status_{status}",
            sum(other is status for other in statuses),
            total,
            f"Molecules whose check '{name}' ended with '{status}', over the molecules it was asked of.",
        )
        for status in dict.fromkeys((*expected, *sorted(occurred)))
    ]


def unfinished(name: str, count: int, total: int) -> list[MetricResult]:
    """How many molecules Ctrl-C left out of all other numbers; nothing when there are none."""
    definition = (
        "Molecules that were not finished when the evaluation was interrupted, over all; no other number has them."
    )
    return [MetricResult(f"{name}_status_{Status.INTERRUPTED}", count, total, definition)] if count else []


def average(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The mean as sum over number; no value for an empty list."""
    return MetricResult(name, float(np.sum(values)), len(values), definition, len(values), unit)


def median(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The median over 1, with the number of values as `counted`; no value for an empty list."""
    middle = float(np.median(values)) if len(values) else 0.0
    return MetricResult(name, middle, 1 if len(values) else 0, definition, len(values), unit)
