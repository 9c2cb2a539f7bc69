"""Trainings of a tiny network that several test modules share, in this process or in one that may be killed."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from moldiff.diffusion.pretrained import load_pretrained

SAMPLE = str(resources.files("moldiff.example_data") / "sample")

QUIET = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
]
"""Marks of modules that train: Lightning's own warnings."""


def scores(model: Any, *, num_samples: int) -> dict[str, float]:
    """A stand-in for the quality of samples that costs nothing and depends on the weights."""
    total = sum(float(parameter.double().abs().sum()) for parameter in model.parameters())
    return {"p2_valid": total % 1, "p2_valid_unique": (7 * total) % 1}


def config(out: Path, **changes: Any) -> dict[str, Any]:
    """A training of a tiny network, as the command line would pass it on."""
    trainer = {
        "max_steps": 6,
        "max_time": None,
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
        "precision": "32-true",
        "log_every": 1,
        "validate_every": 3,
        "num_validation": 20,
        "sample_every": 1,
        "num_quality_samples": 4,
        "best_by": "p2_valid_unique",
    }
    return {
        "out": str(out),
        "data": {"folder": SAMPLE},
        "seed": 0,
        "init": None,
        "resume": False,
        "batch_size": 8,
        "self_conditioning": 0.5,
        "ema_decay": 0.9,
        "compile": False,
        "field_weights": {"pos": 1.0, "hydrogen": 0.25, "atom_type": 0.3, "bond": 2.0, "contributions": 2.0},
        "times": {"_target_": "moldiff.diffusion.process.schedule.PowerTimes"},
        "tasks": {
            "_target_": "moldiff.diffusion.process.task_mixture.TaskMixture",
            "whole": 0.5,
            "part": 0.3,
            "graph": 0.2,
        },
        "schedule": {"_target_": "moldiff.training.optim.TrapezoidSchedule", "warmup_steps": 2, "decay_share": 0.0},
        "optimizer": {"_target_": "moldiff.training.optim.MuonAdamW", "_partial_": True},
        "logger": {"csv": {"_target_": "moldiff.training.loggers.MetricsTable"}},
        "denoiser": {
            "_target_": "moldiff.diffusion.nn.pair_transformer.PairTransformer",
            "hidden_dim": 32,
            "pair_dim": 16,
            "steerable_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
        },
        "process": {"_target_": "moldiff.diffusion.process.joint.JointProcessConfig"},
        "quality": {"_target_": "trainings.scores", "_partial_": True},
        "trainer": trainer | changes.pop("trainer", {}),
    } | changes


def rows(out: Path) -> list[dict[str, str]]:
    """The table of what was logged."""
    with (out / "log" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Weights of the exported model."""
    return dict(load_pretrained(out).model.denoiser.state_dict())


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Nursery:
    """A process that has imported everything and forks a child for each training, so that a child starts at once."""

    def __init__(self) -> None:
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read("ready")

    def start(self, settings: dict[str, Any], log: Path, **damage: int) -> int:
        """Begin a training whose output goes to a file; returns its process id."""
        self._send({"config": settings, "log": str(log), **damage})
        return int(self._read("pid"))

    def wait(self, pid: int) -> int:
        """The exit status of a training, negative = the signal that ended it."""
        self._send({"wait": pid})
        return int(self._read("status"))

    def run(self, settings: dict[str, Any], log: Path, **damage: int) -> int:
        return self.wait(self.start(settings, log, **damage))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def _read(self, word: str) -> str:
        assert self._process.stdout is not None
        first, _, rest = self._process.stdout.readline().strip().partition(" ")
        assert first == word, f"got {first} {rest}, expected {word}"
        return rest


def _serve() -> None:
    import moldiff.data.loader
    import moldiff.diffusion.nn.pair_transformer
    import moldiff.diffusion.process.task_mixture
    import moldiff.training.train

    assert moldiff.training.train
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print("status", os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            print("pid", pid, flush=True)
        else:
            _train_in_child(order)
    os._exit(0)


def _train_in_child(order: dict[str, Any]) -> None:
    from moldiff.errors import MoldiffError
    from moldiff.training.train import train

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "file_limit" in order:  # a disk that is full: writing stops at so many bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
    if "kill_in_write" in order:
        _die_in_write(order["kill_in_write"])
    status = 1
    try:
        train(order["config"])
        status = 0
    except MoldiffError as error:
        print(f"error: {error}", flush=True)
        status = 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", flush=True)
        status = 3
    except (KeyboardInterrupt, SystemExit):
        status = 130
    finally:
        os._exit(status)


def _die_in_write(number: int) -> None:
    """Have this process killed in the middle of the writing of its `number`-th file."""
    written = 0

    def fsync(file: int) -> None:
        nonlocal written
        written += 1
        if written == number:
            os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync


if __name__ == "__main__":
    _serve()
