"""What `relax=mmff94s` makes of delivered molecules, as another method, GFN2-xTB, sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.metric import MetricResult, median
from moldiff.evaluation.report import markdown
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.postprocess import relaxed


def of_relaxed(molecules: Sequence[Molecule], sampling: float) -> list[MetricResult]:
    """Results of delivered molecules after relaxing; to draw each took `sampling` seconds of processor time."""
    start = time.process_time()
    found = [relaxed(molecule, "mmff94s", np.array([], dtype=np.int64)) for molecule in molecules]
    seconds = time.process_time() - start
    lost = [float(fields["energy_lost"]) for _, fields in found if fields["relaxed"] == "ok"]  # type: ignore[arg-type]
    pairs = zip(molecules, found, strict=True)
    same = sum(strict_key(before) == strict_key(after) for before, (after, _) in pairs)
    by_xtb = evaluate([molecule for molecule, _ in found], metrics=["xtb"])
    over = f"over the first {len(molecules):,} delivered molecules"
    return [
        MetricResult("relaxed", len(lost), len(molecules), f"Molecules that MMFF94s could relax, {over}."),
        MetricResult(
            "relaxed_stereo_kept", same, len(molecules), f"Molecules with the stereo they had before, {over}."
        ),
        median("relaxed_energy_lost_median", lost, f"Median energy lost in MMFF94s, {over}.", "kcal/mol"),
        *(result for result in by_xtb.results if result.name == "xtb_energy_drop_median"),
        MetricResult(
            "relaxed_time",
            seconds,
            sampling * len(molecules),
            f"Processor time of relaxing over that of drawing, {over}.",
        ),
    ]


def section(document: Mapping[str, Any]) -> list[str]:
    """The part of the card; earlier ones have none."""
    results = [MetricResult.from_dict(row) for row in document.get("relaxed", [])]
    return ["## Relaxed by MMFF94s", "", markdown({"model, delivered and relaxed": results})] if results else []
