"""Grow, link and replace: some atoms stay where they are, the rest is drawn onto them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from rdkit import Chem
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from moldiff.diffusion.shipped import advice
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks.fixed_part import FixedPart, KeptTask
from moldiff.tasks.inputs import Choice, InputMolecule, Source, given, select

Number = int | str | Sequence[int] | None
"""A number, or a smallest and a largest one: 6, "6..10", (6, 10)."""

_REACH = 1.6
"""Å that one bond spans at most; C-C is 1.54, and angles shorten every chain."""

_SHORTEST = 0.8
"""Å; no two heavy atoms of a molecule are nearer (C#N has 1.15)."""

_RANGE = re.compile(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?")


@dataclass(frozen=True, kw_only=True)
class Grow:
    """New atoms on a molecule or a part of it.

    Args:
        core: what to grow on: a file with one molecule in 3D, a SMILES (which gets a conformer), or a molecule from
            Python. A `*` marks an open end.
        keep: atoms of it that stay, by number (from 0) or SMARTS; None = all. What is cut off leaves open ends.
        attach: atoms that gain a bond, each losing a hydrogen unless it has an open end; None = those with open ends
            or, without any, in each sample another of those with hydrogens.
        new_atoms: how many heavy atoms to add: a number or a range; None = to the sizes of the training data.
    """

    core: Source | None = None
    keep: Choice | None = None
    attach: Choice | None = None
    new_atoms: Number = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> KeptTask:
        """The task for a model.

        Raises:
            MoldiffError: for a core, atoms or numbers that cannot be used.
        """
        part = _kept(_one_molecule(self.core), self.keep, vocabulary)
        attach = _atoms_to_attach(self.attach, part)
        sizes = _new_sizes(self.new_atoms, part, statistics)
        return _task("grow", part, attach, [tuple(range(part.size))], sizes, vocabulary, statistics)


@dataclass(frozen=True, kw_only=True)
class Link:
    """New atoms that join two or more pieces.

    Args:
        core: the pieces in 3D, in one record or several, of one file or several.
        keep: atoms that stay, by number over all records (from 0) or SMARTS; None = all.
        attach: atoms that gain a bond, at least one in each piece; None = those with open ends and, in a piece without
            any, in each sample another of those with hydrogens.
        new_atoms: how many heavy atoms the link has: a number or a range; None = to the sizes of the training data.
    """

    core: Source | Sequence[Source] | None = None
    keep: Choice | None = None
    attach: Choice | None = None
    new_atoms: Number = None

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> KeptTask:
        """The task for a model.

        Raises:
            MoldiffError: for pieces, atoms or numbers that cannot be used, or a gap too long for the new atoms.
        """
        part = _kept(_all_molecules(self.core), self.keep, vocabulary)
        pieces = part.pieces()
        if pieces.max() == 0:
            raise MoldiffError("core: is in one piece, expected two or more to link; new atoms on one piece: task=grow")
        attach = _atoms_to_attach(self.attach, part)
        if attach:
            _check_each_piece(attach, part, pieces, open_too=self.attach is None)
        sizes = _new_sizes(self.new_atoms, part, statistics)
        sizes = _long_enough(sizes, part, pieces, attach)
        groups = [tuple(np.flatnonzero(pieces == piece).tolist()) for piece in range(pieces.max() + 1)]
        return _task("link", part, attach, groups, sizes, vocabulary, statistics)


@dataclass(frozen=True, kw_only=True)
class Replace:
    """New atoms in the place of others.

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

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> KeptTask:
        """The task for a model.

        Raises:
            MoldiffError: for a molecule, atoms or numbers that cannot be used.
        """
        source = _one_molecule(self.core)
        if self.remove is None:
            raise MoldiffError("remove: nothing given, expected the atoms to replace, by number or SMARTS")
        removed = select("remove", self.remove, source)
        rows = [row for row in range(len(source.index)) if row not in removed]
        if not rows:
            raise MoldiffError("remove: takes all atoms, expected some to stay; whole new molecules need no task")
        part = FixedPart.of("core", source, rows, vocabulary)
        attach = _atoms_to_attach(self.attach, part)
        sizes = _new_sizes(len(removed) if self.new_atoms is None else self.new_atoms, part, statistics)
        return _task("replace", part, attach, [tuple(range(part.size))], sizes, vocabulary, statistics)


def _all_records(source: Any) -> list[InputMolecule]:
    found, rejected = given("core", source)
    if rejected:
        raise MoldiffError(f"core: record {rejected[0][0]}: {rejected[0][1]}")
    return found


def _one_molecule(source: Any) -> InputMolecule:
    first, *others = _all_records(source)
    if others:
        raise MoldiffError(f"core: got {1 + len(others)} molecules, expected one")
    return first


def _all_molecules(source: Any) -> InputMolecule:
    """All records as one molecule of several pieces, atoms numbered through."""
    found = _all_records(source)
    if len(found) == 1:
        return found[0]
    mol = reduce(Chem.CombineMols, [one.mol for one in found])
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    atoms_before = np.cumsum([0, *(one.size for one in found)])
    rows_before = np.cumsum([0, *(len(one.index) for one in found)])
    return replace(
        found[0],
        molecule=replace(molecule, name=found[0].name, properties={}),
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
    gone = [row for row in rows if row not in part.rows]
    if gone:
        raise MoldiffError(f"attach: atom {part.source.label(gone[0])} is not among the atoms that are kept")
    place = {row: atom for atom, row in enumerate(part.rows)}
    return tuple(sorted({place[row] for row in rows} | set(ends)))


def _task(
    name: str,
    part: FixedPart,
    attach: tuple[int, ...],
    groups: Iterable[tuple[int, ...]],
    sizes: Mapping[int, int],
    vocabulary: Vocabulary,
    statistics: Statistics,
) -> KeptTask:
    """Check the atoms against the model; in groups without an atom to attach to, one is left to chance."""
    _check_apart(part)
    losing = [atom for atom in attach if not part.open[atom]]
    for atom in losing:
        if not part.molecule.num_hydrogens[atom]:
            raise MoldiffError(f"attach: atom {part.label(atom)} has no hydrogen to lose and no open end")
    part.check_known("core", losing, vocabulary)
    choices = []
    for group in groups:
        if any(atom in attach for atom in group):
            continue
        able = tuple(atom for atom in group if part.can_lose_hydrogen(atom, vocabulary))
        if not able:
            raise MoldiffError(f"core: no atom has a hydrogen to lose or an open end: {part.label(group[0])} ...")
        choices.append(able)
    return KeptTask(name, part, attach, tuple(choices), sizes, vocabulary, statistics.hydrogens_placed)


def _check_apart(part: FixedPart) -> None:
    """Refuse atoms that lie on one another."""
    pos = part.molecule.pos
    distance = cdist(pos, pos) + np.diag(np.full(len(pos), np.inf))
    one, other = np.unravel_index(distance.argmin(), distance.shape)
    if distance[one, other] < _SHORTEST:
        labels = f"{part.label(int(one))} and {part.label(int(other))}"
        raise MoldiffError(
            f"core: atoms {labels} are {distance[one, other]:.2f} Å apart, expected atoms that do not overlap"
        )


def _new_sizes(new_atoms: Number, part: FixedPart, statistics: Statistics) -> dict[int, int]:
    """Weight of every number of new atoms."""
    kept = part.size
    if new_atoms is None:
        sizes = {n - kept: count for n, count in sorted(statistics.size_counts.items()) if n > kept}
        if not sizes:
            largest = max(statistics.size_counts)
            other = advice(({one} for one in part.classes()), (kept + 1, kept + 1))
            raise MoldiffError(
                f"new_atoms: nothing given, but {kept} atoms are kept and the model has seen {largest} at most; "
                f"say how many are to be added, such as new_atoms=3{other}"
            )
        return sizes
    low, high = _bounds(new_atoms)
    inside = {n: statistics.size_counts.get(n + kept, 0) for n in range(low, high + 1)}
    trained = {n: count for n, count in inside.items() if count}
    return trained or dict.fromkeys(inside, 1)


def _bounds(new_atoms: int | str | Sequence[int]) -> tuple[int, int]:
    found = _RANGE.fullmatch(new_atoms) if isinstance(new_atoms, str) else None
    low, high = 0, 0
    if found is not None:
        low, high = int(found[1]), int(found[2] or found[1])
    elif isinstance(new_atoms, int):
        low = high = 0 if isinstance(new_atoms, bool) else new_atoms
    elif not isinstance(new_atoms, str) and len(new_atoms) == 2:
        low, high = new_atoms
    if not 1 <= low <= high <= 250:
        raise MoldiffError(
            f"new_atoms: got {new_atoms}, expected a number such as 6 or a range such as 6..10, at most 250"
        )
    return low, high


def _check_each_piece(attach: Sequence[int], part: FixedPart, pieces: np.ndarray, *, open_too: bool) -> None:
    """Refuse atoms to attach to that leave a piece out, unless it was not the user who named them."""
    missing = set(range(pieces.max() + 1)) - set(pieces[list(attach)].tolist())
    if not missing or open_too:
        return
    labels = " and ".join(part.label(atom) for atom in attach)
    alone = int(np.flatnonzero(pieces == min(missing))[0])
    raise MoldiffError(
        f"attach: got {labels}, none in the piece of atom {part.label(alone)}; expected one in each piece"
    )


def _long_enough(
    sizes: Mapping[int, int], part: FixedPart, pieces: np.ndarray, attach: Sequence[int]
) -> dict[int, int]:
    """The numbers of new atoms that can bridge the gaps between the pieces."""
    ends = [
        [a for a in np.flatnonzero(pieces == piece) if a in attach] or list(np.flatnonzero(pieces == piece))
        for piece in range(pieces.max() + 1)
    ]
    pos = part.molecule.pos
    gaps = np.array([[cdist(pos[one], pos[other]).min() for other in ends] for one in ends])
    tree = minimum_spanning_tree(gaps).toarray()
    bridges = tree[tree > 0]
    needed = int(sum(max(1, math.ceil(gap / _REACH) - 1) for gap in bridges))
    if len(bridges) > 1:  # several gaps may share atoms that they all lead to
        needed = max(1, min(needed, math.ceil(bridges.max() / _REACH) - 1))
    enough = {n: weight for n, weight in sizes.items() if n >= needed}
    if not enough:
        raise MoldiffError(
            f"core: the pieces are {bridges.max():.1f} Å apart, a gap too long for {max(sizes)} new atoms; "
            f"expected new_atoms={needed} or more"
        )
    return enough
