"""How many atoms and bonds of each class a molecule has, and properties as linear functions of these numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moldiff.diffusion.batch import MolBatch, Prediction
from moldiff.molecules.vocabulary import NUM_BOND_CLASSES

_ROWS = 1000  # molecules that are turned into double precision at once


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
