"""What happens around the steps of a training: progress lines, scored samples, saved states and exported weights."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Timer

from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import NOVELTY_FILE, save_pretrained
from moldiff.molecules.formats.storage import write_atomically

BEST_FOLDER = "best"
_FORECAST_STEPS = 50
_UNTIMED_STEPS = 2
"""The first steps compile and warm up, and tell nothing of the speed."""


def time_limit(trainer: Any) -> Timer | None:
    """The timer that ends the training, if it has a limit of time."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)


def remaining(trainer: Any) -> tuple[float, float]:
    """Steps and seconds at most until the training ends."""
    steps = trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else math.inf
    timer = time_limit(trainer)
    return steps, math.inf if timer is None else max(0.0, timer.time_remaining() or 0.0)


def is_step_done(trainer: Any, batch_idx: int) -> bool:
    """Whether a batch is the last of those whose gradients are accumulated for a step."""
    return (batch_idx + 1) % int(trainer.accumulate_grad_batches) == 0


def progress(trainer: Any) -> float:
    """Share of the training that is done, by steps or by time, whichever is further."""
    steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    timer = time_limit(trainer)
    if timer is None:
        return float(min(1.0, steps))
    elapsed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
    # Every rank has its own clock, but all need the same learning rate.
    return float(min(1.0, max(steps, trainer.strategy.broadcast(elapsed / (elapsed + left)))))


class ProgressLine(Callback):
    """Prints step, loss, speed and the time that is left, every so many steps.

    After the first 50 steps comes a forecast: how long the whole training will take and how much memory it needs.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._since: tuple[int, float] | None = None
        self._first: tuple[int, float] | None = None
        self._molecules = 0
        self._started_at = 0
        self._paused_at = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._started_at = trainer.global_step

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._paused_at = time.monotonic()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the time of validation and samples out of the speed."""
        pause = time.monotonic() - self._paused_at
        self._since, self._first = (t and (t[0], t[1] + pause) for t in (self._since, self._first))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        if not is_step_done(trainer, batch_idx):
            return
        step, now = trainer.global_step, time.monotonic()
        self._molecules += batch.num_molecules
        if step - self._started_at == _UNTIMED_STEPS:
            self._first = self._since = (step, now)
            self._molecules = 0
        if not trainer.is_global_zero or self._since is None or self._first is None:
            return
        if step % self.every == 0 and step > self._since[0]:
            seconds = now - self._since[1]
            left = self._seconds_left(trainer, seconds / (step - self._since[0]))
            shown = timedelta(seconds=round(left)) if left < math.inf else timedelta.max
            loss, rate = outputs["train/loss"], self._molecules / seconds
            print(f"step {step}  loss {loss:.3f}  {rate:.0f} molecules/s  left {shown}", flush=True)
            self._since, self._molecules = (step, now), 0
        if step - self._started_at == _FORECAST_STEPS:
            pace = (now - self._first[1]) / (step - self._first[0])
            print(self._forecast(trainer, pl_module.device, pace), flush=True)

    def _forecast(self, trainer: Any, device: torch.device, seconds_a_step: float) -> str:
        left = self._seconds_left(trainer, seconds_a_step)
        length = "no limit of steps or time"
        if left < math.inf:
            steps = trainer.global_step + round(left / seconds_a_step)
            length = f"about {steps} steps, done in {timedelta(seconds=round(left))}"
        memory = f"{peak_memory(device) / 2**30:.1f} GB of memory a process so far"
        return f"forecast: {length} without validation and samples; {seconds_a_step:.3g} s a step; {memory}"

    @staticmethod
    def _seconds_left(trainer: Any, seconds_a_step: float) -> float:
        steps, seconds = remaining(trainer)
        return min(steps * seconds_a_step, seconds)


def peak_memory(device: torch.device) -> int:
    """The most memory in use at once so far (bytes): of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # only Unix has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ModelExport(Callback):
    """Writes the averaged model to a folder.

    Args:
        folder: where to.
        config: `denoiser` and `process` configs and the training's own.
        history: the stretches of training that the weights have behind them already.
        novelty: the file of keys of the training molecules; it goes with the model, for novelty is judged by it.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], *, history: Sequence[Mapping[str, Any]] = (), novelty: Path
    ) -> None:
        self.folder, self.config, self.history, self.novelty = folder, config, list(history), novelty
        self._start = time.monotonic()

    def export(self, trainer: Any, pl_module: Any, *, inside: str = "", **facts: Any) -> None:
        """Write to the folder, or to one `inside` it, with `facts` about the model."""
        batch_size = self.config["training"]["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches
        stretch = {"steps": trainer.global_step, "batch_size": batch_size, "seconds": round(self._seconds())}
        config = {**self.config, "history": [*self.history, stretch], **facts}
        save_pretrained(self.folder / inside, pl_module.averaged, config)
        keys = self.folder / inside / NOVELTY_FILE
        if self.novelty.is_file() and not keys.is_file():
            write_atomically(keys, self.novelty.read_bytes())

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds(), "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = time.monotonic() - state_dict["seconds"]
        self.history = state_dict["history"]


class SampleQuality(Callback):
    """Samples from the averaged weights after a validation, scores the molecules and logs the scores.

    A set too small to have a validation part is scored at the steps at which it would have been validated.

    Args:
        score: model -> numbers by name; samples and judges.
        export: keeps the best model in the folder `best`.
        steps: between two validations.
        every: validations between two scorings.
        best_by: the number whose highest value makes a model the best; None = none is kept.
    """

    def __init__(
        self,
        score: Callable[[MoleculeDiffusion], Mapping[str, float]],
        *,
        export: ModelExport,
        steps: int,
        every: int = 1,
        best_by: str | None = None,
    ) -> None:
        self.score, self.export, self.every, self.best_by = score, export, every, best_by
        self.steps = steps
        self._validations = 0
        self._best: float | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        is_due = is_step_done(trainer, batch_idx) and trainer.global_step % self.steps == 0
        if any(trainer.num_val_batches) or not is_due:
            return
        lines = [callback for callback in trainer.callbacks if isinstance(callback, ProgressLine)]
        for line in lines:
            line.on_validation_start(trainer, pl_module)
        self.on_validation_epoch_end(trainer, pl_module)
        for line in lines:
            line.on_validation_end(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._validations += 1
        if self._validations % self.every == 0 and trainer.is_global_zero:
            with torch.autocast(pl_module.device.type, enabled=False):
                scores = self.score(pl_module.averaged)
            print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()), flush=True)
            for logger in trainer.loggers:
                logger.log_metrics({f"sample/{k}": v for k, v in scores.items()}, step=trainer.global_step)
            self._keep_best(trainer, pl_module, scores)
        trainer.strategy.barrier()

    def _keep_best(self, trainer: Any, pl_module: Any, scores: Mapping[str, float]) -> None:
        value = scores.get(self.best_by or "")
        if value is not None and (self._best is None or value > self._best):
            self._best = value
            self.export.export(trainer, pl_module, inside=BEST_FOLDER, quality=dict(scores))

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations, self._best = state_dict["validations"], state_dict["best"]
