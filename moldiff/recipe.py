"""How the molecules of a run are drawn, in blocks that other processes can take over.

A block is a range of indices, and its molecules share batches. Where blocks begin depends on what the run asks for and
not on who draws them, so that one process, several, and a run that goes on after an interruption come to the same
molecules to the last digit; at other block boundaries they agree up to the rounding of floating-point numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from moldiff.arithmetic import PLAIN, Arithmetic, compile_blocks, is_compiled, seconds, verdict
from moldiff.batch import Molecule
from moldiff.drawing import Beginning, Chunk, Finished, MemoryBudget, Task, Value, draw_chunk, draw_within, in_chunks
from moldiff.hardware import can_compile, in_float32, is_out_of_memory, one_thread
from moldiff.metrics.contacts import Contacts
from moldiff.metrics.validity import Verdict, judge
from moldiff.model import MoleculeDiffusion
from moldiff.pool import Failure, available_cpus, stream_limited
from moldiff.restart import Outcome, joined, outcomes, sampler_of_restart
from moldiff.results import InvalidMolecule
from moldiff.sampler import PowerSampler, SamplerState, Start

_MAX_BLOCK, _BLOCK_PAIRS = 64, 12_000
"""Molecules of a block on a CPU at most, and pairs of atoms: some seconds of work, done in few batches."""

_MAX_GPU_BLOCK, _GPU_BLOCK_PAIRS = 1_000, 600_000
_MIN_TAIL = 8  # molecules of a block behind those that are needed at the least

_CALL_SECONDS = 1.4e-3
"""A network call for one molecule of 9 heavy atoms on one core of the machine the shipped model was trained on."""

_START_SECONDS = 5.0
"""What workers take to start."""

_TRIAL_SECONDS, _GPU_TRIAL_SECONDS = 3_600.0, 360_000.0
"""Seconds on one core from which on compiling, which takes some minutes, is tried."""

_TRIAL_STEPS = 3

_NO_LIMIT = 1e8
"""Seconds that a worker may spend on a block: three years."""

_CONTACTS = Contacts()

_log = logging.getLogger(__name__)


class Choice(Protocol):
    """Decides which of several candidates is a molecule of the run."""

    @property
    def num_candidates(self) -> int:
        """How many are drawn for each molecule."""
        ...

    def distances(self, starts: Sequence[Start], molecules: Sequence[Molecule]) -> list[float]:
        """How far each molecule is from what its start asks for; the least is chosen."""
        ...


@dataclass(frozen=True, eq=False)
class Drawn:
    """One drawn molecule.

    Attributes:
        index: its number within the run.
        molecule: the molecule (Å).
        mended: the most probable classes broke a valence rule, and decoding found others.
        replaced_hydrogens: hydrogens that decoding put at ideal places, see `DecodedMolecule`.
        restarts: it came out in pieces, and was drawn on from so many.
        verdict: outcome of the validity check.
        unsound: what is impossible about the distances of a valid molecule; None = nothing.
        fields: what its record says of the task.
        problem: why it is not what the task asked for; None = it is.
        frames: the way from noise (Å); None = not kept.
    """

    index: int
    molecule: Molecule
    mended: bool
    replaced_hydrogens: int
    restarts: int
    verdict: Verdict
    unsound: InvalidMolecule | None
    fields: Mapping[str, Value | None]
    problem: str | None
    frames: tuple[Molecule, ...] | None


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
        sampler = sampler_of_restart(self.sampler, coupling=self.model.process.coupling)
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


@dataclass(frozen=True)
class Blocks:
    """The blocks of a run.

    Attributes:
        first: index of the first molecule.
        needed: how many have to be drawn at the least.
        limit: how many may be drawn.
        length: molecules of a block; behind those that are needed blocks are shorter, as the run may end any time.
    """

    first: int
    needed: int
    limit: int
    length: int

    @classmethod
    def of(cls, recipe: Recipe, first: int, needed: int, limit: int) -> Blocks:
        """Blocks of a length that suits the device and the size of the molecules."""
        gpu = recipe.device.type != "cpu"
        longest, pairs = (_MAX_GPU_BLOCK, _GPU_BLOCK_PAIRS) if gpu else (_MAX_BLOCK, _BLOCK_PAIRS)
        length = int(pairs / recipe.mean_pairs(first) / recipe.num_candidates)
        return cls(first, min(needed, limit), limit, max(1, min(longest, length)))

    def behind(self, index: int) -> Iterator[range]:
        """The blocks that are not wholly below `index`."""
        end, needed = self.first, self.first + self.needed
        tail = min(self.length, max(_MIN_TAIL, self.needed // 20))
        while end < self.first + self.limit:
            start = end
            stop = min(start + self.length, needed) if start < needed else start + tail
            end = min(stop, self.first + self.limit)
            if end > index:
                yield range(start, end)


def choose_workers(recipe: Recipe, first: int, needed: int) -> int:
    """How many worker processes to share the work among; 0 = none, all is done here.

    As many processes as torch may use threads, once they have started; on two cores that pays from about 150 molecules
    of QM9's size on, or 30 drug-like ones.
    """
    processes = min(available_cpus(), torch.get_num_threads())
    if recipe.device.type != "cpu" or processes < 2:
        return 0
    total = core_seconds(recipe, first, needed)
    return processes if _START_SECONDS + total / processes < total else 0


def core_seconds(recipe: Recipe, first: int, needed: int) -> float:
    """About how long the network calls of so many molecules take on one core."""
    # From 10 to 50 heavy atoms the cost grows with their number to the 1.6.
    seconds_a_call: float = _CALL_SECONDS * (recipe.mean_pairs(first) / 81) ** 0.8
    return needed * recipe.num_candidates * recipe.sampler.num_steps * seconds_a_call


@in_float32()
def with_trial(recipe: Recipe, first: int, needed: int, num_workers: int) -> Recipe:
    """The recipe with compiled blocks where the run is long and a trial on its first molecules found them to pay.

    Compiled or not, the molecules are the same up to the rounding of floating-point numbers.
    """
    device = recipe.device
    worth = _TRIAL_SECONDS if device.type == "cpu" else _GPU_TRIAL_SECONDS
    if core_seconds(recipe, first, needed) < worth or not can_compile(device):
        return recipe
    short = replace(recipe.sampler, num_steps=_TRIAL_STEPS)
    beginnings = [Beginning.of(recipe.task, recipe.seed, first + k) for k in range(min(needed, _MAX_BLOCK))]
    chunk = next(in_chunks(beginnings, recipe.budget.pairs))
    plain, tried = recipe.arithmetic, replace(recipe.arithmetic, compiled=True)
    figures, length = {}, 0.0
    for arithmetic in (plain, tried):
        compile_blocks(recipe.model.denoiser, arithmetic.compiled, dynamic=True)
        run = partial(draw_chunk, recipe.model, short, chunk, arithmetic=arithmetic)
        try:
            figures[arithmetic], length = seconds(run, device)
        except Exception as error:  # no memory, or a compiler that does not work
            if arithmetic == plain and not is_out_of_memory(error):
                raise
            figures[arithmetic] = float("inf")
    compile_blocks(recipe.model.denoiser, False, dynamic=True)
    batches = needed / len(chunk) * recipe.sampler.num_steps / _TRIAL_STEPS / max(1, num_workers)
    # Workers compile once more, at the same time as each other.
    saved, cost = (figures[plain] - figures[tried]) * batches, length * (2 if num_workers else 1)
    chosen = tried if saved > cost else plain
    _log.info(verdict(chosen, figures))
    return replace(recipe, arithmetic=chosen)


def draw_blocks(
    recipe: Recipe,
    blocks: Blocks,
    *,
    behind: int,
    num_workers: int = 0,
    on_fraction: Callable[[float], None] | None = None,
) -> Generator[list[Drawn], None, None]:
    """The molecules of the blocks that are not wholly below index `behind`, block by block in order.

    A block whose worker ended is drawn again here, and so is everything if workers cannot start.

    Args:
        recipe: how to draw.
        blocks: which.
        behind: index of the first molecule that is wanted.
        num_workers: processes; 0 = none, all is done here.
        on_fraction: hears how many molecules of the block that is drawn here are done, in fractions.
    """
    if num_workers:
        outcomes = stream_limited(recipe.draw, blocks.behind(behind), num_workers=num_workers, limit=_NO_LIMIT)
        with closing(outcomes):
            while True:
                try:
                    block, outcome = next(outcomes)
                except StopIteration:
                    return
                except Exception as error:  # a model of a class that cannot be pickled, no memory for a process, ...
                    _log.warning("workers cannot be used, one process goes on alone: %s", _one_line(error))
                    break
                if isinstance(outcome, Failure):
                    _log.warning("molecules %d to %d are drawn again: %s", block[0], block[-1], outcome.reason)
                    outcome = recipe.draw(block)
                behind = block[-1] + 1
                yield outcome
    for block in blocks.behind(behind):
        yield recipe.draw(block, on_fraction)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
