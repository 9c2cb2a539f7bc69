"""Padded batches of class indices, how noisy they are, what a network says of them, and the random numbers for them.

One generator serves a whole batch (training), or one each molecule (sampling). Seeded by (seed, index), that of a
molecule draws exactly as many numbers as it has atoms and pairs, so molecule k of seed s is the same at any batch size,
padding, or shard.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS, NUM_BOND_CLASSES, Vocabulary

Item = TypeVar("Item")


class TensorFields:
    """What dataclasses of tensors, and of such dataclasses, have in common; every tensor has a row for a molecule."""

    def to(self, device: torch.device | str) -> Self:
        """A copy on another device."""
        return self._mapped(lambda value: value.to(device))

    def rows(self, place: slice) -> Self:
        """The molecules at `place`."""
        return self._mapped(lambda value: value[place])

    def detach(self) -> Self:
        """A copy cut off from the graph of gradients."""
        return self._mapped(lambda value: value.detach())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, TensorFields):
                changed[name] = value._mapped(change)
            elif isinstance(value, Tensor):
                changed[name] = change(value)
        return replace(self, **changed)  # type: ignore[type-var]  # all that derive from it are dataclasses


@dataclass(frozen=True, eq=False)
class MolBatch(TensorFields):
    """B molecules padded to N heavy atoms, as indices into a `Vocabulary`. Clean, noisy and prior states alike.

    Atoms come first, padding last; padding holds 0 everywhere.
    """

    pos: Tensor  # [B, N, 3] (Å, or the model's own units inside it), 1o
    hydrogen: Tensor  # offset vectors [B, N, 4, 3], unused slots 0, 1o
    atom_type: Tensor  # class indices [B, N], 0e
    bond: Tensor  # symmetric orders [B, N, N], 0 = none, zero diagonal, 0e
    node_mask: Tensor  # [B, N], True = atom
    condition: Tensor | None = None  # property targets [B, C], NaN = not given; None for unconditional models

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
        return replace(self, **changes)  # type: ignore[arg-type]  # only `condition` may be None

    def validate(self) -> Self:
        """Check shapes, padding, symmetry and finiteness, a MoldiffError names the field; return self."""
        atoms = tuple(self.node_mask.shape)
        tails = {"pos": (3,), "hydrogen": (MAX_HYDROGENS, 3), "atom_type": (), "bond": atoms[1:]}
        for name, tail in tails.items():
            value = getattr(self, name)
            if tuple(value.shape) != atoms + tail:
                raise MoldiffError(f"MolBatch.{name}: got shape {tuple(value.shape)}, expected {atoms + tail}")
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
class NoiseLevel(TensorFields):
    """How noisy each field of each atom is: 0 = data, 1 = prior."""

    pos: Tensor  # of the coordinates of heavy atoms [B, N]
    atom: Tensor  # of the atom classes [B, N]
    bond: Tensor  # of the bonds [B, N, N], symmetric
    hydrogen: Tensor  # of the hydrogen offsets [B, N]

    @classmethod
    def uniform(cls, t: Tensor, node_mask: Tensor) -> Self:
        """The same level t [B] for every field and atom."""
        nodes = t[:, None].expand(node_mask.shape)
        return cls(nodes, nodes, t[:, None, None].expand(*node_mask.shape, node_mask.shape[1]), nodes)

    def at_most(self, level: float) -> Self:
        """The levels, but none above `level`; hydrogens keep theirs."""
        return replace(self, **{name: getattr(self, name).clamp(max=level) for name in ("pos", "atom", "bond")})

    def free_classes(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        """True for the atoms [B, N] and pairs [B, N, N] whose class is not known."""
        return (self.atom > 0) & node_mask, (self.bond > 0) & pair_mask(node_mask)

    def graph_known(self, node_mask: Tensor) -> Tensor:
        """[B] True where every atom class and bond is known."""
        atoms, bonds = self.free_classes(node_mask)
        return ~(atoms.any(1) | bonds.flatten(1).any(1))


@dataclass(frozen=True, eq=False)
class Prediction(TensorFields):
    """The denoiser's estimate of the clean data."""

    pos: Tensor  # [B, N, 3], 1o
    hydrogen: Tensor  # [B, N, 4, 3], 1o
    atom_type: Tensor  # logits [B, N, K], 0e
    bond: Tensor  # symmetric logits [B, N, N, 4], 0e

    @classmethod
    def zeros(cls, noisy: MolBatch, num_atom_classes: int) -> Self:
        """What stands for "no estimate yet": all coordinates at the origin, all classes equally likely."""
        shape = noisy.atom_type.shape
        return cls(
            pos=torch.zeros_like(noisy.pos),
            hydrogen=torch.zeros_like(noisy.hydrogen),
            atom_type=noisy.pos.new_zeros(*shape, num_atom_classes),
            bond=noisy.pos.new_zeros(*shape, shape[1], NUM_BOND_CLASSES),
        )


def pair_mask(node_mask: Tensor) -> Tensor:
    """[B, N, N], True = two different atoms of the same molecule, from `node_mask` [B, N]."""
    both = node_mask[:, :, None] & node_mask[:, None, :]
    return both & ~torch.eye(node_mask.shape[1], dtype=torch.bool, device=node_mask.device)


