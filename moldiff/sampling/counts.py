"""Counts over all molecules that a run drew: what is wrong with them, and what they are to the task and the filters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.druglike import COLUMNS
from moldiff.evaluation.metrics.novelty import NoveltyCounts, NoveltyIndex
from moldiff.evaluation.metrics.validity import ValidityCounts
from moldiff.sampling.filters import Filter
from moldiff.sampling.sample import Sample
from moldiff.tasks.task import Value

_REPAIRS = {
    "repaired": "Molecules whose most probable classes broke a valence rule, so that others were taken, over all.",
    "restarts": "Molecules that came out in pieces and were drawn on from noise, over all drawn.",
    "replaced_hydrogens": "Molecules with a hydrogen off its bond, put at its ideal place, over all drawn.",
}
_MET = "Molecules that are what the task asked for, over those that `keep` lets pass."
_ATTACHED = "Kept molecules in one piece in which every atom to attach to is bonded to a new one, over all kept."
_ERROR = "Mean absolute difference of what was asked for and what the shipped predictor says of kept molecules."
_SIMILARITY = "Mean Tanimoto similarity (Morgan fingerprints, radius 2, 2,048 bits) of kept molecules to their input."


class RunCounts:
    """Counts the molecules of a run, rounds of steering included.

    Attributes:
        likeness: results of the rounds, in their order.
    """

    def __init__(self) -> None:
        self.likeness: list[MetricResult] = []
        self._validity, self._novelty = ValidityCounts(), NoveltyCounts()
        self._repaired: Counter[str] = Counter()
        self._unsound: Counter[str] = Counter()
        self._kept = 0
        self._missed: Counter[str] = Counter()
        self._failed: Counter[tuple[str, ...]] = Counter()
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        self._columns: Counter[str] = Counter()
        self._with_columns = 0

    @property
    def drawn(self) -> int:
        """Molecules drawn, the rejected ones included."""
        return self._validity.total

    def draw(self, sample: Sample) -> None:
        """Count a molecule that was drawn."""
        self._validity.add(sample.verdict)
        self._novelty.add(sample.verdict)
        if sample.unsound is not None:
            self._unsound[str(sample.unsound.status)] += 1
        for name in _REPAIRS:
            self._repaired[name] += bool(getattr(sample, name))

    def miss(self, reason: str) -> None:
        """Count one that is not what the task asked for."""
        self._missed[reason] += 1

    def fail(self, filters: tuple[str, ...]) -> None:
        """Count one that does not pass these filters."""
        self._failed[filters] += 1

    def keep(self, sample: Sample) -> None:
        """Count one that is kept, by what its record says of the task."""
        task = sample.task
        self._kept += 1
        if "attached" in task:
            self._add("attached", bool(task["attached"]))
        if task.get("similarity") is not None:
            self._add("similarity", float(task["similarity"] or 0))
        for name, value in task.items():
            asked = name.removeprefix("asked_")
            predicted = task.get(f"predicted_{asked}")
            if name.startswith("asked_") and predicted is not None:
                self._add(f"error_{asked}", abs(float(value or 0) - float(predicted)))

    def _add(self, name: str, value: float) -> None:
        self._sums[name][0] += value
        self._sums[name][1] += 1

    def look_up(self, columns: Iterable[tuple[str, Value | None]]) -> None:
        """Count what the columns of a delivered molecule say."""
        self._with_columns += 1
        for name, value in columns:
            self._columns[name] += value not in (None, False, "none")

    def results(
        self, novelty: NoveltyIndex | None, filters: Sequence[Filter], columns: Sequence[str]
    ) -> list[MetricResult]:
        """The counts; those of what did not happen, or was not asked for, are left out."""
        found = self._validity.results()
        for name, definition in _REPAIRS.items():
            if self._repaired[name]:
                found.append(MetricResult(f"repair_{name}", self._repaired[name], self.drawn, definition))
        for status, count in sorted(self._unsound.items()):
            definition = f"Valid molecules refused as {status!r}, over all that were drawn."
            found.append(MetricResult(f"geometry_status_{status}", count, self.drawn, definition))
        found += [*self._novelty.results(novelty), *self._of_task(), *self._passes(filters), *self.likeness]
        for name in columns:
            found.append(MetricResult(f"task_{name}", self._columns[name], self._with_columns, COLUMNS[name][2]))
        return found

    def _of_task(self) -> list[MetricResult]:
        found = []
        total = self._kept + self._missed.total() + self._failed.total()
        if total > self._kept:
            found.append(MetricResult("task_met", self._kept, total, _MET))
        for reason, count in sorted(self._missed.items()):
            definition = f"Molecules left out because of '{reason}', over those that `keep` lets pass."
            found.append(MetricResult(f"task_status_{reason}", count, total, definition))
        if attached := self._sums.get("attached"):
            found.append(MetricResult("task_attached", int(attached[0]), int(attached[1]), _ATTACHED))
        errors = (name for name in self._sums if name.startswith("error_"))
        means = {"similarity": _SIMILARITY} | dict.fromkeys(errors, _ERROR)
        for name, definition in means.items():
            if name in self._sums:
                value, counted = self._sums[name]
                found.append(MetricResult(f"task_mean_{name}", value, float(counted), definition, int(counted)))
        return found

    def _passes(self, filters: Sequence[Filter]) -> list[MetricResult]:
        """How many pass each filter, whatever the others say, and how many are left out by any."""
        results, failed = [], self._failed.total()
        total = self._kept + failed
        for one in filters:
            missed = sum(count for names, count in self._failed.items() if str(one) in names)
            definition = f"Molecules that pass {one.definition}, over those that `keep` and the task let pass."
            results.append(MetricResult(f"task_passes_{one}", total - missed, total, definition))
        if failed:
            definition = "Molecules that fail any filter, over those that `keep` and the task let pass."
            results.append(MetricResult("task_status_filters", failed, total, definition))
        return results
