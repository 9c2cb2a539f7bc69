"""From a trained model to checked molecules: `load("qm9").sample(100)`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moldiff.diffusion.compute import PLAIN, Arithmetic, choose_device, free_memory
from moldiff.diffusion.decoding import Total
from moldiff.diffusion.guidance import STEERING, GuidedDiffusion
from moldiff.diffusion.pretrained import NOVELTY_FILE, Checkpoint, load_checkpoint
from moldiff.diffusion.property_predictor import PropertyPredictor, load_predictor, predictor_for
from moldiff.diffusion.sampler import PowerSampler
from moldiff.diffusion.shipped import available_models
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.sampling.batch import Beginning, MemoryBudget
from moldiff.sampling.candidates import Nearest
from moldiff.sampling.config import DECODE, MAX_MOLECULES, Order, check_whole, default_max_draws
from moldiff.sampling.filters import screened
from moldiff.sampling.molecule_sampler import Recipe
from moldiff.sampling.reach import warnings
from moldiff.sampling.run import Done, SamplingRun
from moldiff.sampling.sample import SampledMolecule, Samples
from moldiff.tasks.elements import LIMITED_CLASS_LEAD, Charged, Limited, element_mask
from moldiff.tasks.targets import SIZE, Targeted
from moldiff.tasks.task import NewMolecules, Task

if TYPE_CHECKING:
    from moldiff.tasks.task import Request

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
        seed: int = 0,
        task: Request | None = None,
        size: int | tuple[int, int] | None = None,
        charge: int | None = None,
        elements: Sequence[str] | None = None,
        forbid: Sequence[str] = (),
        condition: Mapping[str, float] | None = None,
        guidance: float = 1.0,
        steering: float = STEERING,
        candidates: int = 1,
        chooser: str | Path | None = None,
        steps: int | None = None,
        sampler: PowerSampler | None = None,
        keep: Collection[str] = ("valid", "sound"),
        filters: Sequence[str] | None = None,
        decode: str = "valence",
        first: int = 0,
        max_draws: int | None = None,
        trajectory: bool = False,
        workers: int | None = None,
        arithmetic: Arithmetic | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Samples:
        """Draw molecules until n are kept.

        Molecule k of a seed is the same whatever the batch, n, `first` or `workers`, up to the rounding of
        floating-point numbers.

        Args:
            n: molecules to keep; of tasks that start from given molecules, for each of them.
            seed: of the run, 0 to 2**32 - 1.
            task: what to start from, see `moldiff.tasks`; None = whole new molecules.
            size: heavy atoms of every molecule, or the smallest and largest number; None = as in the training data.
            charge: total charge of every molecule (e); None = that of the training molecules or, of tasks, that of what
                is given.
            elements: symbols of the only elements that may be drawn, H apart; None = all that the model knows.
            forbid: symbols of elements that must not be drawn.
            condition: property values to draw towards, by name, in the units of the training data.
            guidance: how far towards them (classifier-free guidance): 0 = not at all, 1 = as learnt, which takes half
                the time of any other.
            steering: how much of what an estimate lacks of the values is made up for in every call
                (`moldiff.diffusion.guidance`), 0 to 1; it takes no further calls.
            candidates: molecules drawn for each one that is delivered, which is the nearest to the values by what
                `chooser` predicts.
            chooser: name or folder of a property predictor; None = one that ships, trained on the molecules that the
                model has learnt from.
            steps: network calls a molecule; None = the sampler's own number.
            sampler: how to step; None = the default, in the model's own number of network calls.
            keep: what a kept molecule must be: any of valid, sound (no impossible distance), unique, novel; empty keeps
                all.
            filters: what a kept molecule must pass, too, see `moldiff.sampling.filters`; None = the model's own, unless
                `keep` is empty or bonds or coordinates are given by the task.
            decode: "valence" or "raw".
            first: index of the first molecule, so that several runs of one seed can share the work.
            max_draws: give up after so many; None = 20 n + 200.
            trajectory: keep the way from noise to every kept molecule, about 100 kB each.
            workers: single-thread processes that share the work; None = one for every thread of torch where that
                pays, 0 = none. On a GPU there are none by default.
            arithmetic: how the network is computed; None = in float32, compiled where the run is long and a trial found
                that to pay. In bfloat16, which is faster where the hardware has it, rounding is so coarse that
                molecule k of a seed depends on which molecules share its batch.
            on_progress: called with the number of molecules finished so far, in fractions.

        Returns:
            The kept molecules and counts over all drawn ones. Ctrl-C returns what is finished.

        Raises:
            MoldiffError: for an impossible value, or a molecule that does not fit into memory.
        """
        run = self.run(
            n,
            seed=seed,
            task=task,
            size=size,
            charge=charge,
            elements=elements,
            forbid=forbid,
            condition=condition,
            guidance=guidance,
            steering=steering,
            candidates=candidates,
            chooser=chooser,
            steps=steps,
            sampler=sampler,
            keep=keep,
            filters=filters,
            decode=decode,
            first=first,
            max_draws=max_draws,
            trajectory=trajectory,
            workers=workers,
            arithmetic=arithmetic,
            on_progress=on_progress,
        )
        kept = list(run)
        return Samples(kept, run.order.n, run.drawn, run.results(), run.complete, run.recipe.task.notes())

    def run(
        self,
        n: int = 100,
        *,
        seed: int = 0,
        task: Request | None = None,
        size: int | tuple[int, int] | None = None,
        charge: int | None = None,
        elements: Sequence[str] | None = None,
        forbid: Sequence[str] = (),
        condition: Mapping[str, float] | None = None,
        guidance: float = 1.0,
        steering: float = STEERING,
        candidates: int = 1,
        chooser: str | Path | None = None,
        steps: int | None = None,
        sampler: PowerSampler | None = None,
        keep: Collection[str] = ("valid", "sound"),
        filters: Sequence[str] | None = None,
        decode: str = "valence",
        first: int = 0,
        max_draws: int | None = None,
        trajectory: bool = False,
        workers: int | None = None,
        arithmetic: Arithmetic | None = None,
        on_progress: Callable[[float], None] | None = None,
        done: Done | None = None,
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
        condition = self.checkpoint.model.properties.checked(condition or {})
        choice = self._choice(candidates, chooser, condition)
        prepared = self._prepared(task, size, charge, elements, forbid, condition, candidates)
        _check_memory(prepared.sizes()[1], self.device)
        asked = prepared.sizes() if size is None else _bounds(size)
        model = self.checkpoint.model
        for line in warnings(prepared, asked, model.vocabulary, model.statistics):
            _log.warning(line)
        n = prepared.count(n)
        if n > MAX_MOLECULES:
            raise MoldiffError(f"n: makes {n} molecules of all inputs, expected {MAX_MOLECULES} at most")
        order = Order(
            n=n,
            first=first,
            keep=frozenset(keep),
            max_draws=default_max_draws(n) if max_draws is None else max_draws,
            workers=workers,
            tries_compiling=arithmetic is None,
        )
        check_whole("seed", seed, 0, 2**32)
        if decode not in DECODE:
            raise MoldiffError(f"decode: got {decode!r}, expected {' or '.join(DECODE)}")
        if "novel" in keep and self.novelty is None:
            raise MoldiffError(
                f"keep: model {self.checkpoint.name} has no list of its training molecules to be novel against"
            )
        sampler = sampler or PowerSampler(num_steps=self.checkpoint.num_steps)
        if sampler.class_lead is None:
            sampler = replace(sampler, class_lead=LIMITED_CLASS_LEAD if isinstance(prepared, Limited) else 1.0)
        recipe = Recipe(
            model=GuidedDiffusion(model, scale=float(guidance), steering=float(steering)) if condition else model,
            sampler=sampler if steps is None else replace(sampler, num_steps=steps),
            task=prepared,
            seed=seed,
            decode=decode,
            trajectory=trajectory,
            budget=MemoryBudget.of(self.device),
            asked=_asked(task, charge, elements, forbid, condition, guidance, steering, candidates),
            arithmetic=arithmetic or PLAIN,
            choice=choice,
        )
        run = SamplingRun(recipe, order, self.checkpoint, self.novelty, done or Done(0, first), on_progress)
        chosen = self._own_filters(run) if filters is None else filters
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

    def _choice(self, candidates: int, chooser: str | Path | None, condition: Mapping[str, float]) -> Nearest | None:
        check_whole("candidates", candidates, 1, 1001)
        if candidates == 1:
            if chooser is not None:
                raise MoldiffError(f"chooser: got {str(chooser)!r} with one candidate, expected candidates=2 or more")
            return None
        if not condition:
            raise MoldiffError(
                f"candidates: got {candidates} without values to choose by, expected some, such as condition.gap=0.25"
            )
        predictor = self.chooser(chooser)
        if unknown := condition.keys() - {SIZE, *predictor.properties.names}:
            known = ", ".join(predictor.properties.names)
            raise MoldiffError(f"chooser: {predictor.name} does not know {min(unknown)}, expected any of: {known}")
        return Nearest(candidates, self.checkpoint.model.properties, predictor)

    def _prepared(
        self,
        task: Request | None,
        size: int | tuple[int, int] | None,
        charge: int | None,
        elements: Sequence[str] | None,
        forbid: Sequence[str],
        condition: Mapping[str, float],
        candidates: int,
    ) -> Task:
        """What is known of every molecule, and what it is drawn towards."""
        model = self.checkpoint.model
        mask = element_mask(model.vocabulary, elements, forbid)
        if task is None:
            counts = self._size_weights(size)
            weights = model.properties.size_weights(condition, counts) if condition else counts
            whole = NewMolecules.like_training(model.statistics, model.vocabulary)
            plain: Task = replace(whole, size_weights=weights)
        elif size is not None:
            raise MoldiffError(f"size: got {size} together with a task, which says how many atoms there are")
        else:
            plain = task.prepare(model.vocabulary, model.statistics)
        if charge is not None:
            plain = Charged(plain, Total.of_charge(model.vocabulary, charge))
        if condition:
            judge = predictor_for(model.properties, self.learnt_half)
            plain = Targeted(plain, model.properties, condition, judge, candidates)
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


def _asked(
    task: Request | None,
    charge: int | None,
    elements: Sequence[str] | None,
    forbid: Sequence[str],
    condition: Mapping[str, float],
    guidance: float,
    steering: float,
    candidates: int,
) -> str:
    """What is asked for beside the size, in JSON; "" = nothing."""
    wanted: dict[str, Any] = {}
    if task is not None:
        from moldiff.tasks.task import description  # only here, for the tasks' own imports take a moment

        wanted = description(task)
    wanted |= {} if charge is None else {"charge": charge}
    wanted |= {} if elements is None else {"elements": list(elements)}
    wanted |= {"forbid": list(forbid)} if forbid else {}
    wanted |= {"condition": condition, "guidance": float(guidance), "steering": float(steering)} if condition else {}
    wanted |= {"candidates": candidates} if candidates > 1 else {}
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
