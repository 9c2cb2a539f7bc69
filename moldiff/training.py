"""Training by Lightning: a thin module around `MoleculeDiffusion`, and one function that runs it from a config."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from moldiff.arithmetic import Arithmetic, compile_blocks
from moldiff.batch import MolBatch
from moldiff.callbacks import ModelExport, ProgressLine, SampleQuality, StateKeeper, progress
from moldiff.checkpoint import NOVELTY_FILE, build_model, load_checkpoint
from moldiff.condition import Properties, PropertyDropout, half_of
from moldiff.construct import construct
from moldiff.data.dataset import PreparedSet
from moldiff.errors import MoldiffError
from moldiff.hardware import choose_device, has_fast_bfloat16, is_out_of_memory
from moldiff.model import MoleculeDiffusion, Noised, PropertyChoice, TaskDistribution, TimeDistribution
from moldiff.nn.counts import bond_counts
from moldiff.optimizer import MuonAdamW
from moldiff.ranks import rank
from moldiff.signals import handled
from moldiff.state import STATE_FILE, check_options, claimed
from moldiff.stream import TrainingData, counted, learnt_properties
from moldiff.transfer import take_over
from moldiff.trial import ArithmeticTrial

_DEFAULT_LOGGER = {"csv": {"_target_": "moldiff.logs.MetricsTable"}}
_PRECISIONS = {"32-true": False, "32": False, "bf16-mixed": True}
"""Names of precision that are an `Arithmetic`; Lightning takes care of all others."""

_FEW = 1000
"""Below so many molecules a model of millions of parameters remembers each."""


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


def train(config: Mapping[str, Any]) -> Path:
    """Train a model as a config says; the averaged model ends up in the folder `out`.

    Raises:
        MoldiffError: for data, a model to start from or a folder that cannot be used.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when state and model have been saved.
    """
    out = Path(config["out"])
    prepared = PreparedSet.load(config["data"]["folder"])
    with claimed(out, config) as state:
        facts = {"config": dict(config), "data": prepared.meta["sha256"]}
        if state is not None:
            check_options(state, config, facts["data"])
        with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
            torch.manual_seed(config["seed"])
            properties = _properties(config, prepared)
            model = build_model(config, prepared.vocabulary, prepared.statistics, properties=properties)
        starts_elsewhere = config["init"] is not None and state is None
        history = _start_from(model, config) if starts_elsewhere else []
        _fit_counts(model, config, prepared)
        _warn_of_few(prepared)
        device = choose_device("cpu" if config["trainer"]["accelerator"] == "cpu" else "auto")
        module = _module(config, model)
        data = TrainingData(
            prepared,
            batch_size=config["batch_size"],
            seed=config["seed"],
            num_validation=config["trainer"]["num_validation"],
            half=config.get("half"),
            properties=properties.names,
        )
        described = {key: config[key] for key in ("denoiser", "process")} | {"training": dict(config)}
        export = ModelExport(out, described, history=history, novelty=prepared.path / NOVELTY_FILE)
        keeper = StateKeeper(
            out / STATE_FILE,
            export,
            every=config["trainer"]["validate_every"],
            minutes=config["trainer"].get("save_minutes", 10.0),
            facts=facts,
            state=state,
        )
        trainer = _trainer(config, out, device, export, keeper, step=0 if state is None else int(state["step"]))
        del state  # it would hold the weights twice
        # SIGUSR1 is how SLURM gives notice; all end the training between two steps.
        with handled(("SIGINT", "SIGTERM", "SIGUSR1"), lambda *_: keeper.interrupt()):
            trainer.fit(module, datamodule=data)
    return out


def _module(config: Mapping[str, Any], model: MoleculeDiffusion) -> DiffusionTraining:
    return DiffusionTraining(
        model,
        optimizer=_optimizer(config["optimizer"]),
        schedule=construct(config["schedule"], None),
        times=construct(config["times"], None),
        tasks=construct(config["tasks"], None) if config.get("tasks") else None,
        told=_dropout(config),
        field_weights=config["field_weights"],
        self_conditioning=config["self_conditioning"],
        ema_decay=config["ema_decay"],
        seed=config["seed"],
    )


def _dropout(config: Mapping[str, Any]) -> PropertyDropout | None:
    """How much of the properties the network is told; None = it takes none."""
    return construct(config["condition"], None) if config.get("condition") else None


def _properties(config: Mapping[str, Any], prepared: PreparedSet) -> Properties:
    """The properties that the network is told, with their scales in the training molecules."""
    dropout = _dropout(config)
    if dropout is None:
        return Properties()
    chosen = dropout.chosen(prepared.learnable, prepared.name)
    return learnt_properties(prepared, chosen, half_of(prepared.split("train"), config.get("half")))


def _fit_counts(model: MoleculeDiffusion, config: Mapping[str, Any], prepared: PreparedSet) -> None:
    """Fit what a network knows beforehand of properties to the training molecules, if it has such a thing."""
    fit = getattr(model.denoiser, "fit_counts", None)
    if fit is not None and model.properties:
        indices = half_of(prepared.split("train"), config.get("half"))
        fit(*counted(prepared, model.properties, indices, bond_counts))


def _start_from(model: MoleculeDiffusion, config: Mapping[str, Any]) -> list[Any]:
    """Take over the weights of a trained model; returns its history."""
    start = load_checkpoint(config["init"])
    line = take_over(model, start, config["denoiser"])
    if rank() == 0:
        print(line, flush=True)
    return list(start.config.get("history", []))


def _warn_of_few(prepared: PreparedSet) -> None:
    count = len(prepared.split("train"))
    if count < _FEW and rank() == 0:
        print(
            f"moldiff: warning: only {count} molecule{'s' if count != 1 else ''} to train on: the model may learn them "
            "by heart; then uniqueness and novelty mean little",
            file=sys.stderr,
        )


def _optimizer(config: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    build: Callable[..., torch.optim.Optimizer] = construct(config, None)
    if "MuonAdamW" in str(config["_target_"]):
        return build
    return lambda named: build([parameter for _, parameter in named])


def _num_devices(devices: int | str, *, on_cpu: bool) -> int | str:
    """`auto` is every GPU; on a CPU two processes, which together beat one with twice the threads."""
    return min(2, os.cpu_count() or 1) if on_cpu and devices == "auto" else devices


def _trainer(
    config: Mapping[str, Any], out: Path, device: torch.device, export: ModelExport, keeper: StateKeeper, *, step: int
) -> lightning.Trainer:
    options = config["trainer"]
    precision = options["precision"]
    bfloat16 = None if precision == "auto" else _PRECISIONS.get(str(precision), False)
    trial = ArithmeticTrial(
        bfloat16=bfloat16, compiled=None if config["compile"] == "auto" else bool(config["compile"])
    )
    callbacks: list[Callback] = [ProgressLine(options["log_every"]), export, trial]
    if options["num_quality_samples"] and config["quality"] is not None:
        score = construct(config["quality"], None, num_samples=options["num_quality_samples"])
        often = {"steps": options["validate_every"], "every": options["sample_every"]}
        callbacks.append(SampleQuality(score, export=export, **often, best_by=options.get("best_by")))
    if options["max_time"]:
        callbacks.append(Timer(options["max_time"], interval="step"))
    loggers = config.get("logger", _DEFAULT_LOGGER) or {}
    return lightning.Trainer(
        accelerator=options["accelerator"],
        devices=_num_devices(options["devices"], on_cpu=device.type == "cpu"),
        num_nodes=options.get("num_nodes", 1),
        strategy=options["strategy"],
        precision="32-true" if precision == "auto" or str(precision) in _PRECISIONS else precision,
        max_steps=options["max_steps"] or -1,
        max_epochs=-1,
        callbacks=[*callbacks, keeper],  # last, for it saves what the others know
        logger=[construct(logger, None, folder=out, step=step) for logger in loggers.values()],
        log_every_n_steps=options["log_every"],
        val_check_interval=options["validate_every"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


if __name__ == "__main__":  # python -m moldiff.training CONFIG.json, for machines without Hydra
    print(train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
