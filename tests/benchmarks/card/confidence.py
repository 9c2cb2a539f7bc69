"""What `confidence` tells of the molecules of a card: odd groups, strain and validity, from the surest quarter down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from scipy.stats import spearmanr

from moldiff.evaluation.metric import MetricResult, average, median
from moldiff.evaluation.metrics.druglike import first_alert
from moldiff.evaluation.report import markdown
from moldiff.molecules import validity
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.postprocess import relaxed
from tests.benchmarks.card.drawn import Drawn

_QUARTERS = ("surest quarter", "second", "third", "least sure quarter")


def of_confidence(drawn: Drawn, number: int) -> dict[str, list[MetricResult]]:
    """Results of each quarter of the first `number` molecules of a run, and of all; each valid one is relaxed."""
    sure = np.array(drawn.confidence[:number])
    energies = [
        None if problem else _energy_lost(molecule)
        for molecule, problem in zip(drawn.decoded[: len(sure)], drawn.problems[: len(sure)], strict=True)
    ]
    order = np.argsort(-sure, kind="stable")
    quarters = dict(zip(_QUARTERS, np.array_split(order, len(_QUARTERS)), strict=True))
    found = {title: _of_part(drawn, sure, energies, places) for title, places in quarters.items()}
    return found | {"all": [*_of_part(drawn, sure, energies, order), *_rank_correlation(drawn, sure, energies)]}


def _energy_lost(molecule: Molecule) -> float | None:
    """Energy (kcal/mol) that a valid molecule loses on the way to the minimum of MMFF94s; None = it reaches none."""
    fields = relaxed(molecule, "mmff94s", np.array([], dtype=np.int64))[1]
    return float(fields["energy_lost"]) if fields["relaxed"] == "ok" else None  # type: ignore[arg-type]


def _of_part(
    drawn: Drawn, sure: np.ndarray, energies: Sequence[float | None], places: np.ndarray
) -> list[MetricResult]:
    valid = [drawn.decoded[k] for k in places if drawn.problems[k] is None]
    alerts = [first_alert("UNSTABLE", Chem.MolFromSmiles(strict_key(molecule))) for molecule in valid]
    lost = [(energies[k], drawn.decoded[k].num_heavy_atoms) for k in places if energies[k] is not None]
    raw = sum(validity.check(drawn.raw[k]) is None for k in places)
    of_relaxed = "of the valid ones that MMFF94s could relax"
    return [
        average("confidence", sure[places], "Mean confidence of decoded molecules."),
        MetricResult("confidence_raw_valid", raw, len(places), "Raw molecules that are valid by P2."),
        MetricResult(
            "confidence_unstable_group",
            sum(alert is not None for alert in alerts),
            len(valid),
            "Valid decoded molecules with a group that the filter `stable` refuses, over the valid ones.",
        ),
        median("confidence_energy_lost", [one for one, _ in lost], f"Median energy lost {of_relaxed}.", "kcal/mol"),
        median(
            "confidence_strain",
            [one / size for one, size in lost],
            f"Median of it by heavy atom {of_relaxed}.",
            "kcal/mol",
        ),
    ]


def _rank_correlation(drawn: Drawn, sure: np.ndarray, energies: Sequence[float | None]) -> list[MetricResult]:
    """Spearman's coefficient of confidence and strain, and its standard error (Bonett & Wright 2000)."""
    places = [k for k, energy in enumerate(energies) if energy is not None]
    number = len(places)
    if number < 4:
        return []
    strain = [energies[k] / drawn.decoded[k].num_heavy_atoms for k in places]  # type: ignore[operator]
    value = float(np.nan_to_num(spearmanr(sure[places], strain).statistic))
    error = (1 - value**2) * np.sqrt((1 + value**2 / 2) / (number - 3))
    what = "Spearman's rank correlation of confidence and strain (-1 = the surest are the least strained)"
    return [
        MetricResult("confidence_rank_correlation", value, 1.0, f"{what}.", number),
        MetricResult("confidence_rank_correlation_error", float(error), 1.0, f"Standard error of: {what}.", number),
    ]


def section(document: Mapping[str, Any]) -> list[str]:
    """The part of the card; earlier ones have none."""
    columns = {
        title: [MetricResult.from_dict(row) for row in rows] for title, rows in document.get("confidence", {}).items()
    }
    if not columns:
        return []
    return [
        "## Which ones to trust",
        "",
        "Those drawn, in quarters by `confidence` (docs/confidence.md).",
        "",
        markdown(columns),
    ]
