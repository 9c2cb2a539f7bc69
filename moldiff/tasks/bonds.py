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
from moldiff.molecules.formats.record import Record, total_charge
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS, SYMBOLS, Vocabulary, covalent_radii
from moldiff.tasks.inputs import Source, given_records
from moldiff.tasks.task import Input, TaskOfInputs, TaskOutcome, start_at

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
        records = list(given_records("input", self.input))
        skeletons, rejected = [], []
        for number, (record, charge) in enumerate(zip(records, self._charges(len(records)), strict=True), start=1):
            try:
                one = _Skeleton.of(number, record, vocabulary)
                if not self.any_charge:
                    one = replace(one, sums=one.totals(vocabulary, one.charge if charge is None else charge))
                skeletons.append(one)
            except MoldiffError as error:
                rejected.append((number, str(error)))
        if not skeletons:
            first = f"record {rejected[0][0]}: {rejected[0][1]}" if rejected else "no molecule"
            raise MoldiffError(f"input: {first}")
        return BondTask(tuple(skeletons), vocabulary, tuple(rejected))

    def _charges(self, count: int) -> list[int | None]:
        if self.charge is None or isinstance(self.charge, int):
            return [self.charge] * count
        charges = list(self.charge)
        if len(charges) != count or not all(isinstance(charge, int) for charge in charges):
            raise MoldiffError(f"charge: got {charges}, expected a whole number, or {count} for as many records")
        return list(charges)


@dataclass(frozen=True, eq=False)
class _Skeleton(Input):
    """Elements and coordinates of one molecule, hydrogens on their heavy atoms; without bonds, charges unknown."""

    order: np.ndarray  # the input's number of every atom as it is written: heavy atoms, then the hydrogens of each
    allowed: np.ndarray  # classes that each heavy atom may have [n, K]
    charge: int  # what the input says of the total charge (e): in a field, else by the charges on atoms
    sums: tuple[SumConstraint, ...] = ()  # that it has to meet, the total charge first

    @classmethod
    def of(cls, number: int, record: Record, vocabulary: Vocabulary) -> _Skeleton:
        """Part the atoms of a record, whose bonds are left out of account, into heavy atoms and hydrogens."""
        element, pos, charge = _atoms(record)
        heavy, light = np.flatnonzero(element != 1), np.flatnonzero(element == 1)
        if not len(heavy):
            raise MoldiffError("no heavy atom")
        distance = cdist(pos[light], pos[heavy])
        owner, nearest = distance.argmin(1), distance.min(1)
        if (far := nearest > _MAX_HYDROGEN_DISTANCE).any():
            first = int(far.argmax())
            raise MoldiffError(f"atom {light[first]} (H) is {nearest[first]:.1f} Å from the nearest heavy atom")
        count = np.bincount(owner, minlength=len(heavy))
        if count.max() > MAX_HYDROGENS:
            label = _label(element, heavy[count.argmax()])
            raise MoldiffError(f"{label}: {count.max()} hydrogens, expected {MAX_HYDROGENS} at most")
        pieces = connected_components(_relative_distances(element[heavy], pos[heavy]) < REACH, directed=False)[0]
        if pieces > 1:
            raise MoldiffError(f"{pieces} pieces too far apart for a bond, expected one molecule")
        by_owner = np.argsort(owner, kind="stable")
        offset = np.zeros((len(heavy), MAX_HYDROGENS, 3))
        offset[np.arange(MAX_HYDROGENS) < count[:, None]] = (pos[light] - pos[heavy[owner]])[by_owner]
        order = np.concatenate([heavy, light[by_owner]])
        allowed = _allowed_classes(element, heavy, count, vocabulary)
        z, charges, hydrogens = vocabulary.decode(allowed.argmax(1))
        no_bonds = np.zeros((0, 3), dtype=np.int64)
        molecule = Molecule(pos[heavy], z, charges, hydrogens, offset, no_bonds, name=record.name)
        return cls(molecule, number, order, allowed, charge)

    def totals(self, vocabulary: Vocabulary, charge: int) -> tuple[SumConstraint, ...]:
        """The total charge, and the fewest charges on atoms with which there is a structure; refuses one without any.

        Atoms as near as bonds are count as bonded where that can be, those beyond any bond's length as not; of what
        lies between and of all orders, anything goes.
        """
        magnitude = np.abs(vocabulary.table[:, 1])
        atoms = np.where(self.allowed, -magnitude.astype(float), _RULED_OUT)
        share = _relative_distances(self.molecule.atomic_number, self.molecule.pos)
        total = SumConstraint.of_charge(vocabulary, charge)
        end = time.monotonic() + _TIME_LIMIT
        for surely_bonded in (_SURELY_BONDED, 0.0):
            pairs = np.zeros((*share.shape, 4))
            pairs[share < surely_bonded, 0] = pairs[share > REACH, 1:] = _RULED_OUT
            answer = solve_assignment(atoms, pairs, vocabulary, totals=(total,), time_limit=end - time.monotonic())
            if answer is not None:
                return total, SumConstraint(magnitude, int(magnitude[answer[0]].sum()))
        if time.monotonic() <= end:
            raise MoldiffError(f"no structure of charge {charge} without radicals, of atoms that the model knows")
        return (total,)


