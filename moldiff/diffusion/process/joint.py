"""The joint process of whole molecules: one process object per field, one loop over them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, NoiseLevel, NoiseSource, Prediction, center, masked_mean, pair_mask
from moldiff.diffusion.process.categorical import CategoricalProcess, marginal_prior
from moldiff.diffusion.process.gaussian import GaussianProcess
from moldiff.diffusion.process.geometry_loss import LocalLoss
from moldiff.molecules.vocabulary import MAX_HYDROGENS


@dataclass(frozen=True, eq=False)
class JointProcess:
    """Coordinates, hydrogen offsets, atom classes and bonds noised together, each by its own process: docs/method.md.

    Every atom (and pair) has its own noise level per field, so known parts simply have level 0. A molecule without
    known atoms lives in the subspace of zero mean; with known atoms, their mean is the origin.
    """

    pos: GaussianProcess
    hydrogen: GaussianProcess
    atom_type: CategoricalProcess
    bond: CategoricalProcess  # one draw per unordered pair
    geometry: LocalLoss | None = None  # a further loss in training, of what is around each atom; None = none

    def prior(self, node_mask: Tensor, draws: NoiseSource, known: Tensor | None = None) -> MolBatch:
        """Pure noise for the atoms of `node_mask` [B, N], of zero mean unless some have `known` positions [B, N]."""
        return self._noise(node_mask, draws, known)[0]

    def _noise(self, node_mask: Tensor, draws: NoiseSource, known: Tensor | None) -> tuple[MolBatch, Tensor, Tensor]:
        """Pure noise and, for atoms [B, N] and pairs [B, N, N], the uniform numbers it has left over."""
        pos = _around_origin(draws.normal(node_mask, 3), node_mask, known)
        hydrogen = draws.normal(node_mask, MAX_HYDROGENS, 3)
        atoms, pairs = draws.uniform(node_mask)
        atom_type = self.atom_type.draw_prior(atoms[..., 1]) * node_mask
        bond = self.bond.draw_prior(pairs[..., 1]) * pair_mask(node_mask)
        return MolBatch(pos, hydrogen, atom_type, bond, node_mask), atoms[..., 0], pairs[..., 0]

    def start(self, clean: MolBatch, level: NoiseLevel, draws: NoiseSource) -> MolBatch:
        """Clean molecules noised to the given levels, for sampling from there; at level 1 everywhere the prior."""
        known = (level.pos == 0) & clean.node_mask
        noise, atoms, pairs = self._noise(clean.node_mask, draws, known)
        return self._mix(clean, noise, level, atoms, pairs)

    def corrupt(self, clean: MolBatch, noise: MolBatch, level: NoiseLevel, draws: NoiseSource) -> MolBatch:
        """Clean molecules mixed with prior noise at the given levels."""
        atoms, pairs = draws.uniform(clean.node_mask)
        return self._mix(clean, noise, level, atoms[..., 0], pairs[..., 0])

    def _mix(self, clean: MolBatch, noise: MolBatch, level: NoiseLevel, atoms: Tensor, pairs: Tensor) -> MolBatch:
        return clean.replace(
            pos=self.pos.corrupt(clean.pos, noise.pos, level.pos),
            hydrogen=self.hydrogen.corrupt(clean.hydrogen, noise.hydrogen, level.hydrogen),
            atom_type=self.atom_type.corrupt(clean.atom_type, noise.atom_type, level.atom, atoms),
            bond=self.bond.corrupt(clean.bond, noise.bond, level.bond, pairs),
        )

    def loss(self, prediction: Prediction, clean: MolBatch, level: NoiseLevel) -> dict[str, Tensor]:
        """The loss of each field, a scalar each; known entries don't count."""
        counted = self._counted(clean, level)
        losses = {
            "pos": self.pos.loss(prediction.pos, clean.pos, level.pos, counted["pos"]),
            "hydrogen": self.hydrogen.loss(prediction.hydrogen, clean.hydrogen, level.hydrogen, counted["hydrogen"]),
            "atom_type": self.atom_type.loss(prediction.atom_type, clean.atom_type, counted["atom_type"]),
            "bond": self.bond.loss(prediction.bond, clean.bond, counted["bond"]),
        }
        if self.geometry is not None:  # weighted as the coordinates of the noisier atom
            with torch.autocast(clean.pos.device.type, enabled=False):
                errors = self.geometry.errors(prediction, clean) * self.pos.weight(_noisier(level.pos))
            losses["geometry"] = (errors * counted["geometry"]).sum() / counted["geometry"].sum().clamp(min=1)
        return losses

    def counts(self, clean: MolBatch, level: NoiseLevel) -> dict[str, Tensor]:
        """Over how many entries `loss` averages each field; weighted by them, losses of parts of a batch add up."""
        return {name: entries.sum() for name, entries in self._counted(clean, level).items()}

    def _counted(self, clean: MolBatch, level: NoiseLevel) -> dict[str, Tensor]:
        """True for the entries of each field that carry noise and are learnt; hydrogens on atoms of known class."""
        atoms, bonds = level.free_classes(clean.node_mask)
        hydrogens = clean.node_mask & (level.atom == 0) & (level.hydrogen > 0)
        counted = {
            "pos": clean.node_mask & (level.pos > 0),
            "hydrogen": filled_slots(clean) & hydrogens[..., None],
            "atom_type": atoms,
            "bond": bonds,
        }
        if self.geometry is not None:
            counted["geometry"] = self.geometry.pairs(clean) & (_noisier(level.pos) > 0)
        return counted

    def step(
        self, noisy: MolBatch, prediction: Prediction, t: NoiseLevel, s: NoiseLevel, draws: NoiseSource
    ) -> MolBatch:
        """From level t to level s <= t; known entries (t = 0) stay as they are."""
        mask, pos_noise, hydrogen_noise = noisy.node_mask, None, None
        if self.pos.churn or self.hydrogen.churn:
            pos_noise = _around_origin(draws.normal(mask, 3), mask, (t.pos == 0) & mask)
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
        mask, filled = clean.node_mask, filled_slots(clean)
        atom = self.atom_type.bound(prediction.atom_type, clean.atom_type, noisy.atom_type, t.atom, s.atom)
        bond = self.bond.bound(prediction.bond, clean.bond, noisy.bond, t.bond, s.bond)
        return {
            "pos": self.pos.bound(prediction.pos, clean.pos, t.pos, s.pos, mask),
            "hydrogen": self.hydrogen.bound(prediction.hydrogen, clean.hydrogen, t.hydrogen, s.hydrogen, filled),
            "atom_type": (atom * mask).sum(1),
            "bond": (bond * clean.pair_mask.triu(1)).sum((1, 2)),
        }


