"""Numbers that the model and the sampler take from the training molecules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from moldiff.errors import MoldiffError
from moldiff.vocabulary import NUM_BOND_CLASSES


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
    """

    size_counts: dict[int, int]
    atom_marginal: tuple[float, ...]
    bond_marginal: tuple[float, ...]
    pos_scale: float
    hydrogen_scale: float
    hydrogens_placed: bool = True

    @classmethod
    def from_flat(
        cls, flat: Mapping[str, np.ndarray], atom_type: np.ndarray, indices: np.ndarray, num_classes: int
    ) -> Self:
        """Statistics of the molecules `indices` of a packed set.

        Args:
            flat: the arrays of `moldiff.data.dataset.pack`.
            atom_type: class index of every atom of the packed set [sum n].
            indices: the molecules to count.
            num_classes: K, the number of atom classes.
        """
        slices = flat["atom_slices"]
        sizes = np.diff(slices)
        chosen = np.zeros(len(sizes), dtype=bool)
        chosen[indices] = True
        if not chosen.any():
            raise MoldiffError("statistics: got no molecule, expected at least one in the training part")
        atoms = np.repeat(chosen, sizes)
        sizes = sizes[chosen]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        pos = flat["pos"][atoms].astype(np.float64)
        mean = np.stack([np.bincount(owner, pos[:, axis]) for axis in range(3)], axis=1) / sizes[:, None]
        used = np.arange(flat["hydrogen_offset"].shape[1]) < flat["num_hydrogens"][atoms][:, None]
        offsets = flat["hydrogen_offset"][atoms][used].astype(np.float64)
        orders = flat["bond_order"][np.repeat(chosen, np.diff(flat["bond_slices"]))]
        pairs = np.bincount(orders, minlength=NUM_BOND_CLASSES).astype(np.float64)
        pairs[0] = (sizes * (sizes - 1) // 2).sum() - len(orders)
        types = np.bincount(atom_type[atoms], minlength=num_classes)
        return cls(
            size_counts={int(n): int(c) for n, c in zip(*np.unique(sizes, return_counts=True), strict=True)},
            atom_marginal=tuple((types / types.sum()).tolist()),
            # A set of single atoms has no pair: then "no bond" is the only class that can occur.
            bond_marginal=tuple((pairs / pairs.sum()).tolist()) if pairs.sum() else (1.0, 0.0, 0.0, 0.0),
            pos_scale=_rms(pos - mean[owner]),
            hydrogen_scale=_rms(offsets),
            hydrogens_placed=not offsets.size or bool(offsets.any()),
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
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MoldiffError(f"statistics: missing or malformed entry ({error})") from None


def _rms(values: np.ndarray) -> float:
    """Root mean square; 1 where there is nothing to scale, so that it can always be divided by."""
    scale = float(np.sqrt(np.square(values).mean())) if values.size else 0.0
    return scale or 1.0
