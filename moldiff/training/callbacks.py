"""What happens around the steps of a training: progress lines, scored samples, exported weights, a trial of speed."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Timer

from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import Precision, can_compile, has_fast_bfloat16, is_out_of_memory, seconds, verdict
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import NOVELTY_FILE, save_pretrained
from moldiff.molecules.formats.storage import write_atomically

BEST_FOLDER = "best"
_FORECAST_STEPS = 50
_UNTIMED_STEPS = 2  # the first steps compile and warm up, and tell nothing of the speed


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
    share = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    if (timer := time_limit(trainer)) is not None:
        elapsed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
        # Every rank has its own clock, but all need the same learning rate.
        share = max(share, trainer.strategy.broadcast(elapsed / (elapsed + left)))
    return float(min(1.0, share))


class ProgressLine(Callback):
    """Prints step, loss, speed and the time left, every so many steps; after 50 a forecast of time and memory."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._since: tuple[int, float] | None = None
        self._first: tuple[int, float] | None = None
        self._molecules, self._started_at, self._pauses = 0, 0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._started_at = trainer.global_step

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the time of validation and samples out of the speed."""
        self._pauses -= time.monotonic()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._pauses += time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        if not is_step_done(trainer, batch_idx):
            return
        step, now = trainer.global_step, time.monotonic() - self._pauses
        self._molecules += batch.num_molecules
        if step - self._started_at == _UNTIMED_STEPS:
            self._first = self._since = (step, now)
            self._molecules = 0
        if not trainer.is_global_zero or self._since is None or self._first is None:
            return
        steps, limit = remaining(trainer)
        if step % self.every == 0 and step > self._since[0]:
            taken = now - self._since[1]
            left = min(steps * taken / (step - self._since[0]), limit)
            shown = timedelta(seconds=round(left)) if left < math.inf else timedelta.max
            loss, rate = outputs["train/loss"], self._molecules / taken
            print(f"step {step}  loss {loss:.3f}  {rate:.0f} molecules/s  left {shown}", flush=True)
            self._since, self._molecules = (step, now), 0
        if step - self._started_at == _FORECAST_STEPS:
            pace = (now - self._first[1]) / (step - self._first[0])
            left, length = min(steps * pace, limit), "no limit of steps or time"
            if left < math.inf:
                length = f"about {step + round(left / pace)} steps, done in {timedelta(seconds=round(left))}"
            memory = f"{peak_memory(pl_module.device) / 2**30:.1f} GB of memory a process so far"
            print(f"forecast: {length} without validation and samples; {pace:.3g} s a step; {memory}", flush=True)


def peak_memory(device: torch.device) -> int:
    """The most memory in use at once so far (bytes): of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # only Unix has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ModelExport(Callback):
    """Writes the averaged model to a folder, with its configs, and the file `novelty` of keys of training molecules.

    `history` are the stretches of training that the weights have behind them already.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], *, history: Sequence[Mapping[str, Any]] = (), novelty: Path
    ) -> None:
        self.folder, self.config, self.history, self.novelty = folder, config, list(history), novelty
        self._start = time.monotonic()

    def export(self, trainer: Any, pl_module: Any, *, inside: str = "", **facts: Any) -> None:
        """Write to the folder, or to one `inside` it, with `facts` about the model."""
        batch_size = self.config["training"]["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches
        seconds = round(time.monotonic() - self._start)
        stretch = {"steps": trainer.global_step, "batch_size": batch_size, "seconds": seconds}
        folder = self.folder / inside
        save_pretrained(folder, pl_module.averaged, {**self.config, "history": [*self.history, stretch], **facts})
        if self.novelty.is_file() and not (folder / NOVELTY_FILE).is_file():
            write_atomically(folder / NOVELTY_FILE, self.novelty.read_bytes())

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": time.monotonic() - self._start, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = time.monotonic() - state_dict["seconds"]
        self.history = state_dict["history"]


class SampleQuality(Callback):
    """Samples from the averaged weights after every so many validations, of `steps` each, and logs the scores.

    A set too small to have a validation part is scored at the steps at which it would have been validated. The model
    with the highest number `best_by` is kept in the folder `best`; None = none is.
    """

    def __init__(
        self,
        score: Callable[[MoleculeDiffusion], Mapping[str, float]],
        *,
        export: ModelExport,
        steps: int,
        every: int,
        best_by: str | None,
    ) -> None:
        self.score, self.export, self.steps, self.every, self.best_by = score, export, steps, every, best_by
        self._validations = 0
        self._best: float | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        is_due = is_step_done(trainer, batch_idx) and trainer.global_step % self.steps == 0
        if any(trainer.num_val_batches) or not is_due:
            return
        for hook in ("on_validation_start", "on_validation_epoch_end", "on_validation_end"):
            for callback in trainer.callbacks:
                getattr(callback, hook)(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._validations += 1
        if self._validations % self.every == 0 and trainer.is_global_zero:
            with torch.autocast(pl_module.device.type, enabled=False):
                scores = self.score(pl_module.averaged)
            print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()), flush=True)
            for logger in trainer.loggers:
                logger.log_metrics({f"sample/{k}": v for k, v in scores.items()}, step=trainer.global_step)
            value = scores.get(self.best_by or "")
            if value is not None and (self._best is None or value > self._best):
                self._best = value
                self.export.export(trainer, pl_module, inside=BEST_FOLDER, quality=dict(scores))
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations, self._best = state_dict["validations"], state_dict["best"]


# A training with fewer steps or less time ahead is not worth a trial of its arithmetic
_TRIAL_STEPS, _TRIAL_SECONDS = 200, 60.0
_COMPILE_SECONDS = 1200.0  # compiling costs some minutes, so with less time ahead it is not tried


class ArithmeticTrial(Callback):
    """Chooses how the network is computed before the first step; a resumed training keeps the choice.

    bfloat16 and compiled blocks (None = by trial) are used where a trial on this machine found them faster; a short
    training does without, in float32.
    """

    def __init__(self, *, bfloat16: bool | None, compiled: bool | None) -> None:
        self.bfloat16, self.compiled = bfloat16, compiled
        self._chosen: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        machine = f"{pl_module.device.type} {has_fast_bfloat16(pl_module.device)} {can_compile(pl_module.device)}"
        if self._chosen.get("machine") != machine:
            self._chosen = {"machine": machine, **asdict(self._by_trial(trainer, pl_module))}
        self._chosen |= {key: value for key in ("bfloat16", "compiled") if (value := getattr(self, key)) is not None}
        pl_module.use(Precision(self._chosen["bfloat16"], self._chosen["compiled"]))

    def _by_trial(self, trainer: Any, module: Any) -> Precision:
        """Of what is left to choose, what takes least; the same on all ranks."""
        chosen, device = Precision(), module.device
        precisions = (False, True) if self.bfloat16 is None and has_fast_bfloat16(device) else (bool(self.bfloat16),)
        compiles = self.compiled is None and can_compile(device)
        steps, left = remaining(trainer)
        if min(steps / _TRIAL_STEPS, left / _TRIAL_SECONDS) < 1 or not (compiles or len(precisions) > 1):
            return chosen
        figures, lasting = {}, 0.0
        for bfloat16 in precisions:
            chosen = Precision(bfloat16)
            figures[chosen], first = self._measure(trainer, module, chosen)
            lasting = max(lasting, first)  # by the clock, and the first of all has to warm up
        chosen = min(figures, key=lambda one: figures[one])
        left = min(left, steps * trainer.accumulate_grad_batches * lasting)
        if compiles and left >= _COMPILE_SECONDS:
            tried = replace(chosen, compiled=True)
            figures[tried], first = self._measure(trainer, module, tried)
            # Every padded width is compiled on its own, with and without gradients.
            cost = first * len(trainer.train_dataloader.batches.widths)
            if (1 - figures[tried] / figures[chosen]) * left > cost:
                chosen = tried
        if len(figures) > 1 and trainer.is_global_zero:
            print(verdict(chosen, figures), flush=True)
        return chosen

    @staticmethod
    def _measure(trainer: Any, module: Any, arithmetic: Precision) -> tuple[float, float]:
        """Seconds of a batch's losses and gradients, and of the first time; the means over all ranks."""
        module.use(arithmetic)
        noised, _ = module.own_part(trainer.train_dataloader[trainer.global_step].to(module.device), 0)

        def run() -> None:
            with arithmetic.autocast(module.device):
                losses = module.model.losses_of(noised, self_condition=True)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            module.model.zero_grad(set_to_none=True)

        try:
            found = seconds(run, module.device)
        except Exception as error:
            if not arithmetic.compiled and not is_out_of_memory(error):
                raise
            found = (float("inf"), 0.0)  # memory or the compiler is too small for it
        return tuple(trainer.strategy.reduce(torch.tensor(found, device=module.device), reduce_op="mean").tolist())

    def state_dict(self) -> dict[str, Any]:
        return self._chosen

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._chosen = dict(state_dict)
