"""From a trained model to checked molecules: `load("qm9").sample(100)`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from moldiff.diffusion.compute import PLAIN, choose_device, free_memory
from moldiff.diffusion.decoding import Total
from moldiff.diffusion.guidance import GuidedDiffusion
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import NOVELTY_FILE, Checkpoint, load_checkpoint
from moldiff.diffusion.property_predictor import PropertyPredictor, load_predictor, predictor_for
from moldiff.diffusion.sampler import PowerSampler
from moldiff.diffusion.shipped import available_models
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.sampling.batch import Beginning, MemoryBudget
from moldiff.sampling.candidates import Nearest
from moldiff.sampling.config import (
    MAX_MOLECULES,
    Order,
    SamplingConfig,
    SamplingOverrides,
    check_whole,
    default_max_draws,
)
from moldiff.sampling.filters import screened
from moldiff.sampling.molecule_sampler import Recipe
from moldiff.sampling.reach import warnings
from moldiff.sampling.run import Done, SamplingRun
from moldiff.sampling.sample import SampledMolecule, Samples
from moldiff.tasks.elements import LIMITED_CLASS_LEAD, Charged, Limited, element_mask
from moldiff.tasks.targets import SIZE, Targeted
from moldiff.tasks.task import NewMolecules, Task

__all__ = ["MoleculeGenerator", "SampledMolecule", "Samples", "available_models", "load"]

_log = logging.getLogger(__name__)


LARGEST_SIZE = 250
"""Heavy atoms of a molecule at most, unless the model has learnt from larger ones; decoding a larger one takes
minutes."""

_PAIR_BYTES = 4_000
"""Memory that a pair of atoms takes in the network (measured from 100 to 300 heavy atoms)."""


@dataclass(eq=False)
class MoleculeGenerator:
    """A trained model that draws molecules.

    Attributes:
        checkpoint: the model and where it came from.
        device: where the network runs.
        novelty: index of the training molecules, if the model has one.
    """

    checkpoint: Checkpoint
    device: torch.device
    novelty: NoveltyIndex | None = field(default=None)

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
            on_progress: called with the number of molecules finished so far, in fractions.
            overrides: options by name that differ from `config`, or from the defaults where there is none.

        Returns:
            The kept molecules and counts over all drawn ones. Ctrl-C returns what is finished.

        Raises:
            MoldiffError: for an impossible value, or a molecule that does not fit into memory.
        """
        run = self.run(n, config=config, on_progress=on_progress, **overrides)
        kept = list(run)
        return Samples(kept, run.order.n, run.drawn, run.results(), run.complete, run.recipe.task.notes())

    def run(
        self,
        n: int = 100,
        *,
        config: SamplingConfig | None = None,
        on_progress: Callable[[float], None] | None = None,
        done: Done | None = None,
        **overrides: Unpack[SamplingOverrides],
    ) -> SamplingRun:
        """Like `sample`, molecule by molecule: iterating draws them, and none stays in memory.

        The options are those of `sample` and `done`: what an interrupted run with the same options had finished, behind
        which this one goes on.

        Example:
            with Writer("many.sdf") as writer:
                for sample in load("qm9").run(100_000):
                    writer.write(sample.molecule, sample.record())

        Raises:
            MoldiffError: for an impossible value.
        """
        check_whole("n", n, 1, MAX_MOLECULES + 1)
        config = replace(config or SamplingConfig(), **overrides)
        model = self.checkpoint.model
        config = replace(config, condition=model.properties.checked(config.condition or {}))
        choice = self._choice(config)
        prepared = self._prepared(config)
        _check_memory(prepared.sizes()[1], self.device)
        asked = prepared.sizes() if config.size is None else _bounds(config.size)
        for line in warnings(prepared, asked, model.vocabulary, model.statistics):
            _log.warning(line)
        n = prepared.count(n)
        if n > MAX_MOLECULES:
            raise MoldiffError(f"n: makes {n} molecules of all inputs, expected {MAX_MOLECULES} at most")
        order = Order(
            n=n,
            first=config.first,
            keep=frozenset(config.keep),
            max_draws=default_max_draws(n) if config.max_draws is None else config.max_draws,
            workers=config.workers,
            tries_compiling=config.arithmetic is None,
        )
        if "novel" in config.keep and self.novelty is None:
            raise MoldiffError(
                f"keep: model {self.checkpoint.name} has no list of its training molecules to be novel against"
            )
        sampler = config.sampler or PowerSampler(num_steps=self.checkpoint.num_steps)
        if sampler.class_lead is None:
            sampler = replace(sampler, class_lead=LIMITED_CLASS_LEAD if isinstance(prepared, Limited) else 1.0)
        guided: MoleculeDiffusion = model
        if config.condition:
            guided = GuidedDiffusion(model, scale=float(config.guidance), steering=float(config.steering))
        recipe = Recipe(
            model=guided,
            sampler=sampler if config.steps is None else replace(sampler, num_steps=config.steps),
            task=prepared,
            seed=config.seed,
            decode=config.decode,
            trajectory=config.trajectory,
            budget=MemoryBudget.of(self.device),
            asked=_asked(config),
            arithmetic=config.arithmetic or PLAIN,
            choice=choice,
        )
        run = SamplingRun(recipe, order, self.checkpoint, self.novelty, done or Done(0, config.first), on_progress)
        chosen = self._own_filters(run) if config.filters is None else config.filters
        return screened(run, filters=chosen) if chosen else run

    def _own_filters(self, run: SamplingRun) -> Sequence[str]:
        """The model's own filters, for a run that keeps something and draws both bonds and coordinates."""
        if not (self.checkpoint.filters and run.order.keep):
            return ()
        level = Beginning.of(run.recipe.task, run.recipe.seed, run.order.first).start.level
        return self.checkpoint.filters if bool(level.bond.any() and level.pos.any()) else ()

    @property
    def learnt_half(self) -> str | None:
        """The half of the training molecules whose properties the model has learnt; None = all."""
        half: str | None = self.checkpoint.config.get("training", {}).get("half")
        return half

    def chooser(self, name: str | Path | None = None) -> PropertyPredictor:
        """The predictor that chooses among candidates; see `sample`.

        Raises:
            MoldiffError: where no predictor knows the model's properties.
        """
        properties = self.checkpoint.model.properties
        if name is not None:
            return load_predictor(name)
        predictor = predictor_for(properties, self.learnt_half, same=True)
        if predictor is None:
            raise MoldiffError(
                f"candidates: no predictor that ships knows {' '.join(properties.names)}, expected chooser=FOLDER of "
                "one trained by `python -m moldiff.training.predictor train`"
            )
        return predictor

    def _choice(self, config: SamplingConfig) -> Nearest | None:
        candidates, chooser = config.candidates, config.chooser
        if candidates == 1:
            if chooser is not None:
                raise MoldiffError(f"chooser: got {str(chooser)!r} with one candidate, expected candidates=2 or more")
            return None
        if not config.condition:
            raise MoldiffError(
                f"candidates: got {candidates} without values to choose by, expected some, such as condition.gap=0.25"
            )
        predictor = self.chooser(chooser)
        if unknown := config.condition.keys() - {SIZE, *predictor.properties.names}:
            known = ", ".join(predictor.properties.names)
            raise MoldiffError(f"chooser: {predictor.name} does not know {min(unknown)}, expected any of: {known}")
        return Nearest(candidates, self.checkpoint.model.properties, predictor)

    def _prepared(self, config: SamplingConfig) -> Task:
        """What is known of every molecule, and what it is drawn towards."""
        model, size, condition = self.checkpoint.model, config.size, config.condition
        mask = element_mask(model.vocabulary, config.elements, config.forbid)
        if config.task is None:
            counts = self._size_weights(size)
            weights = model.properties.size_weights(condition, counts) if condition else counts
            whole = NewMolecules.like_training(model.statistics, model.vocabulary)
            plain: Task = replace(whole, size_weights=weights)
        elif size is not None:
            raise MoldiffError(f"size: got {size} together with a task, which says how many atoms there are")
        else:
            plain = config.task.prepare(model.vocabulary, model.statistics)
        if config.charge is not None:
            plain = Charged(plain, Total.of_charge(model.vocabulary, config.charge))
        if condition:
            judge = predictor_for(model.properties, self.learnt_half)
            plain = Targeted(plain, model.properties, condition, judge, config.candidates)
        return plain if mask is None else Limited(plain, mask)

    def _size_weights(self, size: int | tuple[int, int] | None) -> dict[int, int]:
        """Weight of every number of heavy atoms; sizes the training data lacks are all given the same weight."""
        counts = dict(sorted(self.checkpoint.model.statistics.size_counts.items()))
        if size is None:
            return counts
        low, high = _bounds(size)
        largest = max(LARGEST_SIZE, *counts)
        if not 1 <= low <= high <= largest:
            raise MoldiffError(f"size: got {size}, expected heavy atoms as a number or a range, from 1 to {largest}")
        inside = {number: count for number, count in counts.items() if low <= number <= high}
        return inside or dict.fromkeys(range(low, high + 1), 1)


