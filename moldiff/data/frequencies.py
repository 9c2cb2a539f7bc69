"""What a model knows of its data, measured on a packed set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from moldiff.data.store import blocks, encode_atoms
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import NUM_BOND_CLASSES, Vocabulary


@dataclass(frozen=True)
class _Sums:
    """What a block of molecules adds to the statistics."""

    sizes: np.ndarray
    types: np.ndarray
    pairs: np.ndarray
    pos_squares: float
    hydrogen_squares: float
    hydrogens: int
    charges: np.ndarray

    @classmethod
    def of(cls, block: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> Self:
        sizes = np.diff(block["atom_slices"])
        owner = np.repeat(np.arange(len(sizes)), sizes)
        pos = block["pos"].astype(np.float64)
        mean = np.stack([np.bincount(owner, pos[:, axis]) for axis in range(3)], axis=1) / sizes[:, None]
        pairs = np.bincount(block["bond_order"], minlength=NUM_BOND_CLASSES).astype(np.float64)
        pairs[0] = (sizes * (sizes - 1) // 2).sum() - len(block["bond_order"])
        return cls(
            sizes=sizes,
            types=np.bincount(encode_atoms(block, vocabulary), minlength=vocabulary.num_atom_classes),
            pairs=pairs,
            pos_squares=float(np.square(pos - mean[owner]).sum()),
            hydrogen_squares=float(np.square(block["hydrogen_offset"].astype(np.float64)).sum()),
            hydrogens=len(block["hydrogen_offset"]),
            charges=np.unique(np.bincount(owner, block["formal_charge"].astype(np.float64)).round().astype(np.int64)),
        )


def _rms(squares: float, count: int) -> float:
    """Root mean square; 1 where there is nothing to scale, so that it can always be divided by."""
    return float(np.sqrt(squares / count)) or 1.0 if count else 1.0


def measure_statistics(flat: Mapping[str, np.ndarray], indices: np.ndarray, vocabulary: Vocabulary) -> Statistics:
    """Statistics of the molecules `indices` of a packed set.

    Args:
        flat: the arrays of `moldiff.data.store`.
        indices: the molecules to count.
        vocabulary: all atom classes of the set.
    """
    if not len(indices):
        raise MoldiffError("statistics: got no molecule, expected at least one in the training part")
    sums = [_Sums.of(block, vocabulary) for block in blocks(flat, np.asarray(indices))]
    types = np.sum([part.types for part in sums], axis=0)
    pairs = np.sum([part.pairs for part in sums], axis=0)
    sizes = np.concatenate([part.sizes for part in sums])
    hydrogens = sum(part.hydrogens for part in sums)
    squares = sum(part.hydrogen_squares for part in sums)
    charges = np.unique(np.concatenate([part.charges for part in sums]))
    return Statistics(
        size_counts={int(n): int(c) for n, c in zip(*np.unique(sizes, return_counts=True), strict=True)},
        atom_marginal=tuple((types / types.sum()).tolist()),
        # A set of single atoms has no pair: then "no bond" is the only class that can occur.
        bond_marginal=tuple((pairs / pairs.sum()).tolist()) if pairs.sum() else (1.0, 0.0, 0.0, 0.0),
        pos_scale=_rms(sum(part.pos_squares for part in sums), 3 * int(sizes.sum())),
        hydrogen_scale=_rms(squares, 3 * hydrogens),
        hydrogens_placed=not hydrogens or squares > 0,
        charge=int(charges[0]) if len(charges) == 1 else None,
    )
