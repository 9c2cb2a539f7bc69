"""Neighbours of known molecules: noised part of the way, and drawn back from there.

New molecules from near some that a task has drawn, while what the task keeps stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator

from moldiff.diffusion.batch import collate
from moldiff.diffusion.decoding import Total
from moldiff.diffusion.noise import molecule_generator
from moldiff.diffusion.sampler import Start
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.fixed_part import KeptPart
from moldiff.tasks.inputs import Source, given
from moldiff.tasks.task import Admission, Finished, Task, Turns, Value, start_at


@dataclass(frozen=True, kw_only=True)
class Analogues:
    """n neighbours of each molecule, of the same number of heavy atoms.

    Args:
        of: the molecules: a file, a SMILES (which gets a conformer), or molecules from Python.
        noise: how far they are noised before they are drawn back: near 0 = hardly, 1 = nothing is left of them.
    """

    of: Source | Sequence[Source] | None = None
    noise: float = 0.6

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> AnalogueTask:
        """The task for a model.

        Raises:
            MoldiffError: for molecules that cannot be used or that the model does not know.
        """
        if not 0 <= self.noise <= 1:
            raise MoldiffError(f"noise: got {self.noise}, expected a number from 0 to 1")
        found, rejected = given("of", self.of)
        molecules, numbers = [], []
        for one in found:
            try:
                KeptPart.of("of", one, range(len(one.index)), vocabulary).check_known("of", (), vocabulary)
                molecules.append(one.molecule)
                numbers.append(one.number)
            except MoldiffError as error:
                rejected.append((one.number, str(error)))
        if not molecules:
            raise MoldiffError(rejected[0][1])
        placed = statistics.hydrogens_placed
        return AnalogueTask(tuple(molecules), tuple(numbers), self.noise, vocabulary, placed, tuple(sorted(rejected)))


@dataclass(frozen=True, eq=False)
class AnalogueTask:
    """Draws neighbours of known molecules, molecule after molecule in turn.

    Attributes:
        molecules: whose neighbours are drawn (Å).
        numbers: of their records, from 1.
        noise: level that they are noised to.
        vocabulary: classes of the model.
        hydrogens_placed: whether the model knows places of hydrogens.
        rejected: number and reason of each input that cannot be used.
    """

    molecules: tuple[Molecule, ...]
    numbers: tuple[int, ...]
    noise: float
    vocabulary: Vocabulary
    hydrogens_placed: bool
    rejected: tuple[tuple[int, str], ...] = ()

    def count(self, n: int) -> int:
        """Molecules that make up the answer when n are asked for."""
        return n * len(self.molecules)

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        sizes = [molecule.num_heavy_atoms for molecule in self.molecules]
        return min(sizes), max(sizes)

    def notes(self) -> Sequence[str]:
        """The inputs that are left out."""
        return [f"record {number} left out: {reason}" for number, reason in self.rejected]

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """One of the molecules at the level of noise."""
        molecule = self.molecules[index % len(self.molecules)]
        size = molecule.num_heavy_atoms
        level = np.full((size, size), float(self.noise))
        offset = molecule.hydrogen_offset if self.hydrogens_placed else np.zeros_like(molecule.hydrogen_offset)
        centred = replace(molecule, pos=molecule.pos - molecule.pos.mean(0), hydrogen_offset=offset)
        return start_at(centred, self.vocabulary, pos=level[0], atom=level[0], bond=level)

    def totals(self, index: int) -> Sequence[Total]:
        """The total charge is that of the molecule."""
        charge = self.molecules[index % len(self.molecules)].formal_charge.sum()
        return (Total.of_charge(self.vocabulary, int(charge)),)

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """The molecule in the input's frame, with its similarity to the input."""
        number = index % len(self.molecules)
        origin = self.molecules[number]
        offset = origin.pos.mean(0)
        fields: dict[str, Value | None] = {
            "input": origin.name,
            "input_record": self.numbers[number],
            "noise": self.noise,
            "similarity": similarity(molecule, origin),
        }
        return Finished(replace(molecule, pos=molecule.pos + offset), fields, offset=offset)

    def admission(self, n: int) -> Turns | None:
        """As many neighbours of each molecule."""
        if len(self.molecules) == 1:
            return None
        return Turns(len(self.molecules), n // len(self.molecules))


def similarity(one: Molecule, other: Molecule) -> float | None:
    """Tanimoto similarity of Morgan fingerprints (radius 2, 2,048 bits); None where a graph cannot be sanitised."""
    prints = [_fingerprint(molecule) for molecule in (one, other)]
    return None if None in prints else float(DataStructs.TanimotoSimilarity(*prints))


def _fingerprint(molecule: Molecule) -> Any:
    mol = to_rdkit(molecule, stereo=False)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol)
            bare = Chem.RemoveHs(mol)
    except Chem.MolSanitizeException:
        return None
    return rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048).GetFingerprint(bare)


