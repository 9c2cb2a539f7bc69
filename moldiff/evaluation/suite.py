"""Which metrics there are beyond P1, P2, uniqueness and novelty, and running a choice of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import Measure, Measured, require
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.distributions import Distribution
from moldiff.evaluation.metrics.diversity import Diversity, NearestNeighbours
from moldiff.evaluation.metrics.druglike import DrugLikeness
from moldiff.evaluation.metrics.fcd import FrechetDistance
from moldiff.evaluation.metrics.forcefield import ForceFieldRelaxation
from moldiff.evaluation.metrics.perception import Perception
from moldiff.evaluation.metrics.posebusters import PoseBustersChecks
from moldiff.evaluation.metrics.relaxation import Relaxation
from moldiff.evaluation.molecule_set import NO_BONDS, NO_COORDINATES, Subjects
from moldiff.evaluation.result import MetricResult

SUITE: Mapping[str, Callable[[], Measure]] = {
    "p3": Perception,
    "geometry": Contacts,
    "diversity": Diversity,
    "distribution": Distribution,
    "neighbours": NearestNeighbours,
    "druglike": DrugLikeness,
    "posebusters": PoseBustersChecks,
    "fcd": FrechetDistance,
    "mmff": ForceFieldRelaxation,
    "xtb": Relaxation,
}
"""All metrics with their default settings, by the name under which they can be asked for; the slow ones last."""

SETS: Mapping[str, Sequence[str]] = {"fast": ("geometry", "diversity", "distribution"), "full": tuple(SUITE)}
"""Names for several at once."""

Choice = str | Measure | Sequence[str | Measure]
"""A name in `SETS` or `SUITE`, a metric with settings of its own, or a list of such."""

OnMetric = Callable[[str, int, int], None]
"""Called with the name of a metric and the number of its finished and of all steps."""

NO_REFERENCE = "needs reference=..., molecules to compare with (not the keys of known ones alone)"


@dataclass(eq=False)
class Findings:
    """What several metrics found; see `Measured` and `Report`."""

    results: list[MetricResult] = field(default_factory=list)
    reference_results: list[MetricResult] = field(default_factory=list)
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    options: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def choose(choice: Choice) -> tuple[list[Measure], dict[str, str]]:
    """The metrics that are meant, and those left out because an optional package is missing, with the reason.

    Raises:
        MoldiffError: for an unknown name, a metric asked for twice, or one asked for by name whose package is missing.
    """
    asked = [choice] if isinstance(choice, str) or not isinstance(choice, Sequence) else list(choice)
    chosen: dict[str, Measure] = {}
    skipped: dict[str, str] = {}
    for item in asked:
        names = SETS.get(item) if isinstance(item, str) else None
        for measure in [_single(name) for name in ([item] if names is None else names)]:
            if measure.name in chosen:
                raise MoldiffError(f"metrics: got {measure.name} twice")
            reason = _missing_package(measure)
            if reason is None:
                chosen[measure.name] = measure
            elif names is not None or getattr(measure, "skip_if_missing", False):
                skipped[measure.name] = reason
            else:
                raise MoldiffError(f"metrics: {reason}")
    return list(chosen.values()), skipped


def _single(item: str | Measure) -> Measure:
    if not isinstance(item, str):
        return item
    if item not in SUITE:
        raise MoldiffError(f"metrics: got {item!r}, expected any of {', '.join([*SETS, *SUITE])}")
    return SUITE[item]()


def _missing_package(measure: Measure) -> str | None:
    if measure.package is not None:
        try:
            require(measure.package)
        except MoldiffError as error:
            return str(error)
    return None


def run_metrics(
    chosen: Sequence[Measure],
    subjects: Subjects,
    known: Subjects | None,
    findings: Findings,
    on_progress: OnMetric | None = None,
    *,
    beside: bool = True,
) -> None:
    """Add to `findings` what the metrics say of `subjects` and, unless `beside` is false, of as many known molecules.

    Ctrl-C ends it with what was found until then, and `findings.interrupted` says so.
    """
    for measure in chosen:
        reason = _inapplicable(measure, subjects, known)
        if reason is not None:
            findings.skipped[measure.name] = reason
            continue
        try:
            found = measure(subjects, known, _named(on_progress, measure.name))
            _add(findings, measure.name, found)
            if beside and known is not None and not found.interrupted:
                same = _of_known(measure, known, len(subjects), on_progress)
                findings.reference_results += same.results
                findings.interrupted |= same.interrupted
        except KeyboardInterrupt:
            findings.interrupted = True
        if findings.interrupted:
            return


def _inapplicable(measure: Measure, subjects: Subjects, known: Subjects | None) -> str | None:
    """Why a metric cannot be taken of these records; None = it can."""
    if "coordinates" in measure.needs and not subjects.has_coordinates:
        return NO_COORDINATES
    if "bonds" in measure.needs and not subjects.has_bonds:
        return NO_BONDS
    if "reference" not in measure.needs:
        return None
    lacks = known is None or ("coordinates" in measure.needs and not known.has_coordinates) or not known.has_bonds
    return NO_REFERENCE if lacks else None


def _add(findings: Findings, name: str, found: Measured) -> None:
    findings.results += found.results
    findings.columns.update(found.columns)
    findings.notes.update(found.notes)
    findings.options[name] = found.options
    findings.interrupted |= found.interrupted


def _of_known(measure: Measure, known: Subjects, count: int, on_progress: OnMetric | None) -> Measured:
    """The same of known molecules: as many as were evaluated, or one half of twice as many against the other half."""
    if _inapplicable(measure, known, known) is not None:
        return Measured([])
    report = _named(on_progress, f"{measure.name}, reference")
    if "reference" in measure.needs:
        return measure(known.first(2 * count).every_other(0), known.first(2 * count).every_other(1), report)
    return measure(known.first(count), None, report)


def _named(on_progress: OnMetric | None, name: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(name, done, total)


def blanked(results: Sequence[MetricResult], missing: Mapping[str, str]) -> list[MetricResult]:
    """The results, emptied where their protocol (the name up to the first underscore) is in `missing`."""
    return [
        replace(result, numerator=0, denominator=0) if result.name.partition("_")[0] in missing else result
        for result in results
    ]
