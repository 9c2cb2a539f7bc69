"""Property targets: their scales and ranges in the training data, and which of them come with a training molecule.

Also how many atoms and bonds of each class a molecule has, and properties as linear functions of these numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, Prediction
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import NUM_BOND_CLASSES

_NUM_BINS = 64  # bins of the histogram of a property's values over its range
HALVES = ("a", "b")
_ROWS = 1000  # molecules that are turned into double precision at once


@dataclass(frozen=True)
class Property:
    """What a model knows of a property of those of its training molecules whose value is known."""

    name: str
    unit: str
    mean: float
    std: float
    low: float
    high: float
    counts: Mapping[int, tuple[int, ...]]  # by heavy atoms: molecules in each of equally wide bins from low to high

    @classmethod
    def of(cls, name: str, unit: str, values: np.ndarray, sizes: np.ndarray) -> Self:
        """Of values [M] (NaN = not known, MoldiffError for fewer than two) of molecules of so many heavy atoms [M]."""
        known = np.isfinite(values)
        values, sizes = values[known].astype(np.float64), sizes[known]
        if not len(values) or values.min() == values.max():
            raise MoldiffError(f"condition: {name} has fewer than two different values, expected a varying property")
        low, high = float(values.min()), float(values.max())
        counts = {
            int(size): tuple(np.histogram(values[sizes == size], _NUM_BINS, (low, high))[0].tolist())
            for size in np.unique(sizes)
        }
        return cls(name, unit, float(values.mean()), float(values.std()), low, high, counts)

    def range(self) -> str:
        """The trained range with its unit."""
        return f"{self.low:.4g} to {self.high:.4g}{f' {self.unit}' if self.unit else ''}"

    def near(self, value: float) -> dict[int, int]:
        """How many training molecules of each size have a value near this one: in its bin, or the nearest filled."""
        table = np.array(list(self.counts.values()))
        place = (value - self.low) / (self.high - self.low) * _NUM_BINS - 0.5
        filled = np.flatnonzero(table.sum(0))
        column = table[:, filled[np.abs(filled - place).argmin()]]
        return dict(zip(self.counts, column.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"counts": [[size, " ".join(map(str, row))] for size, row in self.counts.items()]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        counts = {int(size): tuple(map(int, row.split())) for size, row in data["counts"]}
        numbers = {key: float(data[key]) for key in ("mean", "std", "low", "high")}
        return cls(name=str(data["name"]), unit=str(data["unit"]), counts=counts, **numbers)


@dataclass(frozen=True)
class Properties:
    """The properties that a model can be conditioned on, in the order of the columns of a batch's `condition`."""

    entries: tuple[Property, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __hash__(self) -> int:
        return hash(self.names)

    @classmethod
    def of(cls, units: Mapping[str, str], values: np.ndarray, sizes: np.ndarray) -> Self:
        """Of training molecules: units by column of the values [M, C], NaN = not known; numbers of heavy atoms [M]."""
        columns = zip(units.items(), values.T, strict=True)
        return cls(tuple(Property.of(name, unit, column, sizes) for (name, unit), column in columns))

    def normalised(self, condition: Tensor) -> Tensor:
        """Values [B, C] in the data's units, NaN = not given, as multiples of the standard deviation from the mean."""
        mean, std = self._scales(condition)
        return (condition - mean) / std

    def restored(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        mean, std = self._scales(normalised)
        return normalised * std + mean

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor([p.mean for p in self.entries]), like.new_tensor([p.std for p in self.entries])

    def checked(self, requested: Mapping[str, Any]) -> dict[str, float]:
        """Target values by name, as the user wrote them; MoldiffError for unknown names and what is not finite."""
        listed = ", ".join(f"{p.name} ({p.range()})" for p in self.entries)
        for name, value in requested.items():
            if not self.entries:
                raise MoldiffError(f"condition.{name}: the model was trained without properties, expected none")
            if name not in self.names:
                raise MoldiffError(f"condition: got {name!r}, expected any of: {listed}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise MoldiffError(f"condition.{name}: got {value!r}, expected a number, such as {listed}")
        return {name: float(value) for name, value in requested.items()}

    def row(self, requested: Mapping[str, float]) -> Tensor:
        """Target values by name as one row [1, C] of a batch's `condition`, NaN = not given."""
        return torch.tensor([[requested.get(name, math.nan) for name in self.names]])

    def notes(self, requested: Mapping[str, float]) -> list[str]:
        """For the user, a line for each target value: the trained range, and a warning outside of it."""
        outside = "warning: outside of what the model was trained on: "
        return [
            f"{'' if one.low <= requested[one.name] <= one.high else outside}"
            f"condition.{one.name}={requested[one.name]:g}; trained range {one.range()}"
            for one in self.entries
            if one.name in requested
        ]

    def size_weights(self, requested: Mapping[str, float], counts: Mapping[int, int]) -> dict[int, int]:
        """Weight of every number of heavy atoms, given target values, in millionths of the largest.

        In proportion to p(n) times every p(value | n); where no size has all values, to the training data's `counts`.
        """
        weights = {size: float(count) for size, count in counts.items()}
        for entry in (one for one in self.entries if one.name in requested):
            near = entry.near(requested[entry.name])
            for size in weights:
                weights[size] *= near.get(size, 0) / max(1, sum(entry.counts.get(size, ())))
        largest = max(weights.values(), default=0.0)
        if not largest > 0:
            return dict(counts)
        millionths = {size: round(1e6 * weight / largest) for size, weight in weights.items()}
        return {size: weight for size, weight in millionths.items() if weight}

    def to_dict(self) -> list[dict[str, Any]]:
        return [entry.to_dict() for entry in self.entries]

    @classmethod
    def from_dict(cls, data: Sequence[Mapping[str, Any]]) -> Self:
        """Read what `to_dict` wrote; MoldiffError where an entry is missing or malformed."""
        try:
            return cls(tuple(Property.from_dict(entry) for entry in data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MoldiffError(f"properties: missing or malformed entry ({error})") from None


@dataclass(frozen=True)
class PropertyDropout:
    """Draws for every training molecule which of its properties are given to the network."""

    names: Sequence[str] | None = None  # the properties that are learnt; None = all that are stored with the set
    unconditional: float = 0.2  # share of the molecules that come without any
    alone: float = 0.5  # share that comes with one, each of them as often
    present: float = 0.5  # in the rest, the chance of every property to be given
    companions: Sequence[str] = ()  # properties that come in addition to the others that are given
    accompanied: float = 0.6  # the chance of each of these

    def __post_init__(self) -> None:
        for name in ("unconditional", "alone", "present", "accompanied"):
            if not 0 <= getattr(self, name) <= 1:
                raise MoldiffError(f"condition.{name}: got {getattr(self, name)}, expected a share from 0 to 1")
        if (total := self.unconditional + self.alone) > 1:
            raise MoldiffError(f"condition: unconditional and alone add up to {total:g}, expected at most 1")

    def chosen(self, units: Mapping[str, str], data: str) -> list[str]:
        """Names of the properties that are learnt, the companions last; MoldiffError for a set without one of them."""
        names = [name for name in (units if self.names is None else self.names) if name not in self.companions]
        if not names:
            raise MoldiffError(f"condition: {data} has no properties to be learnt, expected at least one")
        names += self.companions
        for name in names:
            if name not in units:
                raise MoldiffError(
                    f"condition.names: {data} has no property {name!r} that varies, expected any of: {', '.join(units)}"
                )
        return names

    def __call__(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Values [B, C], in the order of `chosen`, with those that are not given set to NaN."""
        count, device, number = len(condition), condition.device, condition.shape[1] - len(self.companions)
        kind = torch.rand(count, 1, generator=generator, device=device)
        rank = torch.rand(count, number, generator=generator, device=device)
        one = rank == rank.amax(1, keepdim=True)
        each = torch.rand(count, number, generator=generator, device=device) < self.present
        given = torch.where(kind < self.unconditional + self.alone, one, each) & (kind >= self.unconditional)
        if self.companions:
            chance = torch.rand(count, len(self.companions), generator=generator, device=device)
            given = torch.cat([given, chance < self.accompanied], dim=1)
        return torch.where(given, condition, torch.nan)


def half_of(indices: np.ndarray, half: str | None) -> np.ndarray:
    """One half of the training molecules: those in even (a) or odd (b) places of a fixed permutation; None = all.

    A property predictor that was trained on one half judges a generator that was trained on the other.
    """
    if half is None:
        return indices
    if half not in HALVES:
        raise MoldiffError(f"half: got {half!r}, expected a or b; null = all training molecules")
    order = np.random.RandomState(0).permutation(len(indices))  # a frozen generator: the same in every version
    chosen = np.sort(order[HALVES.index(half) :: 2])
    if not len(chosen):
        raise MoldiffError(f"half: {len(indices)} training molecules have no half {half!r}")
    return indices[chosen]


def num_counts(num_atom_classes: int) -> int:
    """Length of the rows of `class_counts`: atom classes, bond orders, and a one."""
    return num_atom_classes + NUM_BOND_CLASSES


def num_bond_counts(num_atom_classes: int) -> int:
    """Length of the rows of `bond_counts`: those of `class_counts`, then bonds by order and classes at the ends."""
    pairs = num_atom_classes * (num_atom_classes + 1) // 2
    return num_counts(num_atom_classes) + (NUM_BOND_CLASSES - 1) * pairs


def class_counts(batch: MolBatch, num_atom_classes: int) -> Tensor:
    """Numbers of atoms of each class, of bonds of each order, and a one: [B, K + 4]."""
    return _class_counts(*_shares(batch, num_atom_classes))


def bond_counts(batch: MolBatch, num_atom_classes: int) -> Tensor:
    """Those of `class_counts`, and numbers of bonds of each order between each two classes: [B, F]."""
    return _bond_counts(*_shares(batch, num_atom_classes))


def expected_bond_counts(
    prediction: Prediction, batch: MolBatch, decided: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """`bond_counts` of a prediction for the molecules of a batch, as if its classes were independent: [B, F].

    Atoms [B, N] and pairs [B, N, N] that are `decided` have the class of the batch, whatever the prediction.
    """
    atoms = prediction.atom_type.float().softmax(-1) * batch.node_mask[..., None]
    orders = prediction.bond.float().softmax(-1)[..., 1:] * batch.pair_mask[..., None]
    if decided is not None:
        ones = _shares(batch, atoms.shape[-1])
        atoms, orders = (
            torch.where(mask[..., None], one.to(share), share)
            for mask, one, share in zip(decided, ones, (atoms, orders), strict=True)
        )
    return _bond_counts(atoms, orders)


def _shares(batch: MolBatch, num_atom_classes: int) -> tuple[Tensor, Tensor]:
    """Ones at the classes of the atoms [B, N, K] and at the orders of the bonds [B, N, N, 3]."""
    atoms = torch.nn.functional.one_hot(batch.atom_type, num_atom_classes) * batch.node_mask[..., None]
    orders = torch.nn.functional.one_hot(batch.bond, NUM_BOND_CLASSES)[..., 1:] * batch.pair_mask[..., None]
    return atoms.to(batch.pos), orders.to(batch.pos)


def _class_counts(atoms: Tensor, orders: Tensor) -> Tensor:
    totals = orders.sum((1, 2)) / 2  # every bond stands in two pairs
    return torch.cat([atoms.sum(1), totals, torch.ones_like(totals[:, :1])], dim=1)


def _bond_counts(atoms: Tensor, orders: Tensor) -> Tensor:
    ends = torch.einsum("bik,bijo,bjl->bokl", atoms, orders, atoms)
    first, second = torch.triu_indices(atoms.shape[-1], atoms.shape[-1], device=atoms.device)
    return torch.cat([_class_counts(atoms, orders), ends[:, :, first, second].flatten(1)], dim=1)


@dataclass(frozen=True, eq=False)
class Contributions:
    """Normalised properties as sums over atoms and bonds (Benson & Buss 1958, J. Chem. Phys. 29, 546)."""

    slopes: Tensor  # of every one of `bond_counts` [F, C]
    unexplained: Tensor  # what the sums leave of every property: a standard deviation [C], 1 = they say nothing

    def __call__(self, counts: Tensor) -> Tensor:
        """The sums [B, C] of `bond_counts` [B, F]."""
        return counts.to(self.slopes) @ self.slopes

    @property
    def explained(self) -> Tensor:
        """The share of every property's variance that the sums explain [C]."""
        return 1 - self.unexplained.square()


def fitted_slopes(counts: Tensor, targets: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Least squares [F, C] for properties [M, C] of order one, NaN = not known, on counts [M, F], by a ridge."""
    slopes = targets.new_zeros(counts.shape[1], targets.shape[1])
    patterns, kind = torch.unique(targets.isfinite().T, dim=0, return_inverse=True)
    for number, known in enumerate(patterns):  # properties that are known of the same molecules
        columns = (kind == number).nonzero()[:, 0]
        x, y = counts[known], targets[known][:, columns]
        gram = ridge * torch.eye(x.shape[1], dtype=torch.double)
        moment = gram.new_zeros(x.shape[1], len(columns))
        for a, b in zip(torch.split(x, _ROWS), torch.split(y, _ROWS), strict=True):
            gram += a.double().T @ a.double()
            moment += a.double().T @ b.double()
        slopes[:, columns] = torch.linalg.solve(gram, moment).to(slopes)
    return slopes
