"""The network of the predictor: the generator's blocks on clean molecules, with an invariant read-out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel
from moldiff.diffusion.nn.block import PairTransformerBlock, masked_softmax
from moldiff.diffusion.nn.contributions import class_counts, fitted_slopes, num_counts
from moldiff.diffusion.nn.embedding import ExponentialBasis, StateEmbedding
from moldiff.diffusion.nn.steerable import SteerableLayout

_SUM_SCALE = 0.1
"""Of a sum over atoms, so that it starts with a size of order one."""


class PropertyNetwork(nn.Module):
    """Predicts invariant properties of whole molecules.

    A linear function of the numbers of atoms and bonds of each class is fitted beforehand (`fit_counts`); the network
    learns what it leaves.

    Args:
        num_atom_classes: K.
        num_properties: C.
        hidden_dim: scalar features of an atom, D.
        pair_dim: features of a pair.
        steerable_dim: channels of the vectors and tensors of an atom.
        num_layers: blocks.
        num_heads: attention heads.
        num_probes: steerable channels that enter the pair update.
    """

    counts: Tensor

    def __init__(
        self,
        *,
        num_atom_classes: int,
        num_properties: int,
        hidden_dim: int = 128,
        pair_dim: int = 32,
        steerable_dim: int = 16,
        num_layers: int = 4,
        num_heads: int = 8,
        num_probes: int = 8,
    ) -> None:
        super().__init__()
        self.num_atom_classes, self.num_properties = num_atom_classes, num_properties
        layout, radial = SteerableLayout(steerable_dim), ExponentialBasis()
        self.embedding = StateEmbedding(
            num_atom_classes=num_atom_classes, hidden_dim=hidden_dim, pair_dim=pair_dim, layout=layout, radial=radial
        )
        self.layers = nn.ModuleList(
            PairTransformerBlock(
                hidden_dim=hidden_dim,
                pair_dim=pair_dim,
                num_heads=num_heads,
                num_probes=num_probes,
                layout=layout,
                radial=radial,
            )
            for _ in range(num_layers)
        )
        last = nn.Linear(hidden_dim, 3 * num_properties)
        nn.init.zeros_(last.weight)  # so that it starts as the linear function of the counts
        nn.init.zeros_(last.bias)
        self.read = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), last)
        self.register_buffer("counts", torch.zeros(num_counts(num_atom_classes), num_properties))

    def forward(self, clean: MolBatch) -> Tensor:
        """Normalised properties [B, C] of clean molecules in the model's units. 0e; the same for any order of atoms."""
        mask = clean.node_mask
        level = NoiseLevel.uniform(clean.pos.new_zeros(clean.num_molecules), mask)
        atom, pair, steerable = self.embedding(clean, level, None)
        pos = clean.pos
        for layer in self.layers:
            atom, pair, pos, steerable = layer(atom, pair, pos, steerable, mask)
        read = self.read(atom)
        value, share, summand = (read.float() if read.dtype == torch.bfloat16 else read).chunk(3, dim=-1)
        # Frontier orbitals sit on few atoms, heat capacities add up over all.
        weight = masked_softmax(share.transpose(1, 2), mask[:, None])
        pooled = (weight * value.transpose(1, 2)).sum(-1)
        total = (summand * mask[..., None]).sum(1) * _SUM_SCALE
        values: Tensor = pooled + total + self.count(clean) @ self.counts
        return values

    def count(self, clean: MolBatch) -> Tensor:
        """Numbers of atoms of each class, of bonds of each order, and a one: [B, K + 4]."""
        return class_counts(clean, self.num_atom_classes).to(self.counts)

    @torch.no_grad()
    def fit_counts(self, counts: Tensor, targets: Tensor) -> None:
        """Least squares for normalised properties [M, C], NaN = not known, on the numbers [M, K + 4] of `count`."""
        self.counts.copy_(fitted_slopes(counts, targets))