def collate(molecules: Sequence[Molecule], vocabulary: Vocabulary, size: int | None = None) -> MolBatch:
    """Pad molecules into one batch of width `size` (default: the largest molecule's).

    MoldiffError for an empty list, a molecule wider than `size`, or an atom outside the vocabulary.
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
    arrays: list[Any] = [pos, hydrogen, atom_type, bond, node_mask]
    return MolBatch(*map(torch.from_numpy, arrays))


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


def by_size(items: Iterable[Item], size: Callable[[Item], int], pairs: int) -> Iterator[list[Item]]:
    """Batches of molecules of similar sizes, each within so many padded pairs; equal sizes keep their order."""
    batch: list[Item] = []
    for item in sorted(items, key=size):
        if batch and (len(batch) + 1) * size(item) ** 2 > pairs:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, 1, D] of values [B, N, D] over the True entries of mask [B, N]; 0 where there are none."""
    weight = mask[..., None].to(values.dtype)
    return (values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def center(pos: Tensor, node_mask: Tensor, reference: Tensor | None = None) -> Tensor:
    """Move the mean of the atoms in `reference` [B, N], or of all where it has none, to the origin; padding stays 0."""
    counted = node_mask
    if reference is not None:
        counted = torch.where(reference.any(1, keepdim=True), reference, node_mask)
    return (pos - masked_mean(pos, counted)) * node_mask[..., None]


def pair_vectors(pos: Tensor) -> Tensor:
    """Vectors [B, N, N, 3] from atom i (second axis) to atom j (third axis) of pos [B, N, 3]."""
    return pos[:, None] - pos[:, :, None]


def lengths(vectors: Tensor) -> Tensor:
    """Lengths [...] of vectors [..., 3], with a floor that keeps the gradient finite at zero."""
    return (vectors.square().sum(-1) + 1e-8).sqrt()


def _symmetric(pairs: Tensor) -> Tensor:
    """Copy the upper triangle of [B, N, N, 2] onto the lower, so that a pair's two entries agree."""
    upper = torch.ones(pairs.shape[1:3], dtype=torch.bool, device=pairs.device).triu(1)[..., None]
    pairs = pairs * upper
    return pairs + pairs.transpose(1, 2)


class BatchNoise:
    """One `torch.Generator` for the whole batch: fast, but the numbers depend on the batch's shape."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
        self._generator, self._dtype = generator, dtype

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        """Standard normal numbers [B, N, *tail] for the atoms of `node_mask` [B, N]; padding holds zeros."""
        noise = self._empty(*node_mask.shape, *tail).normal_(generator=self._generator)
        return noise * node_mask.reshape(node_mask.shape + (1,) * len(tail))

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Two uniform numbers in [0, 1) for every atom [B, N, 2] and, symmetric, every pair [B, N, N, 2]."""
        batch, size = node_mask.shape
        atoms = self._empty(batch, size, 2).uniform_(generator=self._generator)
        pairs = self._empty(batch, size, size, 2).uniform_(generator=self._generator)
        return atoms, _symmetric(pairs)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self._dtype, device=self._generator.device)


def molecule_generator(seed: int, index: int, candidate: int = 0) -> torch.Generator:
    """The generator of molecule `index` (0 <= index < 2**31) of the run of a seed (0 <= seed < 2**32).

    Of several candidates for a molecule the first has the numbers of a run without candidates.
    """
    # A torch.Generator is seeded with 64 bits: the run's seed fills bits 31 to 62, the index those below.
    first = torch.Generator().manual_seed((seed << 31) + index)
    if candidate == 0:
        return first
    own = int(torch.randint(2**63 - 1, (candidate,), generator=first)[-1])
    return torch.Generator().manual_seed((1 << 63) + own)


def draw_size(generator: torch.Generator, counts: Mapping[int, int]) -> int:
    """A number of heavy atoms in proportion to the counts.

    It takes one uniform number whatever the counts, so that what the generator gives next does not depend on them.
    """
    sizes = sorted(counts)
    totals = torch.tensor([counts[size] for size in sizes], dtype=torch.double).cumsum(0)
    uniform = torch.rand((), generator=generator, dtype=torch.double)
    return sizes[int((uniform * totals[-1] >= totals).sum())]


@dataclass(frozen=True, eq=False)
class PerMoleculeNoise:
    """One CPU generator per molecule of the batch, see `molecule_generator`; with what `BatchNoise` gives.

    The numbers are always drawn on the CPU, so that every device gets the same, and then moved to `device`.
    """

    generators: Sequence[torch.Generator]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def normal(self, node_mask: Tensor, *tail: int) -> Tensor:
        noise = torch.zeros(*node_mask.shape, *tail, dtype=self.dtype)
        for row, size in enumerate(node_mask.sum(1).tolist()):
            noise[row, :size] = torch.randn(size, *tail, generator=self.generators[row], dtype=self.dtype)
        return noise.to(self.device)

    def uniform(self, node_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, size_max = node_mask.shape
        atoms = torch.zeros(batch, size_max, 2, dtype=self.dtype)
        pairs = torch.zeros(batch, size_max, size_max, 2, dtype=self.dtype)
        for row, size in enumerate(node_mask.sum(1).tolist()):
            numbers = torch.rand(size * (size + 1), 2, generator=self.generators[row], dtype=self.dtype)
            atoms[row, :size] = numbers[:size]
            pairs[row, :size, :size] = numbers[size:].view(size, size, 2)
        return atoms.to(self.device), _symmetric(pairs).to(self.device)


NoiseSource = BatchNoise | PerMoleculeNoise
