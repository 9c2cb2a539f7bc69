"""Tasks as users ask for them, the starts that they are made of, and what any of them can be limited to beside."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from moldiff.diffusion.batch import NoiseLevel, collate, draw_size
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.property_predictor import PropertyPredictor
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import advice, of_atoms
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.record import Value
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import NUMBERS, SYMBOLS, Vocabulary

LIMITED_CLASS_LEAD = 6.0
"""How far classes and bonds run ahead of the coordinates (`PowerSampler.class_lead`) where elements are limited: of 60
molecules without oxygen, drawn in 30 steps, 57 had sound distances; with all at one level, 38 had."""

SIZE = "atoms"
"""The property that is counted and not predicted: the number of atoms, hydrogens included."""


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """A drawn molecule as its task sees it."""

    molecule: Molecule  # in the frame of what was known of it (Å)
    fields: Mapping[str, Value | None] = field(default_factory=dict)  # what its record says of the task but for None
    problem: str | None = None  # why it is not what was asked for, in a word or two; None = it is
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))  # added to come into that frame [3] (Å)
    mirrored: bool = False  # whether its third coordinate was inverted before

    def in_its_frame(self, frame: Molecule) -> Molecule:
        """A frame of the way to it, moved as it was."""
        signs = np.array([1, 1, -1 if self.mirrored else 1])
        return replace(frame, pos=frame.pos * signs + self.offset, hydrogen_offset=frame.hydrogen_offset * signs)


class Admission:
    """Decides in the order of the indices which of the molecules that are what was asked for come in.

    This one takes in n for each of so many inputs; molecule k belongs to input k modulo their number.
    """

    def __init__(self, inputs: int, n: int) -> None:
        self._taken = [0] * inputs
        self._wanted = n

    def admit(self, index: int, molecule: Molecule) -> str | None:
        """Take a finished molecule in; or why not, in a word or two."""
        place = index % len(self._taken)
        if self._taken[place] >= self._wanted:
            return "surplus"
        self._taken[place] += 1
        return None


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

    def lead(self, index: int) -> Molecule | None:
        """What was given to draw others like or onto molecule `index`; None = nothing, or the molecule itself."""
        return None

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
        """The same for a model; raises `MoldiffError` when that model, or any, cannot do it."""
        ...


@dataclass(frozen=True)
class NewMolecules(Task):
    """Nothing is known; the number of heavy atoms is drawn."""

    size_weights: Mapping[int, int]  # of every number of heavy atoms
    sums: tuple[SumConstraint, ...] = ()  # that decoding has to meet, such as the total charge

    @classmethod
    def like_training(cls, statistics: Statistics, vocabulary: Vocabulary) -> Self:
        """Sizes and the total charge as in the training molecules."""
        charge = statistics.charge
        return cls(statistics.size_counts, () if charge is None else (SumConstraint.of_charge(vocabulary, charge),))

    def sizes(self) -> tuple[int, int]:
        return min(self.size_weights), max(self.size_weights)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        return PartialState.unknown(torch.ones(1, draw_size(generator, self.size_weights), dtype=torch.bool))

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return self.sums


@dataclass(frozen=True, eq=False)
class Input:
    """One of several molecules that a task is given."""

    molecule: Molecule  # (Å)
    number: int  # of its record, from 1


AnyInput = TypeVar("AnyInput", bound=Input)


@dataclass(frozen=True, eq=False)
class TaskOfInputs(Task, Generic[AnyInput]):
    """n answers for each of several molecules in turn; molecule k belongs to input k modulo their number."""

    inputs: tuple[AnyInput, ...]
    vocabulary: Vocabulary
    rejected: tuple[tuple[int, str], ...]  # number and reason of each input that cannot be used

    def of(self, index: int) -> AnyInput:
        """The input that molecule `index` is drawn for."""
        return self.inputs[index % len(self.inputs)]

    def count(self, n: int) -> int:
        return n * len(self.inputs)

    def sizes(self) -> tuple[int, int]:
        sizes = [one.molecule.num_heavy_atoms for one in self.inputs]
        return min(sizes), max(sizes)

    def notes(self) -> Sequence[str]:
        return [f"record {number} left out: {reason}" for number, reason in sorted(self.rejected)]

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return (SumConstraint.of_charge(self.vocabulary, int(self.of(index).molecule.formal_charge.sum())),)

    def fields(self, index: int) -> dict[str, Value | None]:
        """What a record says of its input."""
        one = self.of(index)
        return {"input": one.molecule.name, "input_record": one.number}

    def admission(self, n: int) -> Admission | None:
        return None if len(self.inputs) == 1 else Admission(len(self.inputs), n // len(self.inputs))


def start_at(
    known: Molecule, vocabulary: Vocabulary, *, pos: np.ndarray, atom: np.ndarray, allowed: np.ndarray | None = None
) -> PartialState:
    """A molecule (Å) at noise levels [n], atoms that `known` lacks behind those that it has.

    A bond is known where the classes of both its atoms are, hydrogens where coordinates are. `allowed` are the classes
    [n, K] that each atom may have; None = any.
    """
    clean = collate([known], vocabulary, len(pos))
    clean = clean.replace(node_mask=torch.ones(1, len(pos), dtype=torch.bool))
    levels = (pos, atom, np.maximum(atom[:, None], atom), pos > 0)
    level = NoiseLevel(*(torch.from_numpy(one.astype(np.float32))[None] for one in levels))
    return PartialState(clean, level, None if allowed is None else torch.from_numpy(allowed)[None])


def element_mask(
    vocabulary: Vocabulary, elements: Sequence[str] | None = None, forbid: Sequence[str] = ()
) -> np.ndarray | None:
    """Classes [K] that a free atom may have, of `elements` alone (and H) and not of `forbid`; None = any."""
    number, _, hydrogens = vocabulary.table.T
    forbidden = _atomic_numbers("forbid", forbid, vocabulary)
    mask = ~np.isin(number, forbidden)
    if elements is not None:
        mask &= np.isin(number, _atomic_numbers("elements", elements, vocabulary))
    if 1 in forbidden:
        mask &= hydrogens == 0
    if mask.all():
        return None
    if not mask.any():
        raise MoldiffError("elements: what elements and forbid leave is none of the model's classes of heavy atoms")
    return mask


def predicted(predictor: PropertyPredictor, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
    """What a predictor says of every molecule by name, and its number of atoms."""
    values = predictor.predict(molecules)
    return [found | {SIZE: float(one.num_atoms)} for found, one in zip(values, molecules, strict=True)]


@dataclass(frozen=True, eq=False)
class WrappedTask(Task):
    """Any task, of whose molecules more is asked or known."""

    task: Task

    def count(self, n: int) -> int:
        return self.task.count(n)

    def sizes(self) -> tuple[int, int]:
        return self.task.sizes()

    def lead(self, index: int) -> Molecule | None:
        return self.task.lead(index)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return self.task.totals(index)

    def admission(self, n: int) -> Admission | None:
        return self.task.admission(n)


@dataclass(frozen=True, eq=False, kw_only=True)
class ConstrainedTask(WrappedTask):
    """Any task, of whose molecules more is asked: elements, a total charge, values of properties."""

    mask: np.ndarray | None = None  # classes [K] that free atoms may have; None = any
    charge: SumConstraint | None = None  # whatever the total charge would be otherwise; None = that of the task
    properties: Properties = field(default_factory=Properties)  # those that the model knows
    asked: Mapping[str, float] = field(default_factory=dict)  # values to draw towards by name, in the data's units
    predictor: PropertyPredictor | None = None  # says what the molecules turn out to have
    num_candidates: int = 1  # from how many each molecule is chosen

    def notes(self) -> Sequence[str]:
        """Those of the task, the trained range of every property, and the error of its prediction."""
        if not self.asked:
            return self.task.notes()
        errors = {} if self.predictor is None else self.predictor.errors
        lines = [*self.task.notes(), *self.properties.notes(self.asked)]
        for entry in self.properties.entries:
            if entry.name in self.asked and entry.name in errors:
                error = f"{errors[entry.name]:.3g} {entry.unit}"
                lines.append(f"predicted_{entry.name} is off by {error} on average for molecules of the data")
        if self.num_candidates > 1:
            lines.append(f"each molecule is the nearest of {self.num_candidates} that were drawn for it")
        return lines

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        start = self.task.begin(index, generator)
        start = with_target(start, self.properties, self.asked) if self.asked else start
        if self.mask is None:
            return start
        known = start.level.atom[..., None] == 0
        if bool(known.all()):
            raise MoldiffError("elements: elements and forbid have nothing to limit, the task says what every atom is")
        within = torch.from_numpy(self.mask).expand(*known.shape[:2], -1) | known
        allowed = within if start.allowed is None else start.allowed & within
        if not allowed.any(-1).all():
            atom = int((~allowed.any(-1))[0].long().argmax())
            raise MoldiffError(f"elements: elements and forbid leave no class for atom {atom}, which the task asks for")
        return replace(start, allowed=allowed)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        totals, charge = self.task.totals(index), self.charge
        if charge is None:
            return totals
        return [*(one for one in totals if not np.array_equal(one.weight, charge.weight)), charge]

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """That of the task; the record says what was asked for and, if there is a predictor, what it predicts."""
        outcome = self.task.finish(index, start, molecule)
        if not self.asked:
            return outcome
        fields = {f"asked_{name}": float(value) for name, value in self.asked.items()}
        if self.predictor is not None:
            (values,) = predicted(self.predictor, [outcome.molecule])
            fields |= {f"predicted_{name}": values[name] for name in self.asked if name in values}
        return replace(outcome, fields={**outcome.fields, **fields})


def with_target(start: PartialState, properties: Properties, asked: Mapping[str, float]) -> PartialState:
    """The same start with property values for all of its molecules."""
    rows = properties.row(asked).expand(start.clean.num_molecules, -1)
    return replace(start, clean=start.clean.replace(condition=rows))


def _atomic_numbers(name: str, symbols: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Atomic numbers of symbols that the model knows."""
    known = sorted({SYMBOLS[int(number)] for number in vocabulary.table[:, 0]} | {"H"})
    if unknown := [symbol for symbol in symbols if symbol not in known]:
        other = advice(of_atoms((NUMBERS.get(one, 0), None) for one in symbols if one != "H"))
        expected = f"expected elements that the model knows: {', '.join(known)}{other}"
        raise MoldiffError(f"{name}: got {unknown[0]!r}, {expected}")
    return [NUMBERS[symbol] for symbol in symbols]


def description(request: Any) -> dict[str, Any]:
    """A request, or another dataclass of plain options, in JSON's types: its name and options, of files also hashes."""
    options: dict[str, Any] = {"name": type(request).__name__.lower()}
    for name in (one.name for one in fields(request)):
        value = getattr(request, name)
        if value is not None:
            options[name] = _plain(value)
        several = isinstance(value, list | tuple)
        digests = [file_digest(one) if isinstance(one, str | Path) else None for one in (value if several else [value])]
        if any(digests):
            options[f"{name}_sha256"] = digests if several else digests[0]
    return options


def file_digest(path: str | Path) -> str | None:
    """By which a file that a task was given is known again; None = there is none of that name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if os.path.isfile(path) else None


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | Path):
        return str(value) if isinstance(value, Path) else value
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    return f"{type(value).__name__} from Python"
