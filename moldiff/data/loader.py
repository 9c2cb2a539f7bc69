"""Size-bucketed dense batches, gathered from the packed arrays without a loop over molecules.

Sizes are grouped into a few padded widths, and every training batch of a width has the same number of molecules:
few shapes, little padding, and a cost per batch that hardly varies. Needs no RDKit.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import MolBatch
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import MAX_HYDROGENS


def bucket_widths(sizes: np.ndarray, *, max_waste: float, min_pairs: float) -> list[int]:
    """The fewest padded widths, ascending, with which at most `max_waste` of all padded pairs are padding.

    Every width holds at least `min_pairs` padded pairs, so that its batches can be filled, but a single width may hold
    fewer; where that forbids reaching `max_waste`, the best is returned. `sizes` are heavy atoms of every molecule [M].
    """
    widths, counts = np.unique(sizes, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    needed = float((counts * widths.astype(np.float64) ** 2).sum())
    count = len(widths)
    # Dynamic programming: the fewest padded pairs of the first k sizes in the buckets so far, and their widths.
    best: list[tuple[float, list[int]]] = [(0.0, []), *[(np.inf, [])] * count]
    found: tuple[float, list[int]] = (np.inf, [])
    for _ in range(count):
        cost = np.array([price for price, _ in best])
        following: list[tuple[float, list[int]]] = [(np.inf, [])]
        for end in range(1, count + 1):
            pairs = (total[end] - total[:end]) * float(widths[end - 1]) ** 2
            too_few = pairs < min_pairs
            too_few[0] &= end < count
            price = np.where(too_few, np.inf, cost[:end] + pairs)
            cut = int(price.argmin())
            following.append((float(price[cut]), [*best[cut][1], int(widths[end - 1])]))
        best = following
        found = min(found, best[-1], key=lambda one: one[0])
        if best[-1][0] * (1 - max_waste) <= needed:
            break
    return found[1]


class BucketedBatches(Dataset[MolBatch]):
    """The batches of one epoch as a sequence: `batches[k]` is the k-th, `for batch in batches` all of them.

    In training (`shuffle=True`) the order depends on (seed, epoch) alone, and batches that the molecules do not fill
    are filled up by drawing again among those of their width; a set smaller than a batch makes one smaller batch. In
    evaluation every molecule comes exactly once, in batches as full as the order allows.

    Usable as it is, or with worker processes through `DataLoader(batches, batch_size=None, num_workers=2)`, which
    gives the same batches in the same order. To resume an epoch exactly, start at batch k: `batches.epoch(e, start=k)`.

    Args:
        indices: the molecules to use, e.g. `prepared.split("train")`.
        batch_size: molecules per batch, for the width that most molecules have; other widths get as many as fit in
            the same number of padded pairs, and at least one.
        seed: of the order, 0 <= seed < 2**32.
        properties: names of learnable ones that become `condition` [B, C], in the set's units, NaN = not known.
        max_waste: the share of padded pairs that may be padding.

    Raises MoldiffError for no molecule, a batch size below 1 or a property the set lacks.
    """

    def __init__(
        self,
        prepared: MoleculeDataset,
        indices: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        properties: Sequence[str] = (),
        max_waste: float = 0.1,
    ) -> None:
        if len(indices) == 0:
            raise MoldiffError(f"{prepared.name}: got no molecule to make batches of, expected at least one")
        if batch_size < 1:
            raise MoldiffError(f"batch_size: got {batch_size}, expected at least 1")
        flat = {name: torch.from_numpy(array) for name, array in prepared.flat.items() if name != "y"}
        # Where there is no hydrogen at all there still has to be a row to look up.
        none = {} if len(flat["hydrogen_offset"]) else {"hydrogen_offset": torch.zeros(1, 3)}
        self._flat = flat | none | {"atom_type": torch.from_numpy(prepared.atom_type)}
        self._condition = torch.from_numpy(prepared.values(properties)) if properties else None
        self._indices = np.asarray(indices, dtype=np.int64)
        self._seed, self._epoch, self._shuffle = seed, 0, shuffle
        sizes = np.diff(prepared.flat["atom_slices"])[self._indices]
        step_pairs = batch_size * float(np.bincount(sizes).argmax()) ** 2 if shuffle else 0.0
        self.widths = bucket_widths(sizes, max_waste=max_waste, min_pairs=step_pairs)
        self._bucket = np.searchsorted(self.widths, sizes)
        counts = np.bincount(self._bucket, minlength=len(self.widths))
        reference = self.widths[int(counts.argmax())]
        self.batch_sizes = [max(1, int(batch_size * (reference / width) ** 2)) for width in self.widths]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are given."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.__dict__.pop("_plan", None)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[MolBatch]:
        """The batches of an epoch from number `start` on."""
        self.set_epoch(epoch)
        for k in range(start, len(self)):
            yield self[k]

    def __iter__(self) -> Iterator[MolBatch]:
        return self.epoch(self._epoch)

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, k: int) -> MolBatch:
        bucket, ids = self._plan[k]
        flat, width = self._flat, self.widths[bucket]
        start, bond_start = flat["atom_slices"][ids], flat["bond_slices"][ids]
        slot = torch.arange(width)
        node_mask = slot < (flat["atom_slices"][ids + 1] - start)[:, None]
        rows = torch.where(node_mask, start[:, None] + slot, 0)
        counts = flat["bond_slices"][ids + 1] - bond_start
        owner = torch.repeat_interleave(torch.arange(len(ids)), counts)
        edges = (bond_start - (counts.cumsum(0) - counts))[owner] + torch.arange(len(owner))
        i, j = flat["edge_index"][:, edges].long()
        bond = torch.zeros(len(ids), width, width, dtype=torch.long)
        bond[owner, i, j] = bond[owner, j, i] = flat["bond_order"][edges].long()
        return MolBatch(
            pos=flat["pos"][rows].masked_fill_(~node_mask[..., None], 0.0),
            hydrogen=self._hydrogens(ids, rows, node_mask),
            atom_type=flat["atom_type"][rows].long().masked_fill_(~node_mask, 0),
            bond=bond,
            node_mask=node_mask,
            condition=None if self._condition is None else self._condition[ids],
        )

    def _hydrogens(self, ids: Tensor, rows: Tensor, node_mask: Tensor) -> Tensor:
        """Offsets in slots [B, N, 4, 3] of the atoms `rows` [B, N]."""
        counts = self._flat["num_hydrogens"][rows].long().masked_fill_(~node_mask, 0)
        first = self._flat["hydrogen_slices"][ids, None] + counts.cumsum(1) - counts
        slot = torch.arange(MAX_HYDROGENS)
        used = slot < counts[..., None]
        found = self._flat["hydrogen_offset"][torch.where(used, first[..., None] + slot, 0)]
        return found.masked_fill_(~used[..., None], 0.0)

    def molecules(self, k: int) -> Tensor:
        """Indices into the prepared set of the molecules of batch k [B]."""
        return self._plan[k][1]

    @cached_property
    def _plan(self) -> list[tuple[int, Tensor]]:
        """(bucket, molecule indices [B]) of every batch in the present epoch."""
        state = np.random.SeedSequence([self._seed, self._epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        plan = []
        for bucket, size in enumerate(self.batch_sizes):
            members = torch.from_numpy(self._indices[self._bucket == bucket])
            if not self._shuffle:
                plan += [(bucket, chunk) for chunk in torch.split(members, size) if len(chunk)]
                continue
            members = members[torch.randperm(len(members), generator=generator)]
            size = min(size, len(members))  # fewer molecules than a step takes make a smaller step
            missing = -len(members) % size
            refill = members[torch.randint(len(members), (missing,), generator=generator)]
            plan += [(bucket, ids) for ids in torch.cat([members, refill]).view(-1, size)]
        order = torch.randperm(len(plan), generator=generator) if self._shuffle else torch.arange(len(plan))
        return [plan[k] for k in order.tolist()]


def evaluation_batches(
    prepared: MoleculeDataset, indices: np.ndarray, *, batch_size: int, properties: Sequence[str] = ()
) -> BucketedBatches:
    """Batches in which every molecule of `indices` comes exactly once, in a fixed order."""
    return BucketedBatches(prepared, indices, batch_size=batch_size, shuffle=False, properties=properties)
