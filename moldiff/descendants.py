"""New molecules from near some that a task has drawn, while what the task keeps stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from moldiff.batch import Molecule, collate
from moldiff.decode import Total
from moldiff.drawing import Admission, Finished, Task
from moldiff.randomness import molecule_generator
from moldiff.sampler import Start
from moldiff.vocabulary import Vocabulary


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
