"""The network: a stack of equivariant pair-transformer blocks between an embedding and read-outs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, center
from moldiff.diffusion.nn.block import PairTransformerBlock
from moldiff.diffusion.nn.contributions import Contributions, expected_bond_counts
from moldiff.diffusion.nn.embedding import ChannelMix, PropertyEmbedding, StateEmbedding, SteerableLayout
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import MAX_HYDROGENS, NUM_BOND_CLASSES


class PairNetwork(nn.Module):
    """An embedding of molecules and the blocks behind it, which networks have in common.

    Args:
        num_atom_classes: K.
        hidden_dim: scalar features of an atom, D.
        pair_dim: features of a pair, P.
        steerable_dim: channels C of the vectors and tensors of an atom.
        num_layers: blocks.
        num_heads: attention heads; divides D and C.
        num_probes: steerable channels that enter the pair update.
        hydrogen_level: whether hydrogen offsets have a noise level of their own.
    """

    def __init__(
        self,
        *,
        num_atom_classes: int,
        hidden_dim: int,
        pair_dim: int,
        steerable_dim: int,
        num_layers: int,
        num_heads: int,
        num_probes: int,
        hydrogen_level: bool,
    ) -> None:
        super().__init__()
        self.layout = SteerableLayout(steerable_dim)
        sizes: dict[str, Any] = {"hidden_dim": hidden_dim, "pair_dim": pair_dim, "layout": self.layout}
        self.embedding = StateEmbedding(num_atom_classes=num_atom_classes, hydrogen_level=hydrogen_level, **sizes)
        blocks = (PairTransformerBlock(num_heads=num_heads, num_probes=num_probes, **sizes) for _ in range(num_layers))
        self.layers = nn.ModuleList(blocks)


class PairTransformer(PairNetwork):
    """E(3)-equivariant denoiser over all pairs of heavy atoms.

    It is a `PairNetwork` that may be told `num_properties` of a molecule; 0 = it takes none.

    Raises:
        MoldiffError: when the heads do not divide the dimensions.
    """

    class_axes: ClassVar[Mapping[str, int]] = {
        "embedding.atom.weight": 0,
        "embedding.previous_atom.weight": 1,
        "atom_type.1.weight": 0,
        "atom_type.1.bias": 0,
    }
    """Weights with an entry for every atom class, and on which axis; the mask comes after the last class."""

    property_axes: ClassVar[Mapping[str, int]] = {"condition.values.weight": 1, "condition.lacking.weight": 1}
    """Weights with equally many entries for every property in turn, and on which axis."""

    zero_weights: ClassVar[frozenset[str]] = frozenset({"embedding.hydrogen_level.weight"})
    """Weights that start at zero, so that a network without them is the same function."""

    def __init__(
        self,
        *,
        num_atom_classes: int,
        hidden_dim: int = 192,
        pair_dim: int = 48,
        steerable_dim: int = 32,
        num_layers: int = 6,
        num_heads: int = 8,
        num_probes: int = 8,
        num_properties: int = 0,
    ) -> None:
        for name, value in (("hidden_dim", hidden_dim), ("steerable_dim", steerable_dim)):
            if value % num_heads:
                raise MoldiffError(f"denoiser.{name}: got {value}, expected a multiple of num_heads = {num_heads}")
        super().__init__(
            num_atom_classes=num_atom_classes,
            hidden_dim=hidden_dim,
            pair_dim=pair_dim,
            steerable_dim=steerable_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            num_probes=num_probes,
            hydrogen_level=True,
        )
        self.atom_type = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, num_atom_classes))
        self.bond = nn.Sequential(
            nn.LayerNorm(pair_dim), nn.Linear(pair_dim, pair_dim), nn.SiLU(), nn.Linear(pair_dim, NUM_BOND_CLASSES)
        )
        self.hydrogen = ChannelMix(steerable_dim, MAX_HYDROGENS)
        self.condition = None
        if num_properties:
            self.condition = PropertyEmbedding(
                num_properties=num_properties, num_atom_classes=num_atom_classes, hidden_dim=hidden_dim
            )

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """Estimate the clean data; coordinates in the model's units, properties normalised.

        pos 1o; hydrogen 1o; the rest 0e; permutes with atoms.
        """
        mask = noisy.node_mask
        atom, pair, steerable = self.embedding(noisy, noise_level, previous)
        if self.condition is not None:
            values = noisy.condition
            if values is None:
                values = noisy.pos.new_full((noisy.num_molecules, self.condition.num_properties), torch.nan)
            # Counts are small differences of large sums, which bfloat16 would blur.
            with torch.autocast(noisy.pos.device.type, enabled=False):
                expected = None if previous is None else expected_bond_counts(previous, noisy)
                atom = atom + self.condition(values, expected)[:, None]
        pos = noisy.pos
        for layer in self.layers:
            atom, pair, pos, steerable = layer(atom, pair, pos, steerable, mask)
        vectors = self.hydrogen(self.layout.split(steerable)[0]).transpose(-1, -2)  # [B, N, 4, 3]
        # At low noise the input is nearly the answer already, so the network only has to correct it.
        hydrogen = vectors + (1 - noise_level.hydrogen)[..., None, None] * noisy.hydrogen
        # Zero mean where nothing is known; known atoms stay where they are.
        known = (noise_level.pos == 0) & mask
        free = torch.where(known.any(1)[:, None, None], pos, center(pos, mask))
        return Prediction(
            pos=torch.where(known[..., None], noisy.pos, free) * mask[..., None],
            hydrogen=hydrogen * mask[..., None, None],
            atom_type=self.atom_type(atom).float() if atom.dtype == torch.bfloat16 else self.atom_type(atom),
            bond=self.bond(pair + pair.transpose(1, 2)),
        )

    def fit_counts(self, counts: Tensor, targets: Tensor) -> None:
        """Fit what the network is told of properties to training molecules, see `PropertyEmbedding.fit_counts`."""
        if self.condition is not None:
            self.condition.fit_counts(counts, targets)

    @property
    def contributions(self) -> Contributions | None:
        """Of atoms and bonds to the properties; None = it is told none."""
        return None if self.condition is None else self.condition.contributions
