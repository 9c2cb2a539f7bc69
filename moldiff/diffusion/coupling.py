"""Rigid motions and the matching of noise to atoms."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moldiff.molecules.vocabulary import MAX_HYDROGENS

_FORBIDDEN = 1e6
"""Added to a squared distance that must not be chosen; far above any distance between unit-variance points."""

_SLOT_ORDERS = torch.tensor(list(permutations(range(MAX_HYDROGENS))))


@dataclass(frozen=True, eq=False)
class Coupling:
    """How noise may be matched to molecules of which something is known.

    What is known tells atoms and directions apart, and noise that followed it would no longer be independent of it, as
    it is in sampling. So noise is exchanged only among atoms that nothing known distinguishes, and turned only where no
    coordinate is known.

    Attributes:
        group: number of the group of every atom [B, N]; noise is exchanged within a group.
        rotate: [B] True = noise is turned towards the molecule.
    """

    group: Tensor
    rotate: Tensor

    @classmethod
    def of(cls, pos: Tensor, atom: Tensor, bond: Tensor, atom_type: Tensor, node_mask: Tensor) -> Coupling:
        """How the noise of partly noised molecules may be matched, as it was in training.

        Atoms whose coordinates are known or nothing but noise keep the noise that they have.

        Args:
            pos: noise levels of the coordinates [B, N].
            atom: of the classes [B, N].
            bond: of the bonds [B, N, N].
            atom_type: classes [B, N].
            node_mask: [B, N].
        """
        each = torch.arange(node_mask.shape[1], device=node_mask.device).expand(node_mask.shape)
        partly = node_mask & (pos > 0) & (pos < 1)
        pairs = node_mask[:, :, None] & node_mask[:, None] & (each[:, :, None] != each[:, None])
        bonds_known = ((bond == 0) & pairs & partly[:, :, None]).flatten(1).any(1)
        group = torch.where(partly & ~bonds_known[:, None], torch.where(atom == 0, -2 - atom_type, -1), each)
        return cls(group, ~(node_mask & ~partly).any(1))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, 1, D] of values [B, N, D] over the True entries of mask [B, N]; 0 where there are none."""
    weight = mask[..., None].to(values.dtype)
    return (values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def center(pos: Tensor, node_mask: Tensor, reference: Tensor | None = None) -> Tensor:
    """Move the mean of the atoms in `reference` [B, N] (default: all) to the origin; padding stays 0.

    A molecule without any atom in `reference` is centred on all its atoms.
    """
    counted = node_mask
    if reference is not None:
        counted = torch.where(reference.any(1, keepdim=True), reference, node_mask)
    return (pos - masked_mean(pos, counted)) * node_mask[..., None]


def kabsch(moving: Tensor, fixed: Tensor) -> Tensor:
    """Proper rotations [B, 3, 3] R that minimise |moving @ R - fixed|² for centred points [B, N, 3].

    Source: Kabsch (1976), doi:10.1107/S0567739476001873.
    """
    u, _, vt = torch.linalg.svd(moving.transpose(1, 2) @ fixed)
    sign = torch.sign(torch.linalg.det(u @ vt))
    u = torch.cat([u[..., :2], u[..., 2:] * sign[:, None, None]], dim=-1)
    rotation: Tensor = u @ vt
    return rotation


def align_noise(noise: Tensor, pos: Tensor, node_mask: Tensor, coupling: Coupling | None = None) -> Tensor:
    """Noise [B, N, 3] permuted onto the atoms of pos [B, N, 3] and rotated towards them.

    The permutation is the linear assignment of least squared distance, the rotation Kabsch's; both leave the
    distribution of isotropic noise unchanged and straighten the paths from noise to data (equivariant optimal
    transport: Klein et al. 2023, arXiv:2306.15030; Song et al. 2023, arXiv:2312.07168). Noise of a molecule whose
    coordinates are not finite stays as it is.
    """
    pos = torch.where(torch.isfinite(pos.square().sum((1, 2), keepdim=True)), pos, noise.to(pos))
    distances = torch.cdist(pos.float(), noise.float()).square().cpu().numpy()
    if coupling is not None:
        group = coupling.group.cpu().numpy()
        distances += _FORBIDDEN * (group[:, :, None] != group[:, None, :])
    sizes = node_mask.sum(1).tolist()
    order = np.tile(np.arange(pos.shape[1]), (pos.shape[0], 1))
    for row, size in enumerate(sizes):
        order[row, :size] = linear_sum_assignment(distances[row, :size, :size])[1]
    index = torch.from_numpy(order).to(noise.device)[..., None].expand_as(noise)
    noise = noise.gather(1, index)
    rotation = kabsch(noise.double(), pos.double()).to(noise.dtype)
    if coupling is not None:
        rotation = torch.where(coupling.rotate[:, None, None], rotation, torch.eye(3).to(rotation))
    return noise @ rotation


def match_hydrogen_slots(hydrogen: Tensor, noise: Tensor) -> Tensor:
    """Clean offsets [B, N, 4, 3] with their slots permuted to lie nearest the noise [B, N, 4, 3].

    The slots of an atom carry no order of their own, so each of the 24 orders is the same molecule.
    """
    orders = _SLOT_ORDERS.to(hydrogen.device)
    overlap = hydrogen @ noise.transpose(-1, -2)  # [B, N, data slot, noise slot]
    # |h_p - e|² over the permutations p differs only in the overlap term, so the largest overlap is nearest.
    total = overlap[:, :, orders, torch.arange(MAX_HYDROGENS, device=hydrogen.device)].sum(-1)
    best = orders[total.argmax(-1)]
    return hydrogen.gather(2, best[..., None].expand_as(hydrogen))
