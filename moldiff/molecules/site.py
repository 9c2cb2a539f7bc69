"""Where in a protein molecules are to lie: the free space of a pocket, and a frame that turns with the protein."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label
from scipy.spatial import cKDTree

from moldiff.errors import MoldiffError
from moldiff.molecules.receptor import Receptor

REACH = 9.0
"""Å from a named point to which a pocket's free space is followed."""

_NEAR = 8.0  # Å within which atoms count as around a point
_BURIED = 55  # so many around a point of a pocket at the least: a flat surface has about as many, the inside 110
_GAP = 1.3  # Å between the surface of an atom of the protein and the middle of one that touches it
_CROP = 22.0  # Å from the middle of a pocket within which atoms matter to what lies in it
_SMALLEST = 40.0  # Å³ of a pocket at the least
_STARTS, _STARTS_AT_ATOM = 3.0, 5.0  # Å from a named point, and from an atom, within which free space begins
_VOLUME_OF_ATOM = 6.5  # Å³ of a pocket to each heavy atom of a ligand; the median over the eight of docs/pocket.md


@dataclass(frozen=True, eq=False)
class Site:
    """A pocket."""

    receptor: Receptor  # the atoms around it
    center: np.ndarray  # [3] (Å), where molecules begin
    axes: np.ndarray  # rotation [3, 3] whose columns turn with the protein
    volume: float  # of the free space (Å³)

    @property
    def num_atoms(self) -> int:
        """Heavy atoms of a molecule that the pocket holds, roughly."""
        return round(self.volume / _VOLUME_OF_ATOM)


def find_site(
    receptor: Receptor, name: str, points: np.ndarray, reach: float = REACH, *, are_atoms: bool = False
) -> Site:
    """The pocket whose free space begins near named points [P, 3] (Å) and goes no farther than `reach` from them.

    `name` is the option that named them. The middle is theirs, or, where they are atoms of the protein itself, that of
    the free space. MoldiffError where the protein is far away, or leaves no such space.
    """
    center, where = points.mean(0), ", ".join(f"{value:.1f}" for value in points.mean(0))
    if not len(near := receptor.within(center[None], _NEAR)):
        low, high = receptor.pos.min(0), receptor.pos.max(0)
        spans = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
        raise MoldiffError(f"{name}: nothing of {receptor.name} within {_NEAR:g} Å of {where}; it spans {spans} Å")
    axes = _axes(receptor.pos[receptor.within(center[None], 1.5 * _NEAR)] - center)
    extent = float(np.linalg.norm(points - center, axis=1).max()) + reach
    steps = np.arange(-np.floor(extent), np.floor(extent) + 1)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    places = center + grid.reshape(-1, 3) @ axes.T
    tree = cKDTree(receptor.pos)
    inside = cKDTree(points).query(places, distance_upper_bound=reach)[0] < np.inf
    inside[inside] = tree.query_ball_point(places[inside], _NEAR, return_length=True) >= _BURIED
    inside[inside] = [
        bool((np.linalg.norm(receptor.pos[rows] - place, axis=1) - receptor.radius[rows] >= _GAP).all())
        for place, rows in zip(places[inside], tree.query_ball_point(places[inside], 4.0), strict=True)
    ]
    regions = label(inside.reshape(grid.shape[:3]))[0].ravel()
    starts = regions[inside & (cKDTree(points).query(places)[0] <= (_STARTS_AT_ATOM if are_atoms else _STARTS))]
    region = places[regions == np.bincount(starts).argmax()] if len(starts) else places[:0]
    if len(region) < _SMALLEST:
        why = f"in the solvent, {len(near)} atoms within {_NEAR:g} Å" if len(near) < _BURIED else "inside the protein"
        raise MoldiffError(f"{name}: {where} of {receptor.name} lies {why}; expected a place in a pocket")
    middle = region.mean(0) if are_atoms else center
    return Site(receptor.rows(receptor.within(middle[None], _CROP)), middle, axes, float(len(region)))


def _axes(pos: np.ndarray) -> np.ndarray:
    """A rotation whose columns are the principal axes of points [M, 3], each towards where they reach farthest."""
    axes = np.linalg.eigh(np.cov(pos.T))[1]
    skew = ((pos @ axes) ** 3).sum(0)
    axes = axes * np.where(skew < 0, -1.0, 1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return axes
