"""Molecules that are sound by themselves but do not fit into their set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moldiff.data.packed import blocks, class_codes, decode_class
from moldiff.results import InvalidMolecule, Status
from moldiff.vocabulary import AtomClass


def unplaced_hydrogens(flat: Mapping[str, np.ndarray], unplaced: np.ndarray) -> dict[int, InvalidMolecule]:
    """Molecules without coordinates of their hydrogens, if others of the set have them.

    Args:
        flat: packed arrays of the set.
        unplaced: which molecules have hydrogens that are only counted [M] bool.
    """
    has_hydrogens = np.diff(flat["hydrogen_slices"]) > 0
    if not (has_hydrogens & ~unplaced).any():
        return {}
    reason = "hydrogens are missing that other records have; hydrogens=add adds them, hydrogens=none leaves all out"
    return dict.fromkeys(np.flatnonzero(unplaced).tolist(), InvalidMolecule(Status.UNREADABLE, reason))


def rare_classes(flat: Mapping[str, np.ndarray], min_count: int) -> dict[int, InvalidMolecule]:
    """Molecules with an atom class that fewer than `min_count` molecules have.

    The rarest class goes first, and with it all its molecules, which may make other classes rarer; so on until every
    class left is in at least `min_count` molecules.
    """
    if min_count <= 1:
        return {}
    classes, pairs = _classes_of_molecules(flat)
    problems: dict[int, InvalidMolecule] = {}
    while len(pairs):
        counts = np.bincount(pairs[:, 0], minlength=len(classes))
        present = np.flatnonzero(counts)
        rarest = int(present[counts[present].argmin()])
        if counts[rarest] >= min_count:
            break
        name = classes[rarest]
        reason = f"class {name} is in {counts[rarest]} molecules, fewer than min_count={min_count}"
        dropped = pairs[pairs[:, 0] == rarest, 1]
        problems |= dict.fromkeys(dropped.tolist(), InvalidMolecule(Status.VALENCE, reason))
        pairs = pairs[~np.isin(pairs[:, 1], dropped)]
    return problems


def _classes_of_molecules(flat: Mapping[str, np.ndarray]) -> tuple[list[AtomClass], np.ndarray]:
    """The atom classes of a set, and a row (class, molecule) for each class that a molecule has."""
    known: dict[AtomClass, int] = {}
    found, first = [], 0
    for block in blocks(flat, np.arange(len(flat["y"]))):
        counts = np.diff(block["atom_slices"])
        codes, index = np.unique(class_codes(block), return_inverse=True)
        classes = [AtomClass(*decode_class(code)) for code in codes.tolist()]
        numbers = np.array([known.setdefault(atom_class, len(known)) for atom_class in classes], dtype=np.int64)
        owner = np.repeat(np.arange(len(counts)), counts)
        pairs = np.unique((numbers[index] << 32) + owner)
        found.append(np.stack([pairs >> 32, first + (pairs & 0xFFFFFFFF)], axis=1).astype(np.int32))
        first += len(counts)
    return list(known), np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int32)
