"""How the molecules of a run are drawn, in blocks that other processes can take over.

A block is a range of indices, and its molecules share batches. Where blocks begin depends on what the run asks for and
not on who draws them, so that one process, several, and a run that goes on after an interruption come to the same
molecules to the last digit; at other block boundaries they agree up to the rounding of floating-point numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch

from moldiff.diffusion.compute import (
    FLOAT32,
    Precision,
    compile_blocks,
    in_float32,
    is_compiled,
    is_out_of_memory,
    one_thread,
)
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.property_predictor import PropertyPredictor
from moldiff.diffusion.sampler import BROKEN_RESTARTS, Sampler, SamplerState
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.validity import judge
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.batch import CPU_PAIRS, GPU_PAIRS, DenoisedBatch, SampleSpec, denoise_batch, in_batches
from moldiff.sampling.filters import Filter, apply_filters
from moldiff.sampling.sample import DecodedMolecule, Sample
from moldiff.tasks.task import Task, TaskOutcome, predicted

_CONTACTS = Contacts()


@dataclass(frozen=True, eq=False)
class BestOfN:
    """Chooses the candidate that is nearest to the values that its spec asks for.

    Attributes:
        num_candidates: drawn for each molecule.
        properties: those of the model.
        predictor: says what the candidates have. It should have learnt from the same molecules as the generator:
            another one can then judge what is chosen.
    """

    num_candidates: int
    properties: Properties
    predictor: PropertyPredictor

    def distances(self, specs: Sequence[SampleSpec], molecules: Sequence[Molecule]) -> list[float]:
        """Mean distances from the values asked for, in standard deviations; infinite where there is no prediction."""
        scales = [entry.std for entry in self.properties.entries]
        found = []
        for spec, values in zip(specs, predicted(self.predictor, molecules), strict=True):
            assert spec.start.clean.condition is not None
            asked = zip(self.properties.names, scales, spec.start.clean.condition[0].tolist(), strict=True)
            off = [abs(values.get(name, inf) - value) / scale for name, scale, value in asked if isfinite(value)]
            found.append(sum(off) / max(1, len(off)))
        return found


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


@dataclass(frozen=True, eq=False, kw_only=True)
class MoleculeSampler:
    """All that decides what molecule k is; a worker process gets a copy.

    Attributes:
        model: in evaluation mode, on the device where it is to run.
        sampler: how to step.
        task: what is known of every molecule.
        seed: of the run.
        decode: "valence" or "raw".
        trajectory: keep the way from noise.
        budget: how large a batch may be.
        filters: what molecules have to pass.
        arithmetic: how the network is computed.
        choice: which of several candidates is the molecule; None = there is one.
    """

    model: MoleculeDiffusion
    sampler: Sampler
    task: Task
    seed: int
    decode: str
    trajectory: bool
    budget: MemoryBudget
    filters: tuple[Filter, ...] = ()
    arithmetic: Precision = FLOAT32
    choice: BestOfN | None = None

    @property
    def num_candidates(self) -> int:
        """Molecules that are drawn for each."""
        return 1 if self.choice is None else self.choice.num_candidates

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def spec(self, index: int, candidate: int = 0) -> SampleSpec:
        """Molecule `index`, before it is drawn."""
        return SampleSpec.of(self.task, self.seed, index, candidate)

    def mean_pairs(self, first: int) -> float:
        """Pairs of atoms of a molecule, an atom with itself included, from the first few of a run."""
        sizes = [self.spec(first + k).size for k in range(8)]
        return sum(size**2 for size in sizes) / len(sizes)

    @in_float32()
    def draw(self, indices: range, on_fraction: Callable[[float], None] | None = None) -> list[Sample]:
        """The molecules of a block in order; `on_fraction` hears how many of them are done, in fractions."""
        candidates = range(self.num_candidates)
        specs = [self.spec(index, number) for index in indices for number in candidates]

        def on_drawn(number: float) -> None:
            if on_fraction is not None:
                on_fraction(number / len(candidates))

        return self._chosen(specs, self.draw_each(specs, on_drawn))

    def draw_each(self, specs: Sequence[SampleSpec], on_drawn: Callable[[float], None]) -> list[Sample]:
        """What becomes of each spec; `on_drawn` hears how many of them are done, in fractions."""
        finished = 0
        found: dict[tuple[int, int], Sample] = {}

        def on_step(state: SamplerState) -> None:
            on_drawn(finished + len(state.noisy.node_mask) * (state.step + 1) / self.sampler.num_steps)

        if self.arithmetic.compiled != is_compiled(self.model.denoiser):  # a copy of a compiled network is not
            compile_blocks(self.model.denoiser, self.arithmetic.compiled, dynamic=True)
        for batch in self._denoised(specs, self.sampler, on_step):
            for spec, end in zip(batch.specs, self.decoded(batch), strict=True):
                found[spec.key] = self._finished(spec, end)
            finished += len(batch.specs)
        return [found[spec.key] for spec in specs]

    def _denoised(
        self,
        specs: Iterable[SampleSpec],
        sampler: Sampler,
        on_step: Callable[[SamplerState], None] | None = None,
    ) -> Iterator[DenoisedBatch]:
        """Draw in as many batches as the budget asks for, and in smaller ones where memory runs out.

        Raises:
            MoldiffError: for a single molecule that does not fit into memory.
        """
        num_frames = sampler.num_steps if self.trajectory else 0
        waiting = deque(in_batches(specs, self.budget.pairs))
        while waiting:
            batch = waiting[0]
            try:
                drawn = denoise_batch(
                    self.model, sampler, batch, num_frames=num_frames, on_step=on_step, arithmetic=self.arithmetic
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                waiting.popleft()
                yield drawn
                continue
            if len(batch) == 1:
                raise MoldiffError(f"size: a molecule of {batch[0].size} heavy atoms does not fit into memory")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.budget.pairs = max(1, len(batch) * max(one.size for one in batch) ** 2 // 2)
            waiting = deque(in_batches((one for group in waiting for one in group), self.budget.pairs))

    def decoded(self, batch: DenoisedBatch) -> list[DecodedMolecule]:
        """The molecules of a batch; by valence rules, those that come in pieces are drawn on from restarts.

        What is known of a molecule stays as it is, and what becomes of it does not depend on the others of its batch.
        """
        found = batch.decode(self.decode)
        if self.decode == "raw":
            return found
        rows = {spec.key: row for row, spec in enumerate(batch.specs)}
        sampler = self.sampler.of_restart()
        parts = [(batch, found)]
        for _ in range(BROKEN_RESTARTS):
            again = [
                part.restart(row)
                for part, ends in parts
                for row, end in enumerate(ends)
                if end.molecule.pieces()[0] > 1
            ]
            parts = [(part, part.decode(self.decode)) for part in self._denoised(again, sampler)]
            for part, ends in parts:
                for spec, end in zip(part.specs, ends, strict=True):
                    row = rows[spec.key]
                    found[row] = end.behind(found[row])
        return found

    def _finished(self, spec: SampleSpec, end: DecodedMolecule) -> Sample:
        """What a molecule is to the task, the filters and the checks."""
        outcome = self._outcome(spec, end.molecule)
        molecule, values, failed = outcome.molecule, dict(outcome.fields), list[str]()
        if self.filters and molecule.is_finite and outcome.problem is None:
            failed, measured = apply_filters(molecule, self.filters)
            values |= measured
        verdict = judge(molecule, self.model.vocabulary)
        frames = None if end.trajectory is None else tuple(outcome.in_its_frame(frame) for frame in end.trajectory)
        is_raw = end.argmax is end.molecule
        return Sample(
            index=spec.index,
            molecule=molecule,
            argmax=molecule if is_raw else self._outcome(spec, end.argmax).molecule,
            repaired=end.repaired,
            replaced_hydrogens=end.replaced_hydrogens,
            restarts=end.restarts,
            trajectory=frames,
            verdict=verdict,
            unsound=_CONTACTS.check(molecule) if verdict.problem is None else None,
            task=values,
            refusal=outcome.problem,
            failed_filters=tuple(failed),
        )

    def _outcome(self, spec: SampleSpec, molecule: Molecule) -> TaskOutcome:
        if molecule.is_finite:
            return self.task.finish(spec.index, spec.start, molecule)
        return TaskOutcome(molecule)  # of which no task can say anything

    def _chosen(self, specs: Sequence[SampleSpec], every: Sequence[Sample]) -> list[Sample]:
        """The molecules in order of their index: what was asked for before what was not, valid before invalid ones."""
        distances = [0.0] * len(every)
        if self.choice is not None:
            with one_thread(self.device):
                distances = self.choice.distances(specs, [one.molecule for one in every])
        best: dict[int, tuple[tuple[bool, bool, float], Sample]] = {}
        for sample, distance in zip(every, distances, strict=True):
            is_refused = sample.refusal is not None or bool(sample.failed_filters)
            rank = is_refused, sample.verdict.canonical is None, distance
            if sample.index not in best or rank < best[sample.index][0]:
                best[sample.index] = rank, sample
        return [sample for _, sample in best.values()]
