"""Conformers: atoms and bonds are known, coordinates are drawn, and only those of the right handedness are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from moldiff.diffusion.guidance import StereoTargets
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.molecules.conformers import Marks, Match, at_positions, compare, heavy_sides, marks, turns
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.inputs import FixedPart, InputMolecule, Source, heavy_first, usable
from moldiff.tasks.pocket import Place
from moldiff.tasks.task import Admission, Input, Task, TaskOfInputs, TaskOutcome, start_at

_MAX_MATCHES = 1000
"""Symmetric ways to lay one conformer on another that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Conformers(Place):
    """n conformers of each molecule, with its stereochemistry; with a `receptor` n poses in a pocket, see `Place`.

    The network draws both mirror images alike. A sample with every stated centre inverted is mirrored; others that
    miss a centre or double bond are dropped and counted, and drawing goes on until n are right. Centres and double
    bonds without a statement are free.

    Args:
        smiles: the molecule; "-" = a SMILES a line from standard input.
        input: instead, a file of molecules, or molecules from Python.
        rmsd: leave out conformers that are nearer than this to one before (Å, heavy atoms, symmetry considered).
    """

    smiles: str | None = None
    input: Source | Sequence[Source] | None = None
    rmsd: float | None = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        if (self.smiles is None) == (self.input is None):
            both = "both" if self.smiles is not None else "neither"
            raise MoldiffError(f"conformers: got {both} of smiles and input, expected one of them")
        if self.rmsd is not None and not self.rmsd > 0:
            raise MoldiffError(f"rmsd: got {self.rmsd}, expected a number above 0 (Å)")
        name = "smiles" if self.input is None else "input"
        source = self.smiles if self.input is None else self.input
        targets, rejected = usable(name, source, lambda one: _Target.of(name, one, vocabulary), coordinates=False)
        return self.placed(ConformerTask(targets, vocabulary, rejected, self.rmsd), self.site())


@dataclass(frozen=True, eq=False)
class _Target(Input):
    """A molecule whose conformers are wanted."""

    mol: Chem.Mol  # heavy atoms first, then the hydrogens, those of atom 0 first
    marks: Marks
    stereo: StereoTargets | None

    @classmethod
    def of(cls, name: str, source: InputMolecule, vocabulary: Vocabulary) -> _Target:
        part = FixedPart.of(name, source, range(len(source.index)), vocabulary)
        if part.molecule.pieces()[0] > 1:
            raise MoldiffError(f"{name}: {part.molecule.name} is in several pieces, expected one molecule")
        if part.open.any():
            atom = part.label(int(np.flatnonzero(part.open)[0]))
            raise MoldiffError(f"{name}: atom {atom} of {part.molecule.name} lacks bonds, expected a whole molecule")
        part.check_known(name, vocabulary)
        ordered = heavy_first(source.mol)
        stated = marks(ordered)
        return cls(source.molecule, source.number, ordered, stated, stereo_targets(ordered, stated))


def stereo_targets(mol: Chem.Mol, stated: Marks) -> StereoTargets | None:
    """What is stated of the centres and double bonds of `mol`, heavy atoms first; None = nothing."""
    hands, sides = stated
    if not hands and not sides:
        return None
    centres, bonds = turns(mol, hands), heavy_sides(mol, sides)
    return StereoTargets(
        torch.tensor(centres, dtype=torch.long).reshape(1, -1, 4),
        torch.tensor([chain for chain, _ in bonds], dtype=torch.long).reshape(1, -1, 4),
        torch.tensor([[same for _, same in bonds]], dtype=torch.bool),
    )


@dataclass(frozen=True, eq=False)
class ConformerTask(TaskOfInputs[_Target]):
    """Draws coordinates for known graphs, molecule after molecule in turn."""

    rmsd: float | None = None  # smallest distance between two conformers that are kept (Å); None = any

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        target = self.of(index)
        molecule, size = target.molecule, target.molecule.num_heavy_atoms
        no_offset = np.zeros_like(molecule.hydrogen_offset)
        blank = replace(molecule, pos=np.zeros_like(molecule.pos), hydrogen_offset=no_offset)
        start = start_at(blank, self.vocabulary, pos=np.ones(size), atom=np.zeros(size))
        return replace(start, stereo=target.stereo)

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The conformer, mirrored if it is the mirror image; a problem if its handedness is another."""
        target = self.of(index)
        match = compare(target.marks, target.mol, all_atoms(molecule)[1])
        problem, mirrored = "stereo" if match is Match.WRONG else None, match is Match.MIRRORED
        outcome = TaskOutcome(molecule, self.fields(index) | {"mirrored": mirrored}, problem, mirrored=mirrored)
        return replace(outcome, molecule=outcome.in_its_frame(molecule))

    def admission(self, n: int) -> Admission | None:
        return super().admission(n) if self.rmsd is None else RMSDFilter(self.inputs, n, self.rmsd)


class RMSDFilter(Admission):
    """Takes conformers until there are n in all, as many of each molecule, none nearer than `rmsd` (Å) to another."""

    def __init__(self, targets: Sequence[_Target], n: int, rmsd: float) -> None:
        super().__init__(len(targets), n // len(targets))
        self._targets, self._rmsd = targets, rmsd
        self._placed: list[list[Chem.Mol]] = [[] for _ in targets]

    def admit(self, index: int, molecule: Molecule) -> str | None:
        number = index % len(self._placed)
        bare = Chem.RemoveHs(at_positions(self._targets[number].mol, all_atoms(molecule)[1]), sanitize=False)
        for other in self._placed[number]:
            if rdMolAlign.GetBestRMS(Chem.Mol(bare), Chem.Mol(other), maxMatches=_MAX_MATCHES) < self._rmsd:
                return "near another"
        refused = super().admit(index, molecule)
        if refused is None:
            self._placed[number].append(bare)
        return refused
