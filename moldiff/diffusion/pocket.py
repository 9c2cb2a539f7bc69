"""Guidance into a pocket: Vina's energy of an estimate over soft classes of atoms, and where the molecule lies in it.

The network knows neither translations nor rotations, so a molecule keeps its own frame, in which nothing of it changes,
and its pose in the pocket goes down the energy beside it; how it is bent there is what the estimate itself is moved by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, TensorFields, masked_mean, pair_mask
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.molecules.receptor import HALOGENS, RADII
from moldiff.molecules.vocabulary import SYMBOLS, Vocabulary

CUTOFF = 8.0
"""Distance (Å) from which on atoms have no energy with each other."""

_SOFTNESS = 2.0  # Å by which distances are blurred at noise level 1
_TEMPERATURE = 0.6  # kcal/mol
_FARTHEST = 2.0  # Å that an atom of an estimate is moved at most
_STEEPEST = 2.0  # kcal/mol/Å that counts of a gradient at most
_POSE_STEPS, _SEARCH_STEPS = 4, 8  # down the energy, in every call and after a search
_LONGEST_SHIFT, _LARGEST_TURN = 0.5, 0.3  # Å and radians of such a step at most
_SEARCH_LEVELS = (0.75, 0.6, 0.45)  # noise levels at which orientations a quarter of a turn away are tried, too


@dataclass(frozen=True, eq=False)
class AtomKinds(TensorFields):
    """What Vina's terms depend on of atoms [...], or what is to be expected of it."""

    radius: Tensor  # [...] (Å)
    hydrophobic: Tensor  # [...]
    bonding: Tensor  # that it gives a hydrogen bond, that it takes one, and that it does either [..., 3]

    @classmethod
    def of_flags(
        cls, radius: np.ndarray, hydrophobic: np.ndarray, donor: np.ndarray, acceptor: np.ndarray
    ) -> AtomKinds:
        """Of atoms [n] of which each is known."""
        bonding = np.stack([donor, acceptor, donor | acceptor], -1)
        return cls(*(torch.from_numpy(one.astype(np.float64)) for one in (radius, hydrophobic, bonding)))


@dataclass(frozen=True, eq=False)
class PocketEnergy:
    """The energy of Vina (kcal/mol) of atoms among those of a receptor [M], without the share of rotatable bonds.

    Trott and Olson 2010, doi:10.1002/jcc.21334, table 1, over surface distances d = r - R_i - R_j (Å).
    """

    pos: Tensor  # [M, 3] (Å)
    kinds: AtomKinds  # [M]

    def to(self, like: Tensor) -> PocketEnergy:
        """A copy of the kind and on the device of `like`."""
        return PocketEnergy(self.pos.to(like), AtomKinds(*(one.to(like) for one in vars(self.kinds).values())))

    def __call__(self, pos: Tensor, atoms: AtomKinds, softness: float = 0.0) -> Tensor:
        """Of every atom [...] at pos [..., 3] (Å); `softness` (Å) blurs distances."""
        squared = (pos[..., None, :] - self.pos).square().sum(-1)
        distance = (squared + max(softness, 1e-4) ** 2).sqrt() - atoms.radius[..., None] - self.kinds.radius
        energy = -0.035579 * torch.exp(-(distance / 0.5).square())
        energy = energy - 0.005156 * torch.exp(-((distance - 3) / 2).square())
        energy = energy + 0.840245 * distance.clamp(max=0).square()
        hydrophobic = atoms.hydrophobic[..., None] * self.kinds.hydrophobic
        energy = energy - 0.035069 * hydrophobic * (1.5 - distance).clamp(0, 1)
        energy = energy - 0.587439 * (atoms.bonding @ self._partners.T) * (-distance / 0.7).clamp(0, 1)
        return torch.where(squared < CUTOFF**2, energy, 0.0).sum(-1)

    @property
    def _partners(self) -> Tensor:
        """What an atom of a molecule has to do for a hydrogen bond with each [M, 3], as columns of `bonding`."""
        donor, acceptor, either = self.kinds.bonding.unbind(-1)
        both = donor + acceptor - either
        return torch.stack([acceptor - both, donor - both, both], -1)


