"""Bonds and charges for given coordinates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from moldiff.diffusion.decoding import REACH, SumConstraint, solve_assignment
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import advice, of_atoms
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.elements import COVALENT, SYMBOLS
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS, Vocabulary
from moldiff.tasks.inputs import Source, atom_records
from moldiff.tasks.task import TaskOfInputs, TaskOutcome, start_at

_MAX_HYDROGEN_DISTANCE = 1.8
"""Å; no hydrogen of a molecule is farther from its heavy atom (H-I has 1.61)."""

_SURELY_BONDED = 1.15
"""Times the sum of covalent radii; the bridgeheads of bicyclo[1.1.1]pentane, the nearest atoms without a bond, have
1.23."""

_RULED_OUT = -1e4
_TIME_LIMIT = 5.0  # s


@dataclass(frozen=True, kw_only=True)
class Bonds:
    """Bonds and charges of molecules that are known by their elements and coordinates, such as those of an XYZ file.

    Every hydrogen goes to the nearest heavy atom. One molecule is delivered for each of the input, in its order, with
    as few charges on atoms as there can be; bonds that the input may have are left out of account.

    Args:
        input: a file of molecules with all hydrogens, or molecules from Python.
        charge: total charge (e) of all, or one for each; None = what the file says (`charge=-1` in the comment of an
            XYZ file, a field of that name, or charges on atoms), else 0.
        any_charge: leave all charges to the model.
    """

    input: Source | Sequence[Source] | None = None
    charge: int | Sequence[int] | None = None
    any_charge: bool = False

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> BondTask:
        """The task for a model.

        Raises:
            MoldiffError: for molecules that cannot be used or that the model does not know.
        """
        records = list(atom_records("input", self.input))
        skeletons, rules, rejected = [], [], []
        for number, (record, charge) in enumerate(zip(records, self._charges(len(records)), strict=True), start=1):
            found = record if isinstance(record, str) else _Skeleton.of(number, *record, vocabulary)
            if not isinstance(found, str):
                charge = found.charge if charge is None else charge
                totals = () if self.any_charge else found.totals(vocabulary, charge)
                if totals is not None:
                    skeletons.append(found)
                    rules.append(totals)
                    continue
                found = f"no structure of charge {charge} without radicals, of atoms that the model knows"
            rejected.append((number, found))
        if not skeletons:
            first = f"record {rejected[0][0]}: {rejected[0][1]}" if rejected else "no molecule"
            raise MoldiffError(f"input: {first}")
        return BondTask(tuple(skeletons), vocabulary, tuple(rejected), tuple(rules))

    def _charges(self, count: int) -> list[int | None]:
        """The charge that was asked for each of so many records."""
        if self.charge is None or isinstance(self.charge, int):
            return [self.charge] * count
        charges = list(self.charge)
        if len(charges) != count or not all(isinstance(charge, int) for charge in charges):
            raise MoldiffError(f"charge: got {charges}, expected a whole number, or {count} for as many records")
        return list(charges)


@dataclass(frozen=True, eq=False)
class _Skeleton:
    """Elements and coordinates of one molecule, hydrogens on their heavy atoms.

    Attributes:
        molecule: without bonds, charges unknown (Å).
        order: the input's number of every atom as it is written: heavy atoms, then the hydrogens of each.
        allowed: classes that each heavy atom may have [n, K].
        charge: what the input says of the total charge (e), else 0.
        number: of its record, from 1.
    """

    molecule: Molecule
    order: np.ndarray
    allowed: np.ndarray
    charge: int
    number: int

    @classmethod
    def of(
        cls, number: int, element: np.ndarray, pos: np.ndarray, charge: int, name: str, vocabulary: Vocabulary
    ) -> _Skeleton | str:
        """Part atomic numbers [a] and positions [a, 3] (Å) into heavy atoms and hydrogens; or why that cannot be."""

        def label(atom: int) -> str:
            return f"atom {heavy[atom]} ({SYMBOLS[int(element[heavy[atom]])]})"

        heavy, light = np.flatnonzero(element != 1), np.flatnonzero(element == 1)
        if not len(heavy):
            return "no heavy atom"
        owner = np.zeros(0, dtype=np.int64)
        if len(light):
            distance = cdist(pos[light], pos[heavy])
            owner = distance.argmin(1)
            far = distance.min(1) > _MAX_HYDROGEN_DISTANCE
            if far.any():
                first = int(far.argmax())
                return f"atom {light[first]} (H) is {distance[first].min():.1f} Å from the nearest heavy atom"
        count = np.bincount(owner, minlength=len(heavy))
        if count.max() > MAX_HYDROGENS:
            full = label(int(count.argmax()))
            return f"{full}: {count.max()} hydrogens, expected {MAX_HYDROGENS} at most"
        pieces = connected_components(_reach(element[heavy], pos[heavy]) < REACH, directed=False)[0]
        if pieces > 1:
            return f"{pieces} pieces too far apart for a bond, expected one molecule"
        offset = np.zeros((len(heavy), MAX_HYDROGENS, 3))
        order = list(heavy)
        for atom in range(len(heavy)):
            own = light[owner == atom]
            offset[atom, : len(own)] = pos[own] - pos[heavy[atom]]
            order += list(own)
        table = vocabulary.table
        allowed = (table[None, :, 0] == element[heavy][:, None]) & (table[None, :, 2] == count[:, None])
        if len(heavy) == 1:
            alone = np.array([0 in vocabulary.allowed_bond_sums(index) for index in range(len(table))])
            if allowed.any() and not (allowed & alone).any():
                return f"{label(0)} with {count[0]} hydrogens lacks bonds, and no other atom is there"
            allowed &= alone
        if not allowed.any(1).all():
            atom = int((~allowed.any(1)).argmax())
            other = advice(of_atoms(zip(element[heavy].tolist(), count.tolist(), strict=True)))
            return f"{label(atom)} with {count[atom]} hydrogens: the model does not know it{other}"
        z, charges, hydrogens = vocabulary.decode(allowed.argmax(1))
        none = np.zeros((0, 3), dtype=np.int64)
        molecule = Molecule(pos[heavy], z, charges, hydrogens, offset, none, name=name)
        return cls(molecule, np.array(order), allowed, charge, number)

    def totals(self, vocabulary: Vocabulary, charge: int) -> tuple[SumConstraint, ...] | None:
        """The total charge, and the fewest charges on atoms with which there is a structure; None = there is none.

        Atoms as near as bonds are count as bonded where that can be, those beyond any bond's length as not; of what
        lies between and of all orders, anything goes.
        """
        magnitude = np.abs(vocabulary.table[:, 1])
        atoms = np.where(self.allowed, -magnitude.astype(float), _RULED_OUT)
        share = _reach(self.molecule.atomic_number, self.molecule.pos)
        total = SumConstraint.of_charge(vocabulary, charge)
        end = time.monotonic() + _TIME_LIMIT
        for surely_bonded in (_SURELY_BONDED, 0.0):
            pairs = np.zeros((*share.shape, 4))
            pairs[share < surely_bonded, 0] = pairs[share > REACH, 1:] = _RULED_OUT
            answer = solve_assignment(atoms, pairs, vocabulary, totals=(total,), time_limit=end - time.monotonic())
            if answer is not None:
                return total, SumConstraint(magnitude, int(magnitude[answer[0]].sum()))
        return (total,) if time.monotonic() > end else None


def _reach(element: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Distances [n, n] of atoms by the sum of their covalent radii."""
    radius = COVALENT[np.minimum(element, len(COVALENT) - 1)]
    share: np.ndarray = cdist(pos, pos) / (radius[:, None] + radius)
    return share