def _atoms(record: Record) -> tuple[np.ndarray, np.ndarray, int]:
    """Atomic numbers [a], coordinates [a, 3] (Å) and total charge (e) of a record."""
    mol = record.mol
    if mol is None or not mol.GetNumConformers():
        raise MoldiffError(record.problem.reason if record.problem is not None else "no coordinates")
    element = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    pos = mol.GetConformer().GetPositions()
    if (element == 0).any():
        raise MoldiffError(f"atom {int((element == 0).argmax())} (*): a dummy atom, expected an element")
    if not np.isfinite(pos).all():
        raise MoldiffError("a coordinate is not finite")
    if len(pos) > 1 and not (pos - pos[0]).any():
        raise MoldiffError("no 3D coordinates, all atoms are at one place")
    return element, pos, total_charge(mol)


def _allowed_classes(element: np.ndarray, heavy: np.ndarray, count: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Classes [n, K] of the element and number of hydrogens of each heavy atom; of one alone those without bonds."""
    table = vocabulary.table
    allowed = (table[None, :, 0] == element[heavy][:, None]) & (table[None, :, 2] == count[:, None])
    if len(heavy) == 1:
        alone = np.array([0 in vocabulary.allowed_bond_sums(index) for index in range(len(table))])
        if allowed.any() and not (allowed & alone).any():
            label = _label(element, heavy[0])
            raise MoldiffError(f"{label} with {count[0]} hydrogens lacks bonds, and no other atom is there")
        allowed &= alone
    if not allowed.any(1).all():
        atom = int((~allowed.any(1)).argmax())
        other = advice(of_atoms(zip(element[heavy].tolist(), count.tolist(), strict=True)))
        label = _label(element, heavy[atom])
        raise MoldiffError(f"{label} with {count[atom]} hydrogens: the model does not know it{other}")
    return np.asarray(allowed)


def _label(element: np.ndarray, atom: int) -> str:
    return f"atom {atom} ({SYMBOLS[int(element[atom])]})"


def _relative_distances(element: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """Distances [n, n] of atoms by the sum of their covalent radii."""
    radius = covalent_radii(element)
    return np.asarray(cdist(pos, pos) / (radius[:, None] + radius))


@dataclass(frozen=True, eq=False)
class BondTask(TaskOfInputs[_Skeleton]):
    """Draws bonds and charges onto known coordinates, one molecule for each of the input."""

    def count(self, n: int) -> int:
        return len(self.inputs)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        molecule, allowed = self.of(index).molecule, self.of(index).allowed
        centred = replace(molecule, pos=molecule.pos - molecule.pos.mean(0))
        size = len(allowed)
        return start_at(centred, self.vocabulary, pos=np.zeros(size), atom=np.ones(size), allowed=allowed)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return self.of(index).sums

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The molecule at exactly the input's coordinates."""
        one = self.of(index)
        known = {name: getattr(one.molecule, name) for name in ("pos", "hydrogen_offset")}
        exact = replace(molecule, **known, name="", properties={})
        fields = self.fields(index) | {"input_atoms": " ".join(map(str, one.order.tolist()))}
        met = all(molecule.formal_charge.sum() == total.value for total in one.sums[:1])
        return TaskOutcome(exact, fields, None if met else "another charge", offset=exact.pos.mean(0))
