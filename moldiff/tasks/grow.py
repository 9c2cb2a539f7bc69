"""Grow, link and replace: some atoms stay where they are, the rest is drawn onto them; or nothing does in a pocket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from rdkit import Chem
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist, pdist

from moldiff.diffusion.batch import draw_size
from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.guidance import StereoTargets
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import advice
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError, as_range
from moldiff.molecules.conformers import marks
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.formats.record import Value
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.conformers import stereo_targets
from moldiff.tasks.inputs import Choice, FixedPart, InputMolecule, Source, given, heavy_first, select
from moldiff.tasks.pocket import Place, check_in_frame, fitting_sizes
from moldiff.tasks.task import NewMolecules, Task, TaskOutcome, start_at

Number = int | str | Sequence[int] | None
"""A number, or a smallest and a largest one: 6, "6..10", (6, 10)."""

_REACH = 1.6
"""Å that one bond spans at most; C-C is 1.54, and angles shorten every chain."""

_SHORTEST = 0.8
"""Å; no two heavy atoms of a molecule are nearer (C#N has 1.15)."""


@dataclass(frozen=True, kw_only=True)
class Grow(Place):
    """New atoms on a molecule or a part of it; with a `receptor` in a pocket, see `Place`, in whose frame it is given.

    Args:
        core: what to grow on: a file with one molecule in 3D, a SMILES (which gets a conformer), or a molecule from
            Python. A `*` marks an open end.
        keep: atoms of it that stay, by number (from 0) or SMARTS; None = all. What is cut off leaves open ends.
        attach: atoms that gain a bond, each losing a hydrogen unless it has an open end; None = those with open ends
            or, without any, in each sample another of those with hydrogens.
        new_atoms: how many heavy atoms to add: a number or a range; None = to the sizes of the training data, or of
            the pocket.
    """

    core: Source | None = None
    keep: Choice | None = None
    attach: Choice | None = None
    new_atoms: Number = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        part = _kept(_core(self.core), self.keep, vocabulary)
        return _task(self, part, [range(part.size)], vocabulary, statistics)


@dataclass(frozen=True, kw_only=True)
class Link(Place):
    """New atoms that join two or more pieces; with a `receptor` in a pocket, see `Place`, in whose frame they are.

    Pieces in 3D stay where they are. Of pieces as SMILES the atoms and bonds are known alone, and how they lie is drawn
    with the link.

    Args:
        core: the pieces in 3D, in one record or several, of one file or several; or as SMILES, `*` at open ends.
        keep: atoms that stay, by number over all records (from 0) or SMARTS; None = all.
        attach: atoms that gain a bond, at least one in each piece; None = those with open ends and, in a piece without
            any, in each sample another of those with hydrogens.
        new_atoms: how many heavy atoms the link has: a number or a range; None = to the sizes of the training data.
    """

    core: Source | Sequence[Source] | None = None
    keep: Choice | None = None
    attach: Choice | None = None
    new_atoms: Number = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        part = _kept(_core(self.core, several=True), self.keep, vocabulary)
        count, labels = part.molecule.pieces()
        if count == 1:
            raise MoldiffError("core: is in one piece, expected two or more to link; new atoms on one piece: task=grow")
        pieces = [np.flatnonzero(labels == piece).tolist() for piece in range(count)]
        return _task(self, part, pieces, vocabulary, statistics)


@dataclass(frozen=True, kw_only=True)
class Replace(Place):
    """New atoms in the place of others; with a `receptor` in a pocket, see `Place`, in whose frame the molecule is.

    Args:
        core: a file with one molecule in 3D, a SMILES (which gets a conformer), or a molecule from Python.
        remove: atoms to replace, by number (from 0) or SMARTS.
        attach: atoms that gain a bond; None = where the others were cut off.
        new_atoms: how many heavy atoms to put there: a number or a range; None = as many as are removed.
    """

    core: Source | None = None
    remove: Choice | None = None
    attach: Choice | None = None
    new_atoms: Number = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        source = _core(self.core)
        if self.remove is None:
            raise MoldiffError("remove: nothing given, expected the atoms to replace, by number or SMARTS")
        removed = select("remove", self.remove, source)
        rows = [row for row in range(len(source.index)) if row not in removed]
        if not rows:
            raise MoldiffError("remove: takes all atoms, expected some to stay; whole new molecules need no task")
        part = FixedPart.of("core", source, rows, vocabulary)
        request = replace(self, new_atoms=len(removed)) if self.new_atoms is None else self
        return _task(request, part, [range(part.size)], vocabulary, statistics)


def _core(source: Source | Sequence[Source] | None, *, several: bool = False) -> InputMolecule:
    """The molecule that is given, or several records as one of several pieces, atoms numbered through."""
    found, rejected = given("core", source, coordinates=not several)
    if rejected:
        raise MoldiffError(f"core: record {rejected[0][0]}: {rejected[0][1]}")
    if len(found) == 1:
        return found[0]
    if not several:
        raise MoldiffError(f"core: got {len(found)} molecules, expected one")
    if len({one.placed for one in found}) > 1:
        raise MoldiffError("core: got pieces with coordinates and without, expected all in 3D or all as SMILES")
    mol = reduce(Chem.CombineMols, [one.mol for one in found])
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    atoms_before = np.cumsum([0, *(one.size for one in found)])
    rows_before = np.cumsum([0, *(len(one.index) for one in found)])
    return replace(
        found[0],
        molecule=replace(molecule, name=found[0].molecule.name, properties={}),
        mol=mol,
        index=np.concatenate([one.index + before for one, before in zip(found, atoms_before, strict=False)]),
        size=int(atoms_before[-1]),
        anchors=tuple(int(row + n) for one, n in zip(found, rows_before, strict=False) for row in one.anchors),
    )


def _kept(source: InputMolecule, keep: Choice | None, vocabulary: Vocabulary) -> FixedPart:
    rows = range(len(source.index)) if keep is None else select("keep", keep, source)
    return FixedPart.of("core", source, rows, vocabulary)


def _atoms_to_attach(attach: Choice | None, part: FixedPart) -> tuple[int, ...]:
    """The kept atoms that are to gain a bond; empty = left to chance."""
    ends = np.flatnonzero(part.open > 0).tolist()
    if attach is None:
        return tuple(ends)
    rows = select("attach", attach, part.source)
    if gone := [row for row in rows if row not in part.rows]:
        raise MoldiffError(f"attach: atom {part.source.label(gone[0])} is not among the atoms that are kept")
    place = {row: atom for atom, row in enumerate(part.rows)}
    return tuple(sorted({place[row] for row in rows} | set(ends)))


def _task(
    request: Grow | Link | Replace,
    part: FixedPart,
    groups: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    statistics: Statistics,
) -> Task:
    """Check the atoms against the model; in groups without an atom to attach to, one is left to chance."""
    if request.receptor is not None:
        check_in_frame("core", request.core)
    kept = part.molecule.pos
    site = request.site(kept)
    attach = _atoms_to_attach(request.attach, part)
    free = [group for group in groups if not set(group) & set(attach)]
    if request.attach is not None and len(groups) > 1 and free:
        got, alone = " and ".join(part.label(atom) for atom in attach), part.label(free[0][0])
        raise MoldiffError(f"attach: got {got}, none in the piece of atom {alone}; expected one in each piece")
    sizes = _new_sizes(request.new_atoms, part, statistics)
    if site is not None and request.new_atoms is None:
        low, high = fitting_sizes(site, statistics)
        sizes = {n: weight for n, weight in sizes.items() if low <= n + part.size <= high} or sizes
    if len(groups) > 1 and part.source.placed:
        sizes = _long_enough(sizes, part, groups, attach)
    distances = pdist(part.molecule.pos)
    if part.source.placed and distances.min(initial=np.inf) < _SHORTEST:
        one, other = (part.label(int(row[distances.argmin()])) for row in np.triu_indices(part.size, 1))
        apart = f"{one} and {other} are {distances.min():.2f} Å apart"
        raise MoldiffError(f"core: atoms {apart}, expected atoms that do not overlap")
    losing = [atom for atom in attach if not part.open[atom]]
    if bare := [atom for atom in losing if not part.molecule.num_hydrogens[atom]]:
        raise MoldiffError(f"attach: atom {part.label(bare[0])} has no hydrogen to lose and no open end")
    part.check_known("core", vocabulary, losing)
    fewer = part.classes(losing=range(part.size))
    choices = tuple(tuple(atom for atom in group if fewer[atom] in vocabulary.atom_classes) for group in free)
    if () in choices:
        first = part.label(free[choices.index(())][0])
        raise MoldiffError(f"core: no atom has a hydrogen to lose or an open end: {first} ...")
    name = type(request).__name__.lower()
    task = KeptTask(name, part, attach, choices, sizes, vocabulary, statistics.hydrogens_placed, _stereo(part))
    return request.placed(task, site, kept)


@dataclass(frozen=True, kw_only=True)
class Pocket(Place):
    """New molecules that fit into a pocket of a protein, in its frame, by Vina's energy; see `Place`.

    Args:
        new_atoms: how many heavy atoms to draw: a number or a range; None = by the free volume of the pocket.
    """

    new_atoms: Number = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        if self.receptor is None or (site := self.site()) is None:
            raise MoldiffError("receptor: nothing given, expected a protein, a PDB or mmCIF file")
        sizes = size_weights(self.new_atoms or fitting_sizes(site, statistics), 0, statistics)
        return self.placed(replace(NewMolecules.like_training(statistics, vocabulary), size_weights=sizes), site)


def _stereo(part: FixedPart) -> StereoTargets | None:
    """What is stated of whole pieces without coordinates, but for centres at open ends; None = nothing."""
    if part.source.placed or part.size < len(part.source.index):
        return None
    mol = heavy_first(part.source.mol)
    hands, sides = marks(mol)
    return stereo_targets(mol, ({row: hand for row, hand in hands.items() if row not in part.source.anchors}, sides))


def _new_sizes(new_atoms: Number, part: FixedPart, statistics: Statistics) -> dict[int, int]:
    """Weight of every number of new atoms."""
    if new_atoms is not None or max(statistics.size_counts) > part.size:
        return size_weights(new_atoms, part.size, statistics)
    other = advice(({one} for one in part.classes()), (part.size + 1, part.size + 1))
    why = f"{part.size} atoms are kept and the model has seen {max(statistics.size_counts)} at most"
    say = f"say how many are to be added, such as new_atoms=3{other}"
    raise MoldiffError(f"new_atoms: nothing given, but {why}; {say}")


def size_weights(new_atoms: Number, kept: int, statistics: Statistics) -> dict[int, int]:
    """Weight of every number of new atoms beside those that are kept, as in the training data; None = any."""
    trained = {n - kept: count for n, count in sorted(statistics.size_counts.items()) if n > kept}
    if new_atoms is None:
        return trained
    low, high = as_range(new_atoms)
    if not 1 <= low <= high <= 250:
        expected = "a number such as 6 or a range such as 6..10, at most 250"
        raise MoldiffError(f"new_atoms: got {new_atoms}, expected {expected}")
    inside = {n: count for n, count in trained.items() if count and low <= n <= high}
    return inside or dict.fromkeys(range(low, high + 1), 1)


def _long_enough(
    sizes: Mapping[int, int], part: FixedPart, pieces: Sequence[Sequence[int]], attach: Sequence[int]
) -> dict[int, int]:
    """The numbers of new atoms that can bridge the gaps between the pieces."""
    ends = [[atom for atom in piece if atom in attach] or piece for piece in pieces]
    pos = part.molecule.pos
    gaps = np.array([[cdist(pos[one], pos[other]).min() for other in ends] for one in ends])
    tree = minimum_spanning_tree(gaps).toarray()
    bridges = tree[tree > 0]
    needed = int(sum(max(1, math.ceil(gap / _REACH) - 1) for gap in bridges))
    if len(bridges) > 1:  # several gaps may share atoms that they all lead to
        needed = max(1, min(needed, math.ceil(bridges.max() / _REACH) - 1))
    enough = {n: weight for n, weight in sizes.items() if n >= needed}
    if not enough:
        gap = f"a gap too long for {max(sizes)} new atoms; expected new_atoms={needed} or more"
        raise MoldiffError(f"core: the pieces are {bridges.max():.1f} Å apart, {gap}")
    return enough


@dataclass(frozen=True, eq=False)
class KeptTask(Task):
    """Draws new atoms onto a kept part."""

    name: str  # of the task, for the record
    part: FixedPart  # what is kept; its atoms come first in every molecule
    attach: tuple[int, ...]  # kept atoms that have to gain a bond; one drawn at random in each of `choices`, too
    choices: tuple[tuple[int, ...], ...]  # groups of kept atoms, of which one each loses a hydrogen to gain a bond
    size_weights: Mapping[int, int]  # of every number of new atoms
    vocabulary: Vocabulary
    hydrogens_placed: bool  # whether the model knows places of hydrogens
    stereo: StereoTargets | None = None  # of pieces whose places are drawn

    def sizes(self) -> tuple[int, int]:
        return self.part.size + min(self.size_weights), self.part.size + max(self.size_weights)

    def notes(self) -> Sequence[str]:
        part = self.part
        ends = [part.label(atom) for atom in self.attach]
        ends += [f"any of {len(group)} atoms with hydrogens" for group in self.choices]
        pieces = part.molecule.pieces()[0]
        stay = f"{part.size} atoms stay" + (f" in {pieces} pieces" if pieces > 1 else "")
        stay += "" if part.source.placed else ", where they lie is drawn"
        return [f"{self.name}: {stay}; attach: {'; '.join(ends)}"]

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        new = draw_size(generator, self.size_weights)
        losing = [atom for atom in self.attach if not self.part.open[atom]]
        losing += [group[int(torch.randint(len(group), (), generator=generator))] for group in self.choices]
        part = self.part.molecule
        count, offset = part.num_hydrogens.copy(), part.hydrogen_offset.copy()
        for atom in losing:
            offset[atom, int(torch.randint(int(count[atom]), (), generator=generator))] = 0
            count[atom] -= 1
        if not self.hydrogens_placed:
            offset = np.zeros_like(offset)
        known = replace(part, pos=part.pos - part.pos.mean(0), num_hydrogens=count, hydrogen_offset=offset)
        level = np.repeat([0.0, 1.0], [self.part.size, new])
        pos = level if self.part.source.placed else np.ones_like(level)
        return replace(start_at(known, self.vocabulary, pos=pos, atom=level), stereo=self.stereo)

    def lead(self, index: int) -> Molecule:
        return self.part.source.molecule

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return (SumConstraint.of_charge(self.vocabulary, int(self.part.molecule.formal_charge.sum())),)

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The molecule in the input's frame, what is kept exactly as it was, and whether it is attached."""
        part, size = self.part.molecule, self.part.size
        if not self.part.source.placed:
            is_right, mirrored = (True, False) if self.stereo is None else self.stereo.met(molecule.pos)
            outcome = TaskOutcome(molecule, self._fields(molecule), None if is_right else "stereo", mirrored=mirrored)
            return replace(outcome, molecule=outcome.in_its_frame(molecule))
        pos = molecule.pos + part.pos.mean(0)
        pos[:size] = part.pos
        offset = molecule.hydrogen_offset.copy()
        placed = start.clean.hydrogen[0, :size].numpy() if self.hydrogens_placed else part.hydrogen_offset
        for atom in np.flatnonzero(self.hydrogens_placed | (molecule.num_hydrogens[:size] == part.num_hydrogens)):
            kept = part.hydrogen_offset[atom, placed[atom].any(-1)]
            offset[atom] = 0
            offset[atom, : len(kept)] = kept
        whole = replace(molecule, pos=pos, hydrogen_offset=offset)
        return TaskOutcome(whole, self._fields(molecule), offset=part.pos.mean(0))

    def _fields(self, molecule: Molecule) -> dict[str, Value | None]:
        part, size = self.part.molecule, self.part.size
        losing = molecule.num_hydrogens[:size] < part.num_hydrogens
        ends = np.flatnonzero(losing | (self.part.open > 0))
        return {
            "kept": " ".join(map(str, range(size))),
            "kept_from": " ".join(map(str, self.part.source.index[list(self.part.rows)].tolist())),
            "attach": " ".join(map(str, ends.tolist())),
            "attached": is_attached(molecule, size, ends),
        }


def is_attached(molecule: Molecule, size: int, ends: np.ndarray) -> bool:
    """Whether every open end has a bond to a new atom, and all atoms hang together."""
    i, j, _ = molecule.bonds.T
    crossing = (i < size) & (j >= size)
    return bool(np.isin(ends, i[crossing]).all() and molecule.pieces()[0] == 1)
