"""The state of an unfinished training as one safetensors file, whose header holds all that is no tensor."""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import save
from torch import Tensor

from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.pretrained import leftovers, parse_weights, with_present_names
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.storage import locked, write_atomically
from moldiff.processes import rank
from moldiff.training.callbacks import ModelExport, is_step_done
from moldiff.training.loggers import CURVE_FILE, MetricsTable, write_curve

STATE_FILE = "state.safetensors"
FORMAT_VERSION = 2
_KEY = "moldiff_state"
_OPTIONS_FILE = "training.json"
_LOCK_FILE = ".lock"
_DECISIVE = ("denoiser", "process", "optimizer", "condition")  # options without which a state cannot be used

# options that may change, but then the training goes another way than it would have
_INFLUENTIAL = ("seed", "field_weights", "times", "tasks", "schedule", "self_conditioning", "ema_decay", "half")


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers, texts and None; if that fails an older file stands."""
    tensors: dict[str, Tensor] = {}
    header = json.dumps({"format_version": FORMAT_VERSION, "state": _without_tensors(state, "state", tensors)})
    write_atomically(path, save(tensors, {_KEY: header}))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; MoldiffError where it is damaged or something else."""
    content = path.read_bytes()
    tensors = parse_weights(path, content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_KEY)
    if header is None:
        raise MoldiffError(f"{path}: got weights without a state, expected the state of an interrupted training")
    document = json.loads(header)
    if (version := document["format_version"]) != FORMAT_VERSION:
        raise MoldiffError(f"{path}: got format_version {version}, expected {FORMAT_VERSION}")
    return dict(with_present_names(_with_tensors(document["state"], tensors)))


class StateFile(CheckpointIO):
    """How Lightning writes and reads its checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_state(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink()


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON-ready copy; tensors are put aside under the path that leads to them."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):  # JSON knows only text as keys
        return {"items": [[key, _without_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_tensors(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _with_tensors(item, tensors) for key, item in value["items"]}


@contextmanager
def claimed(out: Path, config: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Hold a run folder as long as a training lasts; gives the state to resume from, or None to start anew.

    With `resume: auto` it is resumed if there is something to resume. The options are written at once, which marks the
    folder as a training's. MoldiffError for one in use, for a new training one not empty, or nothing to resume.
    """
    resume = config["resume"]
    if resume == "auto":
        resume = any((out / name).is_file() for name in (STATE_FILE, _OPTIONS_FILE))
    if rank() > 0:  # the first of several processes holds the folder for all
        path = out / STATE_FILE
        yield load_state(path) if resume and path.is_file() else None
        return
    found = {path.name for path in {*out.iterdir()} - leftovers(out)} - {_LOCK_FILE} if out.is_dir() else {""}
    if resume and found and not found & {STATE_FILE, _OPTIONS_FILE}:
        raise MoldiffError(f"resume: {out / STATE_FILE} not found, expected the folder of an interrupted training")
    if not resume and found and out.exists():
        raise MoldiffError(f"out: {out} is not empty; choose another folder, or resume=true to continue there")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / _LOCK_FILE, f"out: another training is writing to {out}; choose another folder"):
        for folder in (out, out / "log", out / "best"):
            for path in leftovers(folder):
                path.unlink()
        if resume and STATE_FILE not in found:
            print("resume: no state was saved yet, so the training starts from the beginning", flush=True)
        if _OPTIONS_FILE not in found:
            write_atomically(out / _OPTIONS_FILE, (json.dumps(config, indent=1) + "\n").encode())
        try:
            yield load_state(out / STATE_FILE) if STATE_FILE in found else None
        finally:
            if {path.name for path in out.iterdir()} <= {_OPTIONS_FILE, _LOCK_FILE}:  # it did not even begin
                (out / _OPTIONS_FILE).unlink()


def check_options(state: Mapping[str, Any], config: Mapping[str, Any], data: str) -> None:
    """MoldiffError for the first option, or the set by its checksum `data`, with which a state cannot go on."""
    before, after = (
        {**one, "batch_size": one.get("batch_size", 1) * one.get("trainer", {}).get("accumulate_grad_batches", 1)}
        for one in (state["config"], config)
    )
    changes = {name: _first_change(name, before.get(name), after.get(name)) for name in before | after}
    for name in _DECISIVE:
        if change := changes.get(name):
            raise MoldiffError(f"resume: this training was started with {change}")
    if state["data"] != data:
        raise MoldiffError(
            f"resume: the set {config['data']['folder']} has changed since; to train on it, start anew with "
            f"init={config['out']}"
        )
    for name in ("batch_size", *_INFLUENTIAL):
        if (change := changes.get(name)) and rank() == 0:
            print(f"moldiff: warning: resume: this training was started with {change}", file=sys.stderr)


