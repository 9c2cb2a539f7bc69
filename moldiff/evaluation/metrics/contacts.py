"""Impossible distances, beyond what occurs: atoms that sit on one another, and bonds that are torn apart.

Protocol P2 looks at the graph alone. The usual length of a bond is as in `moldiff.molecules.validity`, the sum of the
covalent radii of its order; of elements that have none there, of any order, and the limit is another.
"""

from dataclasses import asdict, dataclass

import numpy as np
from rdkit import Chem

from moldiff.evaluation.metric import MetricOutput, MetricResult, count_statuses
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.validity import TORN, Bonds, all_bonds
from moldiff.molecules.vocabulary import SYMBOLS, covalent_radii
from moldiff.processes import OnProgress

_VDW_RADII = np.array([Chem.GetPeriodicTable().GetRvdw(z) for z in SYMBOLS])  # Å, by atomic number
_UNKNOWN = 1.5  # times the covalent radii, above which a bond of an element without radii by order is torn


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """Clashes and torn bonds, over all molecules that could be read."""

    covalent_fraction: float = 0.7  # of the sum of covalent radii (`elements.COVALENT`): closer, any two atoms clash
    vdw_fraction: float = 0.5  # of the sum of RDKit's van der Waals radii: closer, atoms over three bonds apart clash
    stretch: float = TORN  # times its usual length, above which a bond is torn

    name = "geometry"
    needs = ("coordinates", "bonds")

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        found = [self._check(molecules, place) for place in range(len(molecules))]
        statuses = [Status.OK if problem is None else problem.status for problem in found]
        definition = (
            f"Molecules with finite coordinates, no atoms closer than {self.covalent_fraction:g} x the sum of their "
            f"covalent radii, none more than three bonds apart closer than {self.vdw_fraction:g} x the sum of their "
            f"van der Waals radii, and no bond longer than {self.stretch:g} x the sum of the covalent radii of "
            "its order, over all."
        )
        results = [
            MetricResult("geometry_sound", statuses.count(Status.OK), len(found), definition),
            *count_statuses("geometry", statuses, (Status.CLASH, Status.EXPLODED)),
        ]
        reasons = ["" if problem is None else problem.reason for problem in found]
        return MetricOutput(results, {"geometry_status": statuses, "geometry_reason": reasons}, options=asdict(self))

    def _check(self, molecules: MoleculeSet, place: int) -> InvalidMolecule | None:
        """As `check`, with atoms as the file counts them; also where no graph can be had, atoms may clash."""
        entry, atoms = molecules.entries[place], molecules.atoms[place]
        if isinstance(entry, Molecule):
            return molecules.problem(place) or self.check(entry, molecules.order(place))
        if atoms is None or not np.isfinite(atoms[1]).all():
            return entry
        return self._clash(*atoms, None, np.arange(len(atoms[0]))) or entry

    def check(self, molecule: Molecule, order: np.ndarray | None = None) -> InvalidMolecule | None:
        """What is impossible about the distances; atoms are named by `order` [a], or heavy ones before hydrogens."""
        atomic_number, pos = all_atoms(molecule)
        if not np.isfinite(pos).all():
            return InvalidMolecule(Status.NON_FINITE, "coordinate not finite")
        bonds, order = all_bonds(molecule), np.arange(len(pos)) if order is None else order
        return self._clash(atomic_number, pos, bonds.atoms, order) or self._torn(bonds, order)

    def _clash(
        self, atomic_number: np.ndarray, pos: np.ndarray, bonds: np.ndarray | None, order: np.ndarray
    ) -> InvalidMolecule | None:
        """Two atoms that are too close; without `bonds` [m, 2], closer than even bonded ones can be."""
        if len(pos) < 2:
            return None
        limit = self.covalent_fraction * np.add.outer(*2 * [covalent_radii(atomic_number)])
        if bonds is not None:
            step = np.eye(len(pos), dtype=np.float32)
            step[bonds[:, 0], bonds[:, 1]] = step[bonds[:, 1], bonds[:, 0]] = 1
            far = step @ step @ step == 0  # more than three bonds apart
            vdw = np.add.outer(*2 * [_VDW_RADII[atomic_number]])
            limit[far] = np.maximum(limit, self.vdw_fraction * vdw)[far]
        distance = np.sqrt(np.square(pos[:, None] - pos[None]).sum(-1))
        np.fill_diagonal(distance, np.inf)
        i, j = divmod(int((distance - limit).argmin()), len(pos))
        if distance[i, j] >= limit[i, j]:
            return None
        what = f"closer than {limit[i, j]:.2f} Å"
        return _problem(Status.CLASH, atomic_number[[i, j]], order[[i, j]], distance[i, j], what)

    def _torn(self, bonds: Bonds, order: np.ndarray) -> InvalidMolecule | None:
        """A bond whose atoms are too far apart."""
        radii = covalent_radii(bonds.elements).sum(1)
        limit = np.where(np.isnan(bonds.usual), _UNKNOWN * radii, self.stretch * bonds.usual)
        if not (bonds.lengths > limit).any():
            return None
        worst = int((bonds.lengths - limit).argmax())
        what = f"bonded, farther apart than {limit[worst]:.2f} Å"
        return _problem(Status.EXPLODED, bonds.elements[worst], order[bonds.atoms[worst]], bonds.lengths[worst], what)


def _problem(status: Status, elements: np.ndarray, numbers: np.ndarray, length: float, what: str) -> InvalidMolecule:
    """What is said of two atoms, given by their elements [2] and by their numbers in the file [2]."""
    named = sorted((int(number), SYMBOLS[int(z)]) for number, z in zip(numbers, elements, strict=True))
    first, second = (f"{number} ({symbol})" for number, symbol in named)
    return InvalidMolecule(status, f"atoms {first} and {second} at {length:.2f} Å, {what}", named[0][0])
