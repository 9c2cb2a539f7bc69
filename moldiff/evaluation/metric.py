"""What a metric is given, and what it gives back: numbers with a numerator, a denominator and a definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from moldiff.molecules.molecule import Status
from moldiff.processes import OnProgress, was_interrupted

if TYPE_CHECKING:
    from moldiff.evaluation.molecule_set import MoleculeSet

_Outcome = TypeVar("_Outcome")

WORKER_FAILURES = (Status.FAILED, Status.TIME_OUT)  # as which the check of a molecule in a worker process can end


@dataclass(frozen=True)
class MetricResult:
    """One number with everything needed to read it: a count (or sum) over a count, and what they are of."""

    name: str  # e.g. "p2_molecule_stable"
    numerator: float
    denominator: float
    definition: str  # one sentence that says what is counted and over what
    counted: int | None = None  # over how many items, where the denominator does not say it (a median)
    unit: str = ""  # of the value, e.g. "kcal/mol"

    @property
    def value(self) -> float | None:
        """The quotient of the two; None when the denominator is 0 (never NaN)."""
        return self.numerator / self.denominator if self.denominator else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready row."""
        shown = ("numerator", "denominator", "counted", "unit", "definition")
        return {"name": self.name, "value": self.value} | {key: getattr(self, key) for key in shown}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """The result of which `to_dict` made the row."""
        return cls(**{key: value for key, value in row.items() if key != "value"})


@dataclass(frozen=True)
class MetricOutput:
    """What a metric found."""

    results: Sequence[MetricResult]  # those whose name ends in "[...]" are details
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # by name, a value (or None) per record
    notes: Mapping[str, str] = field(default_factory=dict)  # why a result has no value or what limits it, by its name
    options: Mapping[str, Any] = field(default_factory=dict)  # settings and tool versions that decide the numbers
    interrupted: bool = False  # whether Ctrl-C ended it before all records were through


class Metric(Protocol):
    """A metric beyond P1, P2, uniqueness and novelty; settings are attributes of a frozen dataclass.

    It may have a `package`, the optional one that it needs; with a true `skip_if_missing` it is left out without.
    """

    @property
    def name(self) -> str:
        """Prefix of the names of its results up to the first underscore, and of its columns."""

    @property
    def needs(self) -> Sequence[str]:
        """What it cannot do without: any of "coordinates", "bonds", "reference"."""

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None, on_progress: OnProgress | None
    ) -> MetricOutput:
        """The numbers of `molecules`, compared with `reference` where that is what the metric does."""


def count_statuses(
    name: str,
    statuses: Sequence[Status | None],
    expected: Sequence[Status] = WORKER_FAILURES,
    definition: str = "Molecules whose check '{name}' ended with '{status}', over the molecules it was asked of.",
) -> list[MetricResult]:
    """One count for every expected way to fail, and for every other one that occurred, over all records."""
    counts = Counter(status for status in statuses if status is not None)
    return [
        MetricResult(f"{name}_status_{end}", counts[end], len(statuses), definition.format(name=name, status=end))
        for end in dict.fromkeys((*expected, *sorted(counts)))
        if end is not Status.OK
    ]


def finished(
    name: str, outcomes: Sequence[_Outcome], is_interrupted: Callable[[_Outcome], bool] = was_interrupted
) -> tuple[list[_Outcome], list[MetricResult]]:
    """Outcomes of worker processes without those that Ctrl-C left, and how many these are, if there are any."""
    kept = [outcome for outcome in outcomes if not is_interrupted(outcome)]
    what = "Molecules that were not finished when the evaluation was interrupted, over all; no other number has them."
    left = MetricResult(f"{name}_status_{Status.INTERRUPTED}", len(outcomes) - len(kept), len(outcomes), what)
    return kept, [left] if left.numerator else []


def average(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The mean as sum over number; no value for an empty list."""
    return MetricResult(name, float(np.sum(values)), len(values), definition, len(values), unit)


def median(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The median over 1, with the number of values as `counted`; no value for an empty list."""
    return MetricResult(
        name, float(np.median(values)) if len(values) else 0.0, min(1, len(values)), definition, len(values), unit
    )