@dataclass(frozen=True, eq=False)
class BondTask(TaskOfInputs[_Skeleton]):
    """Draws bonds and charges onto known coordinates, molecule after molecule in turn.

    Attributes:
        rules: sums that each has to meet, the total charge first.
    """

    rules: tuple[tuple[SumConstraint, ...], ...]

    def count(self, n: int) -> int:
        """One for each of the input."""
        return len(self.inputs)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        """Elements, hydrogens and coordinates of one of the molecules."""
        one = self.of(index)
        size = one.molecule.num_heavy_atoms
        centred = replace(one.molecule, pos=one.molecule.pos - one.molecule.pos.mean(0))
        free = np.ones((size, size))
        return start_at(centred, self.vocabulary, pos=np.zeros(size), atom=free[0], bond=free, allowed=one.allowed)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        """The rule of the total charge."""
        return self.rules[index % len(self.rules)]

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The molecule at exactly the input's coordinates."""
        one = self.of(index)
        exact = replace(
            molecule, pos=one.molecule.pos, hydrogen_offset=one.molecule.hydrogen_offset, name="", properties={}
        )
        fields = self.fields(index) | {"input_atoms": " ".join(map(str, one.order.tolist()))}
        asked = [total.value for total in self.totals(index)[:1]]
        met = not asked or molecule.formal_charge.sum() == asked[0]
        return TaskOutcome(exact, fields, None if met else "another charge", offset=exact.pos.mean(0))
