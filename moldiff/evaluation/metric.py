"""What a metric is given, and what it gives back: numbers with a numerator, a denominator and a definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Status
from moldiff.processes import OnProgress, was_interrupted

if TYPE_CHECKING:
    from moldiff.evaluation.molecule_set import MoleculeSet

_Outcome = TypeVar("_Outcome")

WORKER_FAILURES = (Status.FAILED, Status.TIME_OUT)  # as which the check of a molecule in a worker process can end


@dataclass(frozen=True)
class MetricResult:
    """One number with everything needed to read it: a count (or sum) over a count, and what they are of.

    Attributes:
        name: e.g. "p2_molecule_stable".
        definition: one sentence that says what is counted and over what.
        counted: over how many items the number was taken, where the denominator does not say it (a median).
        unit: of the value, e.g. "kcal/mol"; "" = none.
    """

    name: str
    numerator: float
    denominator: float
    definition: str
    counted: int | None = None
    unit: str = ""

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
    """What a metric found.

    Attributes:
        results: numbers; those whose name ends in "[...]" are details.
        columns: by name, one value per record; None = not asked or no answer.
        notes: why a result has no value or what limits it, by name of the result.
        options: settings and tool versions that decide the numbers.
        interrupted: whether Ctrl-C ended it before all records were through.
    """

    results: Sequence[MetricResult]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False


class Metric(Protocol):
    """A metric beyond P1, P2, uniqueness and novelty; settings are attributes of a frozen dataclass.

    Attributes:
        name: prefix of the names of its results up to the first underscore, and of its columns.
        needs: what it cannot do without: any of "coordinates", "bonds", "reference".
        package: the optional package that it needs; with a true `skip_if_missing` it is left out without.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Sequence[str]: ...

    @property
    def package(self) -> str | None: ...

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None, on_progress: OnProgress | None
    ) -> MetricOutput:
        """The numbers of `molecules`, compared with `reference` where that is what the metric does."""
        ...


def require(package: str) -> None:
    """Raise a `MoldiffError` where an optional package is not installed."""
    if find_spec(package) is None:
        raise MoldiffError(f'{package} is not installed; to install it: pip install "moldiff[eval]"')


def count_statuses(
    name: str,
    statuses: Sequence[Status | None],
    expected: Sequence[Status] = WORKER_FAILURES,
    definition: str = "Molecules whose check '{name}' ended with '{status}', over the molecules it was asked of.",
) -> list[MetricResult]:
    """One count for every expected way to fail, and for every other one that occurred, over all records."""
    occurred = {status for status in statuses if status is not None and status is not Status.OK}
    return [
        MetricResult(
            f"{name}_status_{status}",
            sum(other is status for other in statuses),
            len(statuses),
            definition.format(name=name, status=status),
        )
        for status in dict.fromkeys((*expected, *sorted(occurred)))
    ]


def finished(
    name: str,
    outcomes: Iterable[_Outcome],
    is_interrupted: Callable[[_Outcome], bool] = lambda outcome: was_interrupted([outcome]),
) -> tuple[list[_Outcome], list[MetricResult]]:
    """Outcomes of worker processes without those that Ctrl-C left, and how many these are, if there are any."""
    everything = list(outcomes)
    kept = [outcome for outcome in everything if not is_interrupted(outcome)]
    what = "Molecules that were not finished when the evaluation was interrupted, over all; no other number has them."
    left, total = len(everything) - len(kept), len(everything)
    return kept, [MetricResult(f"{name}_status_{Status.INTERRUPTED}", left, total, what)] if left else []


def average(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The mean as sum over number; no value for an empty list."""
    return MetricResult(name, float(np.sum(values)), len(values), definition, len(values), unit)


def median(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The median over 1, with the number of values as `counted`; no value for an empty list."""
    middle = float(np.median(values)) if len(values) else 0.0
    return MetricResult(name, middle, 1 if len(values) else 0, definition, len(values), unit)
