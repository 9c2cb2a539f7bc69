"""What a molecule is, and how it ends: its chemical values, or why it is none."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

import numpy as np

from moldiff.processes import Failure, FailureKind


class Status(StrEnum):
    """What the check of one molecule came to. `OK` is the only valid one."""

    OK = "ok"
    NON_FINITE = "non-finite"
    VALENCE = "valence"
    RADICAL = "radical"
    DISCONNECTED = "disconnected"
    CLASH = "clash"
    UNSANITIZABLE = "unsanitizable"
    UNREADABLE = "unreadable"
    EXPLODED = "exploded"
    PERCEPTION_FAILED = "perception failed"
    TIME_OUT = "time-out"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class InvalidMolecule:
    """Why a molecule failed."""

    status: Status
    reason: str  # one readable line, e.g. "atom 3 (N): bond orders sum to 4, expected 3"
    atom: int | None = None  # the one at fault, if it is one; as in the reason, atoms count from 0

    @classmethod
    def at(cls, atom: int, symbol: str, status: Status, reason: str) -> Self:
        """One atom is at fault."""
        return cls(status, f"atom {atom} ({symbol}): {reason}", atom)

    def renumbered(self, order: Sequence[int] | np.ndarray) -> Self:
        """The same with the number that each atom has elsewhere, such as in its file, in the reason too."""
        if self.atom is None or self.atom >= len(order):
            return self
        atom = int(order[self.atom])
        return replace(self, atom=atom, reason=re.sub(r"^atom \d+", f"atom {atom}", self.reason))


def status_of(failure: Failure, otherwise: Status = Status.FAILED) -> Status:
    """How a molecule ends whose item has no result."""
    ends = {FailureKind.TIME_OUT: Status.TIME_OUT, FailureKind.INTERRUPTED: Status.INTERRUPTED}
    return ends.get(failure.kind, otherwise)


@dataclass(frozen=True, eq=False)
class Molecule:
    """One molecule as heavy atoms that carry their hydrogens; chemical values, no padding."""

    pos: np.ndarray  # of the heavy atoms [n, 3] (Å)
    atomic_number: np.ndarray  # [n] integers
    formal_charge: np.ndarray  # [n] integers (e)
    num_hydrogens: np.ndarray  # on each heavy atom [n], 0 to 4
    hydrogen_offset: np.ndarray  # hydrogen minus heavy-atom position [n, 4, 3] (Å); unused slots are 0
    bonds: np.ndarray  # rows (i, j, Kekulé order) with i < j [m, 3]
    properties: Mapping[str, float] = field(default_factory=dict)  # by name, in the data set's units
    name: str = ""  # the title of the record it came from

    @property
    def num_heavy_atoms(self) -> int:
        return len(self.atomic_number)

    @property
    def num_atoms(self) -> int:
        """All atoms, hydrogens included."""
        return self.num_heavy_atoms + int(self.num_hydrogens.sum())

    @property
    def hydrogen_mask(self) -> np.ndarray:
        """Which slots of `hydrogen_offset` hold a hydrogen [n, 4]."""
        return np.asarray(np.arange(self.hydrogen_offset.shape[1]) < self.num_hydrogens[:, None])

    @property
    def is_finite(self) -> bool:
        """Whether all coordinates are numbers."""
        return bool(np.isfinite(self.pos).all() and np.isfinite(self.hydrogen_offset).all())

    def bond_sums(self) -> np.ndarray:
        """Sum of Kekulé orders at every heavy atom [n], hydrogens included."""
        sums = self.num_hydrogens.astype(np.int64).copy()
        np.add.at(sums, self.bonds[:, :2], self.bonds[:, 2:])
        return sums

    def pieces(self) -> tuple[int, np.ndarray]:
        """How many pieces the bonds make, and the number of the piece that each heavy atom [n] is in."""
        from scipy.sparse import coo_array  # here, for it takes half the memory of a worker
        from scipy.sparse.csgraph import connected_components

        first, second, _ = self.bonds.T.astype(np.int32)  # SciPy before 1.13 fails on wider ones, and goes on
        graph = coo_array((np.ones(len(first)), (first, second)), shape=(self.num_heavy_atoms,) * 2)
        count, labels = connected_components(graph, directed=False)
        return int(count), labels
