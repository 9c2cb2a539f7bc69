"""The batches of a whole training by step, so that a resumed training sees what an uninterrupted one would have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, repeat

import lightning
import numpy as np
import torch
from torch import Tensor

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches, evaluation_batches
from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.conditioning import Properties, half_of

_MOST_TOGETHER = 8

_FIT = 50_000
"""Molecules at most to which linear functions of atom and bond counts are fitted."""


class StepBatches:
    """The batch of every step of a training, over all epochs; one after the other from a step on.

    Args:
        batches: of an epoch.
        start: the first step.
        repeats: how often each comes, for as many parts of it that are worked on one after the other.
    """

    def __init__(self, batches: BucketedBatches, *, start: int = 0, repeats: int = 1) -> None:
        self.batches, self.start, self.repeats = batches, start, repeats

    def __getitem__(self, step: int) -> MolBatch:
        epoch, k = divmod(step, len(self.batches))
        self.batches.set_epoch(epoch)
        return self.batches[k]

    def __iter__(self) -> Iterator[MolBatch]:
        for step in count(self.start):
            yield from repeat(self[step], self.repeats)


class TrainingData(lightning.LightningDataModule):
    """Batches of a prepared set by training step.

    Args:
        prepared: the set.
        batch_size: molecules a step, device and accumulated part.
        seed: of the order.
        num_validation: molecules of the validation part that are used.
        half: of the training molecules that is used, "a" or "b"; None = all.
        properties: that the network is told, in the order of the columns of `condition`.
    """

    def __init__(
        self,
        prepared: MoleculeDataset,
        *,
        batch_size: int,
        seed: int,
        num_validation: int,
        half: str | None = None,
        properties: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.prepared, self.batch_size, self.seed = prepared, batch_size, seed
        self.num_validation = num_validation
        self.half, self.properties = half, properties

    def train_dataloader(self) -> StepBatches:
        """Every process gets all molecules of a step, so that their noise does not depend on who works on which."""
        assert self.trainer is not None
        batches = BucketedBatches(
            self.prepared,
            half_of(self.prepared.split("train"), self.half),
            batch_size=self.batch_size * self._num_parts,
            seed=self.seed,
            properties=self.properties,
        )
        return StepBatches(batches, start=self.trainer.global_step, repeats=self.trainer.accumulate_grad_batches)

    def val_dataloader(self) -> Iterable[MolBatch]:
        indices = self.prepared.split("valid")[: self.num_validation]
        if len(indices) == 0:
            return []
        # Noise is drawn for whole batches, as far as memory allows: without gradients a molecule takes a small part.
        size = self.batch_size * min(self._num_parts, _MOST_TOGETHER)
        return evaluation_batches(self.prepared, indices, batch_size=size)

    @property
    def _num_parts(self) -> int:
        assert self.trainer is not None
        return int(self.trainer.world_size * self.trainer.accumulate_grad_batches)


def learnt_properties(prepared: MoleculeDataset, names: Sequence[str], indices: np.ndarray) -> Properties:
    """Properties of a set, with their scales among the molecules `indices` that a network learns from."""
    return Properties.of(
        {name: prepared.learnable[name] for name in names},
        prepared.values(names)[indices],
        np.diff(prepared.flat["atom_slices"])[indices],
    )


def counted(
    prepared: MoleculeDataset, properties: Properties, indices: np.ndarray, counts_of: Callable[[MolBatch, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Counts [M, F] (see `nn.contributions`) and normalised properties [M, C] of some of the molecules `indices`."""
    counts, targets = [], []
    number = prepared.vocabulary.num_atom_classes
    for batch in evaluation_batches(prepared, indices[:_FIT], batch_size=1000, properties=properties.names):
        assert batch.condition is not None
        counts.append(counts_of(batch, number))
        targets.append(properties.normalised(batch.condition))
    return torch.cat(counts), torch.cat(targets)