def _bounds(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_memory(size: int, device: torch.device) -> None:
    """Refuse molecules that would not fit into the memory that is free: some systems end the program instead."""
    needed, free = size**2 * _PAIR_BYTES, free_memory(device)
    if free is not None and needed > free:
        raise MoldiffError(
            f"size: a molecule of {size} heavy atoms takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB "
            "are free"
        )


def _asked(config: SamplingConfig) -> str:
    """What is asked for beside the size, in JSON; "" = nothing."""
    wanted: dict[str, Any] = {}
    if config.task is not None:
        from moldiff.tasks.task import description  # only here, for the tasks' own imports take a moment

        wanted = description(config.task)
    wanted |= {} if config.charge is None else {"charge": config.charge}
    wanted |= {} if config.elements is None else {"elements": list(config.elements)}
    wanted |= {"forbid": list(config.forbid)} if config.forbid else {}
    if config.condition:
        strength = {"guidance": float(config.guidance), "steering": float(config.steering)}
        wanted |= {"condition": config.condition, **strength}
    wanted |= {"candidates": config.candidates} if config.candidates > 1 else {}
    return json.dumps(wanted) if wanted else ""


def load(model: str | Path = "qm9", *, device: str = "auto") -> MoleculeGenerator:
    """A generator of a shipped model by its name, or of a trained one by its folder.

    Args:
        model: name or folder.
        device: "auto", "cpu", "cuda", ...

    Raises:
        MoldiffError: for an unknown or damaged model, or a device this machine lacks.
    """
    checkpoint = load_checkpoint(model)
    chosen = choose_device(device)
    checkpoint.model.to(chosen)
    path = checkpoint.folder / NOVELTY_FILE
    return MoleculeGenerator(checkpoint, chosen, NoveltyIndex.load(path) if path.is_file() else None)
