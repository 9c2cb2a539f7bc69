"""Lightning modules: what every training has, and the training of a diffusion model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import Precision, compile_blocks, has_fast_bfloat16
from moldiff.diffusion.model import MoleculeDiffusion, NoisyBatch, PropertyChoice, TaskDistribution, TimeDistribution
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


class AveragedTraining(lightning.LightningModule):
    """Optimizer, learning rate and averaged weights of one network.

    Args:
        model: the network, or what it is part of.
        optimizer: builds the optimizer from named parameters.
        schedule: (step, progress) -> factor on the learning rates.
        ema_decay: of the averaged weights, reached after a warm-up.
        max_norm: the gradient's norm is clipped to this.
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
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
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
    """Losses of one model.

    Every random number of a step comes from a generator seeded by (seed, step), so a resumed training draws what an
    uninterrupted one would have drawn. The molecules of a step get their noise together, and processes and
    accumulated parts share them: two processes, or two parts, do what one does with the double batch, up to rounding.

    Args:
        model: the model to train.
        times: draws the noise levels of a batch.
        tasks: draws what is known of every molecule; None = nothing.
        told: draws which properties the network is told of every molecule; None = all that a batch has.
        field_weights: weight of every field's loss.
        self_conditioning: share of the steps that feed the network its own estimate.
        seed: of all random numbers.
        options: of every training, see `AveragedTraining`.
    """

    model: MoleculeDiffusion
    averaged: MoleculeDiffusion

    def __init__(
        self,
        model: MoleculeDiffusion,
        *,
        times: TimeDistribution,
        tasks: TaskDistribution | None = None,
        told: PropertyChoice | None = None,
        field_weights: Mapping[str, float],
        self_conditioning: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.times, self.tasks, self.told = times, tasks, told
        self.field_weights, self.self_conditioning, self.seed = field_weights, self_conditioning, seed
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
        """What this process works on of the present step.

        Args:
            batch: all molecules of the step.
            part: number of the part, of those that are accumulated one after the other.

        Returns:
            Molecules with and without noise, and for each loss their share of the entries of the whole step.
        """
        whole = self.model.noise(batch, self.times, self.generator(self.global_step), tasks=self.tasks, told=self.told)
        processes = self.trainer.world_size
        count, parts = batch.num_molecules, processes * self.trainer.accumulate_grad_batches
        start, end = (count * k // parts for k in (part * processes + self.global_rank + n for n in (0, 1)))
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
