"""The network: a stack of equivariant pair-transformer blocks between an embedding and read-outs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, center, lengths, pair_vectors
from moldiff.diffusion.conditioning import Contributions, expected_bond_counts
from moldiff.diffusion.nn.embedding import (
    ChannelMix,
    ExponentialBasis,
    PairHarmonics,
    PropertyEmbedding,
    StateEmbedding,
    SteerableLayout,
    SteerableMix,
)
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import MAX_HYDROGENS, NUM_BOND_CLASSES

_NEIGHBOUR_SCALE = 1 / 3  # scale of a sum over neighbours, so that steerable features start with a size of order one


class PairUpdate(nn.Module):
    """Pairs learn from their two atoms, their distance and the inner products of steerable features."""

    def __init__(self, *, hidden_dim: int, pair_dim: int, num_probes: int, layout: SteerableLayout) -> None:
        super().__init__()
        self.layout, self.radial = layout, ExponentialBasis()
        self.norm = nn.LayerNorm(pair_dim)
        self.ends = nn.Linear(hidden_dim, 2 * pair_dim)
        self.probe = SteerableMix(layout, num_probes)
        num_invariants = 3 * num_probes * len(layout.slices)
        self.geometry = nn.Linear(self.radial.num_basis + num_invariants, pair_dim)
        self.expand = nn.Linear(pair_dim, 2 * pair_dim)
        self.contract = nn.Linear(2 * pair_dim, pair_dim)
        nn.init.zeros_(self.contract.weight)

    def forward(self, pair: Tensor, atom: Tensor, steerable: Tensor, distance: Tensor, harmonics: Tensor) -> Tensor:
        """Updated pairs [B, N, N, P] from atoms [B, N, D], steerable [B, N, M, C] and the pair geometry."""
        invariants = self._invariants(self.probe(steerable), harmonics)
        geometry = self.geometry(torch.cat([self.radial(distance), *invariants], dim=-1))
        first, second = self.ends(atom).chunk(2, dim=-1)
        # Sums over pairs are in place, where no gradient needs the summand any more: they are bound by memory.
        mixed = self.norm(pair).add_(first[:, :, None]).add_(second[:, None]).add_(geometry)
        update: Tensor = self.contract(nn.functional.silu(self.expand(mixed)))
        return pair + update

    def _invariants(self, probe: Tensor, harmonics: Tensor) -> list[Tensor]:
        """Inner products [B, N, N, Q] per irrep: of the two ends, and of each end with the pair's harmonics.

        Seen from the other end the direction is reversed, so an irrep of odd parity changes its sign.
        """
        products = []
        layout = self.layout
        split = zip(layout.split(probe), layout.split(harmonics, -1), layout.parities, strict=True)
        for part, direction, parity in split:
            along = direction.to(part.dtype) @ part
            other = along.transpose(1, 2)
            products += [(part[:, :, None] * part[:, None]).sum(-2), along, other if parity == 1 else -other]
        return products


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis with no weight where mask is False; torch's own is slow on a CPU for short rows."""
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    weight = (logits - logits.amax(-1, keepdim=True).detach()).exp() * mask
    return weight / weight.sum(-1, keepdim=True)


