"""Losses of the geometry around each atom, which say more of bond lengths and angles than coordinates alone do.

Pairs of atoms count that are bonded or have a bonded neighbour in common in the clean molecule, and on the diagonal
each atom with its own hydrogens. No motion of the estimate changes such a loss, nor does a reflection of both estimate
and molecule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, Prediction

_SOFTENING = 0.1
"""Added in quadrature to a length that is divided by, in the model's units: estimates from noise lie close together."""

_TINY = 1e-8
"""Added to a squared length, so that there is a gradient at zero."""

_LEAST_SINE = 0.2
"""Between the two directions of a frame; along a straight chain of atoms there is no frame."""


class LocalLoss(Protocol):
    """Squared errors of an estimate by pairs of atoms, in the model's units."""

    def pairs(self, clean: MolBatch) -> Tensor:
        """[B, N, N] True = the pair counts."""
        ...

    def errors(self, prediction: Prediction, clean: MolBatch) -> Tensor:
        """Squared errors [B, N, N], finite everywhere."""
        ...


@dataclass(frozen=True)
class Distances:
    """Distances of heavy atoms, and lengths of the bonds to hydrogens."""

    def pairs(self, clean: MolBatch) -> Tensor:
        """[B, N, N] True = the pair counts."""
        return _near(clean)

    def errors(self, prediction: Prediction, clean: MolBatch) -> Tensor:
        """Squared errors [B, N, N], finite everywhere."""
        between = _length(_vectors(prediction.pos)) - _length(_vectors(clean.pos))
        bonds = _length(prediction.hydrogen) - _length(clean.hydrogen)
        return between.square() + torch.diag_embed(bonds.square().sum(-1))


@dataclass(frozen=True)
class LocalFrames:
    """Positions of atoms and hydrogens as seen from the frames of their neighbours.

    The frame of an atom is made of the directions to the two heavy atoms that are nearest in the clean molecule (Jumper
    et al. 2021, doi:10.1038/s41586-021-03819-2, supplement, algorithms 21 and 28; here squared, and near atoms alone).
    """

    def pairs(self, clean: MolBatch) -> Tensor:
        """[B, N, N] True = the pair counts."""
        first, second = _axes(clean.pos, _nearest(clean))
        sine = _length(torch.linalg.cross(first, second)) / (_length(first) * _length(second))
        others = clean.node_mask.sum(1) > 2
        return _near(clean) & ((sine > _LEAST_SINE) & others[:, None])[:, :, None]

    def errors(self, prediction: Prediction, clean: MolBatch) -> Tensor:
        """Squared errors [B, N, N], finite everywhere."""
        nearest = _nearest(clean)
        seen, right = (
            torch.cat([_vectors(one.pos), one.hydrogen], 2) @ _frames(one.pos, nearest) for one in (prediction, clean)
        )
        errors = (seen - right).square().sum(-1)  # [B, N, N + 4]
        size = clean.max_atoms
        return errors[..., :size] + torch.diag_embed(errors[..., size:].sum(-1))


def _near(clean: MolBatch) -> Tensor:
    """[B, N, N] True = bonded, with a bonded neighbour in common, or the same atom."""
    step = ((clean.bond > 0) | torch.diag_embed(clean.node_mask)).float()
    return step @ step > 0


def _vectors(pos: Tensor) -> Tensor:
    """From each atom (axis 1) to each other (axis 2), [B, N, N, 3]."""
    return pos[:, None] - pos[:, :, None]


def _length(vectors: Tensor) -> Tensor:
    """[...] of vectors [..., 3], with a gradient at zero, too."""
    return (vectors.square().sum(-1) + _TINY).sqrt()


def _nearest(clean: MolBatch) -> Tensor:
    """The two heavy atoms nearest to each, [B, N, 2]; any where a molecule has fewer."""
    apart = torch.cdist(clean.pos, clean.pos).masked_fill(~clean.pair_mask, torch.inf)
    apart = torch.nn.functional.pad(apart, (0, max(0, 2 - clean.max_atoms)), value=torch.inf)
    return apart.topk(2, dim=-1, largest=False).indices.clamp(max=clean.max_atoms - 1)


def _axes(pos: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """From each atom to the two of `nearest` [B, N, 2]: two of [B, N, 3]."""
    first, second = (pos.gather(1, index[..., None].expand_as(pos)) - pos for index in nearest.unbind(-1))
    return first, second


def _frames(pos: Tensor, nearest: Tensor) -> Tensor:
    """Orthogonal axes [B, N, 3, 3] as columns, of unit length up to the softening."""
    first, second = _axes(pos, nearest)
    share = (second * first).sum(-1, keepdim=True) / (first.square().sum(-1, keepdim=True) + _TINY)
    first, second = _softly_normalised(first), _softly_normalised(second - share * first)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def _softly_normalised(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(-1, keepdim=True) + _SOFTENING**2).sqrt()
