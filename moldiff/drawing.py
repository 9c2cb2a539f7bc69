"""Drawing molecules that share a batch: from a run's seed and their indices to what the network says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moldiff.batch import MolBatch, Molecule, NoiseLevel, Prediction, to_molecules
from moldiff.data.hydrogens import with_ideal_hydrogens
from moldiff.decode import Decoded, decode_raw, decode_valence
from moldiff.model import MoleculeDiffusion
from moldiff.randomness import MoleculeDraws, draw_size, molecule_generator
from moldiff.sampler import Sampler, SamplerState, Start, run_sampler
from moldiff.trajectory import Recorder

PAIR_BUDGET = 60_000
"""Padded pairs of atoms that go through the network at once; bounds the memory."""


class Task(Protocol):
    """Says of every molecule of a run what is known of it before it is drawn."""

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """The start of molecule `index` alone, on the CPU: [1, its heavy atoms, ...].

        Whatever is left to chance comes from `generator`, which then goes on to draw the molecule, so that molecule k
        of a seed is the same in any run.
        """
        ...


@dataclass(frozen=True)
class NewMolecules:
    """Nothing is known; the number of heavy atoms is drawn.

    Attributes:
        size_weights: weight of every number of heavy atoms.
    """

    size_weights: Mapping[int, int]

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """A start without anything known."""
        return Start.unknown(torch.ones(1, draw_size(generator, self.size_weights), dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Beginning:
    """A molecule that is about to be drawn.

    Attributes:
        index: its number within the run.
        generator: source of all its random numbers.
        start: what is known of it.
    """

    index: int
    generator: torch.Generator
    start: Start

    @classmethod
    def of(cls, task: Task, seed: int, index: int) -> Beginning:
        """Molecule `index` of the run with that seed."""
        generator = molecule_generator(seed, index)
        return cls(index, generator, task.begin(index, generator))

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
        frames: the way from noise to each of them (Å); None = not kept.
    """

    model: MoleculeDiffusion
    start: Start
    prediction: Prediction
    frames: Sequence[tuple[Molecule, ...]] | None = None

    def decode(self, rule: str) -> tuple[list[Molecule], list[bool]]:
        """The molecules, and of each whether its most probable classes broke a valence rule and others were found.

        Args:
            rule: "valence" or "raw", see `moldiff.decode`.
        """
        node_mask = self.start.clean.node_mask
        if rule == "raw":
            none = torch.zeros(len(node_mask), dtype=torch.bool)
            decoded = Decoded(decode_raw(self.prediction, node_mask), none, none)
        else:
            decoded = decode_valence(self.prediction, node_mask, self.model.vocabulary)
        molecules = to_molecules(decoded.batch, self.model.vocabulary)
        if not self.model.statistics.hydrogens_placed:
            molecules = [with_ideal_hydrogens(molecule) for molecule in molecules]
        return molecules, decoded.mended.tolist()


def draw_chunk(
    model: MoleculeDiffusion,
    sampler: Sampler,
    beginnings: Sequence[Beginning],
    *,
    num_frames: int = 0,
    on_step: Callable[[SamplerState], None] | None = None,
) -> Chunk:
    """Draw molecules in one batch, on the model's device.

    Args:
        model: the network and what gives its numbers meaning.
        sampler: how to step.
        beginnings: of the molecules; similar sizes waste least.
        num_frames: network calls of the sampler, if the way from noise is to be kept; 0 = it is not.
        on_step: called after every network call.
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
    prediction = run_sampler(model, sampler, start, draws, on_step=watch)
    return Chunk(model, start, prediction, None if recorder is None else recorder.trajectories())


def in_chunks(beginnings: Iterable[Beginning], budget: int | None = None) -> Iterator[list[Beginning]]:
    """Molecules in batches of similar sizes, each within a budget of padded pairs, by default `PAIR_BUDGET`."""
    budget = PAIR_BUDGET if budget is None else budget
    chunk: list[Beginning] = []
    for beginning in sorted(beginnings, key=lambda one: (one.size, one.index)):
        if chunk and (len(chunk) + 1) * beginning.size**2 > budget:
            yield chunk
            chunk = []
        chunk.append(beginning)
    if chunk:
        yield chunk


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
        ),
        NoiseLevel(
            pos=stacked((start.level.pos for start in starts), 1, fill=1),
            atom=stacked((start.level.atom for start in starts), 1, fill=1),
            bond=stacked((start.level.bond for start in starts), 2, fill=1),
        ),
        None if allowed is None else stacked(allowed, 1, fill=True),
    )


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
