"""Handedness: whether a 3D structure has the one that was asked for, or is its mirror image."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from rdkit import Chem

from moldiff.chem import stereo_of_coordinates


class Match(StrEnum):
    """What a structure is to the molecule that was asked for."""

    RIGHT = "right"
    MIRRORED = "mirrored"
    WRONG = "wrong"


_HANDS = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_SIDES = {
    Chem.BondStereo.STEREOE: False,
    Chem.BondStereo.STEREOTRANS: False,
    Chem.BondStereo.STEREOZ: True,
    Chem.BondStereo.STEREOCIS: True,
}

Marks = tuple[dict[int, bool], dict[int, bool]]
"""Hand of every centre by atom; by double bond, whether the first neighbours of its ends are on the same side."""


def marks(mol: Chem.Mol) -> Marks:
    """The centres and double bonds of `mol` whose handedness is stated."""
    hands = {a.GetIdx(): a.GetChiralTag() == _HANDS[0] for a in mol.GetAtoms() if a.GetChiralTag() in _HANDS}
    sides = {b.GetIdx(): _same_side(b) for b in mol.GetBonds() if b.GetStereo() in _SIDES}
    return hands, sides


def _same_side(bond: Chem.Bond) -> bool:
    """Whether the neighbours of lowest number at the ends of a double bond are on the same side.

    E and Z would be names by priority, which a mirror image can change.
    """
    ends = bond.GetBeginAtom(), bond.GetEndAtom()
    same = _SIDES[bond.GetStereo()]
    for end, other, named in zip(ends, reversed(ends), bond.GetStereoAtoms(), strict=True):
        first = min(atom.GetIdx() for atom in end.GetNeighbors() if atom.GetIdx() != other.GetIdx())
        same ^= named != first
    return same


def at_positions(mol: Chem.Mol, pos: np.ndarray) -> Chem.Mol:
    """The same atoms and bonds at other positions [a, 3] (Å), with the handedness that those have."""
    placed = Chem.Mol(mol)
    placed.RemoveAllConformers()
    conformer = Chem.Conformer(placed.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.asarray(pos, dtype=np.float64))
    placed.AddConformer(conformer, assignId=True)
    stereo_of_coordinates(placed)
    return placed


def compare(wanted: Marks, mol: Chem.Mol, pos: np.ndarray) -> Match:
    """What the positions [a, 3] (Å) of the atoms of `mol` are to the wanted marks, of which none is wrong to lack.

    A mirror image has every stated centre inverted and every stated double bond right.
    """
    hands, sides = wanted
    found_hands, found_sides = marks(at_positions(mol, pos))
    if any(found_sides.get(bond) != side for bond, side in sides.items()):
        return Match.WRONG
    agreeing = [found_hands[atom] == hand for atom, hand in hands.items() if atom in found_hands]
    if len(agreeing) < len(hands):
        return Match.WRONG
    if all(agreeing):
        return Match.RIGHT
    return Match.WRONG if any(agreeing) else Match.MIRRORED
