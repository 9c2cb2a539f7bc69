"""3D structures of a molecule: made by ETKDGv3 and MMFF94s, compared with the stereo that was asked for, and measured.

Angles and torsions of a bond graph are index arrays, and their values for coordinates come for whole sets at once.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from moldiff.molecules.convert import set_positions, stereo_of_coordinates
from moldiff.molecules.molecule import InvalidMolecule, Status

ETKDG = "3D by ETKDGv3 and MMFF94s"
NO_FORCE_FIELD = "3D by ETKDGv3 alone (MMFF94s has no parameters)"
NOT_CONVERGED = "MMFF94s not converged"
GEOMETRY = "ETKDGv3, then MMFF94s"

_HANDS = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_SAME_SIDE = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
_OTHER_SIDE = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)

_STRAIGHT = 5.0  # degrees from 0 or 180 within which a bond angle leaves a torsion undefined
_PLANAR = 0.5  # least cosine of the dihedral of a double bond that has a side: one twisted by more than 60° has none
Side = tuple[tuple[int, int, int, int], bool]
"""Four atoms with a double bond in their middle, and whether the outer ones are on the same side of it."""

Marks = tuple[dict[int, bool], list[Side]]  # hand of every centre by atom, and sides of the double bonds


class Match(StrEnum):
    """What a structure is to the molecule that was asked for."""

    RIGHT = "right"
    MIRRORED = "mirrored"
    WRONG = "wrong"


def embed_conformer(mol: Chem.Mol, seed: int) -> tuple[Chem.Mol | InvalidMolecule, tuple[str, ...]]:
    """The molecule with all hydrogens and one 3D conformer, and notes on how it was made.

    A second round from random coordinates is made where the first fails; there is no third. Minimised by MMFF94s
    where that has parameters for all atoms. With the same seed and version of RDKit, the same molecule gets the same
    coordinates. `mol` has to be sanitised and in one piece; coordinates that it has are left out of account.
    """
    mol = Chem.AddHs(mol)
    mol.RemoveAllConformers()
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    options: Any = rdDistGeom.ETKDGv3()
    options.randomSeed = seed + 1  # RDKit's seeds 0 and 1 are the same
    options.maxIterations = 20
    with rdBase.BlockLogs():
        for random in (False, True):
            options.useRandomCoords = random
            with suppress(RuntimeError, ValueError):  # bounds that no coordinates can meet
                if rdDistGeom.EmbedMolecule(mol, options) >= 0:
                    break
        else:
            return InvalidMolecule(Status.UNREADABLE, "embedding failed, so no 3D coordinates"), ()
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            return mol, (NO_FORCE_FIELD,)
        unfinished = rdForceFieldHelpers.MMFFOptimizeMolecule(mol, mmffVariant="MMFF94s", maxIters=500)
    return mol, (ETKDG, NOT_CONVERGED) if unfinished else (ETKDG,)


def marks(mol: Chem.Mol) -> Marks:
    """The centres and double bonds whose stereo is stated."""
    hands = {a.GetIdx(): a.GetChiralTag() == _HANDS[0] for a in mol.GetAtoms() if a.GetChiralTag() in _HANDS}
    sides = []
    for bond in mol.GetBonds():
        if bond.GetStereo() in (*_SAME_SIDE, *_OTHER_SIDE):
            first, last = bond.GetStereoAtoms()
            chain = (first, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), last)
            sides.append((chain, bond.GetStereo() in _SAME_SIDE))
    return hands, sides


def turns(mol: Chem.Mol, hands: Mapping[int, bool]) -> list[tuple[int, int, int, int]]:
    """Each centre c with three heavy neighbours a, b and d, in the order in which (a - c) · ((b - c) × (d - c)) > 0.

    Centres with fewer heavy neighbours are left out.
    """
    found = []
    for centre, clockwise in hands.items():
        atoms = mol.GetAtomWithIdx(centre).GetNeighbors()
        neighbours = [atom.GetIdx() for atom in atoms]
        if len(neighbours) == 4:
            # Seen from the first, the others turn as the tag says; each exchange with the first turns them round.
            out = next((place for place, atom in enumerate(atoms) if atom.GetAtomicNum() == 1), 0)
            first, second, third = neighbours[:out] + neighbours[out + 1 :]
            clockwise ^= out % 2 == 1
        elif len(neighbours) == 3:  # a lone pair stands behind them
            first, second, third = neighbours
            clockwise = not clockwise
        else:
            continue
        if all(mol.GetAtomWithIdx(atom).GetAtomicNum() != 1 for atom in (first, second, third)):
            found.append((centre, first, second, third) if clockwise else (centre, second, first, third))
    return found


def heavy_sides(mol: Chem.Mol, sides: Sequence[Side]) -> list[Side]:
    """The sides of double bonds by chains of heavy atoms alone."""
    found = []
    for (first, begin, end, last), same in sides:
        one, other = _heavy_end(mol, begin, end, first), _heavy_end(mol, end, begin, last)
        if one is not None and other is not None:
            found.append(((one, begin, end, other), same ^ (one != first) ^ (other != last)))
    return found


def _heavy_end(mol: Chem.Mol, atom: int, other: int, end: int) -> int | None:
    """`end`, or if that is a hydrogen the other neighbour of an atom of a double bond; None = there is none."""
    neighbours = mol.GetAtomWithIdx(atom).GetNeighbors()
    heavy = [one.GetIdx() for one in neighbours if one.GetAtomicNum() != 1 and one.GetIdx() != other]
    return end if end in heavy else next(iter(heavy), None)


def at_positions(mol: Chem.Mol, pos: np.ndarray) -> Chem.Mol:
    """The same atoms and bonds at other positions [a, 3] (Å), with the handedness that those have."""
    placed = Chem.Mol(mol)
    set_positions(placed, pos)
    stereo_of_coordinates(placed)
    return placed


def compare(wanted: Marks, mol: Chem.Mol, pos: np.ndarray) -> Match:
    """What the positions [a, 3] (Å) of the atoms of `mol` are to the wanted marks, of which none is wrong to lack.

    A mirror image has every stated centre inverted and every stated double bond right.
    """
    hands, sides = wanted
    if any((1 if same else -1) * _cosine(pos[list(chain)]) < _PLANAR for chain, same in sides):
        return Match.WRONG
    found_hands, _ = marks(at_positions(mol, pos))
    if found_hands.items() >= hands.items():
        return Match.RIGHT
    mirrored = {atom: not hand for atom, hand in hands.items()}
    return Match.MIRRORED if found_hands.items() >= mirrored.items() else Match.WRONG


def _cosine(pos: np.ndarray) -> float:
    """Of the dihedral of a chain of four atoms [4, 3]; 0 where three of them are in a line."""
    axis = pos[2] - pos[1]
    one, other = np.cross(axis, pos[0] - pos[1]), np.cross(axis, pos[3] - pos[2])
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length > 0 else 0.0


def _directed(bonds: np.ndarray) -> np.ndarray:
    """Both directions (from, to) of undirected bonds (i, j) [m, 2], sorted by their start [2m, 2]."""
    both = np.concatenate([bonds, bonds[:, ::-1]])
    return both[np.argsort(both[:, 0], kind="stable")]


def angle_atoms(bonds: np.ndarray, num_atoms: int) -> np.ndarray:
    """Atoms (a, center, b) of all bond angles, each once [k, 3], for bonds (i, j) [m, 2].

    >>> angle_atoms(np.array([[0, 1], [1, 2]]), 3).tolist()
    [[0, 1, 2]]
    """
    edges = _directed(bonds)
    first, second = _pairs(edges[:, 0], edges, num_atoms)
    atoms = np.stack([edges[first, 1], edges[first, 0], edges[second, 1]], axis=1)
    return np.asarray(atoms[atoms[:, 0] < atoms[:, 2]])


def torsion_atoms(bonds: np.ndarray, num_atoms: int) -> np.ndarray:
    """Atoms (a, b, c, d) of all proper torsions, each once [k, 4], for bonds (i, j) [m, 2].

    >>> torsion_atoms(np.array([[0, 1], [1, 2], [2, 3]]), 4).tolist()
    [[0, 1, 2, 3]]
    """
    edges = _directed(bonds)
    inner, outer = _pairs(bonds[:, 0], edges, num_atoms)  # bond b-c with every a at b
    a, b, c = edges[outer, 1], bonds[inner, 0], bonds[inner, 1]
    row, last = _pairs(c, edges, num_atoms)  # ... and every d at c
    atoms = np.stack([a[row], b[row], c[row], edges[last, 1]], axis=1)
    distinct = (atoms[:, [0, 3, 0]] != atoms[:, [2, 1, 3]]).all(axis=1)
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