@dataclass(frozen=True, eq=False)
class Parent:
    """A molecule from near which others are drawn.

    Attributes:
        molecule: in the frame in which the task handed it over (Å).
        index: of the molecule that it descends from, among those that the task itself began.
    """

    molecule: Molecule
    index: int


@dataclass(frozen=True, eq=False)
class Descendants:
    """Draws molecules near parents in turn: each is noised to a level, as far as the task does not know it anyway.

    Attributes:
        task: what the parents were drawn for.
        seed: of the run that drew them.
        parents: where to begin.
        noise: level that they are noised to.
        vocabulary: classes of the model.
        hydrogens_placed: whether the model knows places of hydrogens.
    """

    task: Task
    seed: int
    parents: tuple[Parent, ...]
    noise: float
    vocabulary: Vocabulary
    hydrogens_placed: bool

    def count(self, n: int) -> int:
        """As many as are asked for."""
        return n

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        sizes = [parent.molecule.num_heavy_atoms for parent in self.parents]
        return min(sizes), max(sizes)

    def notes(self) -> Sequence[str]:
        """Those of the task."""
        return self.task.notes()

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """One of the parents at the level of noise; what the task knows of it at that of the task."""
        parent = self._parent(index)
        start = self._beginning(parent)
        level = start.level.at_most(self.noise)
        molecule = parent.molecule
        offset = molecule.hydrogen_offset if self.hydrogens_placed else np.zeros_like(molecule.hydrogen_offset)
        known = start.known
        centre = molecule.pos.mean(0)
        if bool(known.any()):
            rows = known[0].numpy()
            centre = molecule.pos[rows].mean(0) - start.clean.pos[0, known[0]].double().mean(0).numpy()
        near = collate([replace(molecule, pos=molecule.pos - centre, hydrogen_offset=offset)], self.vocabulary)
        clean = start.clean
        clean = clean.replace(
            pos=torch.where(known[..., None], clean.pos, near.pos.to(clean.pos)),
            hydrogen=torch.where(known[..., None, None], clean.hydrogen, near.hydrogen.to(clean.hydrogen)),
            atom_type=torch.where(start.level.atom == 0, clean.atom_type, near.atom_type),
            bond=torch.where(start.level.bond == 0, clean.bond, near.bond),
        )
        return replace(start, clean=clean, level=level)

    def totals(self, index: int) -> Sequence[Total]:
        """Those of the task."""
        return self.task.totals(self._parent(index).index)

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """What the molecule is to the task, with the name of its parent."""
        parent = self._parent(index)
        finished = self.task.finish(parent.index, self._beginning(parent), molecule)
        return replace(finished, fields={**finished.fields, "like_parent": parent.molecule.name})

    def admission(self, n: int) -> Admission | None:
        """All may come in."""
        return None

    def _parent(self, index: int) -> Parent:
        return self.parents[index % len(self.parents)]

    def _beginning(self, parent: Parent) -> Start:
        """What the task knew of the parent's ancestor."""
        return self.task.begin(parent.index, molecule_generator(self.seed, parent.index))
