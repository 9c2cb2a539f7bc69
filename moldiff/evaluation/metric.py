"""What a metric is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import numpy as np

from moldiff.errors import MoldiffError
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.evaluation.result import MetricResult
from moldiff.molecules.molecule import Status
from moldiff.processes import was_interrupted

OnProgress = Callable[[int, int], None]
"""Called with the number of finished and of all steps."""

_Outcome = TypeVar("_Outcome")

WORKER_FAILURES = (Status.FAILED, Status.TIME_OUT)
"""How the check of a molecule in a worker process can end other than well."""


@dataclass(frozen=True)
class MetricOutput:
    """What a metric found.

    Attributes:
        results: numbers with numerator, denominator and definition; those whose name ends in "[...]" are details.
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
    """A metric beyond P1, P2, uniqueness and novelty; settings are attributes of a frozen dataclass."""

    @property
    def name(self) -> str:
        """Prefix of the names of its results up to the first underscore, and of its columns."""
        ...

    @property
    def needs(self) -> Sequence[str]:
        """What it cannot do without: any of "coordinates", "bonds", "reference"."""
        ...

    @property
    def package(self) -> str | None:
        """The optional package that it needs."""
        ...

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None, on_progress: OnProgress | None
    ) -> MetricOutput:
        """The numbers of `molecules`, compared with `reference` where that is what the metric does."""
        ...


def require(package: str) -> None:
    """Check that an optional package is there.

    Raises:
        MoldiffError: when it is not.
    """
    if find_spec(package) is None:
        raise MoldiffError(f'{package} is not installed; to install it: pip install "moldiff[eval]"')


def count_statuses(
    name: str, statuses: Sequence[Status | None], total: int, expected: Sequence[Status] = WORKER_FAILURES
) -> list[MetricResult]:
    """One count for every expected way to fail, and for every other one that occurred, over `total` records."""
    occurred = {status for status in statuses if status is not None and status is not Status.OK}
    return [
        MetricResult(
            f"{name}_status_{status}",
            sum(other is status for other in statuses),
            total,
            f"Molecules whose check '{name}' ended with '{status}', over the molecules it was asked of.",
        )
        for status in dict.fromkeys((*expected, *sorted(occurred)))
    ]


def unfinished(name: str, count: int, total: int) -> list[MetricResult]:
    """How many molecules Ctrl-C left out of all other numbers; nothing when there are none."""
    definition = (
        "Molecules that were not finished when the evaluation was interrupted, over all; no other number has them."
    )
    return [MetricResult(f"{name}_status_{Status.INTERRUPTED}", count, total, definition)] if count else []


def finished(name: str, outcomes: Sequence[_Outcome]) -> tuple[list[_Outcome], list[MetricResult]]:
    """Outcomes of worker processes without those that Ctrl-C left, and how many these are (`unfinished`)."""
    kept = [outcome for outcome in outcomes if not was_interrupted([outcome])]
    return kept, unfinished(name, len(outcomes) - len(kept), len(outcomes))


def average(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The mean as sum over number; no value for an empty list."""
    return MetricResult(name, float(np.sum(values)), len(values), definition, len(values), unit)


def median(name: str, values: Sequence[float] | np.ndarray, definition: str, unit: str = "") -> MetricResult:
    """The median over 1, with the number of values as `counted`; no value for an empty list."""
    middle = float(np.median(values)) if len(values) else 0.0
    return MetricResult(name, middle, 1 if len(values) else 0, definition, len(values), unit)
