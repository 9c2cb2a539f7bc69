"""One run of a trained model: molecules are drawn, judged and handed over in the order of their index."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

from moldiff.checkpoint import Checkpoint
from moldiff.drawing import Admission
from moldiff.errors import MoldiffError
from moldiff.metrics.novelty import NoveltyCounts, NoveltyIndex
from moldiff.metrics.outcomes import RepairCounts, TaskCounts
from moldiff.metrics.validity import ValidityCounts
from moldiff.recipe import Blocks, Drawn, Recipe, choose_workers, draw_blocks, with_trial
from moldiff.results import KEEP, MetricResult, Status
from moldiff.samples import SampledMolecule

DECODE = ("valence", "raw")
"""`valence` = the most probable molecule that obeys valence rules; `raw` = the most probable class of each entry."""


MAX_MOLECULES = 100_000_000
"""Molecules of a run at most: indices are below 2**31, and a run may draw 20 times as many as are asked for."""


def default_max_draws(n: int) -> int:
    """After how many draws a run for n molecules gives up, unless told otherwise."""
    return 20 * n + 200


@dataclass(frozen=True, kw_only=True)
class Order:
    """How many molecules are wanted, and which.

    Attributes:
        n: molecules to keep.
        first: index of the first molecule.
        keep: what a kept molecule must be, any of `KEEP`.
        max_draws: give up after so many.
        workers: processes that share the work; None = as many as pay, 0 = none.
        tries_compiling: compile the network where the run is long and a trial found that to pay.
    """

    n: int
    first: int
    keep: frozenset[str]
    max_draws: int
    workers: int | None
    tries_compiling: bool = False

    def __post_init__(self) -> None:
        bounds = {
            "n": (self.n, 1, MAX_MOLECULES + 1),
            "first": (self.first, 0, 2**31 - self.max_draws if isinstance(self.max_draws, int) else 2**31),
            "max_draws": (self.max_draws, 1, 2**31),
            "workers": (0 if self.workers is None else self.workers, 0, 1024),
        }
        for name, bound in bounds.items():
            check_whole(name, *bound)
        if unknown := [item for item in sorted(self.keep) if item not in KEEP]:
            raise MoldiffError(f"keep: got {unknown[0]!r}, expected any of {', '.join(KEEP)}")


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number in [low, high)."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
        raise MoldiffError(f"{name}: got {value!r}, expected a whole number from {low} to {high - 1}")


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
