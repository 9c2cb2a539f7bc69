"""From a trained model to checked molecules: `load("qm9").sample(100)`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from moldiff.diffusion.compute import FLOAT32, choose_device, free_memory
from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.guidance import GuidedDiffusion
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import NOVELTY_FILE, PretrainedModel, load_pretrained
from moldiff.diffusion.property_predictor import PropertyPredictor, load_predictor, predictor_for
from moldiff.diffusion.sampler import PowerSampler, Sampler
from moldiff.diffusion.shipped import advice, available_models
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError, as_range, require
from moldiff.evaluation.metrics.druglike import check_columns
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules.identity import canonical_key
from moldiff.molecules.vocabulary import AtomClass, Vocabulary
from moldiff.sampling.batch import CPU_PAIRS, GPU_PAIRS, SampleSpec
from moldiff.sampling.config import MAX_MOLECULES, SamplingConfig, SamplingOverrides, check_whole
from moldiff.sampling.filters import AnyFilter, Filter, parse_filters, parse_parts
from moldiff.sampling.molecule_sampler import LEAD, BestOfN, Choice, LeastOfN, MemoryBudget, MoleculeSampler
from moldiff.sampling.notebook import bar
from moldiff.sampling.run import ResumePoint, SamplingRun
from moldiff.sampling.sample import Sample, Samples
from moldiff.sampling.score import Score
from moldiff.sampling.similarity import SimilaritySearch
from moldiff.tasks.analogues import Analogues
from moldiff.tasks.inputs import given_records, mol_of
from moldiff.tasks.pocket import PocketTask
from moldiff.tasks.task import LIMITED_CLASS_LEAD, SIZE, ConstrainedTask, NewMolecules, Task, description, element_mask

__all__ = ["Generator", "Sample", "Samples", "available_models", "load"]

_log = logging.getLogger(__name__)

LARGEST_SIZE = 250
"""Heavy atoms of a molecule at most, unless the model has learnt from larger ones; decoding a larger one takes
minutes."""

_PAIR_BYTES = 4_000
"""Memory that a pair of atoms takes in the network (measured from 100 to 300 heavy atoms)."""


@dataclass(eq=False, repr=False)
class Generator:
    """A trained model that draws molecules."""

    checkpoint: PretrainedModel  # the model and where it came from
    device: torch.device  # where the network runs
    novelty: NoveltyIndex | None = None  # index of the training molecules, if the model has one

    def __repr__(self) -> str:
        size = sum(one.numel() for one in self.checkpoint.model.parameters())
        weights = f"weights {self.checkpoint.weights_hash}, {size / 1e6:.1f} million parameters"
        return f"<Generator {self.checkpoint.name}: {weights}, on {self.device}>"

    def sample(
        self,
        n: int = 100,
        *,
        config: SamplingConfig | None = None,
        on_progress: Callable[[float], None] | None = None,
        **overrides: Unpack[SamplingOverrides],
    ) -> Samples:
        """Draw molecules until n are kept.

        Molecule k of a seed is the same whatever the batch, n, `first` or `workers`, up to the rounding of
        floating-point numbers.

        Args:
            n: molecules to keep; of tasks that start from given molecules, for each of them.
            config: the options of the run.
            on_progress: called with the number of molecules finished so far, in fractions; None = in a notebook with
                ipywidgets a bar.
            overrides: options by name that differ from `config`, or from the defaults where there is none.

        Returns:
            The kept molecules and counts over all drawn ones. Ctrl-C returns what is finished.

        Raises:
            MoldiffError: for an impossible value, or a molecule that does not fit into memory.
        """
        run = self.stream(n, config=config, **overrides)
        with bar(run.num_wanted) if on_progress is None else nullcontext(on_progress) as run.on_progress:
            kept = list(run)
        counts: dict[str, Any] = {"asked": run.n, "drawn": run.drawn, "results": run.results()}
        return Samples(kept, **counts, complete=run.complete, notes=run.notes())

    def stream(
        self,
        n: int = 100,
        *,
        config: SamplingConfig | None = None,
        on_progress: Callable[[float], None] | None = None,
        **overrides: Unpack[SamplingOverrides],
    ) -> SamplingRun:
        """Like `sample`, molecule by molecule: iterating draws them, and none stays in memory unless they are ranked.

        Example:
            with Writer("many.sdf") as writer:
                for sample in load("qm9").stream(100_000):
                    writer.write(sample.molecule, sample.record())

        Raises:
            MoldiffError: for an impossible value.
        """
        check_whole("n", n, 1, MAX_MOLECULES + 1)
        config = self._completed(replace(config or SamplingConfig(), **overrides))
        model, checkpoint, task = self.checkpoint.model, self.checkpoint, self._task(config)
        choice = self._choice(config, task)
        _check_memory(task.sizes()[1], self.device)
        sizes = task.sizes() if config.size is None else as_range(config.size)
        for line in _warnings(task, sizes, model.vocabulary, model.statistics):
            _log.warning(line)
        n = task.count(n)
        if n > MAX_MOLECULES:
            raise MoldiffError(f"n: makes {n} molecules of all inputs, expected {MAX_MOLECULES} at most")
        max_draws = 20 * n + 200 if config.max_draws is None else config.max_draws
        check_whole("first", config.first, 0, 2**31 - max_draws)
        if "novel" in config.keep and self.novelty is None:
            unlisted = f"model {checkpoint.name} has no list of its training molecules"
            raise MoldiffError(f"keep: {unlisted} to be novel against")
        guided: MoleculeDiffusion = model
        if config.condition:
            guided = GuidedDiffusion(model, scale=float(config.guidance), feedback=float(config.feedback))
        molecules = MoleculeSampler(
            model=guided,
            sampler=self._sampler(config, task),
            task=task,
            seed=config.seed,
            decode=config.decode,
            trajectory=config.trajectory,
            budget=MemoryBudget(CPU_PAIRS if self.device.type == "cpu" else GPU_PAIRS),
            arithmetic=config.arithmetic or FLOAT32,
            ph=config.ph,
            relax=config.relax,
            num_candidates=config.candidates,
            choice=choice,
            score=Score.of(config, task),
        )
        filters: tuple[AnyFilter, ...] = (*self._filters(config, molecules), *parse_parts(config.has, config.lacks))
        molecules = replace(molecules, filters=filters, excluded=_excluded(config), similarity=config.similarity_bounds)
        if config.similarity is not None and task.lead(config.first) is None:
            expected = "expected a task that is given a molecule, such as task=analogues"
            raise MoldiffError(f"similarity: got {config.similarity} with nothing to be similar to, {expected}")
        first = molecules.spec(config.first).start
        if config.relax != "none" and not (first.pocket is None and bool(first.level.pos.any())):
            why = "coordinates that are given" if first.pocket is None else "a pocket, which it knows nothing of"
            raise MoldiffError(f"relax: got {config.relax!r} with {why}, expected relax=none")
        return SamplingRun(
            n=n,
            max_draws=max_draws,
            config=config,
            molecules=molecules,
            checkpoint=checkpoint,
            novelty=self.novelty,
            asked=_asked(config, molecules.filters, molecules.score),
            search=SimilaritySearch.of(config, molecules, n),
            done=ResumePoint(0, config.first),
            on_progress=on_progress,
        )

    def _completed(self, config: SamplingConfig) -> SamplingConfig:
        """The options with what the model and the other options make of them; checks the packages that they need."""
        condition = self.checkpoint.model.properties.checked(config.condition or {})
        config = replace(config, condition=condition, columns=tuple(dict.fromkeys(check_columns(config.columns))))
        if config.relax == "xtb":
            require("tblite", "eval")
        if config.ph is not None:
            require("molscrub", "dock")
        if isinstance(config.task, Analogues):
            return replace(config, task=config.task.with_noise(config.similarity_bounds))
        return config

    def _sampler(self, config: SamplingConfig, task: Task) -> Sampler:
        sampler: Any = config.sampler or PowerSampler(num_steps=self.checkpoint.num_steps)
        if isinstance(sampler, PowerSampler) and sampler.class_lead is None:
            is_limited = isinstance(task, ConstrainedTask) and task.mask is not None
            sampler = replace(sampler, class_lead=LIMITED_CLASS_LEAD if is_limited else 1.0)
        own: Sampler = sampler if config.steps is None else replace(sampler, num_steps=config.steps)
        return own

    def _filters(self, config: SamplingConfig, molecules: MoleculeSampler) -> tuple[Filter, ...]:
        """Those asked for, or the model's own for a run that keeps something and draws both bonds and coordinates."""
        if config.filters is not None:
            return parse_filters(config.filters)
        if not (self.checkpoint.filters and config.keep):
            return ()
        level = molecules.spec(config.first).start.level
        return parse_filters(self.checkpoint.filters) if bool(level.bond.any() and level.pos.any()) else ()

    @property
    def learnt_half(self) -> str | None:
        """The half of the training molecules whose properties the model has learnt; None = all."""
        half: str | None = self.checkpoint.config.get("training", {}).get("half")
        return half

    def predictor(self, name: str | Path | None = None) -> PropertyPredictor:
        """The predictor that chooses among candidates; raises `MoldiffError` where none knows the properties."""
        if name is not None:
            return load_predictor(name)
        properties = self.checkpoint.model.properties
        predictor = predictor_for(properties, self.learnt_half, same=True)
        if predictor is None:
            own = "predictor=FOLDER of one trained by `python -m moldiff.training.predictor train`"
            names = " ".join(properties.names)
            raise MoldiffError(f"candidates: no predictor that ships knows {names}, expected {own}")
        return predictor

    def _choice(self, config: SamplingConfig, task: Task) -> Choice | None:
        candidates, named = config.candidates, config.predictor
        if candidates == 1:
            if named is not None:
                raise MoldiffError(f"predictor: got {str(named)!r} with one candidate, expected candidates=2 or more")
            return None
        pocket = task.task if isinstance(task, ConstrainedTask) else task
        if named is None and config.score is not None:
            return LeastOfN("score")
        if isinstance(pocket, PocketTask) and not config.condition and named is None:
            return LeastOfN("pocket_energy")
        if not config.condition:
            if named is not None:
                expected = "expected some, such as condition.gap=0.25"
                raise MoldiffError(f"predictor: got {str(named)!r} without values to choose by, {expected}")
            return None
        predictor = self.predictor(named)
        if unknown := config.condition.keys() - {SIZE, *predictor.properties.names}:
            known = ", ".join(predictor.properties.names)
            raise MoldiffError(f"predictor: {predictor.name} does not know {min(unknown)}, expected any of: {known}")
        return BestOfN(self.checkpoint.model.properties, predictor)

    def _task(self, config: SamplingConfig) -> Task:
        """What is known of every molecule, and what it is drawn towards."""
        model, size, condition = self.checkpoint.model, config.size, config.condition
        mask = element_mask(model.vocabulary, config.elements, config.forbid)
        if config.task is None:
            counts = self._size_weights(size)
            weights = model.properties.size_weights(condition, counts) if condition else counts
            plain: Task = replace(NewMolecules.like_training(model.statistics, model.vocabulary), size_weights=weights)
        elif size is not None:
            raise MoldiffError(f"size: got {size} together with a task, which says how many atoms there are")
        else:
            plain = config.task.prepare(model.vocabulary, model.statistics)
        if mask is None and config.charge is None and not condition:
            return plain
        return ConstrainedTask(
            task=plain,
            mask=mask,
            charge=None if config.charge is None else SumConstraint.of_charge(model.vocabulary, config.charge),
            properties=model.properties,
            asked=condition,
            predictor=predictor_for(model.properties, self.learnt_half) if condition else None,
            num_candidates=1 if config.score is not None else config.candidates,
        )

    def _size_weights(self, size: int | tuple[int, int] | None) -> dict[int, int]:
        """Weight of every number of heavy atoms; sizes the training data lacks are all given the same weight."""
        counts = dict(sorted(self.checkpoint.model.statistics.size_counts.items()))
        if size is None:
            return counts
        low, high = as_range(size)
        largest = max(LARGEST_SIZE, *counts)
        if not 1 <= low <= high <= largest:
            raise MoldiffError(f"size: got {size}, expected heavy atoms as a number or a range, from 1 to {largest}")
        inside = {number: count for number, count in counts.items() if low <= number <= high}
        return inside or dict.fromkeys(range(low, high + 1), 1)


