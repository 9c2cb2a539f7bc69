"""Where random numbers come from: one generator for a whole batch (training), or one per molecule (sampling).

Seeded by (seed, index), that of a molecule draws exactly as many numbers as it has atoms and pairs, so molecule k of
seed s is the same at any batch size, padding, or shard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _symmetric(pairs: Tensor) -> Tensor:
    """Copy the upper triangle of [B, N, N, 2] onto the lower, so that a pair's two entries agree."""
    upper = torch.ones(pairs.shape[1:3], dtype=torch.bool, device=pairs.device).triu(1)[..., None]
    pairs = pairs * upper
    return pairs + pairs.transpose(1, 2)


class BatchNoise:
    """One `torch.Generator` for the whole batch: fast, but the numbers depend on the batch's shape."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
        self._generator, self._dtype = generator, dtype

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        """Standard normal numbers [B, N, *tail] for the atoms of `node_mask` [B, N]; padding holds zeros."""
        noise = self._empty(*node_mask.shape, *tail).normal_(generator=self._generator)
        return noise * node_mask.reshape(node_mask.shape + (1,) * len(tail))

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Two uniform numbers in [0, 1) for every atom [B, N, 2] and, symmetric, every pair [B, N, N, 2]."""
        batch, size = node_mask.shape
        atoms = self._empty(batch, size, 2).uniform_(generator=self._generator)
        pairs = self._empty(batch, size, size, 2).uniform_(generator=self._generator)
        return atoms, _symmetric(pairs)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self._dtype, device=self._generator.device)


def molecule_generator(seed: int, index: int, candidate: int = 0) -> torch.Generator:
    """The generator of molecule `index` (0 <= index < 2**31) of the run of a seed (0 <= seed < 2**32).

    Of several candidates for a molecule the first has the numbers of a run without candidates.
    """
    # A torch.Generator is seeded with 64 bits: the run's seed fills bits 31 to 62, the index those below.
    first = torch.Generator().manual_seed((seed << 31) + index)
    if candidate == 0:
        return first
    own = int(torch.randint(2**63 - 1, (candidate,), generator=first)[-1])
    return torch.Generator().manual_seed((1 << 63) + own)


def draw_size(generator: torch.Generator, counts: Mapping[int, int]) -> int:
    """A number of heavy atoms in proportion to the counts.

    It takes one uniform number whatever the counts, so that what the generator gives next does not depend on them.
    """
    sizes = sorted(counts)
    totals = torch.tensor([counts[size] for size in sizes], dtype=torch.double).cumsum(0)
    uniform = torch.rand((), generator=generator, dtype=torch.double)
    return sizes[int((uniform * totals[-1] >= totals).sum())]


@dataclass(frozen=True, eq=False)
class PerMoleculeNoise:
    """One CPU generator per molecule of the batch, see `molecule_generator`; with what `BatchNoise` gives.

    The numbers are always drawn on the CPU, so that every device gets the same, and then moved to `device`.
    """

    generators: Sequence[torch.Generator]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        noise = torch.zeros(*node_mask.shape, *tail, dtype=self.dtype)
        for row, size in enumerate(node_mask.sum(1).tolist()):
            noise[row, :size] = torch.randn(size, *tail, generator=self.generators[row], dtype=self.dtype)
        return noise.to(self.device)

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, size_max = node_mask.shape
        atoms = torch.zeros(batch, size_max, 2, dtype=self.dtype)
        pairs = torch.zeros(batch, size_max, size_max, 2, dtype=self.dtype)
        for row, size in enumerate(node_mask.sum(1).tolist()):
            numbers = torch.rand(size * (size + 1), 2, generator=self.generators[row], dtype=self.dtype)
            atoms[row, :size] = numbers[:size]
            pairs[row, :size, :size] = numbers[size:].view(size, size, 2)
        return atoms.to(self.device), _symmetric(pairs).to(self.device)


NoiseSource = BatchNoise | PerMoleculeNoise
