"""One molecule with chemical values, and padded batches of indices: the types everything else speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS, NUM_BOND_CLASSES, Vocabulary

_T = TypeVar("_T", bound="MolBatch | NoiseLevel")
_Rows = TypeVar("_Rows")


@dataclass(frozen=True, eq=False)
class MolBatch:
    """B molecules padded to N heavy atoms, as indices into a `Vocabulary`. Clean, noisy and prior states alike.

    Atoms come first, padding last; padding holds 0 everywhere.

    Attributes:
        pos: [B, N, 3] (Å, or the model's own units inside it). `1o`
        hydrogen: offset vectors [B, N, 4, 3], unused slots 0. `1o`
        atom_type: class indices [B, N]. `0e`
        bond: symmetric orders [B, N, N], 0 = none, zero diagonal. `0e`
        node_mask: [B, N], True = atom.
        condition: property targets [B, C], NaN = not given; None for unconditional models.
    """

    pos: Tensor
    hydrogen: Tensor
    atom_type: Tensor
    bond: Tensor
    node_mask: Tensor
    condition: Tensor | None = None

    @property
    def num_molecules(self) -> int:
        return self.node_mask.shape[0]

    @property
    def max_atoms(self) -> int:
        return self.node_mask.shape[1]

    @property
    def pair_mask(self) -> Tensor:
        """[B, N, N], True = two different atoms of the molecule."""
        return pair_mask(self.node_mask)

    def replace(self, **changes: Tensor | None) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]  # only `condition` may be None

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        return _on_device(self, device)

    def validate(self) -> Self:
        """Check shapes, padding, symmetry and finiteness; return self.

        Raises:
            MoldiffError: naming the field, what it holds and what was expected.
        """
        batch, size = self.node_mask.shape
        shapes: dict[str, tuple[int, ...]] = {
            "pos": (batch, size, 3),
            "hydrogen": (batch, size, MAX_HYDROGENS, 3),
            "atom_type": (batch, size),
            "bond": (batch, size, size),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise MoldiffError(f"MolBatch.{name}: got shape {tuple(value.shape)}, expected {shape}")
            if not bool(torch.isfinite(value.double()).all()):
                raise MoldiffError(f"MolBatch.{name}: got a value that is not finite, expected finite numbers")
        if bool((self.node_mask[:, 1:] & ~self.node_mask[:, :-1]).any()):
            raise MoldiffError("MolBatch.node_mask: got an atom after padding, expected the atoms first")
        if not torch.equal(self.bond, self.bond.transpose(1, 2)):
            raise MoldiffError("MolBatch.bond: got an asymmetric matrix, expected a symmetric one")
        if bool(self.bond[~self.pair_mask].any()):
            raise MoldiffError("MolBatch.bond: got a bond on the diagonal or at padding, expected none there")
        return self


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """How noisy each field of each atom is: 0 = data, 1 = prior.

    Attributes:
        pos: level of the coordinates of heavy atoms [B, N].
        atom: level of the atom classes [B, N].
        bond: symmetric level of the bonds [B, N, N].
        hydrogen: level of the hydrogen offsets [B, N].
    """

    pos: Tensor
    atom: Tensor
    bond: Tensor
    hydrogen: Tensor

    @classmethod
    def uniform(cls, t: Tensor, node_mask: Tensor) -> NoiseLevel:
        """The same level t [B] for every field and atom."""
        nodes = t[:, None].expand(node_mask.shape)
        return cls(nodes, nodes, t[:, None, None].expand(*node_mask.shape, node_mask.shape[1]), nodes)

    def at_most(self, level: float) -> NoiseLevel:
        """The levels, but none above `level`; hydrogens keep theirs."""
        return replace(self, **{name: getattr(self, name).clamp(max=level) for name in ("pos", "atom", "bond")})

    def graph_known(self, node_mask: Tensor) -> Tensor:
        """[B] True where every atom class and bond is known."""
        atoms = (self.atom == 0) | ~node_mask
        bonds = (self.bond == 0) | ~pair_mask(node_mask)
        return atoms.all(1) & bonds.flatten(1).all(1)

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        return _on_device(self, device)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The denoiser's estimate of the clean data.

    Attributes:
        pos: [B, N, 3]. `1o`
        hydrogen: [B, N, 4, 3]. `1o`
        atom_type: logits [B, N, K]. `0e`
        bond: symmetric logits [B, N, N, 4]. `0e`
    """

    pos: Tensor
    hydrogen: Tensor
    atom_type: Tensor
    bond: Tensor

    @classmethod
    def zeros(cls, noisy: MolBatch, num_atom_classes: int) -> Prediction:
        """What stands for "no estimate yet": all coordinates at the origin, all classes equally likely."""
        shape = noisy.atom_type.shape
        return cls(
            pos=torch.zeros_like(noisy.pos),
            hydrogen=torch.zeros_like(noisy.hydrogen),
            atom_type=noisy.pos.new_zeros(*shape, num_atom_classes),
            bond=noisy.pos.new_zeros(*shape, shape[1], NUM_BOND_CLASSES),
        )

    def detach(self) -> Self:
        """A copy cut off from the graph of gradients."""
        return replace(self, **{name: value.detach() for name, value in vars(self).items()})


def _on_device(value: _T, device: torch.device | str) -> _T:
    moved: Any = {k: v.to(device) for k, v in vars(value).items() if isinstance(v, Tensor)}
    return replace(value, **moved)


def take_rows(value: _Rows, place: slice) -> _Rows:
    """The molecules at `place` of a dataclass whose tensors all have one row for each molecule of a batch."""
    instance: Any = value
    taken: Any = replace(instance, **{k: v[place] for k, v in vars(value).items() if isinstance(v, Tensor)})
    return taken  # type: ignore[no-any-return]


def pair_mask(node_mask: Tensor) -> Tensor:
    """[B, N, N], True = two different atoms of the same molecule, from `node_mask` [B, N]."""
    both = node_mask[:, :, None] & node_mask[:, None, :]
    return both & ~torch.eye(node_mask.shape[1], dtype=torch.bool, device=node_mask.device)


def collate(molecules: Sequence[Molecule], vocabulary: Vocabulary, size: int | None = None) -> MolBatch:
    """Pad molecules into one batch of width `size` (default: the largest molecule's).

    Raises:
        MoldiffError: for an empty list, a molecule wider than `size`, or an atom outside the vocabulary.
    """
    if not molecules:
        raise MoldiffError("collate: got no molecule, expected at least one")
    widest = max(m.num_heavy_atoms for m in molecules)
    size = widest if size is None else size
    if widest > size:
        raise MoldiffError(f"collate: got a molecule of {widest} heavy atoms, expected at most {size}")
    batch = len(molecules)
    pos = np.zeros((batch, size, 3), dtype=np.float32)
    hydrogen = np.zeros((batch, size, MAX_HYDROGENS, 3), dtype=np.float32)
    atom_type = np.zeros((batch, size), dtype=np.int64)
    bond = np.zeros((batch, size, size), dtype=np.int64)
    node_mask = np.zeros((batch, size), dtype=bool)
    for row, molecule in enumerate(molecules):
        n = molecule.num_heavy_atoms
        pos[row, :n] = molecule.pos
        hydrogen[row, :n] = molecule.hydrogen_offset
        atom_type[row, :n] = vocabulary.encode(molecule.atomic_number, molecule.formal_charge, molecule.num_hydrogens)
        i, j, order = molecule.bonds.astype(np.int64).T
        bond[row, i, j] = bond[row, j, i] = order
        node_mask[row, :n] = True
    arrays: tuple[Any, ...] = (pos, hydrogen, atom_type, bond, node_mask)
    return MolBatch(*(torch.from_numpy(array) for array in arrays))


def to_molecules(batch: MolBatch, vocabulary: Vocabulary) -> list[Molecule]:
    """The inverse of `collate`: the hydrogens of an atom are its longest offset vectors, as many as its class says."""
    lengths = batch.hydrogen.norm(dim=-1)
    order = lengths.argsort(dim=-1, descending=True, stable=True)
    sorted_hydrogen = batch.hydrogen.gather(2, order[..., None].expand_as(batch.hydrogen))
    molecules = []
    for row, n in enumerate(batch.node_mask.sum(1).tolist()):
        z, charge, hydrogens = vocabulary.decode(batch.atom_type[row, :n].cpu().numpy())
        used = np.arange(MAX_HYDROGENS)[None, :] < hydrogens[:, None]
        offsets = sorted_hydrogen[row, :n].double().cpu().numpy() * used[..., None]
        upper = batch.bond[row, :n, :n].triu(1)
        i, j = upper.nonzero(as_tuple=True)
        bonds = torch.stack([i, j, upper[i, j]], dim=1).cpu().numpy()
        pos = batch.pos[row, :n].double().cpu().numpy()
        molecules.append(Molecule(pos, z, charge, hydrogens, offsets, bonds))
    return molecules


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, 1, D] of values [B, N, D] over the True entries of mask [B, N]; 0 where there are none."""
    weight = mask[..., None].to(values.dtype)
    return (values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def center(pos: Tensor, node_mask: Tensor, reference: Tensor | None = None) -> Tensor:
    """Move the mean of the atoms in `reference` [B, N] (default: all) to the origin; padding stays 0.

    A molecule without any atom in `reference` is centred on all its atoms.
    """
    counted = node_mask
    if reference is not None:
        counted = torch.where(reference.any(1, keepdim=True), reference, node_mask)
    return (pos - masked_mean(pos, counted)) * node_mask[..., None]
