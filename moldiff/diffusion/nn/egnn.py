"""The equivariant graph network of Satorras et al. 2021 (arXiv:2102.09844) as a denoiser, on PyTorch Geometric.

It is the simplest network that does what moldiff asks of one, to compare with and to begin one's own from.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from moldiff.diffusion.batch import pair_mask
from moldiff.diffusion.nn.embedding import SteerableLayout
from moldiff.diffusion.nn.pair_transformer import PairTransformer


class EGNNBlock(MessagePassing):  # type: ignore[misc]  # PyG is untyped
    """Messages over all pairs of atoms, of their features and distance; vectors are moved along their directions.

    Equations 3 to 6 of the paper with a feature for every pair, which learns from its message, and with `steerable_dim`
    vectors an atom beside its position, of which hydrogens are read.
    """

    def __init__(self, *, hidden_dim: int, pair_dim: int, layout: SteerableLayout, **_: Any) -> None:
        super().__init__(aggr="mean")
        self.layout, channels = layout, layout.num_channels
        self.edge = nn.Sequential(
            *(nn.Linear(2 * hidden_dim + pair_dim + 2, hidden_dim), nn.SiLU()),
            *(nn.Linear(hidden_dim, hidden_dim), nn.SiLU()),
        )
        self.attention = nn.Sequential(nn.Linear(hidden_dim, 1), nn.Sigmoid())
        self.node = nn.Sequential(
            nn.Linear(2 * hidden_dim + channels, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.pair = nn.Linear(hidden_dim, pair_dim)
        self.move = nn.Linear(hidden_dim, 1 + channels, bias=False)
        nn.init.normal_(self.move.weight, std=1e-3)

    def forward(
        self, atom: Tensor, pair: Tensor, pos: Tensor, steerable: Tensor, node_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Updated atoms [B, N, D], pairs [B, N, N, P], pos [B, N, 3] and steerable features [B, N, M, C].

        pos 1o; steerable 1o, and 2e as it was; the rest 0e; permutes with atoms.
        """
        batch, size, _ = atom.shape
        which, first, second = pair_mask(node_mask).nonzero(as_tuple=True)
        edges = torch.stack([which * size + second, which * size + first])  # from j to i
        vectors, tensors = self.layout.split(steerable)
        flat, places = atom.flatten(0, 1), pos.flatten(0, 1)
        offset = places[edges[1]] - places[edges[0]]
        distance = (offset.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        message = self.edge_updater(edges, atom=flat, pair=pair[which, first, second], distance=distance)
        gathered = self.propagate(edges, size=2 * (len(flat),), message=message, direction=offset / (distance + 1))
        summed, moved = gathered.split([message.shape[-1], gathered.shape[-1] - message.shape[-1]], dim=-1)
        moved = moved.view(batch, size, 3, -1)
        lengths = (vectors.square().sum(-2) + 1e-6).sqrt().flatten(0, 1)
        atom = atom + self.node(torch.cat([flat, summed, lengths], dim=-1)).view_as(atom)
        pair = pair.index_put((which, first, second), self.pair(message).to(pair.dtype), accumulate=True)
        steerable = torch.cat([vectors + moved[..., 1:], tensors], dim=-2)
        return atom, pair, pos + moved[..., 0] * node_mask[..., None], steerable

    def edge_update(self, atom_i: Tensor, atom_j: Tensor, pair: Tensor, distance: Tensor) -> Tensor:
        """Messages [E, D] of edges."""
        edge: Tensor = self.edge(torch.cat([atom_i, atom_j, pair, distance, (-distance).exp()], dim=-1))
        weighted: Tensor = edge * self.attention(edge)
        return weighted

    def message(self, message: Tensor, direction: Tensor) -> Tensor:
        """The message and, by each channel, the direction that it moves vectors along [E, D + 3 (1 + C)]."""
        moves = direction[:, :, None] * self.move(message)[:, None, :]
        return torch.cat([message, moves.flatten(1).to(message.dtype)], dim=-1)


class EGNN(PairTransformer):
    """A `PairTransformer` whose blocks are those of an EGNN."""

    block = EGNNBlock

    def __init__(self, **sizes: int) -> None:
        super().__init__(num_heads=1, **sizes)
