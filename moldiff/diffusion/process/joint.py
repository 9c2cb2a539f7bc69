"""The joint process of whole molecules: one process object per field, one loop over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, center, masked_mean, pair_mask
from moldiff.diffusion.noise import NoiseSource
from moldiff.diffusion.process.categorical import CategoricalProcess, marginal_prior
from moldiff.diffusion.process.gaussian import GaussianProcess
from moldiff.diffusion.process.geometry_loss import LocalLoss
from moldiff.molecules.vocabulary import MAX_HYDROGENS


@dataclass(frozen=True, eq=False)
class JointProcess:
    """Coordinates, hydrogen offsets, atom classes and bonds noised together, each by its own process.

    Every atom (and pair) has its own noise level per field, so known parts simply have level 0. A molecule without
    known atoms lives in the subspace of zero mean; with known atoms, their mean is the origin.

    How many hydrogens an atom has is part of its class; where they are is drawn once the class is known. So an offset
    is never a choice between a hydrogen and none, which a step between the two could lose.

    Args:
        pos: process of the heavy-atom coordinates.
        hydrogen: process of the hydrogen offsets.
        atom_type: process of the atom classes.
        bond: process of the bond orders, one draw per unordered pair.
        geometry: a further loss in training, of what is around each atom; None = none.
    """

    pos: GaussianProcess
    hydrogen: GaussianProcess
    atom_type: CategoricalProcess
    bond: CategoricalProcess
    geometry: LocalLoss | None = None

    def prior(self, node_mask: Tensor, draws: NoiseSource, known: Tensor | None = None) -> MolBatch:
        """Pure noise for the atoms of `node_mask` [B, N].

        Coordinates have zero mean, save in molecules with atoms of known position (`known` [B, N]).
        """
        return self._noise(node_mask, draws, known)[0]

    def _noise(self, node_mask: Tensor, draws: NoiseSource, known: Tensor | None) -> tuple[MolBatch, Tensor, Tensor]:
        """Pure noise and, for atoms [B, N] and pairs [B, N, N], the uniform numbers it has left over."""
        pos = self._around_origin(draws.normal(node_mask, 3), node_mask, known)
        hydrogen = draws.normal(node_mask, MAX_HYDROGENS, 3)
        atoms, pairs = draws.uniform(node_mask)
        atom_type = self.atom_type.draw_prior(atoms[..., 1]) * node_mask
        bond = self.bond.draw_prior(pairs[..., 1]) * pair_mask(node_mask)
        return MolBatch(pos, hydrogen, atom_type, bond, node_mask), atoms[..., 0], pairs[..., 0]

    @staticmethod
    def _around_origin(noise: Tensor, node_mask: Tensor, known: Tensor | None) -> Tensor:
        """Zero mean where nothing is known; known atoms fix the origin themselves."""
        centred = center(noise, node_mask)
        return centred if known is None else torch.where(known.any(1)[:, None, None], noise, centred)

    def start(self, clean: MolBatch, noise_level: NoiseLevel, draws: NoiseSource) -> MolBatch:
        """Clean molecules noised to the given levels, for sampling from there; at level 1 everywhere the prior."""
        known = (noise_level.pos == 0) & clean.node_mask
        noise, atoms, pairs = self._noise(clean.node_mask, draws, known)
        return self._mix(clean, noise, noise_level, atoms, pairs)

    def corrupt(self, clean: MolBatch, noise: MolBatch, noise_level: NoiseLevel, draws: NoiseSource) -> MolBatch:
        """Clean molecules mixed with prior noise at the given levels."""
        atoms, pairs = draws.uniform(clean.node_mask)
        return self._mix(clean, noise, noise_level, atoms[..., 0], pairs[..., 0])

    def _mix(self, clean: MolBatch, noise: MolBatch, noise_level: NoiseLevel, atoms: Tensor, pairs: Tensor) -> MolBatch:
        return clean.replace(
            pos=self.pos.corrupt(clean.pos, noise.pos, noise_level.pos),
            hydrogen=self.hydrogen.corrupt(clean.hydrogen, noise.hydrogen, noise_level.hydrogen),
            atom_type=self.atom_type.corrupt(clean.atom_type, noise.atom_type, noise_level.atom, atoms),
            bond=self.bond.corrupt(clean.bond, noise.bond, noise_level.bond, pairs),
        )

    def loss(self, prediction: Prediction, clean: MolBatch, noise_level: NoiseLevel) -> dict[str, Tensor]:
        """The loss of each field, a scalar each; known entries don't count."""
        mask, pairs = clean.node_mask, clean.pair_mask
        losses = {
            "pos": self.pos.loss(prediction.pos, clean.pos, noise_level.pos, mask),
            "hydrogen": self.hydrogen.loss(
                prediction.hydrogen, clean.hydrogen, noise_level.hydrogen, _drawn_hydrogens(clean, noise_level)
            ),
            "atom_type": self.atom_type.loss(prediction.atom_type, clean.atom_type, mask & (noise_level.atom > 0)),
            "bond": self.bond.loss(prediction.bond, clean.bond, pairs & (noise_level.bond > 0)),
        }
        if self.geometry is not None:
            losses["geometry"] = self._geometry_loss(self.geometry, prediction, clean, noise_level.pos)
        return losses

    def _geometry_loss(self, geometry: LocalLoss, prediction: Prediction, clean: MolBatch, level: Tensor) -> Tensor:
        """Errors of pairs of which one atom at least carries noise, weighted as the coordinates of the noisier one."""
        with torch.autocast(clean.pos.device.type, enabled=False):
            errors = geometry.errors(prediction, clean) * self.pos.weight(_noisier(level))
        counted = geometry.pairs(clean) & (_noisier(level) > 0)
        return (errors * counted).sum() / counted.sum().clamp(min=1)

    def counts(self, clean: MolBatch, noise_level: NoiseLevel) -> dict[str, Tensor]:
        """Over how many entries `loss` averages each field; weighted by them, losses of parts of a batch add up."""
        mask, pairs = clean.node_mask, clean.pair_mask
        counts = {
            "pos": (mask & (noise_level.pos > 0)).sum(),
            "hydrogen": (_drawn_hydrogens(clean, noise_level) & (noise_level.hydrogen > 0)[..., None]).sum(),
            "atom_type": (mask & (noise_level.atom > 0)).sum(),
            "bond": (pairs & (noise_level.bond > 0)).sum(),
        }
        if self.geometry is not None:
            counts["geometry"] = (self.geometry.pairs(clean) & (_noisier(noise_level.pos) > 0)).sum()
        return counts

    def step(
        self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> MolBatch:
        """From level t to level s <= t; known entries (t = 0) stay as they are."""
        mask = noisy.node_mask
        pos_noise = hydrogen_noise = None
        if self.pos.churn or self.hydrogen.churn:
            known = (t.pos == 0) & mask
            pos_noise = draws.normal(mask, 3)
            pos_noise = self._around_origin(pos_noise, mask, known)
            hydrogen_noise = draws.normal(mask, MAX_HYDROGENS, 3)
        atom_type, bond = self.step_classes(noisy, prediction, t, s, draws)
        if self.atom_type.refresh or self.bond.refresh:
            atoms, pairs = draws.uniform(mask)
            atom_type = self.atom_type.refreshed(atom_type, prediction.atom_type, s.atom, atoms)
            bond = self.bond.refreshed(bond, prediction.bond, s.bond, pairs)
        return noisy.replace(
            pos=self.pos.step(noisy.pos, prediction.pos, t.pos, s.pos, pos_noise) * mask[..., None],
            hydrogen=self.hydrogen.step(noisy.hydrogen, prediction.hydrogen, t.hydrogen, s.hydrogen, hydrogen_noise)
            * mask[..., None, None],
            atom_type=atom_type * mask,
            bond=bond * noisy.pair_mask,
        )

    def step_classes(
        self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Classes of the atoms [B, N] and bonds [B, N, N] after a step from level t to s, padding included."""
        atoms, pairs = draws.uniform(noisy.node_mask)
        return (
            self.atom_type.step(noisy.atom_type, prediction.atom_type, t.atom, s.atom, atoms),
            self.bond.step(noisy.bond, prediction.bond, t.bond, s.bond, pairs),
        )

    def bound(
        self, prediction: Prediction, clean: MolBatch, noisy: MolBatch, t: NoiseLevel, s: NoiseLevel
    ) -> dict[str, Tensor]:
        """KL divergence of the step from t to s for every field, per molecule [B] (nats)."""
        mask = clean.node_mask
        atom = self.atom_type.bound(prediction.atom_type, clean.atom_type, noisy.atom_type, t.atom, s.atom)
        bond = self.bond.bound(prediction.bond, clean.bond, noisy.bond, t.bond, s.bond)
        upper = clean.pair_mask.triu(1)
        return {
            "pos": self.pos.bound(prediction.pos, clean.pos, t.pos, s.pos, mask),
            "hydrogen": self.hydrogen.bound(
                prediction.hydrogen, clean.hydrogen, t.hydrogen, s.hydrogen, filled_slots(clean)
            ),
            "atom_type": (atom * mask).sum(1),
            "bond": (bond * upper).sum((1, 2)),
        }


def filled_slots(clean: MolBatch) -> Tensor:
    """[B, N, 4] True where a slot holds a hydrogen."""
    return clean.hydrogen.square().sum(-1) > 0


def ordered_slots(clean: MolBatch, known: Tensor, draws: NoiseSource) -> MolBatch:
    """The hydrogens (Å) of every atom in its first slots, those nearest the middle of the heavy atoms first.

    The order means nothing. But were it at random, each slot would be a choice among all hydrogens of its atom until
    late, which takes many steps to make. Hydrogens of `known` atoms [B, N] come in any order, and so in a random one.
    """
    middle = masked_mean(clean.pos, clean.node_mask)[:, :, None]
    away = (clean.pos[:, :, None] + clean.hydrogen - middle).square().sum(-1)
    key = torch.where(known[..., None], draws.normal(clean.node_mask, MAX_HYDROGENS).to(away), away)
    order = key.masked_fill(~filled_slots(clean), torch.inf).argsort(-1)[..., None].expand_as(clean.hydrogen)
    return clean.replace(hydrogen=clean.hydrogen.gather(2, order))


def _drawn_hydrogens(clean: MolBatch, noise_level: NoiseLevel) -> Tensor:
    """[B, N, 4] True where a hydrogen's place is learnt: on atoms of known class."""
    return filled_slots(clean) & (clean.node_mask & (noise_level.atom == 0))[..., None]


def _noisier(level: Tensor) -> Tensor:
    """The higher of the levels [B, N] of two atoms, [B, N, N]."""
    return torch.maximum(level[:, :, None], level[:, None])


@dataclass(frozen=True)
class JointProcessConfig:
    """Builds a `JointProcess` once the data's class frequencies are known.

    Args:
        pos: process of the coordinates.
        hydrogen: process of the hydrogen offsets.
        atom_prior: frequencies [K] -> prior [K + 1] of the atom classes.
        bond_prior: frequencies [4] -> prior [5] of the bonds.
        corrector: corrector noise η of the class processes.
        geometry: a further loss in training; None = none.
    """

    pos: GaussianProcess = field(default_factory=GaussianProcess)
    hydrogen: GaussianProcess = field(default_factory=GaussianProcess)
    atom_prior: Callable[[Tensor], Tensor] = marginal_prior
    bond_prior: Callable[[Tensor], Tensor] = marginal_prior
    corrector: float = 0.0
    geometry: LocalLoss | None = None

    def build(self, atom_frequencies: Tensor, bond_frequencies: Tensor) -> JointProcess:
        """The process for atom class frequencies [K] and bond frequencies [4] of the data."""
        return JointProcess(
            pos=self.pos,
            hydrogen=self.hydrogen,
            atom_type=CategoricalProcess(self.atom_prior(atom_frequencies), self.pos.schedule, self.corrector),
            bond=CategoricalProcess(self.bond_prior(bond_frequencies), self.pos.schedule, self.corrector),
            geometry=self.geometry,
        )
