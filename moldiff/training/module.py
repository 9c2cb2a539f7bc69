"""A thin Lightning module around `MoleculeDiffusion`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import Arithmetic, compile_blocks, has_fast_bfloat16, is_out_of_memory
from moldiff.diffusion.model import MoleculeDiffusion, Noised, PropertyChoice, TaskDistribution, TimeDistribution
from moldiff.errors import MoldiffError
from moldiff.training.callbacks import progress
from moldiff.training.optim import MuonAdamW


class DiffusionTraining(lightning.LightningModule):
    """Loss, optimizer and averaged weights of one model.

    Every random number of a step comes from a generator seeded by (seed, step), so a resumed training draws what an
    uninterrupted one would have drawn. Processes that share a step's molecules share its numbers, too, and gradients
    are summed with the weight that each process's atoms and pairs have in the whole: two processes do what one does
    with the double batch, up to rounding. A batch that does not fit into memory is worked on in parts, with the same
    result.

    Args:
        model: the model to train.
        optimizer: builds the optimizer from named parameters.
        schedule: (step, progress) -> factor on the learning rates.
        times: draws the noise levels of a batch.
        tasks: draws what is known of every molecule; None = nothing.
        told: draws which properties the network is told of every molecule; None = all that a batch has.
        field_weights: weight of every field's loss.
        self_conditioning: share of the steps that feed the network its own estimate.
        ema_decay: of the averaged weights, reached after a warm-up.
        seed: of all random numbers.
        max_norm: the gradient's norm is clipped to this.
    """

    def __init__(
        self,
        model: MoleculeDiffusion,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[int, float], float],
        times: TimeDistribution,
        tasks: TaskDistribution | None = None,
        told: PropertyChoice | None = None,
        field_weights: Mapping[str, float],
        self_conditioning: float = 0.5,
        ema_decay: float = 0.999,
        seed: int = 0,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__()
        # Lightning would average gradients with equal weights and could not go back on a lack of memory.
        self.automatic_optimization = False
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.make_optimizer, self.schedule, self.times, self.tasks = optimizer, schedule, times, tasks
        self.told = told
        self.field_weights, self.self_conditioning = field_weights, self_conditioning
        self.ema_decay, self.seed, self.max_norm = ema_decay, seed, max_norm
        self.num_parts = 1
        self.arithmetic = Arithmetic()
        self.wants_end = self.is_ending = False
        self._asked_to_end = torch.tensor(0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.make_optimizer(self.model.denoiser.named_parameters())
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
        if isinstance(optimizer, MuonAdamW):
            optimizer.share = (self.global_rank, self.trainer.world_size)
        return optimizer

    def use(self, arithmetic: Arithmetic) -> None:
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

    def training_step(self, batch: MolBatch) -> dict[str, Tensor]:
        step = self.global_step
        self._set_learning_rate(step)
        coin = torch.rand((), generator=torch.Generator().manual_seed(((self.seed + 1) << 40) + step))
        part = (self.global_rank, self.trainer.world_size)
        noised = self.model.noise(batch, self.times, self.generator(step), tasks=self.tasks, told=self.told, part=part)
        losses = self._gradients(noised, self_condition=bool(coin < self.self_conditioning))
        self._update()
        total = torch.stack([self.field_weights[name] * loss for name, loss in losses.items()]).sum()
        self.log_dict(
            {f"train/{name}": loss for name, loss in losses.items()}
            | {"train/loss": total, "step": float(self.global_step)}
        )
        return {"loss": total}

    def _set_learning_rate(self, step: int) -> None:
        factor = self.schedule(step, progress(self.trainer))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["full_lr"]

    def _gradients(self, noised: Noised, *, self_condition: bool) -> dict[str, Tensor]:
        """Leave the gradient of the whole step's loss in the parameters; returns the losses."""
        names, counts = zip(*self.model.counts_of(noised).items(), strict=True)
        # Processes end after the same step, whichever of them was asked to.
        sent = torch.stack([*counts, torch.tensor(self.wants_end, device=self.device)]).float()
        *totals, self._asked_to_end = self.trainer.strategy.reduce(sent, reduce_op="sum").unbind()
        weights = {name: 1 / total.clamp(min=1) for name, total in zip(names, totals, strict=True)}
        while True:
            self._optimizer().zero_grad(set_to_none=True)
            try:
                losses = self._backward(noised.split(self.num_parts), weights, self_condition=self_condition)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(noised.clean.num_molecules)  # not above, where the error keeps the tensors alive
        return self._summed(losses)

    def _backward(
        self, parts: Sequence[Noised], weights: Mapping[str, Tensor], *, self_condition: bool
    ) -> dict[str, Tensor]:
        """Add up gradients and losses of parts of a batch; `weights` are one by the entries of the whole step."""
        sums: dict[str, Tensor] = {}
        alone = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        with alone():  # `_summed` adds the processes up
            for part in parts:
                counts = self.model.counts_of(part)
                with self.arithmetic.autocast(self.device):
                    losses = self.model.losses_of(part, self_condition=self_condition)
                shares = {name: loss * (counts[name] * weights[name]) for name, loss in losses.items()}
                self.manual_backward(torch.stack([self.field_weights[k] * share for k, share in shares.items()]).sum())
                sums = {name: sums.get(name, 0.0) + share.detach() for name, share in shares.items()}
        return sums

    def _halve(self, num_molecules: int) -> None:
        if self.num_parts >= num_molecules:
            raise MoldiffError("out of memory: not even one molecule at a time fits; a smaller denoiser may")
        self.num_parts = min(num_molecules, 2 * self.num_parts)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"out of memory: batches are worked on in {self.num_parts} parts from now on", flush=True)

    def _summed(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up gradients and losses over all processes, in one message."""
        if self.trainer.world_size == 1:
            return losses
        parameters = list(self.model.denoiser.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sent = torch.cat([value.flatten() for value in (*gradients, *losses.values())])
        sizes = [gradient.numel() for gradient in gradients]
        received = self.trainer.strategy.reduce(sent, reduce_op="sum").split([*sizes, len(losses)])
        for parameter, gradient in zip(parameters, received, strict=False):
            if parameter.grad is not None or gradient.any():  # what no process has used stays without
                parameter.grad = gradient.view_as(parameter)
        return dict(zip(losses, received[-1].unbind(), strict=True))

    def _update(self) -> None:
        """One step of the optimizer and of the averaged weights."""
        parameters = list(self.model.denoiser.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        if not torch.isfinite(norm):  # one broken step must not spoil the weights: leave it out
            self._optimizer().zero_grad(set_to_none=True)
        self.is_ending = bool(self._asked_to_end)  # here, where the GPU is waited for anyway
        self._optimizer().step()
        decay = min(self.ema_decay, self.global_step / (self.global_step + 9))
        with torch.no_grad():
            for averaged, current in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(current, 1 - decay)

    def _optimizer(self) -> LightningOptimizer:
        """The optimizer as Lightning counts its steps."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def validation_step(self, batch: MolBatch, batch_idx: int) -> None:
        generator = self.generator(batch_idx)
        with self.arithmetic.autocast(self.device):
            losses = self.averaged.losses(batch, self.times, generator, self_condition=True)
            bound = self.averaged.bound(batch, generator)
        logged = {f"valid/{name}": loss for name, loss in losses.items()}
        logged["valid/loss"] = torch.stack([self.field_weights[name] * loss for name, loss in losses.items()]).sum()
        logged |= {f"valid/bound_{name}": value.mean() for name, value in bound.items()}
        logged["valid/bound"] = torch.stack([value.mean() for value in bound.values()]).sum()
        logged["step"] = torch.tensor(float(self.global_step))
        self.log_dict(logged, batch_size=batch.num_molecules, sync_dist=True)
