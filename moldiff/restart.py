"""Restarts: a molecule that came out in pieces is noised again, part of the way, and drawn on from there.

Noise that is added again lets a sampler correct what it got wrong before (Restart sampling, Xu et al. 2023,
arXiv:2306.14878). Here only those molecules get it that could not be delivered, which is cheaper than drawing others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from moldiff.batch import Molecule, Prediction
from moldiff.drawing import Beginning, Chunk, DecodedMolecule
from moldiff.sampler import PowerSampler, settled

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


def sampler_of_restart(sampler: PowerSampler, *, coupling: bool) -> PowerSampler:
    """How to step from a restart down to the data, with as many refinements as a whole run has."""
    calls = max(1, round(_SHARE * sampler.num_steps))
    return replace(sampler, num_steps=calls, refinements=sampler.num_refinements(coupling))


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
