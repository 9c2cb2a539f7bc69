"""Distances as smooth features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExponentialBasis(nn.Module):
    """Gaussians in exp(-distance / length): fine at bond lengths, coarse far away.

    Source: PhysNet (Unke & Meuwly 2019, arXiv:1902.08408, eq. 7), without the cutoff, as every pair is used.

    Args:
        num_basis: number of features.
        length: decay length, in the model's units of length.
    """

    centers: Tensor

    def __init__(self, *, num_basis: int = 20, length: float = 2.5) -> None:
        super().__init__()
        self.num_basis = num_basis
        self.length = length
        self.register_buffer("centers", torch.linspace(0, 1, num_basis), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """Features [..., num_basis] of distances [...]."""
        decayed = torch.exp(-distance / self.length)[..., None]
        return torch.exp(-((decayed - self.centers) * (self.num_basis / 2)).square())
