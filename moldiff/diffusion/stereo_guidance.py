"""Stereo guidance: coordinates of a known graph are drawn with the handedness that is asked for.

A reflection does not change what the network sees, and a graph says nothing of hands, so that each centre comes out
either way. Which way is decided early, where the estimate of a centre is still nearly flat. There its height over three
of its neighbours tells how likely either hand is, and the gradient of that with respect to the noisy coordinates, taken
through the network, leads to the hand that is wanted: classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233)
without a classifier. Sides of double bonds likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, center, take_rows
from moldiff.diffusion.model import MoleculeDiffusion

LOWEST_LEVEL = 0.25
"""Noise level down to which hands are guided; below it the network alone makes the geometry that goes with them."""

_SCALE = 100.0
"""How many times further than its law asks for guidance goes; there are few calls, and the estimate follows late."""

_FARTHEST = 8.0
"""How far it moves an estimate at most, in the model's units, over all atoms of a molecule."""

_HEIGHT = 0.5
"""Of a tetrahedral carbon over three of its neighbours (Å)."""

_SHARPNESS = 2.5
"""Log odds of a hand that an estimate of that height stands for."""

_SHORTEST = 0.3
"""Lengths (Å, or Å² of an area) below which an estimate is taken to have no direction yet."""

_PAIRS_AT_ONCE = 40_000
"""Pairs of atoms whose gradients are taken together; these need ten times the memory of an estimate alone."""


@dataclass(frozen=True, eq=False)
class StereoTargets:
    """What handedness molecules are to have; rows of -1 pad.

    Attributes:
        centres: [B, H, 4] a centre c and three of its neighbours, of which (a - c) · ((b - c) × (d - c)) is to be
            positive.
        double_bonds: [B, S, 4] chains of atoms, the double bond in the middle.
        same_side: [B, S] whether the ends of a chain are to lie on the same side of the bond.
    """

    centres: Tensor
    double_bonds: Tensor
    same_side: Tensor

    @classmethod
    def stack(cls, each: Sequence[StereoTargets | None]) -> StereoTargets | None:
        """Those of several molecules as one; None = of a molecule without any, or of all."""
        if all(one is None for one in each):
            return None
        no_chain = torch.full((1, 0, 4), -1)
        none = cls(no_chain, no_chain, no_chain[..., 0].bool())
        stacked = (
            pad_sequence([getattr(one or none, item.name)[0] for one in each], batch_first=True, padding_value=-1)
            for item in fields(cls)
        )
        return cls(*stacked)

    def to(self, device: torch.device | str) -> StereoTargets:
        """On another device."""
        return StereoTargets(*(value.to(device) for value in vars(self).values()))

    def guided(
        self, model: MoleculeDiffusion, noisy: MolBatch, level: NoiseLevel, previous: Prediction | None
    ) -> Prediction:
        """What `model.denoise` estimates, its coordinates moved towards these targets."""
        step, parts = max(1, _PAIRS_AT_ONCE // noisy.max_atoms**2), []
        for first in range(0, noisy.num_molecules, step):
            rows = slice(first, first + step)
            told = None if previous is None else take_rows(previous, rows)
            here, batch, at = take_rows(self, rows), take_rows(noisy, rows), take_rows(level, rows)
            parts.append(here._guided_together(model, batch, at, told))
        return Prediction(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))

    def _guided_together(
        self, model: MoleculeDiffusion, noisy: MolBatch, level: NoiseLevel, previous: Prediction | None
    ) -> Prediction:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            pos = noisy.pos.detach().clone().requires_grad_()
            prediction = model.denoise(noisy.replace(pos=pos), level, previous)
            odds = self.log_odds(prediction.pos * model.statistics.pos_scale)
            (gradient,) = torch.autograd.grad(odds.sum(), pos)
        schedule = model.process.pos.schedule
        alpha, sigma = schedule.alpha(level.pos)[..., None], schedule.sigma(level.pos)[..., None]
        shift = _SCALE * sigma.square() / alpha.clamp(min=0.05) * gradient
        length = shift.square().sum((1, 2), keepdim=True).sqrt()
        shift = center(shift * (_FARTHEST / length.clamp(min=_FARTHEST)), noisy.node_mask)
        prediction = prediction.detach()
        return replace(prediction, pos=prediction.pos + torch.where(level.pos[..., None] > 0, shift, 0.0))

    def log_odds(self, pos: Tensor) -> Tensor:
        """Log of how likely estimated coordinates [B, N, 3] (Å) are to turn out as is wanted, in all [B]."""
        heights = _heights(_at(pos, self.centres)) / _HEIGHT
        sides = _cosines(_at(pos, self.double_bonds)) * torch.where(self.same_side.bool(), 1.0, -1.0)
        counted = torch.cat([self.centres[..., 0], self.double_bonds[..., 0]], 1) >= 0
        odds = torch.nn.functional.logsigmoid(_SHARPNESS * torch.cat([heights, sides], 1))
        return (odds * counted).sum(1)


def _at(pos: Tensor, chains: Tensor) -> tuple[Tensor, ...]:
    """Coordinates of the four atoms of chains [B, K, 4], each [B, K, 3]."""
    rows = torch.arange(len(pos), device=pos.device)[:, None, None]
    return pos[rows, chains.clamp(min=0)].unbind(2)


def _direction(vector: Tensor) -> Tensor:
    """Of length 1, but for vectors so short that they have none."""
    length: Tensor = vector.norm(dim=-1, keepdim=True).clamp(min=_SHORTEST)
    return vector / length


def _heights(atoms: tuple[Tensor, ...]) -> Tensor:
    """Of centres over three neighbours [B, K] (Å), positive where these turn as is wanted."""
    centre, first, second, third = atoms
    normal = _direction(torch.linalg.cross(second - first, third - first))
    height: Tensor = ((first - centre) * normal).sum(-1)
    return height


def _cosines(atoms: tuple[Tensor, ...]) -> Tensor:
    """Of the ends of chains about the bonds in the middle [B, K], times their distances from it."""
    first, begin, end, last = atoms
    axis = _direction(end - begin)
    one, other = (bond - (bond * axis).sum(-1, keepdim=True) * axis for bond in (first - begin, last - end))
    product: Tensor = (one * other).sum(-1)
    return product