def _check_memory(size: int, device: torch.device) -> None:
    """Refuse molecules that would not fit into the memory that is free: some systems end the program instead."""
    needed, free = size**2 * _PAIR_BYTES, free_memory(device)
    if free is not None and needed > free:
        takes = f"takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        raise MoldiffError(f"size: a molecule of {size} heavy atoms {takes}")


def _warnings(task: Task, sizes: tuple[int, int], vocabulary: Vocabulary, statistics: Statistics) -> Iterator[str]:
    """A line for the sizes and one for the charges that a model has not learnt, from a task's first molecules."""
    learnt = min(statistics.size_counts), max(statistics.size_counts)
    numbers = range(min(task.count(1), 100))
    if sizes[0] < learnt[0] or sizes[1] > learnt[1]:
        other = advice(_known_atoms(task, numbers, vocabulary), sizes)
        asked = str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
        got = f"got {asked} heavy atoms, the model has learnt {learnt[0]} to {learnt[1]}"
        yield f"warning: size: {got}, others may come out badly{other}"
    totals = (total for number in numbers for total in task.totals(number))
    charges = {total.value for total in totals if np.array_equal(total.weight, vocabulary.table[:, 1])}
    if statistics.charge is not None and (strange := sorted(charges - {statistics.charge})):
        shown = " and ".join(f"{charge:+d}" for charge in strange)
        only = "neutral molecules" if statistics.charge == 0 else f"a charge of {statistics.charge:+d}"
        yield f"warning: charge: got {shown}, the model has learnt {only} only, others may come out badly"


