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

from moldiff.evaluation.metric import Measured, OnProgress, count_statuses
from moldiff.evaluation.metrics.bond_lookup import all_atoms
from moldiff.evaluation.molecule_set import Subjects
from moldiff.evaluation.result import MetricResult
from moldiff.molecules.elements import SYMBOLS
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status


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
        found = [self._check(subjects, place) for place in range(len(subjects))]
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

    def _check(self, subjects: Subjects, place: int) -> InvalidMolecule | None:
        """As `check`, with atoms as the file counts them; also where no graph can be had, atoms may clash."""
        entry, atoms = subjects.entries[place], subjects.atoms[place]
        if isinstance(entry, Molecule):
            return subjects.problem(place) or self.check(entry, subjects.order(place))
        if atoms is None or not np.isfinite(atoms[1]).all():
            return entry
        return self._clash(*atoms, None, np.arange(len(atoms[0]))) or entry

    def check(self, molecule: Molecule, order: np.ndarray | None = None) -> InvalidMolecule | None:
        """What is impossible about the distances; None = nothing.

        Args:
            molecule: the molecule (Å).
            order: the number by which to name every atom [a]; None = heavy atoms first, then hydrogens.
        """
        atomic_number, pos = all_atoms(molecule)
        if not np.isfinite(pos).all():
            return InvalidMolecule(Status.NON_FINITE, "coordinate not finite")
        bonds, order = all_bonds(molecule), np.arange(len(pos)) if order is None else order
        return self._clash(atomic_number, pos, bonds, order) or self._torn(atomic_number, pos, bonds, order)

    def _clash(
        self, atomic_number: np.ndarray, pos: np.ndarray, bonds: np.ndarray | None, order: np.ndarray
    ) -> InvalidMolecule | None:
        """Two atoms that are too close; without `bonds` [m, 2], closer than even bonded ones can be."""
        if len(pos) < 2:
            return None
        covalent, vdw = (radii[atomic_number][:, None] + radii[atomic_number][None] for radii in _radii())
        limit = self.covalent_fraction * covalent
        if bonds is not None:
            far = ~_within_three_bonds(bonds, len(pos))
            limit[far] = np.maximum(limit, self.vdw_fraction * vdw)[far]
        distance = np.sqrt(np.square(pos[:, None] - pos[None]).sum(-1))
        np.fill_diagonal(distance, np.inf)
        i, j = divmod(int((distance - limit).argmin()), len(pos))
        if distance[i, j] >= limit[i, j]:
            return None
        return _problem(Status.CLASH, atomic_number, (i, j), order, distance[i, j], f"closer than {limit[i, j]:.2f} Å")

    def _torn(
        self, atomic_number: np.ndarray, pos: np.ndarray, bonds: np.ndarray, order: np.ndarray
    ) -> InvalidMolecule | None:
        """A bond whose atoms are too far apart."""
        i, j = bonds.T
        length = np.sqrt(np.square(pos[i] - pos[j]).sum(-1))
        limit = self.stretch * (_radii()[0][atomic_number[i]] + _radii()[0][atomic_number[j]])
        if not (length > limit).any():
            return None
        worst = int((length - limit).argmax())
        what = f"bonded, farther apart than {limit[worst]:.2f} Å"
        return _problem(Status.EXPLODED, atomic_number, (i[worst], j[worst]), order, length[worst], what)


def _problem(
    status: Status, z: np.ndarray, pair: tuple[int, int], order: np.ndarray, length: float, what: str
) -> InvalidMolecule:
    named = sorted((int(order[at]), SYMBOLS[int(z[at])]) for at in pair)
    first, second = (f"{number} ({symbol})" for number, symbol in named)
    return InvalidMolecule(status, f"atoms {first} and {second} at {length:.2f} Å, {what}", named[0][0])


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
