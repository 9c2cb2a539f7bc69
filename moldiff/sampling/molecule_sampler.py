"""How the molecules of a run are drawn, in blocks that other processes can take over.

A block is a range of indices, and its molecules share batches. Where blocks begin depends on what the run asks for and
not on who draws them, so that one process, several, and a run that goes on after an interruption come to the same
molecules to the last digit; at other block boundaries they agree up to the rounding of floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from moldiff.diffusion.compute import PLAIN, Arithmetic, compile_blocks, in_float32, is_compiled, one_thread
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.sampler import PowerSampler, SamplerState
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.validity import judge
from moldiff.sampling.batch import (
    Beginning,
    Chunk,
    MemoryBudget,
    Outcome,
    draw_within,
    joined,
    outcomes,
    sampler_of_restart,
)
from moldiff.sampling.candidates import Choice
from moldiff.sampling.sample import Drawn
from moldiff.tasks.task import Finished, Task

_CONTACTS = Contacts()


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """All that decides what molecule k is; a worker process gets a copy.

    Attributes:
        model: in evaluation mode, on the device where it is to run.
        sampler: how to step.
        task: what is known of every molecule.
        seed: of the run.
        decode: "valence" or "raw".
        trajectory: keep the way from noise.
        budget: how large a batch may be.
        asked: the task and limits as they were asked for, in JSON; "" = whole new molecules.
        arithmetic: how the network is computed.
        choice: which of several candidates is the molecule; None = there is one.
    """

    model: MoleculeDiffusion
    sampler: PowerSampler
    task: Task
    seed: int
    decode: str
    trajectory: bool
    budget: MemoryBudget
    asked: str = ""
    arithmetic: Arithmetic = PLAIN
    choice: Choice | None = None

    @property
    def num_candidates(self) -> int:
        """Molecules that are drawn for each."""
        return 1 if self.choice is None else self.choice.num_candidates

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @in_float32()
    def draw(self, indices: range, on_fraction: Callable[[float], None] | None = None) -> list[Drawn]:
        """The molecules of a block in order; `on_fraction` hears how many of them are done, in fractions."""
        candidates = range(self.num_candidates)
        beginnings = [Beginning.of(self.task, self.seed, index, number) for index in indices for number in candidates]

        def on_drawn(number: float) -> None:
            if on_fraction is not None:
                on_fraction(number / len(candidates))

        return self._chosen(beginnings, self.draw_each(beginnings, on_drawn))

    def draw_each(self, beginnings: Sequence[Beginning], on_drawn: Callable[[float], None]) -> list[Drawn]:
        """What becomes of each beginning; `on_drawn` hears how many of them are done, in fractions."""
        finished, num_steps = 0, self.sampler.num_steps
        found: dict[tuple[int, int], Drawn] = {}

        def on_step(state: SamplerState) -> None:
            on_drawn(finished + len(state.noisy.node_mask) * (state.step + 1) / num_steps)

        if self.arithmetic.compiled != is_compiled(self.model.denoiser):  # a copy of a compiled network is not
            compile_blocks(self.model.denoiser, self.arithmetic.compiled, dynamic=True)
        drawing = draw_within(
            self.budget,
            self.model,
            self.sampler,
            beginnings,
            num_frames=num_steps if self.trajectory else 0,
            on_step=on_step,
            arithmetic=self.arithmetic,
        )
        for chunk, drawn in drawing:
            ends = joined(chunk, drawn, self._redraw) if self.decode == "valence" else outcomes(drawn, self.decode)
            for beginning, end in zip(chunk, ends, strict=True):
                found[beginning.index, beginning.candidate] = self._judged(beginning, end)
            finished += len(chunk)
        return [found[beginning.index, beginning.candidate] for beginning in beginnings]

    def _redraw(self, beginnings: Sequence[Beginning]) -> Iterator[tuple[list[Beginning], Chunk]]:
        """Molecules drawn on from restarts."""
        sampler = sampler_of_restart(self.sampler)
        num_frames = sampler.num_steps if self.trajectory else 0
        return draw_within(
            self.budget, self.model, sampler, beginnings, num_frames=num_frames, arithmetic=self.arithmetic
        )

    def _chosen(self, beginnings: Sequence[Beginning], every: Sequence[Drawn]) -> list[Drawn]:
        """The molecules in order of their index: what was asked for before what was not, valid before invalid ones."""
        distances = [0.0] * len(every)
        if self.choice is not None:
            with one_thread(self.device):
                distances = self.choice.distances([one.start for one in beginnings], [one.molecule for one in every])
        best: dict[int, tuple[tuple[bool, bool, float], Drawn]] = {}
        for drawn, distance in zip(every, distances, strict=True):
            rank = drawn.problem is not None, drawn.verdict.canonical is None, distance
            if drawn.index not in best or rank < best[drawn.index][0]:
                best[drawn.index] = rank, drawn
        return [drawn for _, drawn in best.values()]

    def _judged(self, beginning: Beginning, end: Outcome) -> Drawn:
        if end.molecule.is_finite:
            finished = self.task.finish(beginning.index, beginning.start, end.molecule)
        else:  # of which no task can say anything
            finished = Finished(end.molecule)
        verdict = judge(finished.molecule, self.model.vocabulary)
        frames = None if end.frames is None else tuple(finished.in_its_frame(frame) for frame in end.frames)
        return Drawn(
            index=beginning.index,
            molecule=finished.molecule,
            mended=end.mended,
            replaced_hydrogens=end.replaced_hydrogens,
            restarts=end.restarts,
            verdict=verdict,
            unsound=_CONTACTS.check(finished.molecule) if verdict.problem is None else None,
            fields=finished.fields,
            problem=finished.problem,
            frames=frames,
        )

    def mean_pairs(self, first: int) -> float:
        """Pairs of atoms of a molecule, an atom with itself included, from the first few of a run."""
        sizes = [Beginning.of(self.task, self.seed, first + k).size for k in range(8)]
        return sum(size**2 for size in sizes) / len(sizes)
