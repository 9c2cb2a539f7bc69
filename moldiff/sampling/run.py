"""One run of a trained model: molecules are drawn, judged and handed over in the order of their index.

What a run's molecules are to the task they were drawn for, counted one by one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from moldiff.diffusion.pretrained import Checkpoint
from moldiff.evaluation.metrics.novelty import NoveltyCounts, NoveltyIndex
from moldiff.evaluation.metrics.validity import ValidityCounts
from moldiff.evaluation.result import MetricResult
from moldiff.molecules.molecule import InvalidMolecule, Status
from moldiff.sampling.config import Order
from moldiff.sampling.molecule_sampler import Recipe
from moldiff.sampling.sample import Drawn, SampledMolecule
from moldiff.sampling.workers import Blocks, choose_workers, draw_blocks, with_trial
from moldiff.tasks.task import Admission


class RepairCounts:
    """Counts how many molecules are as the network said, how many are so after a repair, and which are not sound."""

    def __init__(self) -> None:
        self._total = 0
        self._unsound: Counter[str] = Counter()
        self._repaired: Counter[str] = Counter()

    def add(self, unsound: InvalidMolecule | None, **repairs: int) -> None:
        """Count one that was drawn, with what is impossible about it and the number of each of `_REPAIRS`."""
        self._total += 1
        if unsound is not None:
            self._unsound[str(unsound.status)] += 1
        for name, number in repairs.items():
            self._repaired[name] += bool(number)

    def results(self) -> list[MetricResult]:
        """The counts; repairs that there were none of are left out."""
        found = [
            MetricResult(f"repair_{name}", self._repaired[name], self._total, definition)
            for name, definition in _REPAIRS.items()
            if self._repaired[name]
        ]
        for status, count in sorted(self._unsound.items()):
            definition = f"Valid molecules refused as {status!r}, over all that were drawn."
            found.append(MetricResult(f"geometry_status_{status}", count, self._total, definition))
        return found


_REPAIRS = {
    "mended": "Molecules whose most probable classes broke a valence rule, so that others were taken, over all drawn.",
    "restarts": "Molecules that came out in pieces and were drawn on from noise, over all drawn.",
    "replaced_hydrogens": "Molecules with a hydrogen off its bond, put at its ideal place, over all drawn.",
}


class TaskCounts:
    """Counts molecules that are what a task asked for, and why others are not."""

    def __init__(self) -> None:
        self.missed: Counter[str] = Counter()
        self._met = 0
        self._attached: list[int] = [0, 0]
        self._similarity: list[float] = [0.0, 0]
        self._errors: dict[str, list[float]] = {}

    def add(self, fields: Mapping[str, Any]) -> None:
        """Count one that is kept, by what its record says of the task."""
        self._met += 1
        if "attached" in fields:
            self._attached[0] += bool(fields["attached"])
            self._attached[1] += 1
        if fields.get("similarity") is not None:
            self._similarity[0] += fields["similarity"]
            self._similarity[1] += 1

        for name, value in fields.items():
            predicted = fields.get(f"predicted_{name.removeprefix('asked_')}")
            if name.startswith("asked_") and predicted is not None:
                sums = self._errors.setdefault(name.removeprefix("asked_"), [0.0, 0])
                sums[0] += abs(value - predicted)
                sums[1] += 1

    def miss(self, reason: str) -> None:
        """Count one that is not what was asked for."""
        self.missed[reason] += 1

    def results(self) -> list[MetricResult]:
        """The counts; those that no task asked for are left out."""
        found = []
        if self.missed:
            total = self._met + self.missed.total()
            found.append(MetricResult("task_met", self._met, total, _MET))
        for reason, count in sorted(self.missed.items()):
            definition = f"Molecules left out because of '{reason}', over those that `keep` lets pass."
            found.append(MetricResult(f"task_status_{reason}", count, self._met + self.missed.total(), definition))
        if self._attached[1]:
            found.append(MetricResult("task_attached", self._attached[0], self._attached[1], _ATTACHED))
        if self._similarity[1]:
            total_similarity, counted = self._similarity
            found.append(
                MetricResult("task_mean_similarity", total_similarity, float(counted), _SIMILARITY, int(counted))
            )
        for name, (total_error, counted) in self._errors.items():
            found.append(MetricResult(f"task_mean_error_{name}", total_error, float(counted), _ERROR, int(counted)))
        return found


_MET = "Molecules that are what the task asked for, over those that `keep` lets pass."
_ATTACHED = "Kept molecules in one piece in which every atom to attach to is bonded to a new one, over all kept."
_ERROR = "Mean absolute difference of what was asked for and what the shipped predictor says of kept molecules."
_SIMILARITY = "Mean Tanimoto similarity (Morgan fingerprints, radius 2, 2,048 bits) of kept molecules to their input."


@dataclass(frozen=True)
class Done:
    """What an interrupted run had finished.

    Attributes:
        kept: molecules it had kept.
        behind: index of the first molecule that it had not dealt with.
        seen: normalised keys of the molecules that it kept.
    """

    kept: int
    behind: int
    seen: frozenset[str] = frozenset()


@dataclass(eq=False)
class SamplingRun:
    """Iterating draws the molecules and yields those that are kept; nothing of them stays in memory but their keys.

    Attributes:
        recipe: how the molecules are drawn.
        order: how many are wanted, and which.
        checkpoint: where the model came from.
        novelty: index of the training molecules, if the model has one.
        done: what is finished already; its molecules are not drawn again.
        on_progress: called with the number of molecules kept so far, in fractions.
        kept: molecules kept so far, those of `done` included.
        interrupted: Ctrl-C ended the run.
    """

    recipe: Recipe
    order: Order
    checkpoint: Checkpoint
    novelty: NoveltyIndex | None
    done: Done
    on_progress: Callable[[float], None] | None = None
    kept: int = 0
    interrupted: bool = False
    _shown: float = 0.0
    _validity: ValidityCounts = field(default_factory=ValidityCounts)
    _novelty: NoveltyCounts = field(default_factory=NoveltyCounts)
    _repairs: RepairCounts = field(default_factory=RepairCounts)
    _task: TaskCounts = field(default_factory=TaskCounts)
    _seen: set[str] = field(default_factory=set)

    @property
    def drawn(self) -> int:
        """Molecules drawn by this run, the rejected ones included."""
        return self._validity.total

    @property
    def complete(self) -> bool:
        return self.kept >= self.order.n

    def results(self) -> list[MetricResult]:
        """Numbers over all molecules drawn by this run."""
        parts = (self._validity.results(), self._repairs.results(), self._novelty.results(self.novelty))
        return [result for part in parts for result in part] + self._task.results()

    def __iter__(self) -> Iterator[SampledMolecule]:
        """Draw; Ctrl-C ends the iteration, and what was not handed over until then is lost."""
        self.kept, self._seen = self.done.kept, set(self.done.seen)
        if self.complete:
            return
        order = self.order
        workers = choose_workers(self.recipe, order.first, order.n) if order.workers is None else order.workers
        left = order.n - self.done.kept
        recipe = with_trial(self.recipe, order.first, left, workers) if order.tries_compiling else self.recipe
        blocks = Blocks.of(recipe, order.first, order.n, order.max_draws)
        drawing = draw_blocks(recipe, blocks, behind=self.done.behind, num_workers=workers, on_fraction=self._progress)
        admission = recipe.task.admission(order.n)
        try:
            for block in drawing:
                for drawn in block:
                    if drawn.index < self.done.behind:
                        continue
                    sample = self._judged(drawn)
                    if self._is_wanted(sample) and self._is_admitted(drawn, admission):
                        self.kept += 1
                        yield sample
                    if self.complete:
                        return
                self._progress(0.0)
        except KeyboardInterrupt:
            self.interrupted = True  # what is finished was handed over, and the caller can see that it is not complete
        finally:
            drawing.close()

    def _progress(self, fraction: float) -> None:
        """Tell how many are kept, counting on that share of the `fraction` molecules under way that was kept so far."""
        if self.on_progress is not None:
            share = (self.kept - self.done.kept + 1) / (self.drawn + 1)
            self._shown = max(self._shown, min(self.order.n, self.kept + fraction * share))
            self.on_progress(self._shown)

    def _judged(self, drawn: Drawn) -> SampledMolecule:
        """Count a drawn molecule and say what is known of it."""
        key = drawn.verdict.canonical
        self._validity.add(drawn.verdict)
        self._repairs.add(
            drawn.unsound, mended=drawn.mended, restarts=drawn.restarts, replaced_hydrogens=drawn.replaced_hydrogens
        )
        self._novelty.add(drawn.verdict)
        unique = None if key is None else key not in self._seen
        novel = None if key is None or self.novelty is None else not self.novelty.contains(key)
        if key is not None:
            self._seen.add(key)
        name = f"{self.checkpoint.name}-{self.recipe.seed}-{drawn.index}"
        molecule = replace(drawn.molecule, name=name)
        origin = {**self.settings(), "index": drawn.index, "size": molecule.num_heavy_atoms}
        return SampledMolecule(
            molecule=molecule,
            verdict=drawn.verdict,
            unsound=drawn.unsound,
            novel=novel,
            unique=unique,
            mended=drawn.mended,
            replaced_hydrogens=drawn.replaced_hydrogens,
            restarts=drawn.restarts,
            origin=origin,
            task=drawn.fields,
            trajectory=drawn.frames,
        )

    def settings(self) -> dict[str, str | int | float]:
        """What the records of all molecules of the run have in common."""
        sampler = self.recipe.sampler
        asked = {"task": self.recipe.asked} if self.recipe.asked else {}
        asked |= {"precision": "bfloat16"} if self.recipe.arithmetic.bfloat16 else {}
        return {
            "model": self.checkpoint.name,
            "weights": self.checkpoint.weights_hash,
            "seed": self.recipe.seed,
            "steps": sampler.num_steps,
            "decode": self.recipe.decode,
            "sampler": json.dumps(asdict(sampler)),
            **asked,
        }

    def _is_wanted(self, sample: SampledMolecule) -> bool:
        is_valid = sample.verdict.canonical is not None
        is_sound = is_valid and sample.unsound is None
        has = {"valid": is_valid, "sound": is_sound, "unique": bool(sample.unique), "novel": bool(sample.novel)}
        return all(has[item] for item in self.order.keep)

    def _is_admitted(self, drawn: Drawn, admission: Admission | None) -> bool:
        """Whether it is what the task asked for; otherwise the reason is counted."""
        problem = drawn.problem
        if problem is None and admission is not None:
            finite = drawn.molecule.is_finite
            problem = admission.admit(drawn.index, drawn.molecule) if finite else str(Status.NON_FINITE)
        if problem is not None:
            self._task.miss(problem)
        else:
            self._task.add(drawn.fields)
        return problem is None
