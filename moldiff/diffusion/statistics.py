"""Numbers that the model and the sampler take from the training molecules."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from moldiff.errors import MoldiffError


@dataclass(frozen=True)
class Statistics:
    """Frequencies and scales of a set of molecules.

    Unused slots are left out of `hydrogen_scale`, so that it does not depend on how saturated the molecules are.
    """

    size_counts: dict[int, int]  # number of molecules by number of heavy atoms
    atom_marginal: tuple[float, ...]  # frequency of every atom class, K numbers that sum to 1
    bond_marginal: tuple[float, ...]  # of the bond classes 0 to 3 over all pairs of heavy atoms of a molecule
    pos_scale: float  # root mean square of one coordinate of the centred heavy atoms (Å)
    hydrogen_scale: float  # of one component of the hydrogen offsets that are in use (Å); 1 without hydrogens
    hydrogens_placed: bool = True  # False for a set of heavy atoms, whose hydrogens are counted but not placed
    charge: int | None = 0  # total charge of every molecule (e); None = they differ

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"size_counts": [[n, count] for n, count in sorted(self.size_counts.items())]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; MoldiffError where a key is missing or malformed."""
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


COUNTED: Mapping[str, str] = {"atoms": ""}
"""Properties that every set has unless it stores others of that name: the number of atoms, hydrogens included."""
