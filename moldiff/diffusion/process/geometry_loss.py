"""Losses of the geometry around each atom, which say more of bond lengths and angles than coordinates alone do.

Pairs of atoms count that are bonded or have a bonded neighbour in common, and each atom with its own hydrogens.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, Prediction, lengths, pair_vectors

# added in quadrature to a length that is divided by, in the model's units: estimates from noise lie close together
_SOFTENING = 0.1
_LEAST_SINE = 0.2  # between the two directions of a frame; along a straight chain of atoms there is no frame


class LocalLoss(Protocol):
    """Squared errors of an estimate by pairs of atoms, in the model's units."""

    def pairs(self, clean: MolBatch) -> Tensor:
        """[B, N, N] True = the pair counts."""

    def errors(self, prediction: Prediction, clean: MolBatch) -> Tensor:
        """Squared errors [B, N, N], finite everywhere."""


@dataclass(frozen=True)
class Distances:
    """Distances of heavy atoms, and lengths of the bonds to hydrogens."""

    def pairs(self, clean: MolBatch) -> Tensor:
        return _near(clean)

    def errors(self, prediction: Prediction, clean: MolBatch) -> Tensor:
        between = lengths(pair_vectors(prediction.pos)) - lengths(pair_vectors(clean.pos))
        bonds = lengths(prediction.hydrogen) - lengths(clean.hydrogen)
        return between.square() + torch.diag_embed(bonds.square().sum(-1))


@dataclass(frozen=True)
class LocalFrames:
    """Positions of atoms and hydrogens as seen from the frames of their neighbours.

    The frame of an atom is made of the directions to the two heavy atoms that are nearest in the clean molecule (Jumper
    et al. 2021, doi:10.1038/s41586-021-03819-2, supplement, algorithms 21 and 28; here squared, and near atoms alone).
    """

    def pairs(self, clean: MolBatch) -> Tensor:
        first, second = _axes(clean.pos, _nearest(clean))
        sine = lengths(torch.linalg.cross(first, second)) / (lengths(first) * lengths(second))
        others = clean.node_mask.sum(1) > 2
        return _near(clean) & ((sine > _LEAST_SINE) & others[:, None])[:, :, None]

    def errors(self, prediction: Prediction, clean: MolBatch) -> Tensor:
        nearest = _nearest(clean)
        seen, right = (
            torch.cat([pair_vectors(one.pos), one.hydrogen], 2) @ _frames(one.pos, nearest)
            for one in (prediction, clean)
        )
        errors = (seen - right).square().sum(-1)  # [B, N, N + 4]
        size = clean.max_atoms
        return errors[..., :size] + torch.diag_embed(errors[..., size:].sum(-1))


def _near(clean: MolBatch) -> Tensor:
    """[B, N, N] True = bonded, with a bonded neighbour in common, or the same atom."""
    step = ((clean.bond > 0) | torch.diag_embed(clean.node_mask)).float()
    return step @ step > 0


def _nearest(clean: MolBatch) -> Tensor:
    """The two heavy atoms nearest to each, [B, N, 2]; any where a molecule has fewer."""
    apart = torch.cdist(clean.pos, clean.pos).masked_fill(~clean.pair_mask, torch.inf)
    apart = torch.nn.functional.pad(apart, (0, max(0, 2 - clean.max_atoms)), value=torch.inf)
    return apart.topk(2, dim=-1, largest=False).indices.clamp(max=clean.max_atoms - 1)


def _axes(pos: Tensor, nearest: Tensor) -> tuple[Tensor, ...]:
    """From each atom to the two of `nearest` [B, N, 2]: two of [B, N, 3]."""
    return tuple(pos.gather(1, index[..., None].expand_as(pos)) - pos for index in nearest.unbind(-1))


def _frames(pos: Tensor, nearest: Tensor) -> Tensor:
    """Orthogonal axes [B, N, 3, 3] as columns, of unit length up to the softening."""
    first, second = _axes(pos, nearest)
    share = (second * first).sum(-1, keepdim=True) / lengths(first)[..., None].square()
    first, second = _softly_normalised(first), _softly_normalised(second - share * first)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def _softly_normalised(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(-1, keepdim=True) + _SOFTENING**2).sqrt()
