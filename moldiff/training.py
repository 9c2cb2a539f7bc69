"""Training by Lightning: a thin module around `MoleculeDiffusion`, and one function that runs it from a config."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from moldiff.batch import MolBatch
from moldiff.callbacks import ModelExport, ProgressLine, SampleQuality, time_limit
from moldiff.checkpoint import NOVELTY_FILE, build_model, load_checkpoint
from moldiff.construct import construct
from moldiff.data.dataset import PreparedSet
from moldiff.errors import MoldiffError
from moldiff.hardware import can_compile, choose_device, has_fast_bfloat16
from moldiff.model import MoleculeDiffusion, TaskDistribution, TimeDistribution
from moldiff.ranks import rank
from moldiff.stream import TrainingData
from moldiff.transfer import take_over

STATE_FILE = "last.ckpt"
_COMPILE_FROM = 3000
"""Compiling costs about two minutes, so it is left out of shorter trainings."""

_FEW = 1000
"""Below so many molecules a model of millions of parameters remembers each."""


class DiffusionTraining(lightning.LightningModule):
    """Loss, optimizer and averaged weights of one model.

    Every random number of a step comes from a generator seeded by (seed, step, rank), so a resumed training draws
    what an uninterrupted one would have drawn.

    Args:
        model: the model to train.
        optimizer: builds the optimizer from named parameters.
        schedule: (step, progress) -> factor on the learning rates.
        times: draws the noise levels of a batch.
        tasks: draws what is known of every molecule; None = nothing.
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
        field_weights: Mapping[str, float],
        self_conditioning: float = 0.5,
        ema_decay: float = 0.999,
        seed: int = 0,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.make_optimizer, self.schedule, self.times, self.tasks = optimizer, schedule, times, tasks
        self.field_weights, self.self_conditioning = field_weights, self_conditioning
        self.ema_decay, self.seed, self.max_norm = ema_decay, seed, max_norm

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.make_optimizer(self.model.denoiser.named_parameters())
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
        return optimizer

    def generator(self, step: int, rank: int) -> torch.Generator:
        """The source of a step's random numbers on one rank."""
        return torch.Generator(self.device).manual_seed(((self.seed + 1) << 40) + (step << 10) + rank)

    def training_step(self, batch: MolBatch) -> Tensor:
        coin = torch.rand((), generator=torch.Generator().manual_seed(((self.seed + 1) << 40) + self.global_step))
        losses = self.model.losses(
            batch,
            self.times,
            self.generator(self.global_step, self.global_rank),
            self_condition=bool(coin < self.self_conditioning),
            tasks=self.tasks,
        )
        total = torch.stack([self.field_weights[name] * loss for name, loss in losses.items()]).sum()
        self.log_dict(
            {f"train/{name}": loss.detach() for name, loss in losses.items()} | {"train/loss": total.detach()}
        )
        return total

    def on_train_batch_start(self, batch: MolBatch, batch_idx: int) -> None:
        factor = self.schedule(self.global_step, self.progress())
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["full_lr"]

    def progress(self) -> float:
        """Share of the training that is done, by steps or by time, whichever is further."""
        steps = self.global_step / self.trainer.max_steps if self.trainer.max_steps > 0 else 0.0
        timer = time_limit(self.trainer)
        if timer is None:
            return min(1.0, steps)
        elapsed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
        # Every rank has its own clock, but all need the same learning rate.
        return float(min(1.0, max(steps, self.trainer.strategy.broadcast(elapsed / (elapsed + left)))))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        parameters = list(self.model.denoiser.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        if not torch.isfinite(norm):  # one broken step must not spoil the weights: leave it out
            optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the optimizer and, before any checkpoint can be written, of the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        decay = min(self.ema_decay, self.global_step / (self.global_step + 9))
        with torch.no_grad():
            for averaged, current in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(current, 1 - decay)

    def validation_step(self, batch: MolBatch, batch_idx: int) -> None:
        generator = self.generator(batch_idx, 0)
        losses = self.averaged.losses(batch, self.times, generator, self_condition=True)
        bound = self.averaged.bound(batch, generator)
        logged = {f"valid/{name}": loss for name, loss in losses.items()}
        logged["valid/loss"] = torch.stack([self.field_weights[name] * loss for name, loss in losses.items()]).sum()
        logged |= {f"valid/bound_{name}": value.mean() for name, value in bound.items()}
        logged["valid/bound"] = torch.stack([value.mean() for value in bound.values()]).sum()
        self.log_dict(logged, batch_size=batch.num_molecules, sync_dist=True)


def train(config: Mapping[str, Any]) -> Path:
    """Train a model as a config says; the averaged model ends up in the folder `out`.

    Raises:
        MoldiffError: for data, a model to start from or a folder that cannot be used.
    """
    out = Path(config["out"])
    prepared = PreparedSet.load(config["data"]["folder"])
    state = _claim(out, resume=config["resume"])
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
        torch.manual_seed(config["seed"])
        model = build_model(config, prepared.vocabulary, prepared.statistics)
    history = [] if config["init"] is None else _start_from(model, config)
    _warn_of_few(prepared)
    device = choose_device("cpu" if config["trainer"]["accelerator"] == "cpu" else "auto")
    module = DiffusionTraining(
        model,
        optimizer=_optimizer(config["optimizer"], torch.bfloat16 if has_fast_bfloat16(device) else None),
        schedule=construct(config["schedule"], None),
        times=construct(config["times"], None),
        tasks=construct(config["tasks"], None) if config.get("tasks") else None,
        field_weights=config["field_weights"],
        self_conditioning=config["self_conditioning"],
        ema_decay=config["ema_decay"],
        seed=config["seed"],
    )
    if _wants_compile(config, device):
        for layer in model.denoiser.get_submodule("layers").children():
            layer.compile(dynamic=False)
    data = TrainingData(
        prepared,
        batch_size=config["batch_size"],
        seed=config["seed"],
        num_validation=config["trainer"]["num_validation"],
    )
    trainer = _trainer(config, out, device, history)
    trainer.fit(module, datamodule=data, ckpt_path=state, weights_only=True)
    if trainer.is_global_zero and (prepared.path / NOVELTY_FILE).is_file():
        shutil.copyfile(prepared.path / NOVELTY_FILE, out / NOVELTY_FILE)
    return out


def _claim(out: Path, *, resume: bool) -> Path | None:
    """The state to resume from, or None for a new run, whose folder must be empty."""
    state = out / STATE_FILE
    if resume:
        if not state.is_file():
            raise MoldiffError(f"resume: {state} not found, expected the folder of an interrupted training")
        return state
    # Of several processes the first claims the folder.
    if out.exists() and any(out.iterdir()) and rank() == 0:
        raise MoldiffError(f"out: {out} is not empty; choose another folder, or resume=true to continue there")
    out.mkdir(parents=True, exist_ok=True)
    return None


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


def _optimizer(config: Mapping[str, Any], dtype: torch.dtype | None) -> Callable[..., torch.optim.Optimizer]:
    build: Callable[..., torch.optim.Optimizer] = construct(config, None)
    if "MuonAdamW" in str(config["_target_"]):
        return lambda named: build(named, dtype=dtype)
    return lambda named: build([parameter for _, parameter in named])


def _wants_compile(config: Mapping[str, Any], device: torch.device) -> bool:
    if config["compile"] != "auto":
        return bool(config["compile"])
    return can_compile(device) and (config["trainer"]["max_steps"] or 0) >= _COMPILE_FROM


def _num_devices(devices: int | str, *, on_cpu: bool) -> int | str:
    """`auto` is every GPU; on a CPU two processes, which together beat one with twice the threads."""
    return min(2, os.cpu_count() or 1) if on_cpu and devices == "auto" else devices


def _trainer(config: Mapping[str, Any], out: Path, device: torch.device, history: list[Any]) -> lightning.Trainer:
    options = config["trainer"]
    precision = options["precision"]
    if precision == "auto":
        precision = "bf16-mixed" if has_fast_bfloat16(device) else "32-true"
    callbacks: list[Callback] = [
        ProgressLine(options["log_every"]),
        ModelExport(out, {key: config[key] for key in ("denoiser", "process")} | {"training": dict(config)}, history),
        ModelCheckpoint(
            out, filename="last", every_n_train_steps=options["validate_every"], enable_version_counter=False
        ),
    ]
    if options["num_quality_samples"] and config["quality"] is not None:
        score = construct(config["quality"], None, num_samples=options["num_quality_samples"])
        callbacks.insert(1, SampleQuality(score, options["sample_every"]))
    if options["max_time"]:
        callbacks.append(Timer(options["max_time"], interval="step"))
    return lightning.Trainer(
        accelerator=options["accelerator"],
        devices=_num_devices(options["devices"], on_cpu=device.type == "cpu"),
        strategy=options["strategy"],
        precision=precision,
        max_steps=options["max_steps"] or -1,
        max_epochs=-1,
        callbacks=callbacks,
        logger=CSVLogger(out, name="", version="log"),
        log_every_n_steps=options["log_every"],
        val_check_interval=options["validate_every"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


if __name__ == "__main__":  # python -m moldiff.training CONFIG.json, for machines without Hydra
    print(train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