class PairTransformerBlock(nn.Module):
    """Equivariant attention block with a feature for every pair of atoms; for its sizes see `PairNetwork`."""

    def __init__(
        self, *, hidden_dim: int, pair_dim: int, num_heads: int, num_probes: int, layout: SteerableLayout
    ) -> None:
        super().__init__()
        channels = layout.num_channels
        self.num_heads, self.layout = num_heads, layout
        self.harmonics = PairHarmonics(layout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.pair_update = PairUpdate(hidden_dim=hidden_dim, pair_dim=pair_dim, num_probes=num_probes, layout=layout)
        self.query_key_value = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.pair_out = nn.Linear(pair_dim, num_heads + len(layout.slices) * channels)
        self.steerable_value = SteerableMix(layout, channels)
        self.atom_out = nn.Linear(hidden_dim, hidden_dim)
        self.pair_value_out = nn.Linear(num_heads * pair_dim, hidden_dim)
        self.feed_norm = nn.LayerNorm(hidden_dim)
        self.norms_in = nn.Linear(len(layout.slices) * channels, hidden_dim)
        self.expand = nn.Linear(hidden_dim, 4 * hidden_dim)
        self.contract = nn.Linear(4 * hidden_dim, hidden_dim)
        self.gate = nn.Linear(hidden_dim, len(layout.slices) * channels)
        self.mix = ChannelMix(channels, channels)
        self.move = ChannelMix(channels, 1)
        for layer in (self.atom_out, self.pair_value_out, self.contract):
            nn.init.zeros_(layer.weight)
        nn.init.normal_(self.move.weight, std=1e-3)

    def forward(
        self, atom: Tensor, pair: Tensor, pos: Tensor, steerable: Tensor, node_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Updated atoms [B, N, D], pairs [B, N, N, P], pos [B, N, 3] and steerable features [B, N, M, C].

        pos 1o; steerable 1o + 2e; the rest 0e; permutes with atoms.
        """
        vectors = pair_vectors(pos)
        distance = lengths(vectors)
        harmonics = self.harmonics(vectors, distance)
        normed = self.norm(atom)
        pair = self.pair_update(pair, normed, steerable, distance, harmonics)
        pair_out = self.pair_out(pair)
        bias, *weights = pair_out.split([self.num_heads, *[self.layout.num_channels] * len(self.layout.sizes)], dim=-1)
        messages, carried = self._attend(normed, pair, steerable, bias, node_mask)
        atom = atom + messages
        # The mask goes to the harmonics, of which there are fewer than weights.
        directions = harmonics * (node_mask[:, None, :, None] * _NEIGHBOUR_SCALE)
        steerable = steerable + carried + self._point(weights, directions)
        vector, tensor = self.layout.split(steerable)
        norms = (torch.cat([vector.square().sum(-2), tensor.square().sum(-2)], dim=-1) + 1e-6).sqrt()
        mixed = self.feed_norm(atom) + self.norms_in(norms)
        atom = atom + self.contract(nn.functional.silu(self.expand(mixed)))
        vector_gate, tensor_gate = self.gate(mixed).sigmoid()[..., None, :].chunk(2, dim=-1)
        update = self.mix(vector) * vector_gate
        pos = pos + self.move(update).squeeze(-1)
        return atom, pair, pos, torch.cat([vector + update, tensor * tensor_gate], dim=-2)

    def _attend(
        self, normed: Tensor, pair: Tensor, steerable: Tensor, bias: Tensor, node_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Messages [B, N, D] from atoms and pairs, and steerable features [B, N, M, C] carried over."""
        batch, size, hidden_dim = normed.shape
        heads = (batch, size, 3, self.num_heads, hidden_dim // self.num_heads)
        query, key, value = self.query_key_value(normed).view(heads).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) * heads[-1] ** -0.5 + bias.permute(0, 3, 1, 2)
        attention = masked_softmax(logits, node_mask[:, None, None])  # [B, H, N, N]
        components = self.layout.num_components
        carried = self.steerable_value(steerable).view(batch, size, components, self.num_heads, -1)
        carried = carried.permute(0, 3, 1, 2, 4).flatten(3)  # [B, H, N, M * C / H]
        gathered: Tensor = attention @ torch.cat([value, carried.to(value.dtype)], dim=-1)
        message, carried = gathered.tensor_split([value.shape[-1]], dim=-1)
        carried = carried.reshape(*carried.shape[:-1], components, -1).permute(0, 2, 3, 1, 4).flatten(3)
        from_pairs = attention.transpose(1, 2) @ pair.to(attention.dtype)  # [B, N, H, P]
        messages = self.atom_out(message.transpose(1, 2).flatten(2)) + self.pair_value_out(from_pairs.flatten(2))
        return messages, carried

    def _point(self, weights: Sequence[Tensor], harmonics: Tensor) -> Tensor:
        """Weights [B, N, N, C] of each irrep times the harmonics [B, N, N, M], summed over neighbours: [B, N, M, C]."""
        parts = zip(self.layout.split(harmonics, -1), weights, strict=True)
        return torch.cat([part.transpose(-1, -2).to(weight.dtype) @ weight for part, weight in parts], dim=-2)


class PairNetwork(nn.Module):
    """An embedding of molecules and the blocks behind it, which networks have in common.

    MoldiffError when the heads do not divide the dimensions.
    """

    block: ClassVar[Callable[..., nn.Module]] = PairTransformerBlock

    def __init__(
        self,
        *,
        num_atom_classes: int,  # K
        hidden_dim: int = 192,  # scalar features of an atom, D
        pair_dim: int = 48,  # features of a pair, P
        steerable_dim: int = 32,  # channels C of the vectors and tensors of an atom
        num_layers: int = 6,  # blocks
        num_heads: int = 8,  # of the attention; divides D and C
        num_probes: int = 8,  # steerable channels that enter the pair update
        hydrogen_level: bool,  # whether hydrogen offsets have a noise level of their own
    ) -> None:
        for name, value in (("hidden_dim", hidden_dim), ("steerable_dim", steerable_dim)):
            if value % num_heads:
                raise MoldiffError(f"denoiser.{name}: got {value}, expected a multiple of num_heads = {num_heads}")
        super().__init__()
        self.layout = SteerableLayout(steerable_dim)
        sizes: dict[str, Any] = {"hidden_dim": hidden_dim, "pair_dim": pair_dim, "layout": self.layout}
        self.embedding = StateEmbedding(num_atom_classes=num_atom_classes, hydrogen_level=hydrogen_level, **sizes)
        blocks = (type(self).block(num_heads=num_heads, num_probes=num_probes, **sizes) for _ in range(num_layers))
        self.layers = nn.ModuleList(blocks)


class PairTransformer(PairNetwork):
    """E(3)-equivariant denoiser over all pairs of heavy atoms.

    It is a `PairNetwork`, with its `sizes`, that may be conditioned on `num_properties` of a molecule; 0 = on none.
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

    def __init__(self, *, num_atom_classes: int, num_properties: int = 0, **sizes: int) -> None:
        super().__init__(num_atom_classes=num_atom_classes, hydrogen_level=True, **sizes)
        hidden_dim, pair_dim = self.embedding.atom.embedding_dim, self.embedding.bond.embedding_dim
        self.atom_type = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, num_atom_classes))
        self.bond = nn.Sequential(
            nn.LayerNorm(pair_dim), nn.Linear(pair_dim, pair_dim), nn.SiLU(), nn.Linear(pair_dim, NUM_BOND_CLASSES)
        )
        self.hydrogen = ChannelMix(self.layout.num_channels, MAX_HYDROGENS)
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
        """Fit the contributions to properties to training molecules, see `PropertyEmbedding.fit_counts`."""
        if self.condition is not None:
            self.condition.fit_counts(counts, targets)

    @property
    def contributions(self) -> Contributions | None:
        """Of atoms and bonds to the properties; None = it takes none."""
        return None if self.condition is None else self.condition.contributions