@dataclass(frozen=True, eq=False)
class PocketTarget(TensorFields):
    """A pocket, and how molecules lie in it to begin with: at rotation · x + shift."""

    energy: PocketEnergy  # the origin is the pocket's middle
    strength: float  # of what moves estimates; 0 = only the pose follows the energy
    rotation: Tensor  # [B, 3, 3]
    shift: Tensor  # [B, 3] (Å)

    @classmethod
    def stack(cls, each: Sequence[PocketTarget | None]) -> PocketTarget | None:
        """Those of several molecules in one pocket; None = there is none."""
        found = [one for one in each if one is not None]
        if not found:
            return None
        rotation, shift = (torch.cat([getattr(one, name) for one in found]) for name in ("rotation", "shift"))
        return replace(found[0], rotation=rotation, shift=shift)

    def around(self, pos: Tensor, node_mask: Tensor) -> PocketTarget:
        """The same for molecules that lie at pos [B, N, 3] (Å) of the pocket."""
        eye = torch.eye(3).to(pos).expand_as(self.rotation)
        return replace(self, rotation=eye, shift=masked_mean(pos, node_mask)[:, 0])


class PocketGuide:
    """One run of molecules in a pocket: their poses, and what moves their estimates."""

    def __init__(self, target: PocketTarget, model: MoleculeDiffusion, node_mask: Tensor, known: Tensor) -> None:
        self.rotation, self.shift = target.rotation.to(torch.float32), target.shift.to(torch.float32)
        self._energy, self._strength = target.energy.to(self.shift), target.strength
        self._scale, self._mask, self._known = model.statistics.pos_scale, node_mask, known
        self.bound = known.any(1)  # what is known of a molecule says where it lies
        self._classes = class_kinds(model.vocabulary).to(self.shift.device)
        self._hetero = torch.from_numpy(model.vocabulary.table[:, 0] != 6).to(self.shift)
        self._turns = torch.from_numpy(Rotation.create_group("O").as_matrix()).to(self.shift)
        self._levels = list(_SEARCH_LEVELS)

    def guided(self, prediction: Prediction, level: NoiseLevel) -> Prediction:
        """An estimate (the model's units) moved down the energy, after its pose."""
        with torch.autocast(prediction.pos.device.type, enabled=False):
            highest, pos = float(level.pos.max()), prediction.pos.float() * self._scale
            kinds, softness = self._kinds(prediction), _SOFTNESS * highest
            steps = _POSE_STEPS
            while self._levels and highest <= self._levels[0]:
                del self._levels[0]
                steps = _SEARCH_STEPS
            if steps == _SEARCH_STEPS:
                self._search(pos, kinds, softness)
            for _ in range(steps):
                self._follow(pos, kinds, softness)
            if not self._strength:
                return prediction
            variance = self._scale**2 * highest**2 / (highest**2 + (1 - highest) ** 2)
            gradient = self._gradient(self.placed(pos), kinds, softness)
            moved = _at_most(-self._strength * variance / _TEMPERATURE * gradient, _FARTHEST) @ self.rotation
        moved = moved * ((level.pos > 0) & self._mask)[..., None]
        mean = masked_mean(moved, self._mask) * ~self.bound[:, None, None]
        return replace(prediction, pos=prediction.pos + (moved - mean) * self._mask[..., None] / self._scale)

    def placed(self, pos: Tensor) -> Tensor:
        """Coordinates [B, N, 3] (Å) in the pocket's frame; padding comes to lie somewhere."""
        return pos @ self.rotation.transpose(1, 2) + self.shift[:, None]

    def turned(self, hydrogen: Tensor) -> Tensor:
        """Offsets [B, N, 4, 3] as they are in the frame in which the molecule comes out."""
        return torch.where(self.bound[:, None, None, None], hydrogen, hydrogen @ self.rotation.transpose(1, 2)[:, None])

    def of_state(self, noisy: MolBatch) -> MolBatch:
        """A noisy state (the model's units) in the frame in which the molecule comes out."""
        pos = torch.where(self.bound[:, None, None], noisy.pos, self.placed(noisy.pos * self._scale) / self._scale)
        return noisy.replace(pos=pos * self._mask[..., None], hydrogen=self.turned(noisy.hydrogen))

    def _kinds(self, prediction: Prediction) -> AtomKinds:

        classes = prediction.atom_type.float().softmax(-1)[..., : len(self._hetero)]
        bonded = (1 - prediction.bond.float().softmax(-1)[..., 0]) * pair_mask(self._mask)
        alone = (1 - bonded * (classes @ self._hetero)[:, None]).clamp(min=1e-6).log().sum(-1).exp()
        carbon = classes @ (1 - self._hetero)
        hydrophobic = classes @ self._classes.hydrophobic - carbon * (1 - alone)
        return AtomKinds(classes @ self._classes.radius, hydrophobic, classes @ self._classes.bonding)

    def _gradient(self, pos: Tensor, kinds: AtomKinds, softness: float) -> Tensor:
        """Of the energy (kcal/mol/Å) with respect to placed coordinates [B, N, 3]."""
        with torch.enable_grad():
            pos = pos.detach().requires_grad_()
            energy = self._energy(pos, kinds, softness) * self._mask
            (gradient,) = torch.autograd.grad(energy.sum(), pos)
        return _at_most(gradient, _STEEPEST)

    def _follow(self, pos: Tensor, kinds: AtomKinds, softness: float) -> None:
        """Move and turn the molecules as wholes, a step down the energy."""
        placed = self.placed(pos)
        force = -self._gradient(placed, kinds, softness)
        arm = (placed - self.shift[:, None]) * self._mask[..., None]
        torque = torch.linalg.cross(arm, force, dim=-1).sum(1)
        inertia = arm.square().sum((1, 2)).clamp(min=1e-3)[:, None]
        free = ~self.bound[:, None]
        self.shift = self.shift + free * _at_most(0.5 * masked_mean(force, self._mask)[:, 0], _LONGEST_SHIFT)
        turn = _cross_matrix(free * _at_most(1.0 * torque / inertia, _LARGEST_TURN))
        self.rotation = torch.matrix_exp(turn) @ self.rotation

    def _search(self, pos: Tensor, kinds: AtomKinds, softness: float) -> None:
        """Take the orientation of least energy among some."""
        rotations = self.rotation[:, None] @ self._turns
        placed = torch.einsum("bni,boji->bonj", pos, rotations) + self.shift[:, None, None]
        each = [(self._energy(one, kinds, softness) * self._mask).sum(1) for one in placed.unbind(1)]
        best = rotations[torch.arange(len(pos), device=pos.device), torch.stack(each, 1).argmin(1)]
        self.rotation = torch.where(self.bound[:, None, None], self.rotation, best)


def class_kinds(vocabulary: Vocabulary) -> AtomKinds:
    """Of the classes of atoms [K], by what of its neighbours says: a nitrogen with hydrogens takes no bond."""
    number, charge, hydrogens = vocabulary.table.T
    symbols = np.array([SYMBOLS[int(one)] for one in number])
    radius = np.array([RADII.get(one, RADII["C"]) for one in symbols])
    nitrogen, oxygen = symbols == "N", symbols == "O"
    hydrophobic = (symbols == "C") | np.isin(symbols, HALOGENS)
    acceptor = oxygen | (nitrogen & (hydrogens == 0) & (charge <= 0))
    kinds = AtomKinds.of_flags(radius, hydrophobic, (nitrogen | oxygen) & (hydrogens > 0), acceptor)
    return AtomKinds(*(one.float() for one in vars(kinds).values()))


def _cross_matrix(vector: Tensor) -> Tensor:
    """[B, 3, 3] whose product with another vector is the cross product of vector [B, 3] with it."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)


def _at_most(vector: Tensor, length: float) -> Tensor:
    """Vectors [..., 3], none longer than `length`."""
    longest: Tensor = vector.norm(dim=-1, keepdim=True).clamp(min=length)
    return vector * (length / longest)
