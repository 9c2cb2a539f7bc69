"""What occurs in a packed set, and how often: its atom classes, and what a model knows of its data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from moldiff.data.store import blocks, class_codes, decode_class, encode_atoms
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.elements import VALENCES
from moldiff.molecules.molecule import InvalidMolecule, Status
from moldiff.molecules.vocabulary import NUM_BOND_CLASSES, AtomClass, Vocabulary


def observed_vocabulary(flat: Mapping[str, np.ndarray]) -> Vocabulary:
    """Every atom class of a packed set; valences that the table lacks are those seen in the data."""
    rows = {row for block in blocks(flat, np.arange(len(flat["y"]))) for row in _classes_and_sums(block)}
    extra: dict[tuple[int, int], set[int]] = defaultdict(set)
    for atomic_number, charge, _, total in rows:
        if (atomic_number, charge) not in VALENCES:
            extra[atomic_number, charge].add(total)
    classes = sorted({AtomClass(*row[:3]) for row in rows})
    return Vocabulary(tuple(classes), {key: tuple(sorted(seen)) for key, seen in extra.items()})


def _classes_and_sums(flat: Mapping[str, np.ndarray]) -> list[tuple[int, int, int, int]]:
    """The distinct rows of atomic number, charge, hydrogens and sum of bond orders."""
    sums = flat["num_hydrogens"].astype(np.int64)
    start = np.repeat(flat["atom_slices"][:-1], np.diff(flat["bond_slices"]))
    for end in flat["edge_index"]:
        np.add.at(sums, start + end, flat["bond_order"])
    # One number for each atom, for distinct numbers are found much faster than distinct rows.
    codes = np.unique((class_codes(flat) << 8) + sums)
    return [(*decode_class(code >> 8), code & 0xFF) for code in codes.tolist()]


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


def measure_statistics(flat: Mapping[str, np.ndarray], indices: np.ndarray, vocabulary: Vocabulary) -> Statistics:
    """Statistics of the molecules `indices` of a packed set.

    Args:
        flat: the arrays of `moldiff.data.store`.
        indices: the molecules to count.
        vocabulary: all atom classes of the set.
    """
    if not len(indices):
        raise MoldiffError("statistics: got no molecule, expected at least one in the training part")
    size_counts: Counter[int] = Counter()
    charges: set[int] = set()
    types = np.zeros(vocabulary.num_atom_classes, dtype=np.int64)
    pairs = np.zeros(NUM_BOND_CLASSES)
    pos_squares, hydrogen_squares, hydrogens = 0.0, 0.0, 0
    for block in blocks(flat, np.asarray(indices)):
        sizes = np.diff(block["atom_slices"])
        owner = np.repeat(np.arange(len(sizes)), sizes)
        size_counts.update(sizes.tolist())
        charge = np.bincount(owner, block["formal_charge"].astype(np.float64))
        charges |= set(charge.round().astype(np.int64).tolist())
        types += np.bincount(encode_atoms(block, vocabulary), minlength=len(types))
        pairs += np.bincount(block["bond_order"], minlength=len(pairs))
        pairs[0] += (sizes * (sizes - 1) // 2).sum() - len(block["bond_order"])
        pos = block["pos"].astype(np.float64)
        mean = np.stack([np.bincount(owner, pos[:, axis]) for axis in range(3)], axis=1) / sizes[:, None]
        pos_squares += float(np.square(pos - mean[owner]).sum())
        hydrogen_squares += float(np.square(block["hydrogen_offset"].astype(np.float64)).sum())
        hydrogens += len(block["hydrogen_offset"])
    return Statistics(
        size_counts=dict(sorted(size_counts.items())),
        atom_marginal=tuple((types / types.sum()).tolist()),
        # A set of single atoms has no pair: then "no bond" is the only class that can occur.
        bond_marginal=tuple((pairs / pairs.sum()).tolist()) if pairs.sum() else (1.0, 0.0, 0.0, 0.0),
        pos_scale=_rms(pos_squares, 3 * int(types.sum())),
        hydrogen_scale=_rms(hydrogen_squares, 3 * hydrogens),
        hydrogens_placed=not hydrogens or hydrogen_squares > 0,
        charge=charges.pop() if len(charges) == 1 else None,
    )


def _rms(squares: float, count: int) -> float:
    """Root mean square; 1 where there is nothing to scale, so that it can always be divided by."""
    return float(np.sqrt(squares / count)) or 1.0 if count else 1.0