def _around_origin(noise: Tensor, node_mask: Tensor, known: Tensor | None) -> Tensor:
    """Zero mean where nothing is known; known atoms fix the origin themselves."""
    centred = center(noise, node_mask)
    return centred if known is None else torch.where(known.any(1)[:, None, None], noise, centred)


def filled_slots(clean: MolBatch) -> Tensor:
    """[B, N, 4] True where a slot holds a hydrogen."""
    return clean.hydrogen.square().sum(-1) > 0


def ordered_slots(clean: MolBatch, known: Tensor, draws: NoiseSource) -> MolBatch:
    """The hydrogens (Å) of every atom in its first slots, those nearest the middle of the heavy atoms first.

    At random, each slot would long be a choice among all hydrogens of its atom, which takes many steps to make. Those
    of `known` atoms [B, N] come in any order, and so in a random one.
    """
    middle = masked_mean(clean.pos, clean.node_mask)[:, :, None]
    away = (clean.pos[:, :, None] + clean.hydrogen - middle).square().sum(-1)
    key = torch.where(known[..., None], draws.normal(clean.node_mask, MAX_HYDROGENS).to(away), away)
    order = key.masked_fill(~filled_slots(clean), torch.inf).argsort(-1)[..., None].expand_as(clean.hydrogen)
    return clean.replace(hydrogen=clean.hydrogen.gather(2, order))


def _noisier(level: Tensor) -> Tensor:
    """The higher of the levels [B, N] of two atoms, [B, N, N]."""
    return torch.maximum(level[:, :, None], level[:, None])


@dataclass(frozen=True)
class JointProcessConfig:
    """Builds a `JointProcess` once the data's class frequencies are known."""

    pos: GaussianProcess = field(default_factory=GaussianProcess)
    hydrogen: GaussianProcess = field(default_factory=GaussianProcess)
    atom_prior: Callable[[Tensor], Tensor] = marginal_prior  # frequencies [K] -> prior [K + 1] of the atom classes
    bond_prior: Callable[[Tensor], Tensor] = marginal_prior  # frequencies [4] -> prior [5] of the bonds
    corrector: float = 0.0  # noise η of the class processes
    geometry: LocalLoss | None = None  # a further loss in training; None = none

    def build(self, atom_frequencies: Tensor, bond_frequencies: Tensor) -> JointProcess:
        """The process for atom class frequencies [K] and bond frequencies [4] of the data."""
        atom_type = CategoricalProcess(self.atom_prior(atom_frequencies), self.pos.schedule, self.corrector)
        bond = CategoricalProcess(self.bond_prior(bond_frequencies), self.pos.schedule, self.corrector)
        return JointProcess(self.pos, self.hydrogen, atom_type, bond, self.geometry)
