"""Partial diffusion: molecules are noised part of the way and drawn back, as far as a task does not know them anyway.

Neighbours of molecules that a user gives, and descendants of molecules that a task has drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator

from moldiff.diffusion.batch import collate, molecule_generator
from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.inputs import FixedPart, InputMolecule, Source, usable
from moldiff.tasks.task import Task, TaskOfInputs, TaskOutcome

_NOISE = 0.6

SIMILARITY = {0.0: 1.0, 0.1: 0.79, 0.2: 0.62, 0.3: 0.35, 0.4: 0.17, 0.6: 0.11}
"""Mean Tanimoto similarity to their lead by noise, of analogues that `qm9` and `drugs` draw of 20 leads each: the mean
of the two columns in docs/tasks.md, which differ little."""


@dataclass(frozen=True)
class PartialDiffusion:
    """Takes molecules part of the way to noise."""

    noise: float  # level that they are noised to
    vocabulary: Vocabulary
    hydrogens_placed: bool  # whether the model knows places of hydrogens

    def start(self, molecule: Molecule, start: PartialState) -> PartialState:
        """A molecule (Å) at the level of noise; what is known at `start` has the values and the level of it."""
        clean, known = start.clean, start.known
        offset = molecule.hydrogen_offset if self.hydrogens_placed else np.zeros_like(molecule.hydrogen_offset)
        centre = molecule.pos.mean(0)
        if bool(known.any()):
            centre = molecule.pos[known[0].numpy()].mean(0) - clean.pos[0, known[0]].double().mean(0).numpy()
        near = collate([replace(molecule, pos=molecule.pos - centre, hydrogen_offset=offset)], self.vocabulary)
        level = start.level.at_most(self.noise)
        clean = clean.replace(
            pos=torch.where(known[..., None], clean.pos, near.pos),
            hydrogen=torch.where(known[..., None, None], clean.hydrogen, near.hydrogen),
            atom_type=torch.where(start.level.atom == 0, clean.atom_type, near.atom_type),
            bond=torch.where(start.level.bond == 0, clean.bond, near.bond),
        )
        return replace(start, clean=clean, level=replace(level, hydrogen=level.hydrogen * (level.pos > 0)))


@dataclass(frozen=True, kw_only=True)
class Analogues:
    """n neighbours of each molecule, of the same number of heavy atoms.

    Args:
        of: the molecules: a file, a SMILES (which gets a conformer), or molecules from Python.
        noise: how far they are noised before they are drawn back: near 0 = hardly, 1 = nothing is left of them; None =
            so far as the run's `similarity` asks for, or 0.6.
    """

    of: Source | Sequence[Source] | None = None
    noise: float | None = None

    def with_noise(self, similarity: tuple[float, float] | None) -> Analogues:
        """With a noise where it has none: that whose mean `SIMILARITY` is in the middle of these bounds, or 0.6."""
        if self.noise is not None:
            return self
        if similarity is None:
            return replace(self, noise=_NOISE)
        levels, means = zip(*reversed(SIMILARITY.items()), strict=True)
        return replace(self, noise=round(float(np.interp(sum(similarity) / 2, means, levels)), 3))

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> AnalogueTask:
        noise = _NOISE if self.noise is None else self.noise
        if not 0 <= noise <= 1:
            raise MoldiffError(f"noise: got {noise}, expected a number from 0 to 1")

        def known(one: InputMolecule) -> InputMolecule:
            FixedPart.of("of", one, range(len(one.index)), vocabulary).check_known("of", vocabulary)
            return one

        found, rejected = usable("of", self.of, known)
        way = PartialDiffusion(noise, vocabulary, statistics.hydrogens_placed)
        return AnalogueTask(found, vocabulary, rejected, way)


@dataclass(frozen=True, eq=False)
class AnalogueTask(TaskOfInputs[InputMolecule]):
    """Draws neighbours of known molecules, molecule after molecule in turn."""

    way: PartialDiffusion

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        molecule = self.of(index).molecule
        nothing = PartialState.unknown(torch.ones(1, molecule.num_heavy_atoms, dtype=torch.bool))
        return self.way.start(molecule, nothing)

    def lead(self, index: int) -> Molecule:
        return self.of(index).molecule

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The molecule in the input's frame, with its similarity to the input."""
        origin = self.of(index).molecule
        offset = origin.pos.mean(0)
        fields = self.fields(index) | {"noise": self.way.noise, "similarity": similarity(molecule, origin)}
        return TaskOutcome(replace(molecule, pos=molecule.pos + offset), fields, offset=offset)


def similarity(one: Molecule, other: Molecule) -> float | None:
    """Tanimoto similarity of Morgan fingerprints (radius 2, 2,048 bits); None where a graph cannot be sanitised."""
    generator, prints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048), []
    for molecule in (one, other):
        mol = to_rdkit(molecule, stereo=False)
        try:
            with rdBase.BlockLogs():
                Chem.SanitizeMol(mol)
                prints.append(generator.GetFingerprint(Chem.RemoveHs(mol)))
        except Chem.MolSanitizeException:
            return None
    return float(DataStructs.TanimotoSimilarity(*prints))


class Parent(NamedTuple):
    """A molecule from near which others are drawn."""

    molecule: Molecule  # in the frame in which the task handed it over (Å)
    ancestor: int  # index of the molecule that it descends from, among those that the task itself began


@dataclass(frozen=True, eq=False)
class Descendants(Task):
    """Draws molecules near parents in turn, each noised as far as the task does not know it anyway."""

    task: Task  # what the parents were drawn for
    seed: int  # of the run that drew them
    parents: tuple[Parent, ...]
    way: PartialDiffusion

    def sizes(self) -> tuple[int, int]:
        return self.task.sizes()

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        return self.way.start(self._parent(index).molecule, self._known(index))

    def lead(self, index: int) -> Molecule | None:
        return self.task.lead(self._parent(index).ancestor)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return self.task.totals(self._parent(index).ancestor)

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """What the molecule is to the task, with the name of its parent."""
        parent = self._parent(index)
        outcome = self.task.finish(parent.ancestor, self._known(index), molecule)
        return replace(outcome, fields={**outcome.fields, "like_parent": parent.molecule.name})

    def _parent(self, index: int) -> Parent:
        return self.parents[index % len(self.parents)]

    def _known(self, index: int) -> PartialState:
        """What the task knew of the parent's ancestor."""
        ancestor = self._parent(index).ancestor
        return self.task.begin(ancestor, molecule_generator(self.seed, ancestor))
