"""What a card says of memorising: what the data itself would give, and what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moldiff.data.dataset import MoleculeDataset
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.distributions import FrechetDistance
from moldiff.evaluation.molecule_set import NO_COORDINATES, MoleculeSet
from moldiff.evaluation.report import format_fraction, format_value, markdown

_NEAREST = {
    "neighbours_similarity_mean": "Mean similarity of molecules to the nearest training molecule",
    "neighbours_close": "Molecules with a training molecule close by (see the definition below)",
    "neighbours_equal": "Molecules with the fingerprint of a training molecule",
}

_SURE = 2.0
"""Standard errors of a difference from which on it counts as one."""


def of_the_data(prepared: MoleculeDataset, drawn: int) -> list[MetricResult]:
    """How novel and distinct molecules would be that are drawn from the data itself.

    With replacement, n draws from N molecules give N (1 - (1 - 1/N)^n) distinct ones on average.
    """
    total, others = len(prepared), len(prepared) - len(prepared.split("train"))
    distinct = -total * math.expm1(drawn * math.log1p(-1 / total)) if total > 1 else float(total)
    over = f"of {drawn:,} molecules drawn from all of the data's own with replacement, each as likely as another"
    return [
        MetricResult(
            "data_valid_unique_novel",
            others,
            total,
            "Molecules of the data outside the training part, over all: valid × unique × novel of molecules drawn from "
            "the data's own distribution without replacement. A higher figure means molecules that the data lacks.",
        ),
        MetricResult("data_unique_replaced", distinct, float(drawn), f"Expected distinct molecules {over}.", drawn),
        MetricResult(
            "data_valid_unique_novel_replaced",
            distinct * others / total,
            float(drawn),
            f"Expected distinct molecules outside the training part {over}.",
            drawn,
        ),
    ]


def frechet_of_training(prepared: MoleculeDataset, number: int) -> list[MetricResult]:
    """Fréchet ChemNet Distance of training molecules to as many others: what a perfect memory of the data would have.

    That of the real molecules is to a held-out part, which may be of other scaffolds.
    """
    places = np.random.default_rng(0).permutation(prepared.split("train"))[: 2 * number]
    halves = [[prepared.smiles[int(place)] for place in half] for half in np.array_split(places, 2)]
    first, second = (MoleculeSet([], [], texts, missing={"p1": NO_COORDINATES}) for texts in halves)
    definition = f"Fréchet ChemNet Distance of {len(first.smiles):,} training molecules to as many others of them."
    return [
        replace(result, name="data_fcd", definition=definition) for result in FrechetDistance()(first, second).results
    ]


def section(
    columns: Mapping[str, Sequence[MetricResult]],
    bound: Mapping[str, Sequence[MetricResult]],
    data: Sequence[MetricResult],
) -> list[str]:
    """The part of the card, in Markdown."""
    if not bound and not data:
        return []
    return [
        "## Does it memorise?",
        "",
        *_findings(columns, bound),
        "",
        *_beside_the_data(columns, data),
        "",
        markdown(bound),
    ]


def _findings(columns: Mapping[str, Sequence[MetricResult]], bound: Mapping[str, Sequence[MetricResult]]) -> list[str]:
    sides = list(columns.values())
    own, real = ({result.name: result for result in side} for side in (sides[-2], sides[-1]))
    parts = [{result.name: result for result in results} for results in bound.values()]
    lines = [f"- {_of_the_bound(*parts)}"] if len(parts) == 2 and all("bound_all" in part for part in parts) else []
    for name, text in _NEAREST.items():
        if name in own and name in real and own[name].value is not None and real[name].value is not None:
            figures = (
                f"{format_value(own[name])} of the model's, {format_value(real[name])} of real ones not learnt from"
            )
            lines.append(f"- {text}: {figures}.")
    return lines


def _of_the_bound(train: Mapping[str, MetricResult], test: Mapping[str, MetricResult]) -> str:
    """Whether the bound is lower on training molecules than on others."""
    gap = (test["bound_all"].value or 0.0) - (train["bound_all"].value or 0.0)
    error = math.hypot(*(side["bound_all_standard_error"].value or 0.0 for side in (train, test)))
    seen = f"The variational bound is {abs(gap):.3g} nats {'lower' if gap > 0 else 'higher'} on training molecules"
    if gap > _SURE * error:
        verdict = "so that the model knows its training molecules better than others: some of it is memory."
    elif abs(gap) <= _SURE * error:
        verdict = "a difference within its error: no sign of memory."
    else:
        verdict = "so there is no sign of memory; the held-out molecules are easier."
    return f"{seen} than on real ones that were held out (standard error of the difference {error:.3g}), {verdict}"


def _beside_the_data(columns: Mapping[str, Sequence[MetricResult]], data: Sequence[MetricResult]) -> list[str]:
    """What a perfect sampler of the data would come to."""
    values = {result.name: result for result in data}
    if "data_valid_unique_novel" not in values:
        return []
    title = list(columns)[-2]
    own = next((result for result in columns[title] if result.name == "p2_valid_unique_novel"), None)
    plain = values["data_valid_unique_novel"]
    lines = [
        f"Of molecules drawn from the data itself without replacement, {format_value(plain)} "
        f"({format_fraction(plain)}) would be valid, unique and novel at once, and the others training molecules."
    ]
    if "data_unique_replaced" in values:
        unique, novel = values["data_unique_replaced"], values["data_valid_unique_novel_replaced"]
        lines[0] += (
            f" With replacement, {100 * (unique.value or 0):.1f} % of {unique.counted:,} would be unique and "
            f"{100 * (novel.value or 0):.1f} % valid, unique and novel."
        )
    if "data_fcd" in values:
        fcd = values["data_fcd"]
        lines[0] += f" The Fréchet ChemNet Distance of {fcd.counted:,} training molecules to others: {fcd.value:.3g}."
    if own is not None and own.value is not None:
        lines[0] += (
            f" The model's ({title}): {format_value(own)}. What is above the data's figure are molecules that the data "
            "lacks."
        )
    return lines
