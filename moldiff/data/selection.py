"""Molecules that are sound by themselves but do not fit into their set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moldiff.results import InvalidMolecule, Status
from moldiff.vocabulary import AtomClass


def unplaced_hydrogens(flat: Mapping[str, np.ndarray], unplaced: np.ndarray) -> dict[int, InvalidMolecule]:
    """Molecules without coordinates of their hydrogens, if others of the set have them.

    Args:
        flat: packed arrays of the set.
        unplaced: which molecules have hydrogens that are only counted [M] bool.
    """
    owner = np.repeat(np.arange(len(unplaced)), np.diff(flat["atom_slices"]))
    has_hydrogens = np.bincount(owner, flat["num_hydrogens"], minlength=len(unplaced)) > 0
    if not (has_hydrogens & ~unplaced).any():
        return {}
    reason = "hydrogens are missing that other records have; hydrogens=add adds them, hydrogens=none leaves all out"
    return {int(index): InvalidMolecule(Status.UNREADABLE, reason) for index in np.flatnonzero(unplaced)}


def rare_classes(flat: Mapping[str, np.ndarray], min_count: int) -> dict[int, InvalidMolecule]:
    """Molecules with an atom class that fewer than `min_count` molecules have.

    The rarest class goes first, and with it all its molecules, which may make other classes rarer; so on until every
    class left is in at least `min_count` molecules.
    """
    owner = np.repeat(np.arange(len(flat["atom_slices"]) - 1), np.diff(flat["atom_slices"]))
    columns = [flat[name].astype(np.int64) for name in ("atomic_number", "formal_charge", "num_hydrogens")]
    classes, index = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    # One row for each class that a molecule has.
    pairs = np.unique(np.stack([index.reshape(-1), owner], axis=1), axis=0)
    problems: dict[int, InvalidMolecule] = {}
    while len(pairs):
        counts = np.bincount(pairs[:, 0], minlength=len(classes))
        present = np.flatnonzero(counts)
        rarest = int(present[counts[present].argmin()])
        if counts[rarest] >= min_count:
            break
        name = AtomClass(*classes[rarest].tolist())
        reason = f"class {name} is in {counts[rarest]} molecules, fewer than min_count={min_count}"
        dropped = pairs[pairs[:, 0] == rarest, 1]
        problems |= {int(molecule): InvalidMolecule(Status.VALENCE, reason) for molecule in dropped}
        pairs = pairs[~np.isin(pairs[:, 1], dropped)]
    return problems