def _first_change(name: str, was: Any, now: Any) -> str:
    """What is different in an option, down to the first part of it that is; "" = nothing."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        parts = (_first_change(f"{name}.{key}", was.get(key), now.get(key)) for key in (*was, *now))
        return next(filter(None, parts), "")
    return "" if was == now else f"{name}={was}, now it is {now}"


class StateKeeper(Callback):
    """Saves state and model every so many steps and `minutes`, at the end, and if interrupted, with the `facts`.

    A state is that between two steps, after the validation and the scoring of the earlier one, so that what Lightning
    has counted follows from the number of steps.
    """

    def __init__(
        self, path: Path, export: ModelExport, *, every: int, minutes: float, facts: Mapping[str, Any]
    ) -> None:
        self.path, self.export, self.every, self.minutes, self.facts = path, export, every, minutes, facts
        self.interrupted = False  # whether this process was sent a signal to end
        self._saved, self._saved_at, self._asked_at = -1, time.monotonic(), float("-inf")
        self._running = self._between_steps = self._is_due = self._is_ending = False

    def interrupt(self) -> None:
        """Ask for an end after the present step; a second time, or before the first step, it comes at once.

        Within a second it is the same request: SLURM, `timeout` and `moldiff train -m` may signal a process twice.
        """
        if self._running and time.monotonic() - self._asked_at < 1:
            return
        if self.interrupted or not self._running:
            raise KeyboardInterrupt
        self.interrupted, self._asked_at = True, time.monotonic()
        if rank() == 0:
            print("interrupted: this step is finished and saved first; Ctrl-C again ends at once", flush=True)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        del checkpoint["loops"]
        checkpoint |= self.facts

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._saved = int(checkpoint["global_step"])
        checkpoint["loops"] = {"fit_loop": _counted(trainer, self._saved)}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._running = self._between_steps = True
        if threading.current_thread() is threading.main_thread():
            # Lightning's own would send a message to the other processes from within the handler, and wait for ever.
            signal.signal(signal.SIGTERM, lambda *_: self.interrupt())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: MolBatch, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        is_ending = self._is_ending or (self.interrupted and trainer.world_size == 1)
        if self._is_due or is_ending or trainer.global_step % self.every == 0:
            self._save(trainer, pl_module)
        if is_ending:
            raise KeyboardInterrupt
        self._between_steps = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Agree with all processes on what comes after this step, where the GPU is waited for anyway."""
        is_due = time.monotonic() - self._saved_at >= 60 * self.minutes
        flags = torch.tensor([float(is_due), float(self.interrupted)], device=pl_module.device)
        self._is_due, self._is_ending = map(bool, trainer.strategy.reduce(flags, reduce_op="sum").tolist())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        self._between_steps = is_step_done(trainer, batch_idx)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._save(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Several processes can only save together.
        if isinstance(exception, KeyboardInterrupt) and self._between_steps and trainer.world_size == 1:
            self._save(trainer, pl_module)

    def _save(self, trainer: Any, pl_module: Any) -> None:
        """Write everything; the state last, for what is logged and exported belongs to it."""
        if trainer.global_step == self._saved:
            return
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
                if isinstance(logger, MetricsTable):
                    write_curve(self.path.with_name(CURVE_FILE), logger.rows)
            self.export.export(trainer, pl_module)
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved, self._saved_at = trainer.global_step, time.monotonic()


def _counted(trainer: Any, step: int) -> dict[str, Any]:
    """What Lightning's loops, in the form in which it keeps them, have counted between a step and the next."""
    counted: dict[str, Any] = trainer.fit_loop.state_dict()
    batches = dict.fromkeys(("ready", "started", "processed", "completed"), step * trainer.accumulate_grad_batches)
    optimizer = counted["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    for kind in ("total", "current"):
        counted["epoch_progress"][kind] |= {"ready": 1, "started": 1}
        counted["epoch_loop.batch_progress"][kind] |= batches
        optimizer[kind] |= {"ready": step, "completed": step}
    return counted
