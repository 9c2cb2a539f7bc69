"""Bonds and charges for given coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rdkit import Chem
from scipy.spatial.distance import cdist

from moldiff.batch import Molecule
from moldiff.data.statistics import Statistics
from moldiff.decode import Total
from moldiff.drawing import Finished
from moldiff.errors import MoldiffError
from moldiff.sampler import Start
from moldiff.shipped import advice, of_atoms
from moldiff.tasks.given import Source, atom_records
from moldiff.tasks.task import start_at
from moldiff.tasks.turns import Turns
from moldiff.vocabulary import MAX_HYDROGENS, Vocabulary

_MAX_HYDROGEN_DISTANCE = 1.8
"""Å; no hydrogen of a molecule is farther from its heavy atom (H-I has 1.61)."""


@dataclass(frozen=True, kw_only=True)
class Bonds:
    """Bonds and charges of molecules that are known by their elements and coordinates, such as those of an XYZ file.

    Every hydrogen goes to the nearest heavy atom. One molecule is delivered for each of the input, in its order;
    bonds and charges that the input may have are left out of account.

    Args:
        input: a file of molecules with all hydrogens, or molecules from Python.
        charge: total charge of each (e); None = what the file says (`charge=-1` in the comment), else 0.
        any_charge: leave the total charge to the model.
    """

    input: Source | Sequence[Source] | None = None
    charge: int | None = None
    any_charge: bool = False

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> BondTask:
        """The task for a model.

        Raises:
            MoldiffError: for molecules that cannot be used or that the model does not know.
        """
        skeletons, rejected = [], []
        for number, record in enumerate(atom_records("input", self.input), start=1):
            found = record if isinstance(record, str) else _Skeleton.of(number, *record, vocabulary)
            if isinstance(found, str):
                rejected.append((number, found))
            else:
                skeletons.append(found)
        if not skeletons:
            first = f"record {rejected[0][0]}: {rejected[0][1]}" if rejected else "no molecule"
            raise MoldiffError(f"input: {first}")
        charges = [one.charge if self.charge is None else self.charge for one in skeletons]
        totals = tuple(() if self.any_charge else (Total.of_charge(vocabulary, charge),) for charge in charges)
        return BondTask(tuple(skeletons), totals, vocabulary, tuple(rejected))


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
            return f"atom {heavy[count.argmax()]}: {count.max()} hydrogens, expected {MAX_HYDROGENS} at most"
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
                symbol = Chem.GetPeriodicTable().GetElementSymbol(int(element[heavy[0]]))
                return f"atom {heavy[0]} ({symbol}) with {count[0]} hydrogens lacks bonds, and no other atom is there"
            allowed &= alone
        if not allowed.any(1).all():
            atom = int((~allowed.any(1)).argmax())
            symbol = Chem.GetPeriodicTable().GetElementSymbol(int(element[heavy[atom]]))
            other = advice(of_atoms(zip(element[heavy].tolist(), count.tolist(), strict=True)))
            return f"atom {heavy[atom]} ({symbol}) with {count[atom]} hydrogens: the model does not know it{other}"
        z, charges, hydrogens = vocabulary.decode(allowed.argmax(1))
        none = np.zeros((0, 3), dtype=np.int64)
        molecule = Molecule(pos[heavy], z, charges, hydrogens, offset, none, name=name)
        return cls(molecule, np.array(order), allowed, charge, number)


@dataclass(frozen=True, eq=False)
class BondTask:
    """Draws bonds and charges onto known coordinates, molecule after molecule in turn.

    Attributes:
        skeletons: the molecules.
        rules: the total charge of each.
        vocabulary: classes of the model.
        rejected: number and reason of each input that cannot be used.
    """

    skeletons: tuple[_Skeleton, ...]
    rules: tuple[tuple[Total, ...], ...]
    vocabulary: Vocabulary
    rejected: tuple[tuple[int, str], ...] = ()

    def count(self, n: int) -> int:
        """Molecules that make up the answer: one for each of the input."""
        return len(self.skeletons)

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        sizes = [one.molecule.num_heavy_atoms for one in self.skeletons]
        return min(sizes), max(sizes)

    def notes(self) -> Sequence[str]:
        """The inputs that are left out."""
        return [f"record {number} left out: {reason}" for number, reason in self.rejected]

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """Elements, hydrogens and coordinates of one of the molecules."""
        one = self.skeletons[index % len(self.skeletons)]
        size = one.molecule.num_heavy_atoms
        centred = replace(one.molecule, pos=one.molecule.pos - one.molecule.pos.mean(0))
        free = np.ones((size, size))
        return start_at(centred, self.vocabulary, pos=np.zeros(size), atom=free[0], bond=free, allowed=one.allowed)

    def totals(self, index: int) -> Sequence[Total]:
        """The rule of the total charge."""
        return self.rules[index % len(self.rules)]

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """The molecule at exactly the input's coordinates."""
        one = self.skeletons[index % len(self.skeletons)]
        exact = Molecule(
            one.molecule.pos,
            molecule.atomic_number,
            molecule.formal_charge,
            molecule.num_hydrogens,
            one.molecule.hydrogen_offset,
            molecule.bonds,
        )
        fields: Mapping[str, str | int] = {
            "input": one.molecule.name,
            "input_record": one.number,
            "input_atoms": " ".join(map(str, one.order.tolist())),
        }
        return Finished(exact, fields, offset=exact.pos.mean(0))

    def admission(self, n: int) -> Turns | None:
        """One answer for each molecule."""
        if len(self.skeletons) == 1:
            return None
        return Turns(len(self.skeletons), 1)
