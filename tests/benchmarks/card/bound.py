"""The variational bound of a model on molecules it was trained on and on held-out ones: does it memorise?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches
from moldiff.diffusion.model import BOUND_LEVELS, MoleculeDiffusion
from moldiff.evaluation.metric import MetricResult, average

DRAWS = 4
"""Noise levels drawn for every molecule."""

_SEED = 0
_BATCH = 128


def bounds(model: MoleculeDiffusion, prepared: MoleculeDataset, number: int) -> Mapping[str, Sequence[MetricResult]]:
    """The bound on as many training and test molecules, per field and in all (nats a molecule).

    Args:
        model: in evaluation mode.
        prepared: the set it was trained on.
        number: molecules of each part, drawn at random.
    """
    parts = {"training molecules": "train", "real test molecules": "test"}
    return {title: _bound(model, prepared, prepared.split(split), number) for title, split in parts.items()}


def _bound(model: MoleculeDiffusion, prepared: MoleculeDataset, split: np.ndarray, number: int) -> list[MetricResult]:
    chosen = np.random.default_rng(_SEED).permutation(split)[:number]
    if not len(chosen):
        return []
    batches = BucketedBatches(prepared, chosen, batch_size=_BATCH, shuffle=False)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(_SEED)
    drawn = [[model.bound(batch.to(device), generator) for batch in batches] for _ in range(DRAWS)]
    fields = drawn[0][0].keys()
    # [draws, molecules] each: the batches come in the same order every time.
    terms = {name: torch.stack([torch.cat([part[name] for part in row]) for row in drawn]).double() for name in fields}
    total = torch.stack(list(terms.values())).sum(0)
    results = [_mean(f"bound_{name}", values, f"field {name!r}") for name, values in terms.items()]
    error = float(total.mean(0).std() / len(chosen) ** 0.5) if len(chosen) > 1 else 0.0
    definition = "Standard error of the bound in all, from the scatter of the molecules' means."
    return [
        *results,
        _mean("bound_all", total, "all fields"),
        MetricResult("bound_all_standard_error", error, 1 if len(chosen) > 1 else 0, definition, len(chosen), "nats"),
    ]


def _mean(name: str, values: torch.Tensor, what: str) -> MetricResult:
    low, high = BOUND_LEVELS
    definition = (
        f"Variational bound of {what} between noise levels {low:g} and {high:g}, a process of 100 steps, mean over "
        f"molecules and {DRAWS} drawn steps each (Kingma et al. 2021, arXiv:2107.00630, eq. 12)."
    )
    return average(name, values.mean(0).cpu().numpy(), definition, "nats")
