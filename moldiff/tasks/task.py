"""Tasks as users ask for them, and the starts that they are made of."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from moldiff.diffusion.batch import NoiseLevel, collate
from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.noise import draw_size
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.statistics import Statistics
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary

_MAX_NAME = 4096
"""Longer texts are no names of files."""

Value = str | float | int | bool
"""What a data field of a record may hold."""


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """A drawn molecule as its task sees it.

    Attributes:
        molecule: in the frame of what was known of it (Å).
        fields: what its record says of the task; None is left out.
        problem: why it is not what was asked for, in a word or two; None = it is.
        offset: what was added to its coordinates to come into that frame [3] (Å).
        mirrored: whether its third coordinate was inverted before.
    """

    molecule: Molecule
    fields: Mapping[str, Value | None] = field(default_factory=dict)
    problem: str | None = None
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))
    mirrored: bool = False

    def in_its_frame(self, frame: Molecule) -> Molecule:
        """A frame of the way to it, moved as it was."""
        signs = np.array([1.0, 1.0, -1.0 if self.mirrored else 1.0])
        return replace(frame, pos=frame.pos * signs + self.offset, hydrogen_offset=frame.hydrogen_offset * signs)


class Admission(Protocol):
    """Decides in the order of the indices which of the molecules that are what was asked for come in."""

    def admit(self, index: int, molecule: Molecule) -> str | None:
        """Take a finished molecule in; or why not, in a word or two."""
        ...


class Task(ABC):
    """Says of every molecule of a run what is known of it before it is drawn, and what it is afterwards.

    Unless a task says otherwise, it makes n molecules of n, has no notes or rules, and takes any molecule.
    """

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""

    @abstractmethod
    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        """The start of molecule `index` alone, on the CPU: [1, its heavy atoms, ...].

        Whatever is left to chance comes from `generator`, which then goes on to draw the molecule, so that molecule k
        of a seed is the same in any run.
        """

    def count(self, n: int) -> int:
        """How many molecules make up the answer when n are asked for."""
        return n

    def notes(self) -> Sequence[str]:
        """What it made of what it was given, for the user, a line each."""
        return ()

    def totals(self, index: int) -> Sequence[SumConstraint]:
        """Sums over the classes of molecule `index` that decoding has to meet."""
        return ()

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """What the decoded molecule `index` is to the task; `start` is what `begin` gave for it."""
        return TaskOutcome(molecule)

    def admission(self, n: int) -> Admission | None:
        """A new count of those that come in, of n that make up the answer (see `count`); None = all may."""
        return None


class TaskSpec(Protocol):
    """A task as a user asks for it; a frozen dataclass of plain options."""

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Task:
        """The same for a model.

        Raises:
            MoldiffError: when that model, or any, cannot do it.
        """
        ...


@dataclass(frozen=True)
class NewMolecules(Task):
    """Nothing is known; the number of heavy atoms is drawn.

    Attributes:
        size_weights: weight of every number of heavy atoms.
        sums: that decoding has to meet, such as the total charge.
    """

    size_weights: Mapping[int, int]
    sums: tuple[SumConstraint, ...] = ()

    @classmethod
    def like_training(cls, statistics: Statistics, vocabulary: Vocabulary) -> Self:
        """Sizes and the total charge as in the training molecules."""
        charge = statistics.charge
        return cls(statistics.size_counts, () if charge is None else (SumConstraint.of_charge(vocabulary, charge),))

    def sizes(self) -> tuple[int, int]:
        return min(self.size_weights), max(self.size_weights)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        """A start without anything known."""
        return PartialState.unknown(torch.ones(1, draw_size(generator, self.size_weights), dtype=torch.bool))

    def totals(self, index: int) -> Sequence[SumConstraint]:
        """The same for all."""
        return self.sums


class Input(Protocol):
    """One of several molecules that a task is given: the molecule (Å), and the number of its record, from 1."""

    @property
    def molecule(self) -> Molecule: ...

    @property
    def number(self) -> int: ...


AnyInput = TypeVar("AnyInput", bound=Input)


@dataclass(frozen=True, eq=False)
class TaskOfInputs(Task, Generic[AnyInput]):
    """n answers for each of several molecules in turn; molecule k belongs to input k modulo their number.

    Attributes:
        inputs: the molecules.
        vocabulary: classes of the model.
        rejected: number and reason of each input that cannot be used.
    """

    inputs: tuple[AnyInput, ...]
    vocabulary: Vocabulary
    rejected: tuple[tuple[int, str], ...]

    def of(self, index: int) -> AnyInput:
        """The input that molecule `index` is drawn for."""
        return self.inputs[index % len(self.inputs)]

    def count(self, n: int) -> int:
        """So many of each."""
        return n * len(self.inputs)

    def sizes(self) -> tuple[int, int]:
        sizes = [one.molecule.num_heavy_atoms for one in self.inputs]
        return min(sizes), max(sizes)

    def notes(self) -> Sequence[str]:
        """The inputs that are left out."""
        return [f"record {number} left out: {reason}" for number, reason in sorted(self.rejected)]

    def totals(self, index: int) -> Sequence[SumConstraint]:
        """The total charge is that of the input."""
        return (SumConstraint.of_charge(self.vocabulary, int(self.of(index).molecule.formal_charge.sum())),)

    def fields(self, index: int) -> dict[str, Value | None]:
        """What a record says of its input."""
        one = self.of(index)
        return {"input": one.molecule.name, "input_record": one.number}

    def admission(self, n: int) -> Admission | None:
        """As many of each."""
        return None if len(self.inputs) == 1 else RoundRobin(len(self.inputs), n // len(self.inputs))


class RoundRobin:
    """Takes molecules until there are n for each of several inputs; molecule k belongs to input k modulo their number.

    Args:
        inputs: how many there are.
        n: wanted of each.
    """

    def __init__(self, inputs: int, n: int) -> None:
        self._taken = [0] * inputs
        self._wanted = n

    def admit(self, index: int, molecule: Molecule) -> str | None:
        """Take a molecule in unless its input has all that are wanted."""
        place = index % len(self._taken)
        if self._taken[place] >= self._wanted:
            return "surplus"
        self._taken[place] += 1
        return None


def start_at(
    known: Molecule,
    vocabulary: Vocabulary,
    *,
    pos: np.ndarray,
    atom: np.ndarray,
    bond: np.ndarray,
    allowed: np.ndarray | None = None,
) -> PartialState:
    """A molecule at the given noise levels, atoms that `known` lacks behind those that it has.

    Hydrogens are known where coordinates are, and otherwise not at all.

    Args:
        known: clean values (Å).
        vocabulary: must have the classes of its atoms.
        pos: level of the coordinates [n].
        atom: level of the classes [n].
        bond: symmetric level of the bonds [n, n].
        allowed: classes that each atom may have [n, K]; None = any.
    """
    clean = collate([known], vocabulary, len(pos))
    clean = clean.replace(node_mask=torch.ones(1, len(pos), dtype=torch.bool))
    return PartialState(
        clean,
        NoiseLevel(*(torch.from_numpy(level.astype(np.float32))[None] for level in (pos, atom, bond, pos > 0))),
        None if allowed is None else torch.from_numpy(allowed)[None],
    )


def description(request: Any) -> dict[str, Any]:
    """A request, or another dataclass of plain options, in JSON's types: its name and options, of files also a hash."""
    options: dict[str, Any] = {"name": type(request).__name__.lower()}
    for option in fields(request):
        value = getattr(request, option.name)
        if value is None:
            continue
        options[option.name] = _plain(value)
        if isinstance(value, str | Path) and len(str(value)) < _MAX_NAME and Path(value).is_file():
            options[f"{option.name}_sha256"] = hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    return f"{type(value).__name__} from Python"
