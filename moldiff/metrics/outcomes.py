"""What a run's molecules are to the task they were drawn for, counted one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from moldiff.results import InvalidMolecule, MetricResult


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
