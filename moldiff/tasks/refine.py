"""The best pose around the one that was drawn: a molecule moved, turned and twisted about its bonds in its pocket.

A search as Vina's own (Trott and Olson 2010): poses jump, go down the energy, and stay with the odds of Metropolis. The
energy is Vina's of molecule and protein, read from grids, with what MMFF94s says of each bond that turns, so that poses
are not strained. Then bonds and angles relax by MMFF94s where the molecule lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from moldiff.diffusion.pocket import CUTOFF, AtomKinds, PocketEnergy
from moldiff.diffusion.sampler import PartialState
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.receptor import Site

_REACH, _SPACING = 12.0, 0.375  # Å from the middle of a pocket to the sides of its grid, and between points
_BURIED = 1.7  # Å from an atom of the protein within which a point has the highest energy there is
_HIGHEST = 10.0  # kcal/mol that energies above 0 tend to
_OUTSIDE = 5.0  # kcal/mol/Å of an atom beside the grid
_BINS = 50  # of a distance to each Å
_WALKERS, _STEPS, _LAST_STEPS = 32, 25, 60  # poses that are followed, steps down after each jump, and in the end
_RATES = 0.25, 0.12, 0.25  # Å, radians and radians of the first of these steps
_JUMPS = 1.5, 0.6  # Å and radians that a jump moves and turns a pose, roughly
_TEMPERATURE = 1.2  # kcal/mol
_TWIST, _STEEPEST_TWIST = 0.05, 8.0  # what counts of the energy of a turned bond, which is so many kcal/mol at most
_INNER = 0.9  # of the sum of two radii below which atoms of the molecule itself repel each other
_ANGLES = 24  # at which it is known
_FINALISTS = 4  # poses that are relaxed, of which the best is taken
_STRAIN = 0.02  # what counts of MMFF94s's energy in this choice
_ROUNDED = 0.1  # Å to which coordinates are rounded before the search
_LEASH, _RELAXATION = 0.25, 100  # Å that a heavy atom may move then, and steps
_DISTINCT = 0.7  # Å (RMSD) between such poses at the least


@dataclass(frozen=True, eq=False)
class PocketGrid:
    """Energy of an atom at the points of a grid in the pocket's axes, for each kind of atoms."""

    site: Site
    energy: PocketEnergy  # the origin is the pocket's middle

    def maps(self, kinds: AtomKinds) -> np.ndarray:
        """Those of the kinds of a molecule's atoms [n, G, G, G] (kcal/mol)."""
        keys = [tuple(row) for row in _rows(kinds).tolist()]
        for key in set(keys) - set(self._found):
            self._found[key] = self._of_kind(torch.tensor(key, dtype=torch.float64))
        return np.stack([self._found[key] for key in keys])

    @property
    def size(self) -> int:
        """Points of an edge."""
        return int(2 * _REACH / _SPACING) + 1

    @cached_property
    def _found(self) -> dict[tuple[float, ...], np.ndarray]:
        return {}

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, torch.Tensor, np.ndarray, np.ndarray]:
        """Free points and kinds of the receptor's atoms; of pairs of both the row there, and the kind and distance."""
        edge = (np.arange(self.size) - self.size // 2) * _SPACING
        points = np.stack(np.meshgrid(edge, edge, edge, indexing="ij"), -1).reshape(-1, 3)
        tree = cKDTree((self.energy.pos.numpy() @ self.site.axes).round(4))
        free = np.flatnonzero(tree.query(points, distance_upper_bound=_BURIED)[0] == np.inf)
        kinds, kind = torch.unique(_rows(self.energy.kinds), dim=0, return_inverse=True)
        rows, places = [], []
        for start in range(0, len(free), 8192):
            near = cKDTree(points[free[start : start + 8192]])
            found = near.sparse_distance_matrix(tree, CUTOFF - 0.51 / _BINS, output_type="ndarray")
            rows.append((found["i"] + start).astype(np.int32))
            places.append((kind.numpy()[found["j"]] * CUTOFF * _BINS + np.rint(found["v"] * _BINS)).astype(np.int32))
        return free, kinds, np.concatenate(rows), np.concatenate(places)

    def _of_kind(self, key: torch.Tensor) -> np.ndarray:
        free, kinds, rows, places = self._pairs
        away = torch.zeros(int(CUTOFF) * _BINS, 3, dtype=torch.float64)
        away[:, 0] = torch.arange(len(away)) / _BINS
        atoms = _kinds(key.expand(len(away), -1))
        one = [PocketEnergy(torch.zeros(1, 3, dtype=torch.float64), _kinds(row[None])) for row in kinds]
        table = torch.cat([each.pairs(atoms).energy(away) for each in one]).numpy()
        whole = np.full(self.size**3, np.inf)
        whole[free] = np.bincount(rows, weights=table[places], minlength=len(free))
        capped = _HIGHEST / (1 + _HIGHEST / np.maximum(whole, 1e-6))
        return np.where(whole > 0, capped, whole).reshape((self.size,) * 3).astype(np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {"site": self.site, "energy": self.energy}


def _rows(kinds: AtomKinds) -> torch.Tensor:
    return torch.cat([kinds.radius[:, None], kinds.hydrophobic[:, None], kinds.bonding], 1).double()


def _kinds(rows: torch.Tensor) -> AtomKinds:
    return AtomKinds(rows[:, 0], rows[:, 1], rows[:, 2:])


@dataclass(frozen=True, eq=False)
class Poses:
    """K poses of a molecule: it is twisted by the angles, turned and then moved."""

    rotation: np.ndarray  # [K, 3, 3]
    shift: np.ndarray  # of its middle [K, 3] (Å)
    angles: np.ndarray  # of its bonds [K, T], 0 as drawn

    def rows(self, chosen: np.ndarray) -> Poses:
        """The poses at `chosen`."""
        return Poses(self.rotation[chosen], self.shift[chosen], self.angles[chosen])

    def where(self, taken: np.ndarray, other: Poses) -> Poses:
        """These where `taken` [K], the others elsewhere."""
        rotation = np.where(taken[:, None, None], self.rotation, other.rotation)
        both = ((self.shift, other.shift), (self.angles, other.angles))
        return Poses(rotation, *(np.where(taken[:, None], one, two) for one, two in both))


class Flexible:
    """A molecule that can be moved, turned and twisted about its single bonds; atoms `kept` stay where they are."""

    def __init__(self, mol: Chem.Mol, pos: np.ndarray, kept: np.ndarray) -> None:
        """A sanitised molecule whose heavy atoms [n] are first, at pos [a, 3] (Å, the pocket's axes)."""
        self.num_heavy, self.is_free, self._mol = mol.GetNumHeavyAtoms(), not kept.any(), mol
        pairs, sides = [], []
        for bond in mol.GetBonds():
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            if max(ends) < self.num_heavy and bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing():
                side = _behind(mol, *ends)
                if min(side[: self.num_heavy].sum(), (~side[: self.num_heavy]).sum()) > 1:
                    pairs.append(ends)
                    sides.append(side)
        side = np.array(sides, dtype=bool).reshape(len(pairs), mol.GetNumAtoms())
        moved = np.where(side, side.sum(1, keepdims=True), (~side).sum(1, keepdims=True)).sum(0)[: self.num_heavy]
        root = int(moved.argmin()) if self.is_free else int(kept.argmax())
        side = side ^ side[:, root, None]
        order = [k for k in side.sum(1).argsort() if not side[k, : self.num_heavy][kept].any()]
        self.side = side[order]
        self.ends = np.array([pairs[k] if not side[k, pairs[k][0]] else pairs[k][::-1] for k in order], dtype=int)
        self.ends = self.ends.reshape(-1, 2)
        self.middle = pos[: self.num_heavy].mean(0)
        self.pos = pos - self.middle
        self.axes = self.pos[self.ends[:, 1]] - self.pos[self.ends[:, 0]]
        self.axes /= np.linalg.norm(self.axes, axis=1, keepdims=True)
        separated = Chem.GetDistanceMatrix(mol)[: self.num_heavy, : self.num_heavy] > 3
        heavy = self.side[:, : self.num_heavy]
        self.inner = separated & (heavy[:, :, None] ^ heavy[:, None]).any(0)

    def placed(self, poses: Poses, *, hydrogens: bool = False) -> np.ndarray:
        """Coordinates [K, n or a, 3] (Å)."""
        pos = np.repeat((self.pos if hydrogens else self.pos[: self.num_heavy])[None], len(poses.shift), 0)
        turns = _rotations(self.axes * poses.angles[..., None])
        for place, (_, end) in enumerate(self.ends):
            rows, origin = np.flatnonzero(self.side[place, : pos.shape[1]]), self.pos[end]
            pos[:, rows] = (pos[:, rows] - origin) @ turns[:, place].transpose(0, 2, 1) + origin
        placed: np.ndarray = pos @ poses.rotation.transpose(0, 2, 1) + (poses.shift + self.middle)[:, None]
        return placed

    def profiles(self, properties: Any) -> np.ndarray:
        """Energy of each bond at `_ANGLES` angles from the drawn one, the rest as drawn [T, _ANGLES] (kcal/mol)."""
        properties.SetMMFFEleTerm(False)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(self._mol, properties)
        count, found = len(self.ends), np.zeros((len(self.ends), _ANGLES))
        angles = np.zeros((count, _ANGLES, count))
        for place in range(count):
            angles[place, :, place] = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
            eye = np.repeat(np.eye(3)[None], _ANGLES, 0)
            for row, pos in enumerate(self.placed(Poses(eye, np.zeros((_ANGLES, 3)), angles[place]), hydrogens=True)):
                found[place, row] = field.CalcEnergy(pos.ravel().tolist())
        properties.SetMMFFEleTerm(True)
        return np.minimum(found - found.min(1, keepdims=True), _STEEPEST_TWIST) if count else found


def _behind(mol: Chem.Mol, start: int, end: int) -> np.ndarray:
    """Which atoms [a] hang on `end`, seen from `start`."""
    found, waiting = {start, end}, [end]
    while waiting:
        near = {one.GetIdx() for one in mol.GetAtomWithIdx(waiting.pop()).GetNeighbors()} - found
        found |= near
        waiting += near
    return np.isin(np.arange(mol.GetNumAtoms()), list(found - {start}))


def _rotations(vectors: np.ndarray) -> np.ndarray:
    """Matrices [..., 3, 3] that turn about vectors [..., 3] by their lengths (radians)."""
    flat = vectors.reshape(-1, 3)
    return (
        Rotation.from_rotvec(flat).as_matrix().reshape(*vectors.shape, 3)
        if len(flat)
        else np.zeros((*vectors.shape, 3))
    )


class Search:
    """Looks for poses of low energy of one molecule."""

    def __init__(self, flexible: Flexible, maps: np.ndarray, radius: np.ndarray, profiles: np.ndarray) -> None:
        self._flexible, self._maps, self._edge = flexible, maps.reshape(-1), maps.shape[1]
        self._offset = np.arange(len(radius)) * maps[0].size
        contact = radius[:, None] + radius
        self._contact = np.where(flexible.inner, _INNER * contact, 0.0)
        self._profiles = _TWIST * profiles
        self._side = flexible.side[:, : flexible.num_heavy].astype(float)

    def energy(self, poses: Poses) -> tuple[np.ndarray, np.ndarray]:
        """Energies [K] (kcal/mol), and their slopes [K, 6 + T] by shifts (Å), turns and angles (radians)."""
        pos = self._flexible.placed(poses)
        energy, slope = self._from_maps(pos)
        offset = pos[:, :, None] - pos[:, None]
        distance = np.sqrt(np.einsum("kijx,kijx->kij", offset, offset) + 1e-6)
        overlap = np.maximum(self._contact - distance, 0)
        energy = energy + 0.42 * np.einsum("kij,kij->k", overlap, overlap)
        weight = -1.68 * overlap / distance
        slope = slope + weight.sum(2)[..., None] * pos - weight @ pos
        torque = np.cross(pos, slope)
        start, end = (pos[:, self._flexible.ends[:, k]] for k in (0, 1))
        about = self._side @ torque - np.cross(end, self._side @ slope)
        axes = (end - start) / np.linalg.norm(end - start, axis=-1, keepdims=True)
        force, middle = slope.sum(1), poses.shift + self._flexible.middle
        twist, twisting = self._twisted(poses.angles)
        turn = torque.sum(1) - np.cross(middle, force)
        slopes = [force, turn, np.einsum("ktx,ktx->kt", about, axes) + twisting]
        return energy + twist, np.concatenate(slopes, 1)

    def _from_maps(self, pos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies [K] and slopes [K, n, 3], linear between points of the grid."""
        where = (pos + _REACH) / _SPACING
        inside = np.clip(where, 0, self._edge - 1.001)
        beside = where - inside
        low = inside.astype(np.int64)
        x, y, z = np.moveaxis(inside - low, -1, 0)
        first = (low[..., 0] * self._edge + low[..., 1]) * self._edge + low[..., 2] + self._offset
        steps = [(i * self._edge + j) * self._edge + k for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        corner = np.moveaxis(self._maps[first[..., None] + steps], -1, 0).reshape(2, 2, 2, *first.shape)
        along_z = corner[:, :, 0] * (1 - z) + corner[:, :, 1] * z
        along_y = along_z[:, 0] * (1 - y) + along_z[:, 1] * y
        energy = along_y[0] * (1 - x) + along_y[1] * x
        in_y = along_z[:, 1] - along_z[:, 0]
        in_z = corner[:, :, 1] - corner[:, :, 0]
        in_z = in_z[:, 0] * (1 - y) + in_z[:, 1] * y
        slopes = along_y[1] - along_y[0], in_y[0] * (1 - x) + in_y[1] * x, in_z[0] * (1 - x) + in_z[1] * x
        slope = np.stack(slopes, -1) / _SPACING + _OUTSIDE * np.sign(beside)
        return energy.sum(1) + _OUTSIDE * _SPACING * np.abs(beside).sum((1, 2)), slope

    def _twisted(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies [K] and slopes [K, T] of turned bonds, linear between angles."""
        where = angles * _ANGLES / (2 * np.pi)
        low = np.floor(where).astype(int)
        column = np.arange(angles.shape[1])
        first, second = (self._profiles[column, (low + k) % _ANGLES] for k in (0, 1))
        energy = first + (where - low) * (second - first)
        return energy.sum(1), (second - first) * _ANGLES / (2 * np.pi)

    def descended(
        self, poses: Poses, first: float = 1.0, last: float = 0.1, steps: int = _STEPS
    ) -> tuple[Poses, np.ndarray]:
        """Poses some of Adam's steps down, from a `first` to a `last` share of `_RATES`, and their energies."""
        rates = np.repeat(_RATES, (3, 3, poses.angles.shape[1]))
        if not self._flexible.is_free:
            rates[:6] = 0
        mean, square = np.zeros((2, *poses.shift.shape[:1], len(rates)))
        best = poses, np.full(len(poses.shift), np.inf)
        for step in range(steps + 1):
            energy, slope = self.energy(poses)
            better = energy < best[1]
            best = poses.where(better, best[0]), np.where(better, energy, best[1])
            mean, square = 0.7 * mean + 0.3 * slope, 0.9 * square + 0.1 * slope**2
            size = mean / (1 - 0.7 ** (step + 1)) / np.sqrt(square / (1 - 0.9 ** (step + 1)) + 1e-4)
            move = -rates * first * (last / first) ** (step / steps) * np.clip(size, -2, 2)
            rotation = _rotations(move[:, 3:6]) @ poses.rotation
            poses = Poses(rotation, poses.shift + move[:, :3], poses.angles + move[:, 6:])
        return best

    def jumped(self, poses: Poses, rng: np.random.Generator) -> Poses:
        """Each pose with one bond at a random angle, or moved, or turned."""
        count, bonds = poses.angles.shape
        kind = np.asarray(rng.random((count, 1))) * self._flexible.is_free
        turn, move = rng.normal(size=(count, 3)), rng.normal(size=(count, 3))
        angle, bond = rng.uniform(0, 2 * np.pi, (count,)), rng.integers(0, max(1, bonds), count)
        share = bonds / (bonds + 2)
        angles = poses.angles.copy()
        if bonds:
            twists = np.flatnonzero(kind[:, 0] <= share)
            angles[twists, bond[twists]] = angle[twists]
        far = _JUMPS[1] * (1 + 4 * (rng.random((count, 1)) < 0.25))
        rotation = _rotations(turn * far * (kind > (1 + share) / 2)) @ poses.rotation
        shift = poses.shift + move * _JUMPS[0] * ((kind > share) & (kind <= (1 + share) / 2))
        return Poses(rotation, shift, angles)

    def run(self, rounds: int, seed: int) -> Poses:
        """The walkers' best poses, the lowest first; the first of them began as drawn."""
        rng, bonds = np.random.default_rng(seed), len(self._flexible.ends)
        eye = np.repeat(np.eye(3)[None], _WALKERS, 0)
        poses = Poses(eye, np.zeros((_WALKERS, 3)), np.zeros((_WALKERS, bonds)))
        if self._flexible.is_free:
            poses.rotation[_WALKERS // 2 :] = Rotation.random(_WALKERS - _WALKERS // 2, rng).as_matrix()
        poses, energy = self.descended(poses.where(np.arange(_WALKERS) < 1, self.jumped(poses, rng)))
        best = poses, energy
        for number in range(rounds):
            if number == rounds // 2:  # from here on only the better half goes on, twice
                order = np.tile(best[1].argsort()[: _WALKERS // 2], 2)
                best = best[0].rows(order), best[1][order]
                poses, energy = best
            tried, found = self.descended(self.jumped(poses, rng))
            taken = rng.random(_WALKERS) < np.exp(np.minimum(0, (energy - found) / _TEMPERATURE))
            poses, energy = tried.where(taken, poses), np.where(taken, found, energy)
            better = energy < best[1]
            best = poses.where(better, best[0]), np.where(better, energy, best[1])
        return best[0].rows(best[1].argsort())


def kept_atoms(start: PartialState, molecule: Molecule) -> np.ndarray:
    """Indices of the atoms, hydrogens behind the heavy ones, whose coordinates its task gave: they stay."""
    size = molecule.num_heavy_atoms
    heavy, with_hydrogens = (level[0, :size].numpy() == 0 for level in (start.level.pos, start.level.hydrogen))
    return np.flatnonzero(np.concatenate([heavy, np.repeat(heavy & with_hydrogens, molecule.num_hydrogens)]))


def refined(
    mol: Chem.Mol, grid: PocketGrid, types: Sequence[np.ndarray], kept: np.ndarray, rounds: int, seed: int
) -> np.ndarray:
    """Coordinates [a, 3] (Å) of a better pose of a sanitised molecule, heavy atoms first, those of `kept` [a] as given.

    `types` are those of `vina_types`; `rounds` are jumps of each walker.
    """
    site, properties = grid.site, rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
    drawn: np.ndarray = mol.GetConformer().GetPositions()
    if properties is None:
        return drawn
    kinds, count = AtomKinds.of_flags(*types), mol.GetNumHeavyAtoms()
    # What follows from a pose is chance; rounded ones are the same in any batch, and a force field mends them.
    given = (drawn - site.center) @ site.axes
    rounded = (given / _ROUNDED).round() * _ROUNDED
    pos, _ = _relaxed(mol, properties, np.where(kept[:, None], given, rounded), kept)
    flexible = Flexible(mol, pos, kept[:count])
    search = Search(flexible, grid.maps(kinds), types[0], flexible.profiles(properties))
    poses = search.run(rounds, seed)
    places, chosen = flexible.placed(poses), list[int]()
    for row, place in enumerate(places):
        if all(np.square(place - places[other]).sum(1).mean() > _DISTINCT**2 for other in chosen):
            chosen.append(row)
    poses, _ = search.descended(poses.rows(np.array(chosen[:_FINALISTS])), 0.1, 0.001, _LAST_STEPS)
    pairs, best, lowest = grid.energy.pairs(kinds), drawn, np.inf
    for placed in flexible.placed(poses, hydrogens=True):
        relaxed, strain = _relaxed(mol, properties, np.where(kept[:, None], given, placed), kept)
        placed = np.where(kept[:, None], drawn, relaxed @ site.axes.T + site.center)
        energy = float(pairs.energy(torch.from_numpy(placed[:count] - site.center)).sum()) + _STRAIN * strain
        if energy < lowest:
            best, lowest = placed, energy
    return best


def _relaxed(mol: Chem.Mol, properties: Any, pos: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates [a, 3] (Å) some steps down MMFF94s, heavy atoms where they lie, and the energy (kcal/mol)."""
    mol = Chem.Mol(mol)
    mol.GetConformer().SetPositions(pos)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    field.Initialize()
    for atom in range(mol.GetNumHeavyAtoms()):
        field.MMFFAddPositionConstraint(atom, _LEASH, 50.0)
    for atom in np.flatnonzero(kept).tolist():
        field.AddFixedPoint(atom)
    with suppress(RuntimeError):  # no way down
        field.Minimize(maxIts=_RELAXATION)
    found: np.ndarray = np.reshape(field.Positions(), (-1, 3))[: mol.GetNumAtoms()]
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    return found, float(field.CalcEnergy(found.ravel().tolist()))
