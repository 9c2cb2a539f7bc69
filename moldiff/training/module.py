"""Lightning's modules and data: what every training has, and the training of a diffusion model on a prepared set."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, repeat
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches, evaluation_batches
from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import Precision, compile_blocks, has_fast_bfloat16
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.instantiate import instantiate
from moldiff.diffusion.model import MoleculeDiffusion, NoisyBatch
from moldiff.training.callbacks import progress
from moldiff.training.optim import MuonAdamW

STEP_BY_STEP: Mapping[str, Any] = {
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of Lightning's trainer: steps are counted and no epochs, and what is shown and saved is not Lightning's."""

_MOST_TOGETHER = 8  # parts of a step at most whose molecules are validated together
_FIT = 50_000  # molecules at most to which linear functions of atom and bond counts are fitted


class AveragedTraining(lightning.LightningModule):
    """Optimizer, learning rate and averaged weights of one network.

    `schedule` gives the factor on the learning rates by step and progress; the averages warm up to `ema_decay`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[int, float], float],
        ema_decay: float,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.make_optimizer, self.schedule = optimizer, schedule
        self.ema_decay, self.max_norm = ema_decay, max_norm

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.make_optimizer(self.model.named_parameters())
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
        if isinstance(optimizer, MuonAdamW):
            optimizer.share = (self.global_rank, self.trainer.world_size)
        return optimizer

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        if not torch.isfinite(norm):  # one broken step must not spoil the weights: leave it out
            optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        factor = self.schedule(self.global_step, progress(self.trainer))
        for group in optimizer.param_groups:
            group["lr"] = factor * group["full_lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        step = self.global_step + 1
        average: Any = get_ema_multi_avg_fn(min(self.ema_decay, step / (step + 9)))  # type: ignore[no-untyped-call]
        average(list(self.averaged.parameters()), list(self.model.parameters()), step)


class DiffusionTraining(AveragedTraining):
    """Losses of one model, trained as the config of a training says.

    Every random number of a step comes from a generator seeded by (seed, step), so that a resumed training draws the
    same. Processes and accumulated parts share a step's molecules, whose noise is drawn together: two of them do what
    one does with the double batch, up to rounding.
    """

    model: MoleculeDiffusion
    averaged: MoleculeDiffusion

    def __init__(self, model: MoleculeDiffusion, config: Mapping[str, Any]) -> None:
        optimizer, schedule = (instantiate(config[name], None) for name in ("optimizer", "schedule"))
        super().__init__(model, optimizer=optimizer, schedule=schedule, ema_decay=config["ema_decay"])
        self.times = instantiate(config["times"], None)
        options = (("tasks", "tasks"), ("visible", "condition"))
        self.known = {name: instantiate(config.get(option) or None, None) for name, option in options}
        self.field_weights, self.seed = config["field_weights"], config["seed"]
        self.self_conditioning = config["self_conditioning"]
        self.arithmetic = Precision()
        self._logged: dict[str, Tensor] = {}

    def use(self, arithmetic: Precision) -> None:
        """Compute so from now on, in the optimizer's matrix products, too."""
        if arithmetic.compiled != self.arithmetic.compiled:
            compile_blocks(self.model.denoiser, arithmetic.compiled, dynamic=False)
        self.arithmetic = arithmetic
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, MuonAdamW):
                optimizer.dtype = torch.bfloat16 if arithmetic.bfloat16 and has_fast_bfloat16(self.device) else None

    def generator(self, step: int) -> torch.Generator:
        """The source of a step's random numbers, the same in every process."""
        return torch.Generator(self.device).manual_seed(((self.seed + 1) << 40) + (step << 10))

    def own_part(self, batch: MolBatch, part: int) -> tuple[NoisyBatch, dict[str, Tensor]]:
        """What this process works on in a part of the present step, and its share of the entries of each loss."""
        whole = self.model.noise(batch, self.times, self.generator(self.global_step), **self.known)
        processes = self.trainer.world_size
        number, parts = batch.num_molecules, processes * self.trainer.accumulate_grad_batches
        start, end = (number * k // parts for k in (part * processes + self.global_rank + n for n in (0, 1)))
        # Where a step has fewer molecules than parts, some work on one that is not theirs, and it counts nothing.
        own = whole.rows(slice(start, max(end, start + 1)))
        counts = self.model.counts_of(own)
        totals = self.model.counts_of(whole).items()
        return own, {name: (end > start) * counts[name] / total.clamp(min=1) for name, total in totals}

    def training_step(self, batch: MolBatch, batch_idx: int) -> dict[str, Any]:
        trainer: Any = self.trainer
        parts = trainer.accumulate_grad_batches
        part = batch_idx % parts
        coin = torch.rand((), generator=torch.Generator().manual_seed(((self.seed + 1) << 40) + self.global_step))
        noised, weights = self.own_part(batch, part)
        with self.arithmetic.autocast(self.device):
            losses = self.model.losses_of(noised, self_condition=bool(coin < self.self_conditioning))
        shares = {name: loss * weights[name] for name, loss in losses.items()}
        before = self._logged if part else {}
        self._logged = {name: before.get(name, 0.0) + share.detach() for name, share in shares.items()}
        # Lightning takes the mean over processes and parts, but shares add up.
        loss = parts * trainer.world_size * self._weighted(shares)
        step = self.global_step + 1
        is_logged = part == parts - 1 and step % trainer.log_every_n_steps == 0
        return {"loss": loss} | (self._log(step) if is_logged else {})

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.field_weights[name] * loss for name, loss in losses.items()]).sum()

    def _log(self, step: int) -> dict[str, float]:
        """Log the losses of a whole step over all its parts and processes."""
        sums = self.trainer.strategy.reduce(torch.stack(list(self._logged.values())), reduce_op="sum")
        losses = dict(zip(self._logged, sums, strict=True))
        losses["loss"] = self._weighted(losses)
        logged = {f"train/{name}": float(loss) for name, loss in losses.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(logged, step=step)
        return logged

    def validation_step(self, batch: MolBatch, batch_idx: int) -> None:
        generator = self.generator(batch_idx)
        with self.arithmetic.autocast(self.device):
            losses = self.averaged.losses(batch, self.times, generator, self_condition=True)
            bound = self.averaged.bound(batch, generator)
        logged = {f"valid/{name}": loss for name, loss in losses.items()} | {"valid/loss": self._weighted(losses)}
        logged |= {f"valid/bound_{name}": value.mean() for name, value in bound.items()}
        logged["valid/bound"] = torch.stack([value.mean() for value in bound.values()]).sum()
        logged["step"] = torch.tensor(float(self.global_step))
        self.log_dict(logged, batch_size=batch.num_molecules, sync_dist=True)


class StepBatches:
    """The batch of every step of a training, over all epochs; each comes `repeats` times, for as many parts."""

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
    """Batches by training step, so that a resumed training on `indices` sees what an uninterrupted one would have."""

    def __init__(
        self, prepared: MoleculeDataset, indices: np.ndarray, config: Mapping[str, Any], properties: Sequence[str]
    ) -> None:
        super().__init__()
        self.prepared, self.indices, self.config, self.properties = prepared, indices, config, properties

    def train_dataloader(self) -> StepBatches:
        """Every process gets all molecules of a step, so that their noise does not depend on who works on which."""
        assert self.trainer is not None
        size, seed = self.config["batch_size"] * self._num_parts, self.config["seed"]
        batches = BucketedBatches(self.prepared, self.indices, batch_size=size, seed=seed, properties=self.properties)
        return StepBatches(batches, start=self.trainer.global_step, repeats=self.trainer.accumulate_grad_batches)

    def val_dataloader(self) -> Iterable[MolBatch]:
        indices = self.prepared.split("valid")[: self.config["trainer"]["num_validation"]]
        # Noise is drawn for whole batches, as far as memory allows: without gradients a molecule takes a small part.
        size = self.config["batch_size"] * min(self._num_parts, _MOST_TOGETHER)
        return evaluation_batches(self.prepared, indices, batch_size=size) if len(indices) else []

    @property
    def _num_parts(self) -> int:
        assert self.trainer is not None
        return int(self.trainer.world_size * self.trainer.accumulate_grad_batches)


def learnt_properties(prepared: MoleculeDataset, names: Sequence[str], indices: np.ndarray) -> Properties:
    """Properties of a set, with their scales among the molecules `indices` that a network learns from."""
    sizes = np.diff(prepared.flat["atom_slices"])[indices]
    return Properties.of({name: prepared.learnable[name] for name in names}, prepared.values(names)[indices], sizes)


def counted(
    prepared: MoleculeDataset, properties: Properties, indices: np.ndarray, counts_of: Callable[[MolBatch, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Counts [M, F] (see `conditioning`) and normalised properties [M, C] of some of the molecules `indices`."""
    counts, targets = [], []
    for batch in evaluation_batches(prepared, indices[:_FIT], batch_size=1000, properties=properties.names):
        assert batch.condition is not None
        counts.append(counts_of(batch, prepared.vocabulary.num_atom_classes))
        targets.append(properties.normalised(batch.condition))
    return torch.cat(counts), torch.cat(targets)
