"""Where random numbers come from: one generator for a whole batch, or one per molecule.

Training draws a batch at a time from one generator. Sampling gives every molecule a generator of its own,
seeded by (seed, index), and draws exactly as many numbers as the molecule has atoms and pairs, so molecule k
of seed s is the same at any batch size, padding, or shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """A source of random numbers shaped like the atoms or pairs of a padded batch; padding holds zeros."""

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        """Standard normal numbers [B, N, *tail] for the atoms of `node_mask` [B, N]."""
        ...

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Two uniform numbers in [0, 1) for every atom [B, N, 2] and, symmetric, every pair [B, N, N, 2]."""
        ...


def _symmetric(pairs: Tensor) -> Tensor:
    """Copy the upper triangle of [B, N, N, 2] onto the lower, so that a pair's two entries agree."""
    upper = torch.ones(pairs.shape[1:3], dtype=torch.bool, device=pairs.device).triu(1)[..., None]
    pairs = pairs * upper
    return pairs + pairs.transpose(1, 2)


class BatchDraws:
    """One `torch.Generator` for the whole batch: fast, but the numbers depend on the batch's shape."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
        self._options = {"generator": generator, "device": generator.device, "dtype": dtype}

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        noise = torch.randn(*node_mask.shape, *tail, **self._options)
        return noise * node_mask.reshape(*node_mask.shape, *(1 for _ in tail))

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, size = node_mask.shape
        atoms = torch.rand(batch, size, 2, **self._options)
        pairs = torch.rand(batch, size, size, 2, **self._options)
        return atoms, _symmetric(pairs)


class MoleculeDraws:
    """One CPU generator per molecule, seeded by (seed, index of the molecule).

    Args:
        seed: the run's seed, 0 <= seed < 2**32.
        indices: the index of each molecule of the batch within the run, each 0 <= index < 2**31.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        # Seeds of a torch.Generator have 64 bits: the run's seed fills the upper half, the index the lower.
        self._generators = [torch.Generator().manual_seed((seed << 31) + index) for index in indices]
        self._dtype = dtype
        self._device = device

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        noise = torch.zeros(*node_mask.shape, *tail, dtype=self._dtype)
        for row, size in enumerate(node_mask.sum(1).tolist()):
            noise[row, :size] = torch.randn(size, *tail, generator=self._generators[row], dtype=self._dtype)
        return noise.to(self._device)

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, size_max = node_mask.shape
        atoms = torch.zeros(batch, size_max, 2, dtype=self._dtype)
        pairs = torch.zeros(batch, size_max, size_max, 2, dtype=self._dtype)
        for row, size in enumerate(node_mask.sum(1).tolist()):
            numbers = torch.rand(size * (size + 1), 2, generator=self._generators[row], dtype=self._dtype)
            atoms[row, :size] = numbers[:size]
            pairs[row, :size, :size] = numbers[size:].view(size, size, 2)
        return atoms.to(self._device), _symmetric(pairs).to(self._device)
