"""How the molecules of a run are drawn, in blocks that other processes can take over.

A block is a range of indices, and its molecules share batches. Where blocks begin depends on what the run asks for and
not on who draws them, so that one process, several, and a run that goes on after an interruption come to the same
molecules to the last digit; at other block boundaries they agree up to the rounding of floating-point numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import inf, isfinite
from operator import itemgetter
from typing import Any, Protocol

import torch

from moldiff.diffusion.compute import (
    FLOAT32,
    Precision,
    can_compile,
    compile_blocks,
    in_float32,
    is_compiled,
    is_out_of_memory,
    one_thread,
    seconds,
    verdict,
)
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.property_predictor import PropertyPredictor
from moldiff.diffusion.sampler import BROKEN_RESTARTS, Sampler, SamplerState
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.validity import judge
from moldiff.molecules.formats.record import Value
from moldiff.molecules.identity import canonical_key
from moldiff.molecules.molecule import Molecule
from moldiff.processes import Failure, available_cpus, stream_limited
from moldiff.sampling.batch import DenoisedBatch, SampleSpec, denoise_batch, in_batches
from moldiff.sampling.filters import AnyFilter, apply_filters
from moldiff.sampling.postprocess import protonated, relaxed
from moldiff.sampling.sample import DecodedMolecule, Sample
from moldiff.sampling.score import Score
from moldiff.tasks.analogues import similarity
from moldiff.tasks.refine import kept_atoms
from moldiff.tasks.task import Task, TaskOutcome, predicted

_CONTACTS = Contacts()

LEAD = "lead"
LEAD_REASON = "the lead itself"
"""In `exclude`: the molecule that a task was given."""

_MAX_BLOCK, _BLOCK_PAIRS = 64, 12_000
"""Molecules of a block on a CPU at most, and pairs of atoms: some seconds of work, done in few batches."""

_MAX_GPU_BLOCK, _GPU_BLOCK_PAIRS = 1_000, 600_000
_MIN_TAIL = 8  # molecules of a block behind those that are needed at the least

_CALL_SECONDS = 1.4e-3  # for a molecule of 9 heavy atoms on one core of the machine the shipped model was trained on
_START_SECONDS = 5.0  # what workers take to start
_NO_LIMIT = 1e8  # seconds that a worker may spend on a block: three years

_TRIAL_SECONDS, _GPU_TRIAL_SECONDS = 3_600.0, 360_000.0
"""Seconds on one core from which on compiling, which takes some minutes, is tried."""

_TRIAL_STEPS = 3

_log = logging.getLogger(__name__)


class Choice(Protocol):
    """Chooses among several candidates for a molecule."""

    def distances(self, specs: Sequence[SampleSpec], samples: Sequence[Sample]) -> list[float]:
        """How far each is from the best; infinite where nothing is known. The least is taken."""


@dataclass(frozen=True)
class LeastOfN:
    """Chooses the candidate whose record has the least value of a field."""

    field: str

    def distances(self, specs: Sequence[SampleSpec], samples: Sequence[Sample]) -> list[float]:
        values = [one.task.get(self.field) for one in samples]
        return [inf if value is None else float(value) for value in values]


@dataclass(frozen=True, eq=False)
class BestOfN:
    """Chooses the candidate that is nearest to the values that its spec asks for."""

    properties: Properties  # those of the model
    predictor: PropertyPredictor  # best of the molecules the generator has learnt: another can judge what is chosen

    def distances(self, specs: Sequence[SampleSpec], samples: Sequence[Sample]) -> list[float]:
        """Mean distances from the values asked for, in standard deviations; infinite where there is no prediction."""
        scales = [entry.std for entry in self.properties.entries]
        found, molecules = [], [one.molecule for one in samples]
        for spec, values in zip(specs, predicted(self.predictor, molecules), strict=True):
            assert spec.start.clean.condition is not None
            asked = zip(self.properties.names, scales, spec.start.clean.condition[0].tolist(), strict=True)
            off = [abs(values.get(name, inf) - value) / scale for name, scale, value in asked if isfinite(value)]
            found.append(sum(off) / max(1, len(off)))
        return found


@dataclass(eq=False)
class MemoryBudget:
    """How large a batch may be, in padded pairs of atoms; it shrinks where memory runs out."""

    pairs: int


@dataclass(frozen=True, eq=False, kw_only=True)
class MoleculeSampler:
    """All that decides what molecule k is; a worker process gets a copy."""

    model: MoleculeDiffusion  # in evaluation mode, on the device where it is to run
    sampler: Sampler
    task: Task
    seed: int
    decode: str  # "valence" or "raw"
    trajectory: bool  # keep the way from noise
    budget: MemoryBudget
    filters: tuple[AnyFilter, ...] = ()  # what molecules have to pass
    excluded: frozenset[str] = frozenset()  # canonical keys of what is not delivered, and LEAD
    similarity: tuple[float, float] | None = None  # the least and the largest to what a task was given
    ph: float | None = None  # of water, whose charges molecules get; None = they keep those that were drawn
    relax: str = "none"  # how molecules are relaxed, see `moldiff.sampling.postprocess`; "none" = they are not
    arithmetic: Precision = FLOAT32
    num_candidates: int = 1  # drawn for each molecule
    choice: Choice | None = None  # which of several candidates is the molecule; None = the surest
    score: Score | None = None  # of molecules that are wanted

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def spec(self, index: int, candidate: int = 0) -> SampleSpec:
        """Molecule `index`, before it is drawn."""
        return SampleSpec.of(self.task, self.seed, index, candidate)

    def mean_pairs(self, first: int) -> float:
        """Pairs of atoms of a molecule, an atom with itself included, from the first few of a run."""
        return sum(self.spec(first + k).size ** 2 for k in range(8)) / 8

    @in_float32()
    def draw(self, indices: Sequence[int], on_fraction: Callable[[float], None] | None = None) -> list[Sample]:
        """The molecules of a block in order; `on_fraction` is called with how many are done, in fractions."""
        specs = [self.spec(index, number) for index in indices for number in range(self.num_candidates)]
        every = self.draw_each(specs, on_fraction)
        return self._chosen(specs, every if self.score is None else self.score.scored(every))

    def draw_each(self, specs: Sequence[SampleSpec], on_fraction: Callable[[float], None] | None) -> list[Sample]:
        """What becomes of each spec; `on_fraction` is called with how many molecules are done, in fractions."""
        finished = 0
        found: dict[tuple[int, int], Sample] = {}

        def on_step(state: SamplerState) -> None:
            if on_fraction is not None:
                drawn = finished + len(state.noisy.node_mask) * (state.step + 1) / self.sampler.num_steps
                on_fraction(drawn / self.num_candidates)

        if self.arithmetic.compiled != is_compiled(self.model.denoiser):  # a copy of a compiled network is not
            compile_blocks(self.model.denoiser, self.arithmetic.compiled, dynamic=True)
        for batch in self._denoised(specs, self.sampler, on_step):
            for spec, end in zip(batch.specs, self.decoded(batch), strict=True):
                found[spec.key] = self._finished(spec, end)
            finished += len(batch.specs)
        return [found[spec.key] for spec in specs]

    def _denoised(
        self, specs: Iterable[SampleSpec], sampler: Sampler, on_step: Callable[[SamplerState], None] | None = None
    ) -> Iterator[DenoisedBatch]:
        """Draw in as many batches as the budget asks for, and in smaller ones where memory runs out."""
        num_frames = sampler.num_steps if self.trajectory else 0
        how: dict[str, Any] = {"num_frames": num_frames, "on_step": on_step, "arithmetic": self.arithmetic}
        waiting = list(in_batches(specs, self.budget.pairs))
        while waiting:
            batch = waiting[0]
            try:
                drawn = denoise_batch(self.model, sampler, batch, **how)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                del waiting[0]
                yield drawn
                continue
            if len(batch) == 1:
                raise MoldiffError(f"size: a molecule of {batch[0].size} heavy atoms does not fit into memory")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.budget.pairs = max(1, len(batch) * max(one.size for one in batch) ** 2 // 2)
            waiting = list(in_batches(chain.from_iterable(waiting), self.budget.pairs))

    def decoded(self, batch: DenoisedBatch) -> list[DecodedMolecule]:
        """The molecules of a batch; by valence rules, those that come in pieces are drawn on from restarts.

        What is known of a molecule stays as it is, and what becomes of it does not depend on the others of its batch.
        """
        found = batch.decode(self.decode)
        if self.decode == "raw":
            return found
        rows = {spec.key: row for row, spec in enumerate(batch.specs)}
        parts = [(batch, found)]
        for _ in range(BROKEN_RESTARTS):
            ends = ((part, row, end) for part, decoded in parts for row, end in enumerate(decoded))
            again = [part.restart(row) for part, row, end in ends if end.molecule.pieces()[0] > 1]
            parts = [(part, part.decode(self.decode)) for part in self._denoised(again, self.sampler.of_restart())]
            for part, decoded in parts:
                for spec, end in zip(part.specs, decoded, strict=True):
                    found[rows[spec.key]] = end.behind(found[rows[spec.key]])
        return found

    def _finished(self, spec: SampleSpec, end: DecodedMolecule) -> Sample:
        """What a molecule is to the task, the filters and the checks."""
        outcome = self._outcome(spec, end.molecule)
        molecule, values, failed = outcome.molecule, dict(outcome.fields), list[str]()
        if self.filters and molecule.is_finite and outcome.problem is None:
            failed, measured = apply_filters(molecule, self.filters)
            values |= measured
        verdict = judge(molecule, self.model.vocabulary)
        refusal = outcome.problem or self._unwanted(spec.index, molecule, verdict.canonical, values)
        moved: dict[str, Any] = {
            "molecule": molecule,
            "argmax": molecule if end.argmax is end.molecule else self._outcome(spec, end.argmax).molecule,
            "trajectory": end.trajectory and tuple(outcome.in_its_frame(frame) for frame in end.trajectory),
        }
        problem = verdict.problem or _CONTACTS.check(molecule)
        is_wanted = problem is None and refusal is None and not failed
        if self.ph is not None and is_wanted:
            moved["molecule"], fields = protonated(molecule, self.ph)
            molecule, values = moved["molecule"], values | fields
        if self.relax != "none" and is_wanted:
            moved["molecule"], fields = relaxed(molecule, self.relax, kept_atoms(spec.start, molecule))
            values |= fields
        return Sample(
            **vars(end) | moved,
            index=spec.index,
            verdict=verdict,
            unsound=problem if verdict.problem is None else None,
            task=values,
            refusal=refusal,
            failed_filters=tuple(failed),
            unrelaxed=None if moved["molecule"] is molecule else molecule,
        )

    def _unwanted(self, index: int, molecule: Molecule, key: str | None, values: dict[str, Value | None]) -> str | None:
        """Why a valid molecule is left out; its similarity goes to `values` where that is bounded."""
        lead = self.task.lead(index)
        if key is None:
            return None
        if lead is not None and LEAD in self.excluded and key == canonical_key(lead):
            return LEAD_REASON
        if key in self.excluded:
            return "excluded"
        if lead is not None and self.similarity is not None:
            values["similarity"] = value = similarity(molecule, lead)
            if value is None or not self.similarity[0] <= value <= self.similarity[1]:
                return "similarity"
        return None

    def _outcome(self, spec: SampleSpec, molecule: Molecule) -> TaskOutcome:
        """What a molecule is to the task, which can say nothing of one with a coordinate that is not finite."""
        is_finite = molecule.is_finite
        return self.task.finish(spec.index, spec.start, molecule) if is_finite else TaskOutcome(molecule)

    def _chosen(self, specs: Sequence[SampleSpec], every: Sequence[Sample]) -> list[Sample]:
        """The molecules in order of their index: what was asked for before what was not, valid before invalid ones."""
        distances = [inf if one.unsound else -one.confidence for one in every]
        if self.choice is not None:
            with one_thread(self.device):
                distances = self.choice.distances(specs, every)
        best: dict[int, tuple[tuple[bool, bool, float], Sample]] = {}
        for sample, distance in zip(every, distances, strict=True):
            ranked = (sample.is_refused, sample.verdict.canonical is None, distance), sample
            best[sample.index] = min(best.get(sample.index, ranked), ranked, key=itemgetter(0))
        return [sample for _, sample in best.values()]


class Blocks(Protocol):
    """Ranges of indices that are drawn together."""

    def behind(self, index: int) -> Iterator[range]:
        """The blocks that are not wholly below `index`."""


@dataclass(frozen=True)
class IndexBlocks:
    """The blocks of a run; behind those that are needed they are shorter, as the run may end any time."""

    first: int  # index of the first molecule
    needed: int  # how many have to be drawn at the least
    limit: int  # how many may be drawn
    length: int  # molecules of a block

    @classmethod
    def of(cls, molecules: MoleculeSampler, first: int, needed: int, limit: int) -> IndexBlocks:
        """Blocks of a length that suits the device and the size of the molecules."""
        gpu = molecules.device.type != "cpu"
        longest, pairs = (_MAX_GPU_BLOCK, _GPU_BLOCK_PAIRS) if gpu else (_MAX_BLOCK, _BLOCK_PAIRS)
        length = int(pairs / molecules.mean_pairs(first) / molecules.num_candidates)
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


def choose_workers(molecules: MoleculeSampler, first: int, needed: int) -> int:
    """As many worker processes as torch may use threads where that pays, once they have started; 0 = none.

    On two cores that is from about 150 molecules of QM9's size on, or 30 drug-like ones.
    """
    processes = min(available_cpus(), torch.get_num_threads())
    if molecules.device.type != "cpu" or processes < 2:
        return 0
    total = core_seconds(molecules, first, needed)
    return processes if _START_SECONDS + total / processes < total else 0


def core_seconds(molecules: MoleculeSampler, first: int, needed: int) -> float:
    """About how long the network calls of so many molecules take on one core."""
    # From 10 to 50 heavy atoms the cost grows with their number to the 1.6.
    seconds_a_call: float = _CALL_SECONDS * (molecules.mean_pairs(first) / 81) ** 0.8
    return needed * molecules.num_candidates * molecules.sampler.num_steps * seconds_a_call


@in_float32()
def with_trial(molecules: MoleculeSampler, first: int, needed: int, num_workers: int) -> MoleculeSampler:
    """The same with compiled blocks where the run is long and a trial on its first molecules found them to pay.

    Compiled or not, the molecules are the same up to the rounding of floating-point numbers.
    """
    device = molecules.device
    worth = _TRIAL_SECONDS if device.type == "cpu" else _GPU_TRIAL_SECONDS
    if core_seconds(molecules, first, needed) < worth or not can_compile(device):
        return molecules
    short = replace(molecules.sampler, num_steps=_TRIAL_STEPS)
    specs = (molecules.spec(first + k) for k in range(min(needed, _MAX_BLOCK)))
    batch = next(in_batches(specs, molecules.budget.pairs))
    plain, tried = molecules.arithmetic, replace(molecules.arithmetic, compiled=True)
    figures, length = {}, 0.0
    for arithmetic in (plain, tried):
        compile_blocks(molecules.model.denoiser, arithmetic.compiled, dynamic=True)
        run = partial(denoise_batch, molecules.model, short, batch, arithmetic=arithmetic)
        try:
            figures[arithmetic], length = seconds(run, device)
        except Exception as error:  # no memory, or a compiler that does not work
            if arithmetic == plain and not is_out_of_memory(error):
                raise
            figures[arithmetic] = float("inf")
    compile_blocks(molecules.model.denoiser, False, dynamic=True)
    batches = needed / len(batch) * molecules.sampler.num_steps / _TRIAL_STEPS / max(1, num_workers)
    # Workers compile once more, at the same time as each other.
    saved, cost = (figures[plain] - figures[tried]) * batches, length * (2 if num_workers else 1)
    chosen = tried if saved > cost else plain
    _log.info(verdict(chosen, figures))
    return replace(molecules, arithmetic=chosen)


def draw_blocks(
    molecules: MoleculeSampler,
    blocks: Blocks,
    *,
    behind: int,
    num_workers: int = 0,
    on_fraction: Callable[[float], None] | None = None,
) -> Generator[list[Sample], None, None]:
    """The molecules of the blocks that are not wholly below index `behind`, block by block in order.

    A block whose worker ended is drawn again here, and so is everything if workers cannot start or there are none.
    `on_fraction` is called with the number of molecules that are done, in fractions, of the block that is drawn here.
    """
    if num_workers:
        outcomes = stream_limited(molecules.draw, blocks.behind(behind), num_workers=num_workers, limit=_NO_LIMIT)
        with closing(outcomes):
            while True:
                try:
                    block, outcome = next(outcomes)
                except StopIteration:
                    return
                except Exception as error:  # a model of a class that cannot be pickled, no memory for a process, ...
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    _log.warning("workers cannot be used, one process goes on alone: %s", reason)
                    break
                if isinstance(outcome, Failure):
                    _log.warning("molecules %d to %d are drawn again: %s", block[0], block[-1], outcome.reason)
                    outcome = molecules.draw(block)
                behind = block[-1] + 1
                yield outcome
    for block in blocks.behind(behind):
        yield molecules.draw(block, on_fraction)
