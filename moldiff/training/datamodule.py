"""The batches of a whole training by step, so that a resumed training sees what an uninterrupted one would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moldiff.data.dataset import PreparedSet
from moldiff.data.loader import DenseBatches, evaluation_batches
from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.conditioning import Properties, half_of

_MANY_STEPS = 10**9
_MOST_TOGETHER = 8

_FIT = 50_000
"""Molecules at most to which linear functions of atom and bond counts are fitted."""


class StepDataset(Dataset[MolBatch]):
    """Batch by step of the whole training, over all epochs."""

    def __init__(self, batches: DenseBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> MolBatch:
        epoch, k = divmod(step, len(self.batches))
        self.batches.set_epoch(epoch)
        return self.batches[k]


class _StepSampler(Sampler[int]):
    """The steps from `start` on."""

    def __init__(self, start: int, total: int) -> None:
        self.steps = range(start, total)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class TrainingData(lightning.LightningDataModule):
    """Batches of a prepared set by training step.

    Args:
        prepared: the set.
        batch_size: molecules a step and device.
        seed: of the order.
        num_validation: molecules of the validation part that are used.
        half: of the training molecules that is used, "a" or "b"; None = all.
        properties: that the network is told, in the order of the columns of `condition`.
    """

    def __init__(
        self,
        prepared: PreparedSet,
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

    def train_dataloader(self) -> DataLoader[MolBatch]:
        trainer = self.trainer
        assert trainer is not None
        batches = DenseBatches(
            self.prepared,
            half_of(self.prepared.split("train"), self.half),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            properties=self.properties,
        )
        total = trainer.max_steps if trainer.max_steps > 0 else _MANY_STEPS
        sampler = _StepSampler(trainer.global_step, total)
        return DataLoader(StepDataset(batches), batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[MolBatch] | Sequence[MolBatch]:
        indices = self.prepared.split("valid")[: self.num_validation]
        if len(indices) == 0:
            return []
        # Noise is drawn for whole batches; so that it does not depend on the number of processes, theirs are put
        # together here, as far as memory allows: without gradients a molecule takes a small part of it.
        trainer = self.trainer
        assert trainer is not None
        size = self.batch_size * min(trainer.world_size, _MOST_TOGETHER)
        batches = evaluation_batches(self.prepared, indices, batch_size=size)
        return DataLoader(batches, batch_size=None, shuffle=False)


def learnt_properties(prepared: PreparedSet, names: Sequence[str], indices: np.ndarray) -> Properties:
    """Properties of a set, with their scales among the molecules `indices` that a network learns from."""
    return Properties.of(
        {name: prepared.learnable[name] for name in names},
        prepared.values(names)[indices],
        np.diff(prepared.flat["atom_slices"])[indices],
    )


def counted(
    prepared: PreparedSet, properties: Properties, indices: np.ndarray, counts_of: Callable[[MolBatch, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Counts [M, F] (see `nn.contributions`) and normalised properties [M, C] of some of the molecules `indices`."""
    counts, targets = [], []
    number = prepared.vocabulary.num_atom_classes
    for batch in evaluation_batches(prepared, indices[:_FIT], batch_size=1000, properties=properties.names):
        assert batch.condition is not None
        counts.append(counts_of(batch, number))
        targets.append(properties.normalised(batch.condition))
    return torch.cat(counts), torch.cat(targets)
