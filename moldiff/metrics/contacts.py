"""Impossible distances: atoms that sit on one another, and bonds that are torn apart.

Protocol P2 looks at the graph alone; a molecule can pass it with coordinates that no molecule has. The limits are far
outside what occurs: of the 1,000 molecules of the example data none is a clash or exploded.

- clash: two atoms, bonded or not, closer than 0.7 times the sum of their covalent radii, or two atoms more than three
  bonds apart closer than half the sum of their van der Waals radii;
- exploded: a bond longer than 1.5 times the sum of the covalent radii.

Radii are those of RDKit's periodic table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff.batch import Molecule
from moldiff.metrics.distance_lookup import all_atoms
from moldiff.metrics.subjects import Measured, OnProgress, Subjects, count_statuses
from moldiff.results import InvalidMolecule, MetricResult, Status
from moldiff.vocabulary import SYMBOLS


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """Clashes and torn bonds, over all molecules that could be read.

    Attributes:
        covalent_fraction: of the sum of covalent radii, below which any two atoms clash.
        vdw_fraction: of the sum of van der Waals radii, below which atoms more than three bonds apart clash.
        stretch: times the sum of covalent radii, above which a bond is torn.
    """

    covalent_fraction: float = 0.7
    vdw_fraction: float = 0.5
    stretch: float = 1.5

    name = "geometry"
    needs = ("coordinates", "bonds")
    package = None

    def __call__(
        self, subjects: Subjects, reference: Subjects | None = None, on_progress: OnProgress | None = None
    ) -> Measured:
        """Check every molecule."""
        found = [self.check(entry) if isinstance(entry, Molecule) else entry for entry in subjects.entries]
        statuses = [Status.OK if problem is None else problem.status for problem in found]
        sound = sum(status is Status.OK for status in statuses)
        definition = (
            f"Molecules with finite coordinates, no atoms closer than {self.covalent_fraction:g} x the sum of their "
            f"covalent radii, none more than three bonds apart closer than {self.vdw_fraction:g} x the sum of their "
            f"van der Waals radii, and no bond longer than {self.stretch:g} x the sum of covalent radii, over all."
        )
        results = [
            MetricResult("geometry_sound", sound, len(found), definition),
            *count_statuses("geometry", statuses, len(found), (Status.CLASH, Status.EXPLODED)),
        ]
        columns: dict[str, Sequence[Any]] = {
            "geometry_status": statuses,
            "geometry_reason": ["" if problem is None else problem.reason for problem in found],
        }
        return Measured(results, columns, options={field.name: getattr(self, field.name) for field in fields(self)})

    def check(self, molecule: Molecule) -> InvalidMolecule | None:
        """What is impossible about the distances; None = nothing."""
        atomic_number, pos = all_atoms(molecule)
        if not np.isfinite(pos).all():
            return InvalidMolecule(Status.NON_FINITE, "coordinate not finite")
        bonds = all_bonds(molecule)
        distance = np.sqrt(np.square(pos[:, None] - pos[None]).sum(-1))
        covalent, vdw = (radii[atomic_number][:, None] + radii[atomic_number][None] for radii in _radii())
        limit = self.covalent_fraction * covalent
        far = ~_within_three_bonds(bonds, len(pos))
        limit[far] = np.maximum(limit, self.vdw_fraction * vdw)[far]
        np.fill_diagonal(distance, np.inf)
        if (distance < limit).any():
            return _problem(Status.CLASH, atomic_number, distance, limit, "closer than")
        np.fill_diagonal(distance, 0)
        torn = np.full_like(distance, np.inf)
        rows, columns = bonds[:, 0], bonds[:, 1]
        torn[rows, columns] = self.stretch * covalent[rows, columns]
        if (distance > torn).any():
            return _problem(Status.EXPLODED, atomic_number, -distance, -torn, "bonded, farther apart than")
        return None


def _problem(status: Status, z: np.ndarray, distance: np.ndarray, limit: np.ndarray, what: str) -> InvalidMolecule:
    """The pair of atoms whose distance lies farthest below its limit (both negative for one above it)."""
    i, j = np.unravel_index(int(np.argmin(np.where(distance < limit, distance - limit, np.inf))), distance.shape)
    first, second = (f"{at} ({SYMBOLS[int(z[at])]})" for at in sorted((int(i), int(j))))
    reason = f"atoms {first} and {second} at {abs(distance[i, j]):.2f} Å, {what} {abs(limit[i, j]):.2f} Å"
    return InvalidMolecule(status, reason, min(int(i), int(j)))


def all_bonds(molecule: Molecule) -> np.ndarray:
    """Pairs (i, j) of bonded atoms [m, 2] in the order of `all_atoms`: heavy atoms first, then the hydrogens."""
    heavy = np.repeat(np.arange(molecule.num_heavy_atoms), molecule.num_hydrogens)
    hydrogens = np.stack([heavy, molecule.num_heavy_atoms + np.arange(len(heavy))], axis=1)
    return np.concatenate([molecule.bonds[:, :2], hydrogens]).astype(np.int64)


def _within_three_bonds(bonds: np.ndarray, num_atoms: int) -> np.ndarray:
    """Whether two atoms are at most three bonds apart [a, a]."""
    step = np.eye(num_atoms, dtype=np.float32)
    step[bonds[:, 0], bonds[:, 1]] = step[bonds[:, 1], bonds[:, 0]] = 1
    return np.asarray(step @ step @ step > 0)


@cache
def _radii() -> tuple[np.ndarray, np.ndarray]:
    """Covalent and van der Waals radii (Å) by atomic number."""
    table = Chem.GetPeriodicTable()
    numbers = range(119)
    return np.array([table.GetRcovalent(z) for z in numbers]), np.array([table.GetRvdw(z) for z in numbers])