def _known_atoms(task: Task, numbers: Sequence[int], vocabulary: Vocabulary) -> list[Collection[AtomClass]]:
    """The classes that each atom may have of which a task says something, of its first molecules."""
    found: list[Collection[AtomClass]] = []
    for number in numbers:
        start = SampleSpec.of(task, 0, number).start
        known = start.level.atom[0] == 0
        found += [{vocabulary.atom_classes[index]} for index in start.clean.atom_type[0][known].tolist()]
        if start.allowed is not None:
            found += [set(compress(vocabulary.atom_classes, may)) for may in start.allowed[0][~known].tolist()]
    return found


def _excluded(config: SamplingConfig) -> frozenset[str]:
    """Canonical keys of structures that are not delivered, and `LEAD`."""
    if config.exclude is None:
        return frozenset({LEAD} if config.keep else ())
    found: set[str] = set()
    for source in config.exclude:
        if isinstance(source, str) and source == LEAD:
            found.add(LEAD)
            continue
        for record in given_records("exclude", source):
            try:
                found.add(canonical_key(mol_of(record)))
            except MoldiffError as error:
                raise MoldiffError(f"exclude: record {record.number}: {error}") from None
    return frozenset(found)


def _asked(config: SamplingConfig, filters: Sequence[AnyFilter], score: Score | None) -> dict[str, Any]:
    """What is asked for beside the size, in JSON's types."""
    condition = config.condition or None
    wanted = {
        "charge": config.charge,
        "elements": None if config.elements is None else list(config.elements),
        "forbid": list(config.forbid) or None,
        "condition": condition,
        "guidance": condition and float(config.guidance),
        "feedback": condition and float(config.feedback),
        "candidates": config.candidates if config.candidates > 1 else None,
        "score": None if score is None else score.name,
        # A record has its own size; which others its candidates may have had, it would not say.
        "size": list(as_range(config.size)) if config.candidates > 1 and config.size is not None else None,
        "filters": [str(one) for one in filters if isinstance(one, Filter)] or None,
        "has": list(config.has) or None,
        "lacks": list(config.lacks) or None,
        "similarity": config.similarity_bounds and list(config.similarity_bounds),
        "like": None if config.like is None else description(config.like),
    }
    task = {} if config.task is None else description(config.task)
    return task | {name: value for name, value in wanted.items() if value is not None}


def load(model: str | Path = "qm9", *, device: str = "auto") -> Generator:
    """A generator of a shipped model by its name, or of a trained one by its folder, on "auto", "cpu", "cuda", ...

    Raises:
        MoldiffError: for an unknown or damaged model, or a device this machine lacks.
    """
    checkpoint = load_pretrained(model)
    chosen = choose_device(device)
    checkpoint.model.to(chosen)
    path = checkpoint.folder / NOVELTY_FILE
    return Generator(checkpoint, chosen, NoveltyIndex.load(path) if path.is_file() else None)
