"""Which metrics there are beyond P1, P2, uniqueness and novelty, and running a choice of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from moldiff.errors import MoldiffError, require
from moldiff.evaluation.metric import Metric, MetricOutput
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.distributions import Distribution, FrechetDistance
from moldiff.evaluation.metrics.diversity import Diversity, NearestNeighbours
from moldiff.evaluation.metrics.druglike import DrugLikeness
from moldiff.evaluation.metrics.perception import Perception
from moldiff.evaluation.metrics.posebusters import PoseBustersChecks
from moldiff.evaluation.metrics.relaxation import ForceFieldRelaxation, Relaxation
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.evaluation.report import Report

SUITE: Mapping[str, type[Any]] = {
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
"""All metrics with their default settings, by the name under which they can be chosen; the slow ones last.

One that is not here is named by its class: `evaluate(..., metrics=[Mine()])`, or `_target_` in a YAML of `metrics/`.
"""

SETS: Mapping[str, Sequence[str]] = {"fast": ("geometry", "diversity", "distribution"), "full": tuple(SUITE)}

Choice = str | Metric | Sequence[str | Metric]
"""A name in `SETS` or `SUITE`, a metric with settings of its own, or a list of such."""

OnMetric = Callable[[str, int, int], None]  # name of a metric, and the number of its finished and of all steps

NO_REFERENCE = "needs reference=..., molecules to compare with (not the keys of known ones alone)"


def choose(choice: Choice) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that are meant, and those left out because an optional package is missing, with the reason.

    Raises:
        MoldiffError: for an unknown name, a metric named twice, or one named whose package is missing.
    """
    requested = choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]
    chosen: dict[str, Metric] = {}
    skipped: dict[str, str] = {}
    for item in requested:
        names = SETS.get(item) if isinstance(item, str) else None
        for one in [item] if names is None else names:
            if isinstance(one, str) and one not in SUITE:
                raise MoldiffError(f"metrics: got {one!r}, expected any of {', '.join([*SETS, *SUITE])}")
            metric = SUITE[one]() if isinstance(one, str) else one
            if metric.name in chosen:
                raise MoldiffError(f"metrics: got {metric.name} twice")
            try:
                if package := getattr(metric, "package", None):
                    require(package, "eval")
                chosen[metric.name] = metric
            except MoldiffError as error:
                if names is None and not getattr(metric, "skip_if_missing", False):
                    raise MoldiffError(f"metrics: {error}") from None
                skipped[metric.name] = str(error)
    return list(chosen.values()), skipped


def run_metrics(
    chosen: Sequence[Metric],
    molecules: MoleculeSet,
    known: MoleculeSet | None,
    report: Report,
    on_progress: OnMetric | None = None,
    *,
    beside: bool = True,
) -> None:
    """Add to a report what the metrics say of `molecules` and, if `beside`, of as many known ones, until Ctrl-C."""
    for metric in chosen:
        reason = _inapplicable(metric, molecules, known)
        if reason is not None:
            report.skipped[metric.name] = reason
            continue
        try:
            found = metric(molecules, known, on_progress and partial(on_progress, metric.name))
            report.add(metric.name, found)
            if beside and known is not None and not found.interrupted:
                same = _of_known(metric, known, len(molecules), on_progress)
                report.reference_results += [one for one in same.results if not one.name.endswith("]")]
                report.interrupted |= same.interrupted
        except KeyboardInterrupt:
            report.interrupted = True
        if report.interrupted:
            return


def _inapplicable(metric: Metric, molecules: MoleculeSet, known: MoleculeSet | None) -> str | None:
    """Why a metric cannot be taken of these records; None = it can."""
    protocols = {"coordinates": "p1", "bonds": "p2"}
    for need in metric.needs:
        if reason := molecules.missing.get(protocols.get(need, "")):
            return reason
    if "reference" not in metric.needs:
        return None
    lacks = known is None or "p2" in known.missing or ("coordinates" in metric.needs and "p1" in known.missing)
    return NO_REFERENCE if lacks else None


def _of_known(metric: Metric, known: MoleculeSet, count: int, on_progress: OnMetric | None) -> MetricOutput:
    """The same of known molecules: as many as were evaluated, or one half of twice as many against the other half."""
    if _inapplicable(metric, known, known) is not None:
        return MetricOutput([])
    report = on_progress and partial(on_progress, f"{metric.name}, reference")
    if "reference" in metric.needs:
        return metric(known[: 2 * count : 2], known[1 : 2 * count : 2], report)
    return metric(known[:count], None, report)
