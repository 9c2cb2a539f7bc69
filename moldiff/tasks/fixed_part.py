"""The part of a molecule that is kept while the rest is drawn anew: its open ends, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.noise import draw_size
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import advice
from moldiff.errors import MoldiffError
from moldiff.molecules.elements import SYMBOLS
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import AtomClass, Vocabulary
from moldiff.tasks.inputs import InputMolecule
from moldiff.tasks.task import Task, TaskOutcome, Value, start_at


@dataclass(frozen=True, eq=False)
class FixedPart:
    """Heavy atoms that stay, with their hydrogens and the bonds among them.

    Attributes:
        molecule: the kept atoms (Å).
        open: bond orders that each atom [n] has to gain to reach a valence.
        rows: of the kept atoms [n] in `source`.
        source: what they are a part of.
    """

    molecule: Molecule
    open: np.ndarray
    rows: tuple[int, ...]
    source: InputMolecule

    @classmethod
    def of(cls, name: str, source: InputMolecule, rows: Sequence[int], vocabulary: Vocabulary) -> FixedPart:
        """The part of `source` in `rows`.

        Raises:
            MoldiffError: for an atom with more bonds than any of its valences, or of an element or charge that the
                vocabulary lacks.
        """
        whole, chosen = source.molecule, np.array(sorted(rows), dtype=np.int64)
        place = np.full(whole.num_heavy_atoms, -1)
        place[chosen] = np.arange(len(chosen))
        inside = (place[whole.bonds[:, :2]] >= 0).all(1)
        bonds = np.concatenate([place[whole.bonds[inside, :2]], whole.bonds[inside, 2:]], axis=1)
        of_atoms = ("pos", "atomic_number", "formal_charge", "num_hydrogens", "hydrogen_offset")
        part = replace(whole, bonds=bonds, **{name: getattr(whole, name)[chosen] for name in of_atoms})
        # What an atom had before the cut is what it is to have again; a drawing that left ends open is completed.
        target = [_valence(name, source, row, vocabulary) for row in chosen.tolist()]
        return cls(part, np.array(target) - part.bond_sums(), tuple(chosen.tolist()), source)

    @property
    def size(self) -> int:
        """Heavy atoms that stay."""
        return len(self.rows)

    def label(self, atom: int) -> str:
        """Number and element of a kept atom in the input, as in "3 (N)"."""
        return self.source.label(self.rows[atom])

    def pieces(self) -> np.ndarray:
        """Number of the piece that each kept atom [n] is in."""
        return self.molecule.pieces()[1]

    def can_lose_hydrogen(self, atom: int, vocabulary: Vocabulary) -> bool:
        """Whether the atom has a hydrogen, and the model knows it with one fewer."""
        return self._class(atom, 1) in vocabulary.atom_classes

    def check_known(self, name: str, losing: Sequence[int], vocabulary: Vocabulary) -> None:
        """Refuse atoms that the model does not know as they are, or (`losing`) with one hydrogen fewer."""
        classes = self.classes(losing)
        for atom, wanted in enumerate(classes):
            if wanted not in vocabulary.atom_classes:
                have = self._class(atom, 0)
                elements = sorted({SYMBOLS[known.atomic_number] for known in vocabulary.atom_classes} | {"H"})
                same = [str(known) for known in vocabulary.atom_classes if known.atomic_number == wanted.atomic_number]
                known = f"of this element only {' '.join(same)}" if same else f"only {' '.join(elements)}"
                other = advice({one} for one in classes)
                raise MoldiffError(f"{name}: atom {self.label(atom)}: the model does not know {have}, {known}{other}")

    def classes(self, losing: Sequence[int] = ()) -> list[AtomClass]:
        """What each kept atom is, those of `losing` with one hydrogen fewer."""
        return [self._class(atom, int(atom in losing)) for atom in range(self.size)]

    def _class(self, atom: int, fewer: int) -> AtomClass:
        part = self.molecule
        return AtomClass(
            int(part.atomic_number[atom]), int(part.formal_charge[atom]), int(part.num_hydrogens[atom]) - fewer
        )


def _valence(name: str, source: InputMolecule, row: int, vocabulary: Vocabulary) -> int:
    """The smallest valence that holds all bonds which the atom has in the input."""
    whole = source.molecule
    total = int(whole.bond_sums()[row])
    allowed = vocabulary.allowed_valences(int(whole.atomic_number[row]), int(whole.formal_charge[row]))
    fitting = [valence for valence in allowed if valence >= total + source.anchors.count(row)]
    if allowed and not fitting:
        expected = f"expected at most {max(allowed)}"
        raise MoldiffError(f"{name}: atom {source.label(row)}: bond orders sum to {total}, {expected}")
    return min(fitting, default=total)


@dataclass(frozen=True, eq=False)
class KeptTask(Task):
    """Draws new atoms onto a kept part.

    Attributes:
        name: of the task, for the record.
        part: what is kept; its atoms come first in every molecule.
        attach: kept atoms that have to gain a bond; one drawn at random in each of `choices`, too.
        choices: groups of kept atoms, of each of which one loses a hydrogen to gain a bond.
        size_weights: weight of every number of new atoms.
        vocabulary: classes of the model.
        hydrogens_placed: whether the model knows places of hydrogens.
    """

    name: str
    part: FixedPart
    attach: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    size_weights: Mapping[int, int]
    vocabulary: Vocabulary
    hydrogens_placed: bool

    def sizes(self) -> tuple[int, int]:
        return self.part.size + min(self.size_weights), self.part.size + max(self.size_weights)

    def notes(self) -> Sequence[str]:
        """What is kept, and where it is attached, by the numbers of the input."""
        part = self.part
        ends = [part.label(atom) for atom in self.attach]
        ends += [f"any of {len(group)} atoms with hydrogens" for group in self.choices]
        pieces = int(part.pieces().max()) + 1
        stay = f"{part.size} atoms stay" + (f" in {pieces} pieces" if pieces > 1 else "")
        return [f"{self.name}: {stay}; attach: {'; '.join(ends)}"]

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        """The kept atoms with their open ends, and as many new ones as are drawn."""
        new = draw_size(generator, self.size_weights)
        losing = [atom for atom in self.attach if not self.part.open[atom]]
        for group in self.choices:
            losing.append(group[int(torch.randint(len(group), (), generator=generator))])
        part = self.part.molecule
        count, offset = part.num_hydrogens.copy(), part.hydrogen_offset.copy()
        for atom in losing:
            offset[atom, int(torch.randint(int(count[atom]), (), generator=generator))] = 0
            count[atom] -= 1
        if not self.hydrogens_placed:
            offset = np.zeros_like(offset)
        known = replace(part, pos=part.pos - part.pos.mean(0), num_hydrogens=count, hydrogen_offset=offset)
        level = np.repeat([0.0, 1.0], [self.part.size, new])
        return start_at(known, self.vocabulary, pos=level, atom=level, bond=np.maximum(level[:, None], level))

    def totals(self, index: int) -> Sequence[SumConstraint]:
        """The total charge is that of what is kept."""
        return (SumConstraint.of_charge(self.vocabulary, int(self.part.molecule.formal_charge.sum())),)

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The molecule in the input's frame, what is kept exactly as it was, and whether it is attached."""
        part, size = self.part.molecule, self.part.size
        pos = molecule.pos + part.pos.mean(0)
        pos[:size] = part.pos
        offset = molecule.hydrogen_offset.copy()
        remaining = start.clean.hydrogen[0, :size].any(-1).numpy()
        for atom in range(size):
            if self.hydrogens_placed or molecule.num_hydrogens[atom] == part.num_hydrogens[atom]:
                slots = remaining[atom] if self.hydrogens_placed else part.hydrogen_offset[atom].any(-1)
                kept = part.hydrogen_offset[atom, slots]
                offset[atom] = 0
                offset[atom, : len(kept)] = kept
        losing = molecule.num_hydrogens[:size] < part.num_hydrogens
        ends = np.flatnonzero(losing | (self.part.open > 0))
        fields: dict[str, Value | None] = {
            "kept": _numbers(range(size)),
            "kept_from": _numbers(self.part.source.index[list(self.part.rows)]),
            "attach": _numbers(ends),
            "attached": is_attached(molecule, size, ends),
        }
        return TaskOutcome(replace(molecule, pos=pos, hydrogen_offset=offset), fields, offset=part.pos.mean(0))


def _numbers(values: Sequence[int] | np.ndarray | range) -> str:
    return " ".join(str(int(value)) for value in values)


def is_attached(molecule: Molecule, size: int, ends: np.ndarray) -> bool:
    """Whether every open end has a bond to a new atom, and all atoms hang together."""
    i, j, _ = molecule.bonds.T
    crossing = (i < size) & (j >= size)
    return bool(np.isin(ends, i[crossing]).all() and molecule.pieces()[0] == 1)
