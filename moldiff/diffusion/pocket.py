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
_FOLLOWED = 16  # orientations of which that are best at first, and followed
_NEIGHBOURS = 192  # atoms of the receptor within 10 Å of one in a pocket, roughly
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
class Pairs:
    """Atoms of molecules [...] with K of a receptor each."""

    pos: Tensor  # of the receptor's atoms [..., K, 3] or [K, 3] (Å)
    contact: Tensor  # sums of radii [..., K] (Å)
    hydrophobic: Tensor  # that both are [..., K]
    bonding: Tensor  # that they form a hydrogen bond [..., K]

    def energy(self, pos: Tensor, softness: float = 0.0) -> Tensor:
        """Of every atom [...] at pos [..., 3] (kcal/mol); `softness` (Å) blurs distances."""
        squared, blurred = self._distances(pos, softness)[1:]
        distance = blurred - self.contact
        energy = -0.035579 * torch.exp(-(distance / 0.5).square())
        energy = energy - 0.005156 * torch.exp(-((distance - 3) / 2).square())
        energy = energy + 0.840245 * distance.clamp(max=0).square()
        energy = energy - 0.035069 * self.hydrophobic * (1.5 - distance).clamp(0, 1)
        energy = energy - 0.587439 * self.bonding * (-distance / 0.7).clamp(0, 1)
        return torch.where(squared < CUTOFF**2, energy, 0.0).sum(-1)

    def gradient(self, pos: Tensor, softness: float = 0.0) -> Tensor:
        """Of that energy with respect to pos [..., 3] (kcal/mol/Å), nowhere above `_STEEPEST`."""
        offset, squared, blurred = self._distances(pos, softness)
        distance = blurred - self.contact
        slope = 0.284632 * distance * torch.exp(-(distance / 0.5).square())
        slope = slope + 0.002578 * (distance - 3) * torch.exp(-((distance - 3) / 2).square())
        slope = slope + 1.68049 * distance.clamp(max=0)
        slope = slope + 0.035069 * self.hydrophobic * ((distance > 0.5) & (distance < 1.5))
        slope = slope + 0.839199 * self.bonding * ((distance > -0.7) & (distance < 0))
        slope = torch.where(squared < CUTOFF**2, slope / blurred, 0.0)
        return _at_most((slope[..., None, :] @ offset)[..., 0, :], _STEEPEST)

    def _distances(self, pos: Tensor, softness: float) -> tuple[Tensor, Tensor, Tensor]:
        offset = pos[..., None, :] - self.pos
        squared = offset.square().sum(-1)
        return offset, squared, (squared + max(softness, 1e-4) ** 2).sqrt()


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

    def pairs(self, atoms: AtomKinds) -> Pairs:
        """Atoms [...] with all of the receptor."""
        contact = atoms.radius[..., None] + self.kinds.radius
        hydrophobic = atoms.hydrophobic[..., None] * self.kinds.hydrophobic
        return Pairs(self.pos, contact, hydrophobic, atoms.bonding @ self._partners.T)

    def near(self, pos: Tensor, atoms: AtomKinds) -> Pairs:
        """Atoms [...] at pos [..., 3] with the `_NEIGHBOURS` nearest ones of the receptor each."""
        squared = (pos[..., None, :] - self.pos).square().sum(-1)
        rows = squared.topk(min(_NEIGHBOURS, len(self.pos)), largest=False, sorted=False).indices
        contact = atoms.radius[..., None] + self.kinds.radius[rows]
        hydrophobic = atoms.hydrophobic[..., None] * self.kinds.hydrophobic[rows]
        bonding = (atoms.bonding[..., None, :] @ self._partners[rows].transpose(-1, -2))[..., 0, :]
        return Pairs(self.pos[rows], contact, hydrophobic, bonding)

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
            searches = bool(self._levels) and highest <= self._levels[0]
            while self._levels and highest <= self._levels[0]:
                del self._levels[0]
            if searches:
                self._search(pos, kinds, softness)
            pose = self.rotation, self.shift
            self.rotation, self.shift = self._followed(pos, kinds, pose, softness, _POSE_STEPS)
            if not self._strength:
                return prediction
            variance = self._scale**2 * highest**2 / (highest**2 + (1 - highest) ** 2)
            placed = self.placed(pos)
            gradient = self._energy.near(placed, kinds).gradient(placed, softness)
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

    def _followed(
        self, pos: Tensor, kinds: AtomKinds, pose: tuple[Tensor, Tensor], softness: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Poses of molecules (a multiple of them) moved and turned as wholes, some steps down the energy."""
        (rotation, shift), copies = pose, len(pose[1]) // len(pos)
        mask, pos, free = (_repeated(one, copies) for one in (self._mask, pos, ~self.bound[:, None]))
        placed = pos @ rotation.transpose(1, 2) + shift[:, None]
        pairs = self._energy.near(placed, AtomKinds(*(_repeated(one, copies) for one in vars(kinds).values())))
        for _ in range(steps):
            force = -pairs.gradient(placed, softness) * mask[..., None]
            arm = (placed - shift[:, None]) * mask[..., None]
            torque = torch.linalg.cross(arm, force, dim=-1).sum(1)
            inertia = arm.square().sum((1, 2)).clamp(min=1e-3)[:, None]
            shift = shift + free * _at_most(0.5 * masked_mean(force, mask)[:, 0], _LONGEST_SHIFT)
            turn = _cross_matrix(free * _at_most(1.0 * torque / inertia, _LARGEST_TURN))
            rotation = torch.matrix_exp(turn) @ rotation
            placed = pos @ rotation.transpose(1, 2) + shift[:, None]
        return rotation, shift

    def _search(self, pos: Tensor, kinds: AtomKinds, softness: float) -> None:
        """Take the best of some orientations, after following the first few of them down the energy."""
        rotations, count, rows = self.rotation[:, None] @ self._turns, len(pos), torch.arange(len(pos))
        placed = torch.einsum("bni,boji->bonj", pos, rotations) + self.shift[:, None, None]
        pairs = self._energy.pairs(kinds)
        each = torch.stack([(pairs.energy(one, softness) * self._mask).sum(1) for one in placed.unbind(1)], 1)
        first = each.topk(_FOLLOWED, largest=False).indices.T  # [_FOLLOWED, B]
        rotation = torch.cat([rotations[rows, one] for one in first])
        pose = self._followed(pos, kinds, (rotation, self.shift.repeat(_FOLLOWED, 1)), softness, _SEARCH_STEPS)
        turned, shifted = (one.reshape(_FOLLOWED, count, *one.shape[1:]) for one in pose)
        placed = pos @ turned.transpose(-1, -2) + shifted[:, :, None]
        best = torch.stack([(pairs.energy(one, softness) * self._mask).sum(1) for one in placed]).argmin(0)
        self.rotation = torch.where(self.bound[:, None, None], self.rotation, turned[best, rows])
        self.shift = torch.where(self.bound[:, None], self.shift, shifted[best, rows])


def _repeated(value: Tensor, copies: int) -> Tensor:
    return value.repeat(copies, *(1 for _ in value.shape[1:]))


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
