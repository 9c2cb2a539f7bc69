"""Handedness: whether a 3D structure has the one that was asked for, or is its mirror image."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from rdkit import Chem, rdBase


class Match(StrEnum):
    """What a structure is to the molecule that was asked for."""

    RIGHT = "right"
    MIRRORED = "mirrored"
    WRONG = "wrong"


_HANDS = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
_SIDES = {
    Chem.BondStereo.STEREOE: 1,
    Chem.BondStereo.STEREOTRANS: 1,
    Chem.BondStereo.STEREOZ: 2,
    Chem.BondStereo.STEREOCIS: 2,
}

Marks = tuple[dict[int, bool], dict[int, int]]
"""Hand of every centre by atom, side of every double bond by bond."""


def marks(mol: Chem.Mol) -> Marks:
    """The centres and double bonds of `mol` whose handedness is stated."""
    hands = {a.GetIdx(): a.GetChiralTag() == _HANDS[0] for a in mol.GetAtoms() if a.GetChiralTag() in _HANDS}
    sides = {b.GetIdx(): _SIDES[b.GetStereo()] for b in mol.GetBonds() if b.GetStereo() in _SIDES}
    return hands, sides


def at_positions(mol: Chem.Mol, pos: np.ndarray) -> Chem.Mol:
    """The same atoms and bonds at other positions [a, 3] (Å), with the handedness that those have."""
    placed = Chem.Mol(mol)
    placed.RemoveAllConformers()
    conformer = Chem.Conformer(placed.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.asarray(pos, dtype=np.float64))
    placed.AddConformer(conformer, assignId=True)
    with rdBase.BlockLogs():
        Chem.AssignStereochemistryFrom3D(placed, replaceExistingTags=True)
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
