"""Steerable features: irreducible representations of O(3) through e3nn, laid out for fast channel mixing.

An atom carries `C x 1o + C x 2e`. In memory the component axis comes before the channel axis, [..., M, C] with M = 8
components (three of l = 1, five of l = 2), so that mixing channels is one matrix product on the last axis. e3nn's own
order is channel first; `SteerableLayout.rotation` gives the matrices that act on our component axis.
"""

from __future__ import annotations

import e3nn
import torch
from e3nn import o3
from torch import Tensor, nn


class SteerableLayout:
    """The irreps of an atom's steerable features and where each lies on the component axis.

    Args:
        num_channels: copies C of every irrep.
    """

    def __init__(self, num_channels: int) -> None:
        self.num_channels = num_channels
        self.irreps = o3.Irreps("1o + 2e")
        self.num_components: int = self.irreps.dim
        # Plain numbers, since torch.compile cannot follow e3nn's irreps.
        self.slices: list[slice] = self.irreps.slices()
        self.sizes: list[int] = [part.stop - part.start for part in self.slices]
        self.parities: list[int] = [irrep.p for _, irrep in self.irreps]

    def split(self, features: Tensor, dim: int = -2) -> tuple[Tensor, ...]:
        """Views [..., 2l + 1, C] of features [..., M, C], one for each irrep, whose components are axis `dim`.

        Unlike slices, views of one split have their gradients joined without a tensor of zeros for each.
        """
        return torch.split(features, self.sizes, dim)

    def rotation(self, matrix: Tensor) -> Tensor:
        """The matrix [M, M] by which a rotation or reflection [3, 3] acts on the component axis."""
        rotation: Tensor = self.irreps.D_from_matrix(matrix)
        return rotation


class PairHarmonics(nn.Module):
    """Spherical harmonics of a softly normalised pair vector v / (|v| + softening); irreps `1o + 2e`.

    The softening makes them vanish smoothly where two atoms meet, as they do in pure noise.

    Args:
        layout: the irreps.
        softening: in the model's units of length.
    """

    def __init__(self, layout: SteerableLayout, *, softening: float = 0.5) -> None:
        super().__init__()
        self.softening = softening
        # e3nn scripts its modules by default; torch.compile can only look into plain ones.
        mode = e3nn.get_optimization_defaults()["jit_mode"]
        e3nn.set_optimization_defaults(jit_mode="eager")
        self.harmonics = o3.SphericalHarmonics(layout.irreps, normalize=False, normalization="norm")
        e3nn.set_optimization_defaults(jit_mode=mode)

    def forward(self, vectors: Tensor, distance: Tensor) -> Tensor:
        """Harmonics [..., M] of vectors [..., 3] with lengths [...]."""
        harmonics: Tensor = self.harmonics(vectors / (distance + self.softening)[..., None])
        return harmonics


class ChannelMix(nn.Linear):
    """Mixes the channels of one irrep: [..., 2l + 1, C_in] -> [..., 2l + 1, C_out]; steerable, as it has no bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, bias=False)


class SteerableMix(nn.Module):
    """One `ChannelMix` for every irrep: [..., M, C] -> [..., M, C_out]."""

    def __init__(self, layout: SteerableLayout, out_channels: int) -> None:
        super().__init__()
        self.layout = layout
        self.mixes = nn.ModuleList(ChannelMix(layout.num_channels, out_channels) for _ in layout.slices)

    def forward(self, features: Tensor) -> Tensor:
        parts = self.layout.split(features)
        return torch.cat([mix(part) for mix, part in zip(self.mixes, parts, strict=True)], dim=-2)
