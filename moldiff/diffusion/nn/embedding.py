"""Features of atoms and pairs: steerable ones, distances, and the first ones, of the state and the last estimate."""

import math

import e3nn
import torch
from e3nn import o3
from torch import Tensor, nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, lengths, pair_vectors
from moldiff.diffusion.conditioning import Contributions, fitted_slopes, num_bond_counts
from moldiff.molecules.vocabulary import MAX_HYDROGENS, NUM_BOND_CLASSES


class SteerableLayout:
    """The irreps `C x 1o + C x 2e` of an atom's steerable features and where each lies on the component axis.

    Features are [..., M, C] with M = 8 components, so that mixing channels is one matrix product; e3nn has [..., C, M].
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
        return self.irreps.D_from_matrix(matrix)  # type: ignore[no-any-return]


class PairHarmonics(nn.Module):
    """Spherical harmonics `1o + 2e` of a vector v / (|v| + softening); they vanish smoothly where two atoms meet."""

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
        return self.harmonics(vectors / (distance + self.softening)[..., None])  # type: ignore[no-any-return]


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


class ExponentialBasis(nn.Module):
    """Gaussians in exp(-distance / length) (PhysNet, Unke & Meuwly 2019, arXiv:1902.08408, eq. 7), without a cutoff."""

    centers: Tensor

    def __init__(self, *, num_basis: int = 20, length: float = 2.5) -> None:
        super().__init__()
        self.num_basis, self.length = num_basis, length
        self.register_buffer("centers", torch.linspace(0, 1, num_basis), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """Features [..., num_basis] of distances [...]."""
        decayed = torch.exp(-distance / self.length)[..., None]
        return torch.exp(-((decayed - self.centers) * (self.num_basis / 2)).square())


class LevelEmbedding(nn.Module):
    """Sines and cosines of a noise level, wavelengths from 2 pi down to 2 pi / `highest`."""

    frequencies: Tensor

    def __init__(self, *, num_frequencies: int = 16, highest: float = 200.0) -> None:
        super().__init__()
        self.num_features = 2 * num_frequencies
        frequencies = torch.exp(torch.linspace(0, math.log(highest), num_frequencies))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        """Features [..., 2 * num_frequencies] of levels [...]."""
        angle = level[..., None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class StateEmbedding(nn.Module):
    """Embeds classes, bonds, noise levels, molecule size, hydrogen offsets and the previous estimate."""

    def __init__(
        self, *, num_atom_classes: int, hidden_dim: int, pair_dim: int, layout: SteerableLayout, hydrogen_level: bool
    ) -> None:
        super().__init__()
        self.layout, self.radial = layout, ExponentialBasis()
        self.level = LevelEmbedding()
        features = self.level.num_features
        self.atom = nn.Embedding(num_atom_classes + 1, hidden_dim)
        self.atom_level = nn.Linear(2 * features + 1, hidden_dim)
        self.previous_atom = nn.Linear(num_atom_classes, hidden_dim, bias=False)
        self.hydrogen_length = nn.Linear(2 * MAX_HYDROGENS, hidden_dim)
        self.hydrogen = ChannelMix(2 * MAX_HYDROGENS, layout.num_channels)
        self.bond = nn.Embedding(NUM_BOND_CLASSES + 1, pair_dim)
        self.bond_level = nn.Linear(features, pair_dim)
        self.previous_bond = nn.Linear(NUM_BOND_CLASSES, pair_dim, bias=False)
        self.previous_distance = nn.Linear(self.radial.num_basis, pair_dim, bias=False)
        self.hydrogen_level = None
        if hydrogen_level:
            self.hydrogen_level = nn.Linear(features, hidden_dim, bias=False)
            nn.init.zeros_(self.hydrogen_level.weight)

    def forward(
        self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars [B, N, D], pairs [B, N, N, P] and steerable features [B, N, M, C]."""
        size = noisy.node_mask.sum(1)[:, None, None].to(noisy.pos).log().expand(*noisy.node_mask.shape, 1)
        levels = torch.cat([self.level(noise_level.pos), self.level(noise_level.atom), size], dim=-1)
        scalar = self.atom(noisy.atom_type) + self.atom_level(levels)
        if self.hydrogen_level is not None:
            scalar = scalar + self.hydrogen_level(self.level(noise_level.hydrogen))
        pair = self.bond(noisy.bond) + self.bond_level(self.level(noise_level.bond))
        if previous is None:
            previous = Prediction.zeros(noisy, self.previous_atom.in_features)
        scalar = scalar + self.previous_atom(previous.atom_type.softmax(-1))
        distance = lengths(pair_vectors(previous.pos))
        pair = pair + self.previous_bond(previous.bond.softmax(-1)) + self.previous_distance(self.radial(distance))
        hydrogen = torch.cat([noisy.hydrogen, previous.hydrogen], dim=2)
        scalar = scalar + self.hydrogen_length((hydrogen.square().sum(-1) + 1e-6).sqrt())
        vectors = self.hydrogen(hydrogen.transpose(-1, -2))  # [B, N, 3, C]
        steerable = nn.functional.pad(vectors, (0, 0, 0, self.layout.num_components - 3))
        return scalar, pair, steerable


