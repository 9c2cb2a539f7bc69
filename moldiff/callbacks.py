"""What happens around the steps of a training: progress lines, exported weights, scored samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Timer

from moldiff.batch import MolBatch
from moldiff.checkpoint import save_model
from moldiff.model import MoleculeDiffusion


def time_limit(trainer: Any) -> Timer | None:
    """The timer that ends the training, if it has a limit of time."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)


class ProgressLine(Callback):
    """Prints step, loss, speed and the time that is left, every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._since = (0, 0.0)
        self._molecules = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        step = trainer.global_step
        self._molecules += batch.num_molecules * trainer.world_size
        if not trainer.is_global_zero or (step % self.every and step != 2):
            return
        now = time.monotonic()
        if self._since[1]:
            seconds = now - self._since[1]
            left = self._left(trainer, seconds / max(1, step - self._since[0]))
            loss = float(outputs["loss"] if isinstance(outputs, Mapping) else outputs)
            print(f"step {step}  loss {loss:.3f}  {self._molecules / seconds:.0f} molecules/s  left {left}", flush=True)
        self._since, self._molecules = (step, now), 0

    @staticmethod
    def _left(trainer: Any, seconds_a_step: float) -> timedelta:
        by_steps = (trainer.max_steps - trainer.global_step) * seconds_a_step if trainer.max_steps > 0 else float("inf")
        timer = time_limit(trainer)
        by_time = float("inf") if timer is None else timer.time_remaining() or 0.0
        left = min(by_steps, by_time)
        return timedelta(seconds=round(left)) if left < float("inf") else timedelta.max


class ModelExport(Callback):
    """Writes the averaged model to a folder after every validation and at the end.

    Args:
        folder: where to.
        config: `denoiser` and `process` configs and the training's own.
        history: the stretches of training that the weights have behind them already.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> None:
        self.folder, self.config, self.history = folder, config, history
        self._start = time.monotonic()

    def export(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            seconds = round(time.monotonic() - self._start)
            batch_size = self.config["training"]["batch_size"] * trainer.world_size
            stretch = {"steps": trainer.global_step, "batch_size": batch_size, "seconds": seconds}
            save_model(self.folder, pl_module.averaged, {**self.config, "history": [*self.history, stretch]})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.export(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.export(trainer, pl_module)


class SampleQuality(Callback):
    """Samples from the averaged weights after a validation, scores the molecules and logs the scores.

    Args:
        score: model -> numbers by name; samples and judges.
        every: validations between two scorings.
    """

    def __init__(self, score: Callable[[MoleculeDiffusion], Mapping[str, float]], every: int = 1) -> None:
        self.score, self.every = score, every
        self._validations = 0

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every == 0 and trainer.is_global_zero:
            with torch.autocast(pl_module.device.type, enabled=False):
                scores = self.score(pl_module.averaged)
            print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()), flush=True)
            trainer.logger.log_metrics({f"sample/{k}": v for k, v in scores.items()}, step=trainer.global_step)
        trainer.strategy.barrier()
