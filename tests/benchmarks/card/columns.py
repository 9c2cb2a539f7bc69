"""The columns of a card: molecules through all metrics, compared with held-out molecules of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moldiff.data.dataset import MoleculeDataset
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.diversity import NearestNeighbours
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.evaluation.molecule_set import NO_COORDINATES, MoleculeSet, Scores, score
from moldiff.evaluation.report import Report
from moldiff.evaluation.suite import choose, run_metrics
from moldiff.molecules.molecule import Molecule

FIRST: Mapping[str, int] = {"druglike": 2_000, "posebusters": 500, "fcd": 5_000, "mmff": 1_000, "xtb": 200}
"""Metrics that take long, or that depend on how many molecules there are, and of how many they are taken."""

METRICS = ("p3", "geometry", "diversity", "distribution", "druglike", "posebusters", "fcd", "mmff", "xtb")

_RINGS = ("distribution_ring_size[", "distribution_ring_system[")

OnColumn = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Column:
    """What all metrics say of a list of molecules.

    Attributes:
        results: numbers; those of a part of the molecules say so in their definition.
        notes: why a result has no value, or what limits it, by its name.
        options: settings and tool versions, by metric.
        skipped: why a metric was left out, by its name.
        rings: shares of ring sizes and ring systems.
    """

    results: list[MetricResult]
    notes: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]]
    skipped: Mapping[str, str]
    rings: list[MetricResult]


@dataclass(frozen=True, eq=False)
class Background:
    """What the molecules of every column are compared with.

    Attributes:
        index: keys of the training molecules, for novelty.
        heldout: molecules that the network was not trained on, for distributions and the Fréchet distance.
        training: the training molecules' SMILES, for nearest neighbours.
    """

    index: NoveltyIndex
    heldout: MoleculeSet
    training: MoleculeSet

    @classmethod
    def of(cls, prepared: MoleculeDataset, index: NoveltyIndex, number: int) -> Background:
        """As many validation molecules as are in a column, and all training molecules of a set."""
        places = np.random.default_rng(0).permutation(prepared.split("valid"))[:number]
        heldout = subjects_of([prepared.molecule(int(place)) for place in places])[1]
        texts = [prepared.smiles[int(place)] for place in prepared.split("train")]
        return cls(index, heldout, MoleculeSet([], [], texts, missing={"p1": NO_COORDINATES}))


def subjects_of(molecules: Sequence[Molecule], index: NoveltyIndex | None = None) -> tuple[Scores, MoleculeSet]:
    """Molecules scored by P1, P2, uniqueness and novelty, and as other metrics see them."""
    found = MoleculeSet.of(molecules)
    return score(found, index), found


def column(
    molecules: Sequence[Molecule],
    background: Background,
    *,
    metrics: Sequence[str] = METRICS,
    first: Mapping[str, int] = FIRST,
    on_metric: OnColumn | None = None,
) -> Column:
    """All metrics of a list of molecules.

    Args:
        molecules: in an order that says nothing of them.
        background: what they are compared with.
        metrics: names of those beyond P1, P2, uniqueness, novelty and nearest neighbours.
        first: of how many molecules a metric is taken, by its name; the others of all.
        on_metric: called with the name of a metric that begins.
    """
    scores, subjects = subjects_of(molecules, background.index)
    report = Report(list(scores.results), notes=dict(scores.notes))
    chosen, report.skipped = _present(metrics)
    for measure in [*chosen, NearestNeighbours()]:
        if on_metric is not None:
            on_metric(measure.name)
        is_memory = isinstance(measure, NearestNeighbours)
        part = subjects[: first.get(measure.name, len(subjects))]
        known = background.training if is_memory else background.heldout[: len(part)]
        before = len(report.results)
        run_metrics([measure], part, known, report, beside=False)
        if len(part) < len(subjects):
            text = f" Of the first {len(part):,} molecules."
            report.results[before:] = [
                replace(result, definition=result.definition + text) for result in report.results[before:]
            ]
        if report.interrupted:
            raise KeyboardInterrupt
    rings = [result for result in report.details if result.name.startswith(_RINGS)]
    return Column(report.results, report.notes, report.options.get("metrics", {}), report.skipped, rings)


def _present(metrics: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
    """The metrics, and why others are left out: their package is missing."""
    chosen, skipped = choose("full")
    missing = {name: reason for name, reason in skipped.items() if name in metrics}
    return [measure for measure in chosen if measure.name in metrics], missing
