"""Numbers that the model and the sampler take from the training molecules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from moldiff.data.packed import blocks, encode_atoms
from moldiff.errors import MoldiffError
from moldiff.vocabulary import NUM_BOND_CLASSES, Vocabulary


@dataclass(frozen=True)
class Statistics:
    """Frequencies and scales of a set of molecules.

    Attributes:
        size_counts: number of molecules by number of heavy atoms.
        atom_marginal: frequency of every atom class, K numbers that sum to 1.
        bond_marginal: frequency of the bond classes 0 to 3 over all pairs of heavy atoms of a molecule.
        pos_scale: root mean square of one coordinate of the centred heavy atoms (Å).
        hydrogen_scale: root mean square of one component of the hydrogen offsets that are in use (Å); unused slots
            are left out, so the scale does not depend on how saturated the molecules are. 1 without hydrogens.
        hydrogens_placed: False for a set of heavy atoms, whose hydrogens are counted but have no coordinates.
        charge: total charge of every molecule (e); None = they differ.
    """

    size_counts: dict[int, int]
    atom_marginal: tuple[float, ...]
    bond_marginal: tuple[float, ...]
    pos_scale: float
    hydrogen_scale: float
    hydrogens_placed: bool = True
    charge: int | None = 0

    @classmethod
    def from_flat(cls, flat: Mapping[str, np.ndarray], indices: np.ndarray, vocabulary: Vocabulary) -> Self:
        """Statistics of the molecules `indices` of a packed set.

        Args:
            flat: the arrays of `moldiff.data.packed`.
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
        return cls(
            size_counts={int(n): int(c) for n, c in zip(*np.unique(sizes, return_counts=True), strict=True)},
            atom_marginal=tuple((types / types.sum()).tolist()),
            # A set of single atoms has no pair: then "no bond" is the only class that can occur.
            bond_marginal=tuple((pairs / pairs.sum()).tolist()) if pairs.sum() else (1.0, 0.0, 0.0, 0.0),
            pos_scale=_rms(sum(part.pos_squares for part in sums), 3 * int(sizes.sum())),
            hydrogen_scale=_rms(squares, 3 * hydrogens),
            hydrogens_placed=not hydrogens or squares > 0,
            charge=int(charges[0]) if len(charges) == 1 else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` is its inverse."""
        return asdict(self) | {"size_counts": [[n, count] for n, count in sorted(self.size_counts.items())]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            MoldiffError: when a key is missing or malformed.
        """
        try:
            return cls(
                size_counts={int(n): int(count) for n, count in data["size_counts"]},
                atom_marginal=tuple(float(p) for p in data["atom_marginal"]),
                bond_marginal=tuple(float(p) for p in data["bond_marginal"]),
                pos_scale=float(data["pos_scale"]),
                hydrogen_scale=float(data["hydrogen_scale"]),
                hydrogens_placed=bool(data.get("hydrogens_placed", True)),
                charge=data.get("charge", 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MoldiffError(f"statistics: missing or malformed entry ({error})") from None


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
