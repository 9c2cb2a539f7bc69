"""Drawing molecules that share a batch: from a run's seed and their indices to what the network says of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from moldiff.arithmetic import PLAIN, Arithmetic
from moldiff.batch import MolBatch, Molecule, NoiseLevel, Prediction, to_molecules
from moldiff.data.hydrogens import off_their_bonds, with_ideal_hydrogens
from moldiff.data.statistics import Statistics
from moldiff.decode import Decoded, Total, decode_raw, decode_valence
from moldiff.errors import MoldiffError
from moldiff.hardware import is_out_of_memory, one_thread
from moldiff.model import MoleculeDiffusion
from moldiff.randomness import MoleculeDraws, draw_size, molecule_generator
from moldiff.sampler import Sampler, SamplerState, Start, run_sampler
from moldiff.trajectory import Recorder
from moldiff.vocabulary import Vocabulary

CPU_PAIRS, GPU_PAIRS = 6_000, 60_000
"""Padded pairs of atoms, a molecule's own included, that go through the network at once, unless one molecule has more.

A pair takes about 4 kB, so that a batch of many on a CPU stays below 30 MB; there, larger ones are slower, too.
"""

Value = str | float | int | bool
"""What a data field of a record may hold."""


@dataclass(frozen=True, eq=False)
class Finished:
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


class Task(Protocol):
    """Says of every molecule of a run what is known of it before it is drawn, and what it is afterwards."""

    def count(self, n: int) -> int:
        """How many molecules make up the answer when n are asked for."""
        ...

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        ...

    def notes(self) -> Sequence[str]:
        """What it made of what it was given, for the user, a line each."""
        ...

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """The start of molecule `index` alone, on the CPU: [1, its heavy atoms, ...].

        Whatever is left to chance comes from `generator`, which then goes on to draw the molecule, so that molecule k
        of a seed is the same in any run.
        """
        ...

    def totals(self, index: int) -> Sequence[Total]:
        """Sums over the classes of molecule `index` that decoding has to meet."""
        ...

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """What the decoded molecule `index` is to the task; `start` is what `begin` gave for it."""
        ...

    def admission(self, n: int) -> Admission | None:
        """A new count of those that come in, of n that make up the answer (see `count`); None = all may."""
        ...


class OpenTask:
    """What holds of every task that knows nothing of its molecules and takes any."""

    def count(self, n: int) -> int:
        """As many as are asked for."""
        return n

    def notes(self) -> Sequence[str]:
        """None."""
        return ()

    def totals(self, index: int) -> Sequence[Total]:
        """None."""
        return ()

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """Any molecule will do."""
        return Finished(molecule)

    def admission(self, n: int) -> Admission | None:
        """All may come in."""
        return None


@dataclass(frozen=True)
class NewMolecules(OpenTask):
    """Nothing is known; the number of heavy atoms is drawn.

    Attributes:
        size_weights: weight of every number of heavy atoms.
        sums: that decoding has to meet, such as the total charge.
    """

    size_weights: Mapping[int, int]
    sums: tuple[Total, ...] = ()

    @classmethod
    def like_training(cls, statistics: Statistics, vocabulary: Vocabulary) -> Self:
        """Sizes and the total charge as in the training molecules."""
        charge = statistics.charge
        return cls(statistics.size_counts, () if charge is None else (Total.of_charge(vocabulary, charge),))

    def totals(self, index: int) -> Sequence[Total]:
        """The same for all."""
        return self.sums

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        return min(self.size_weights), max(self.size_weights)

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """A start without anything known."""
        return Start.unknown(torch.ones(1, draw_size(generator, self.size_weights), dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class WrappedTask:
    """A task that is another one in all that a subclass does not change.

    Attributes:
        task: any task.
    """

    task: Task

    def count(self, n: int) -> int:
        """That of the task."""
        return self.task.count(n)

    def sizes(self) -> tuple[int, int]:
        """Those of the task."""
        return self.task.sizes()

    def notes(self) -> Sequence[str]:
        """Those of the task."""
        return self.task.notes()

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """The start of the task."""
        return self.task.begin(index, generator)

    def totals(self, index: int) -> Sequence[Total]:
        """Those of the task."""
        return self.task.totals(index)

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """That of the task."""
        return self.task.finish(index, start, molecule)

    def admission(self, n: int) -> Admission | None:
        """That of the task."""
        return self.task.admission(n)


@dataclass(frozen=True, eq=False)
class Beginning:
    """A molecule that is about to be drawn.

    Attributes:
        index: its number within the run.
        generator: source of all its random numbers.
        start: what is known of it.
        totals: sums over its classes that decoding has to meet.
        candidate: its number among the candidates for the molecule.
    """

    index: int
    generator: torch.Generator
    start: Start
    totals: Sequence[Total] = ()
    candidate: int = 0

    @classmethod
    def of(cls, task: Task, seed: int, index: int, candidate: int = 0) -> Beginning:
        """Molecule `index` of the run with that seed, or a further candidate for it."""
        generator = molecule_generator(seed, index, candidate)
        return cls(index, generator, task.begin(index, generator), task.totals(index), candidate)

    @property
    def size(self) -> int:
        """Heavy atoms."""
        return self.start.clean.max_atoms


@dataclass(frozen=True, eq=False)
class Chunk:
    """Molecules that were drawn together, before they are decoded.

    Attributes:
        model: what drew them.
        start: what was known of them.
        prediction: the last network call's (Å).
        totals: sums over the classes of each that decoding has to meet.
        frames: the way from noise to each of them (Å); None = not kept.
    """

    model: MoleculeDiffusion
    start: Start
    prediction: Prediction
    totals: Sequence[Sequence[Total]]
    frames: Sequence[tuple[Molecule, ...]] | None = None

    def decode(self, rule: str) -> list[DecodedMolecule]:
        """The molecules by a rule, "valence" or "raw", see `moldiff.decode`.

        By valence rules a hydrogen whose bond is too short or too long is put at its ideal place, too.
        """
        node_mask = self.start.clean.node_mask
        by_valence = rule == "valence"
        if by_valence:
            decoded = decode_valence(self.prediction, node_mask, self.model.vocabulary, totals=self.totals)
        else:
            none = torch.zeros(len(node_mask), dtype=torch.bool)
            decoded = Decoded(decode_raw(self.prediction, node_mask), none, none, torch.zeros_like(node_mask))
        molecules = to_molecules(decoded.batch, self.model.vocabulary)
        unplaced = decoded.gained if self.model.statistics.hydrogens_placed else node_mask
        drawn = (self.start.level.hydrogen > 0).cpu().numpy()
        found = []
        for row, molecule in enumerate(molecules):
            atoms = unplaced[row, : molecule.num_heavy_atoms].cpu().numpy()
            off = np.zeros_like(atoms)
            if by_valence:
                off = off_their_bonds(molecule) & drawn[row, : len(atoms)] & ~atoms
            number = int(molecule.num_hydrogens[off].sum())
            if (atoms | off).any():
                molecule = with_ideal_hydrogens(molecule, atoms | off)
            found.append(DecodedMolecule(molecule, bool(decoded.mended[row]), number))
        return found


@dataclass(frozen=True, eq=False)
class DecodedMolecule:
    """A molecule and what it took.

    Attributes:
        molecule: the molecule (Å).
        mended: its most probable classes broke a valence rule, and others were found.
        replaced_hydrogens: hydrogens of atoms of which one had a bond that none can have; all are at ideal places now.
    """

    molecule: Molecule
    mended: bool
    replaced_hydrogens: int


def draw_chunk(
    model: MoleculeDiffusion,
    sampler: Sampler,
    beginnings: Sequence[Beginning],
    *,
    num_frames: int = 0,
    on_step: Callable[[SamplerState], None] | None = None,
    arithmetic: Arithmetic = PLAIN,
) -> Chunk:
    """Draw molecules in one batch, on the model's device.

    Args:
        model: the network and what gives its numbers meaning.
        sampler: how to step.
        beginnings: of the molecules; similar sizes waste least.
        num_frames: network calls of the sampler, if the way from noise is to be kept; 0 = it is not.
        on_step: called after every network call.
        arithmetic: how the network is computed; compiling it is left to the caller.
    """
    device = next(model.parameters()).device
    start = _to_device(stack_starts([beginning.start for beginning in beginnings]), device)
    recorder = Recorder(model, start.clean.node_mask, num_frames) if num_frames else None

    def watch(state: SamplerState) -> None:
        if on_step is not None:
            on_step(state)
        if recorder is not None:
            recorder(state)

    draws = MoleculeDraws([beginning.generator for beginning in beginnings], device=device)
    with one_thread(device), arithmetic.autocast(device):
        prediction = run_sampler(model, sampler, start, draws, on_step=watch)
    totals = [beginning.totals for beginning in beginnings]
    return Chunk(model, start, prediction, totals, None if recorder is None else recorder.trajectories())


@dataclass(eq=False)
class MemoryBudget:
    """How large a batch may be.

    Attributes:
        pairs: padded pairs of atoms; it shrinks where memory runs out.
    """

    pairs: int

    @classmethod
    def of(cls, device: torch.device) -> MemoryBudget:
        """What a device takes."""
        return cls(CPU_PAIRS if device.type == "cpu" else GPU_PAIRS)


def in_chunks(beginnings: Iterable[Beginning], pairs: int = CPU_PAIRS) -> Iterator[list[Beginning]]:
    """Molecules in batches of similar sizes, each within so many padded pairs of atoms."""
    chunk: list[Beginning] = []
    for beginning in sorted(beginnings, key=lambda one: (one.size, one.index, one.candidate)):
        if chunk and (len(chunk) + 1) * beginning.size**2 > pairs:
            yield chunk
            chunk = []
        chunk.append(beginning)
    if chunk:
        yield chunk


def draw_within(
    budget: MemoryBudget,
    model: MoleculeDiffusion,
    sampler: Sampler,
    beginnings: Iterable[Beginning],
    *,
    num_frames: int = 0,
    on_step: Callable[[SamplerState], None] | None = None,
    arithmetic: Arithmetic = PLAIN,
) -> Iterator[tuple[list[Beginning], Chunk]]:
    """Draw molecules in as many batches as the budget asks for, and in smaller ones where memory runs out.

    Raises:
        MoldiffError: for a single molecule that does not fit into memory.
    """
    waiting = deque(in_chunks(beginnings, budget.pairs))
    while waiting:
        chunk = waiting.popleft()
        drawn = _attempt(model, sampler, chunk, num_frames, on_step, arithmetic)
        if drawn is not None:
            yield chunk, drawn
            continue
        if len(chunk) == 1:
            raise MoldiffError(f"size: a molecule of {chunk[0].size} heavy atoms does not fit into memory")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget.pairs = max(1, len(chunk) * max(one.size for one in chunk) ** 2 // 2)
        waiting = deque(in_chunks([one for group in (chunk, *waiting) for one in group], budget.pairs))


def _attempt(
    model: MoleculeDiffusion,
    sampler: Sampler,
    chunk: Sequence[Beginning],
    num_frames: int,
    on_step: Callable[[SamplerState], None] | None,
    arithmetic: Arithmetic,
) -> Chunk | None:
    """The drawn molecules, or None for want of memory; the generators are left as they were."""
    copies = [replace(one, generator=one.generator.clone_state()) for one in chunk]
    try:
        return draw_chunk(model, sampler, copies, num_frames=num_frames, on_step=on_step, arithmetic=arithmetic)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def stack_starts(starts: Sequence[Start]) -> Start:
    """Starts of one or more molecules each as one, padded to the largest molecule; padding counts as unknown."""
    width = max(start.clean.max_atoms for start in starts)

    def stacked(values: Iterable[Tensor], dims: int, fill: float = 0) -> Tensor:
        return torch.cat([_padded(value, width, dims, fill) for value in values])

    allowed = _allowed(starts)
    return Start(
        MolBatch(
            pos=stacked((start.clean.pos for start in starts), 1),
            hydrogen=stacked((start.clean.hydrogen for start in starts), 1),
            atom_type=stacked((start.clean.atom_type for start in starts), 1),
            bond=stacked((start.clean.bond for start in starts), 2),
            node_mask=stacked((start.clean.node_mask for start in starts), 1),
            condition=_conditions(starts),
        ),
        NoiseLevel(
            pos=stacked((start.level.pos for start in starts), 1, fill=1),
            atom=stacked((start.level.atom for start in starts), 1, fill=1),
            bond=stacked((start.level.bond for start in starts), 2, fill=1),
            hydrogen=stacked((start.level.hydrogen for start in starts), 1, fill=1),
        ),
        None if allowed is None else stacked(allowed, 1, fill=True),
    )


def _conditions(starts: Sequence[Start]) -> Tensor | None:
    """The property targets of each [B, C]; where only some have any, none are given for the others."""
    widths = {start.clean.condition.shape[1] for start in starts if start.clean.condition is not None}
    if not widths:
        return None
    none = (start.clean.pos.new_full((start.clean.num_molecules, *widths), torch.nan) for start in starts)
    given = (start.clean.condition for start in starts)
    return torch.cat([other if rows is None else rows for rows, other in zip(given, none, strict=True)])


def _allowed(starts: Sequence[Start]) -> list[Tensor] | None:
    """The allowed classes of each; where only some restrict them, all are allowed in the others."""
    widths = {start.allowed.shape[-1] for start in starts if start.allowed is not None}
    if not widths:
        return None
    anything = (start.clean.atom_type.new_ones(*start.clean.atom_type.shape, *widths).bool() for start in starts)
    return [free if start.allowed is None else start.allowed for start, free in zip(starts, anything, strict=True)]


def _padded(value: Tensor, width: int, dims: int, fill: float) -> Tensor:
    """Widen the `dims` dimensions behind the first to `width` with `fill`."""
    missing = width - value.shape[1]
    if not missing:
        return value
    kept = value.dim() - 1 - dims
    return torch.nn.functional.pad(value, [0, 0] * kept + [0, missing] * dims, value=fill)


def _to_device(start: Start, device: torch.device) -> Start:
    allowed = None if start.allowed is None else start.allowed.to(device)
    return Start(start.clean.to(device), start.level.to(device), allowed)
