"""How sure the network is of a molecule that it has drawn, from what it says anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.diffusion.batch import Prediction, pair_mask


def confidence(last: Prediction, node_mask: Tensor) -> Tensor:
    """How sure the network is of each molecule [B], from 0 to 1: docs/confidence.md has what that was found to mean."""
    doubt = _entropy(last.bond) * pair_mask(node_mask)
    return torch.exp(-doubt.sum((1, 2)) / node_mask.sum(1))


def _entropy(logits: Tensor) -> Tensor:
    """Of classes (nats), by their logits [..., K]."""
    logs = logits.double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)
