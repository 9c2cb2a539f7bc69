"""Drawing molecules that share a batch: from a run's seed and their indices to what the network says of each.

Restarts: a molecule that came out in pieces is noised again, part of the way, and drawn on from there.

Noise that is added again lets a sampler correct what it got wrong before (Restart sampling, Xu et al. 2023,
arXiv:2306.14878). Here only those molecules get it that could not be delivered, which is cheaper than drawing others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, to_molecules
from moldiff.diffusion.compute import PLAIN, Arithmetic, is_out_of_memory, one_thread
from moldiff.diffusion.decoding import Decoded, Total, decode_raw, decode_valence
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.noise import MoleculeDraws, molecule_generator
from moldiff.diffusion.sampler import PowerSampler, Sampler, SamplerState, Start, run_sampler, settled
from moldiff.diffusion.stereo_guidance import StereoTargets
from moldiff.errors import MoldiffError
from moldiff.molecules.hydrogens import off_their_bonds, with_ideal_hydrogens
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.trajectory import Recorder
from moldiff.tasks.task import Task

CPU_PAIRS, GPU_PAIRS = 6_000, 60_000
"""Padded pairs of atoms, a molecule's own included, that go through the network at once, unless one molecule has more.

A pair takes about 4 kB, so that a batch of many on a CPU stays below 30 MB; there, larger ones are slower, too.
"""


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
        """The molecules by a rule, "valence" or "raw", see `moldiff.diffusion.decoding`.

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
        StereoTargets.stack([start.stereo for start in starts]),
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
    stereo = None if start.stereo is None else start.stereo.to(device)
    return Start(start.clean.to(device), start.level.to(device), allowed, stereo)


LEVEL = 0.75
"""Noise level that a restart goes back to, at most."""

ATTEMPTS = 2
"""Restarts of a molecule at the most."""

_SHARE = 0.4
"""Network calls of a restart, as a share of those of a whole run."""

Redraw = Callable[[Sequence[Beginning]], Iterable[tuple[list[Beginning], Chunk]]]
"""Draws molecules in batches, each of which comes with the beginnings it is of."""


@dataclass(frozen=True, eq=False)
class Outcome(DecodedMolecule):
    """What a beginning came to.

    Attributes:
        frames: the way from noise to it, through all restarts (Å); None = not kept.
        restarts: how many there were.
    """

    frames: tuple[Molecule, ...] | None
    restarts: int = 0

    def behind(self, earlier: Outcome) -> Outcome:
        """As the outcome of a restart from an earlier one."""
        frames = None if self.frames is None or earlier.frames is None else earlier.frames + self.frames
        return replace(self, frames=frames, restarts=earlier.restarts + 1)


def outcomes(drawn: Chunk, rule: str) -> list[Outcome]:
    """The molecules of a batch, decoded by a rule, see `Chunk.decode`."""
    found = enumerate(drawn.decode(rule))
    return [Outcome(**vars(one), frames=None if drawn.frames is None else drawn.frames[row]) for row, one in found]


def sampler_of_restart(sampler: PowerSampler) -> PowerSampler:
    """How to step from a restart down to the data."""
    return replace(sampler, num_steps=max(1, round(_SHARE * sampler.num_steps)))


def joined(beginnings: Sequence[Beginning], drawn: Chunk, redraw: Redraw) -> list[Outcome]:
    """The molecules of a batch by valence rules, those that come in pieces drawn on from restarts.

    What is known of a molecule stays as it is, and what becomes of it does not depend on the others of its batch.

    Args:
        beginnings: of the molecules of the batch.
        drawn: the batch.
        redraw: draws with `sampler_of_restart`.
    """
    found = outcomes(drawn, "valence")
    rows = {(one.index, one.candidate): row for row, one in enumerate(beginnings)}
    parts = [(beginnings, drawn, found)]
    for _ in range(ATTEMPTS):
        again = [
            _restart(one, part, row)
            for chunk, part, ends in parts
            for row, (one, end) in enumerate(zip(chunk, ends, strict=True))
            if end.molecule.pieces()[0] > 1
        ]
        if not again:
            break
        parts = [(chunk, part, outcomes(part, "valence")) for chunk, part in redraw(again)]
        for chunk, _, ends in parts:
            for one, end in zip(chunk, ends, strict=True):
                row = rows[one.index, one.candidate]
                found[row] = end.behind(found[row])
    return found


def _restart(beginning: Beginning, drawn: Chunk, row: int) -> Beginning:
    """A beginning at the estimate of a molecule, with random numbers of its own."""
    start, size, batch = beginning.start, beginning.size, drawn.prediction
    level = start.level
    estimate = Prediction(
        pos=batch.pos[row, :size][None].to(start.clean.pos),
        hydrogen=batch.hydrogen[row, :size][None].to(start.clean.hydrogen),
        atom_type=batch.atom_type[row, :size][None].to(start.clean.pos),
        bond=batch.bond[row, :size, :size][None].to(start.clean.pos),
    )
    clean = settled(start.clean, estimate, level)
    back = level.at_most(LEVEL)
    return replace(beginning, generator=_next(beginning.generator), start=replace(start, clean=clean, level=back))


def _next(generator: torch.Generator) -> torch.Generator:
    """Another source of random numbers, which follows from a source that stays as it is."""
    seed = torch.randint(2**62, (1,), generator=generator.clone_state())
    return torch.Generator().manual_seed(int(seed))