class PropertyEmbedding(nn.Module):
    """Properties of a molecule, as features of its atoms.

    Each that is given enters as its value, and as what the previous estimate still lacks of it by its `Contributions`
    (see `fit_counts`), both with sines and cosines, whose frequencies double from 1/2 on (per standard deviation; from
    2 on for what is lacking), and with a one that says that it is there. The last layer starts at zero, so that a
    network without properties and the same one with a fresh embedding are the same function.
    """

    frequencies: Tensor
    slopes: Tensor
    unexplained: Tensor

    def __init__(
        self, *, num_properties: int, num_atom_classes: int, hidden_dim: int, num_frequencies: int = 5
    ) -> None:
        super().__init__()
        self.num_properties = num_properties
        self.register_buffer("frequencies", 2.0 ** torch.arange(-1, num_frequencies - 1), persistent=False)
        self.register_buffer("slopes", torch.zeros(num_bond_counts(num_atom_classes), num_properties))
        self.register_buffer("unexplained", torch.ones(num_properties))
        self.values = nn.Linear(num_properties * (2 + 2 * num_frequencies), hidden_dim)
        self.lacking = nn.Linear(num_properties * (2 + 2 * num_frequencies), hidden_dim, bias=False)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, condition: Tensor, expected: Tensor | None) -> Tensor:
        """Features [B, D] of normalised values [B, C] (NaN = not given) and the last `expected_bond_counts` [B, F]."""
        hidden = self.values(self._waves(condition, 1.0))
        if expected is not None:
            hidden = hidden + self.lacking(self._waves(condition - self.contributions(expected), 4.0))
        return self.out(nn.functional.silu(hidden))  # type: ignore[no-any-return]

    @property
    def contributions(self) -> Contributions:
        return Contributions(self.slopes, self.unexplained)

    def _waves(self, condition: Tensor, scale: float) -> Tensor:
        """Features [B, C * (2 + 2 F)] of values [B, C], zeros where they are NaN."""
        given = condition.isfinite()[..., None]
        value = condition.nan_to_num()[..., None]
        angle = value * (scale * self.frequencies)
        return (torch.cat([torch.ones_like(value), value, angle.sin(), angle.cos()], dim=-1) * given).flatten(1)

    @torch.no_grad()
    def fit_counts(self, counts: Tensor, targets: Tensor) -> None:
        """Least squares for normalised properties [M, C], NaN = not known, on `bond_counts` [M, F]."""
        self.slopes.copy_(fitted_slopes(counts, targets, ridge=0.1))
        left = (targets - self.contributions(counts.to(self.slopes)).to(targets)).square().nanmean(0).sqrt()
        self.unexplained.copy_(left.nan_to_num(1.0).clamp(max=1.0))
