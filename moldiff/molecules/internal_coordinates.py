"""Angles and torsions of a bond graph as index arrays, and their values for coordinates; whole sets at once."""

from __future__ import annotations

import numpy as np

_STRAIGHT = 5.0  # degrees from 0 or 180 within which a bond angle leaves a torsion undefined


def directed(bonds: np.ndarray) -> np.ndarray:
    """Both directions (from, to) of undirected bonds (i, j) [m, 2], sorted by their start [2m, 2]."""
    both = np.concatenate([bonds, bonds[:, ::-1]])
    return both[np.argsort(both[:, 0], kind="stable")]


def angle_atoms(bonds: np.ndarray, num_atoms: int) -> np.ndarray:
    """Atoms (a, center, b) of all bond angles, each once [k, 3], for bonds (i, j) [m, 2].

    >>> angle_atoms(np.array([[0, 1], [1, 2]]), 3).tolist()
    [[0, 1, 2]]
    """
    edges = directed(bonds)
    first, second = _pairs(edges[:, 0], edges, num_atoms)
    once = edges[first, 1] < edges[second, 1]
    first, second = first[once], second[once]
    return np.stack([edges[first, 1], edges[first, 0], edges[second, 1]], axis=1)


def torsion_atoms(bonds: np.ndarray, num_atoms: int) -> np.ndarray:
    """Atoms (a, b, c, d) of all proper torsions, each once [k, 4], for bonds (i, j) [m, 2].

    >>> torsion_atoms(np.array([[0, 1], [1, 2], [2, 3]]), 4).tolist()
    [[0, 1, 2, 3]]
    """
    edges = directed(bonds)
    inner, outer = _pairs(bonds[:, 0], edges, num_atoms)  # bond b-c with every a at b
    a, b, c = edges[outer, 1], bonds[inner, 0], bonds[inner, 1]
    row, last = _pairs(c, edges, num_atoms)  # ... and every d at c
    atoms = np.stack([a[row], b[row], c[row], edges[last, 1]], axis=1)
    distinct = (atoms[:, 0] != atoms[:, 2]) & (atoms[:, 3] != atoms[:, 1]) & (atoms[:, 0] != atoms[:, 3])
    return np.asarray(atoms[distinct])


def _pairs(starts: np.ndarray, edges: np.ndarray, num_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `starts` [k] joined with all rows of the sorted `edges` that begin at the same atom."""
    begin = np.searchsorted(edges[:, 0], np.arange(num_atoms + 1))
    count = (begin[1:] - begin[:-1])[starts]
    row = np.repeat(np.arange(len(starts)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    return row, begin[starts[row]] + within


def lengths(pos: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """Distances (Å) of the pairs (i, j) [m, 2] in pos [a, 3]."""
    return np.asarray(np.linalg.norm(pos[bonds[:, 0]] - pos[bonds[:, 1]], axis=1))


def angles(pos: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Angles (degrees, 0 to 180) at the middle of the triples [k, 3].

    >>> pos = np.array([[1.0, 0, 0], [0, 0, 0], [0, 2, 0]])
    >>> angles(pos, np.array([[0, 1, 2]])).tolist()
    [90.0]
    """
    first, second = pos[atoms[:, 0]] - pos[atoms[:, 1]], pos[atoms[:, 2]] - pos[atoms[:, 1]]
    sine = np.linalg.norm(np.cross(first, second), axis=1)
    return np.asarray(np.degrees(np.arctan2(sine, (first * second).sum(1))))


def are_bent(pos: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Whether both bond angles of the quadruples [k, 4] are far enough from straight to define a torsion [k]."""
    ends = np.stack([angles(pos, atoms[:, part]) for part in ([0, 1, 2], [1, 2, 3])])
    return np.asarray(((ends > _STRAIGHT) & (ends < 180 - _STRAIGHT)).all(0))


def torsions(pos: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Torsions (degrees, -180 to 180) of the quadruples [k, 4]; IUPAC's sign."""
    back, axis, on = (pos[atoms[:, k + 1]] - pos[atoms[:, k]] for k in range(3))
    first, second = np.cross(back, axis), np.cross(axis, on)
    sine = np.linalg.norm(axis, axis=1) * (back * second).sum(1)
    return np.asarray(np.degrees(np.arctan2(sine, (first * second).sum(1))))


def torsion_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Absolute differences (degrees, 0 to 180) of torsions, the short way round.

    >>> torsion_change(np.array([179.0]), np.array([-178.0])).tolist()
    [3.0]
    """
    return np.asarray(np.abs((after - before + 180) % 360 - 180))
