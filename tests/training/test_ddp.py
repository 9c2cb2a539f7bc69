"""Several processes train what one would, and so do parts of a batch whose gradients are accumulated."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import conditional_model, random_batch, small_model
from trainings import QUIET, config, rows, weights

from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import is_out_of_memory
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import build_model, load_pretrained
from moldiff.diffusion.process.geometry_loss import Distances, LocalFrames, LocalLoss
from moldiff.diffusion.process.schedule import PowerTimes
from moldiff.diffusion.process.task_mixture import TaskMixture
from moldiff.errors import MoldiffError
from moldiff.processes import rank, started_together
from moldiff.training.checkpoint import STATE_FILE, load_state
from moldiff.training.train import train

pytestmark = QUIET

STEPS = 8
TASKS = TaskMixture(whole=0.4, part=0.3, graph=0.1, geometry=0.1, composition=0.1)


def command(out: Path, **changes: Any) -> list[str]:
    settings = config(out, **changes)
    path = out.with_suffix(".json")
    path.write_text(json.dumps(settings))
    return [sys.executable, "-W", "ignore", "-m", "moldiff.training.train", str(path)]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([*map(str, Path(__file__).parents[:2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def assert_same_curve(out: Path, double: Path, *, rel: float) -> None:
    one, other = rows(out), rows(double)
    assert [row["step"] for row in one] == [row["step"] for row in other] == [str(k) for k in range(1, STEPS + 1)]
    for mine, theirs in zip(one, other, strict=True):
        for name in theirs:
            if not name.startswith("sample/") and theirs[name]:
                assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=rel), (mine["step"], name)


def test_two_processes_have_the_loss_curve_of_one_with_the_double_batch(tmp_path: Path) -> None:
    double = train(config(tmp_path / "double", batch_size=16, trainer={"max_steps": STEPS}))
    out = tmp_path / "run"
    run = command(out, trainer={"devices": 2, "strategy": "ddp", "max_steps": STEPS})
    subprocess.run(run, env=environment(), check=True, capture_output=True)
    # Muon turns rounding errors of small gradients into steps of full size.
    assert_same_curve(out, double, rel=2e-3)
    history = load_pretrained(out).config["history"]
    assert [(part["steps"], part["batch_size"]) for part in history] == [(STEPS, 16)]


@pytest.mark.parametrize("nodes", [1, 2])
def test_processes_started_by_slurm_go_on_where_one_process_stopped(nodes: int, tmp_path: Path) -> None:
    """As `srun` starts them: one process a task, each with its number; on two nodes, one on each."""
    plain = {"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.02}}
    double = train(config(tmp_path / "double", batch_size=16, **plain, trainer={"max_steps": STEPS}))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "run"
    train(config(out, batch_size=16, **plain, trainer={"max_steps": 2}))
    share = {"devices": 2 // nodes, "num_nodes": nodes, "strategy": "ddp", "max_steps": STEPS}
    run = command(out, resume="auto", **plain, trainer=share)
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": str(2 // nodes),
        "SLURM_NNODES": str(nodes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    places = [(k // (2 // nodes), k % (2 // nodes)) for k in range(2)]
    tasks = [
        {"SLURM_PROCID": str(k), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
        for k, (node, local) in enumerate(places)
    ]
    processes = [
        subprocess.Popen(
            run,
            env=environment(**slurm, **task),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in tasks
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "step 6 " in said[0]
    assert "step" not in said[1]
    assert_same_curve(out, double, rel=1e-4)
    first, second, start = weights(out), weights(double), fresh_weights(out)
    for name in second:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(second["embedding.atom.weight"], start["embedding.atom.weight"], rtol=1e-4, atol=1e-6)


def fresh_weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights a training begins with."""
    found = load_pretrained(out)
    torch.manual_seed(0)
    model = build_model(found.config, found.model.vocabulary, found.model.statistics)
    return dict(model.denoiser.state_dict())


def test_rank_is_that_of_whoever_started_the_process() -> None:
    assert rank({}) == 0
    assert rank({"LOCAL_RANK": "1"}) == 1
    assert rank({"RANK": "5", "LOCAL_RANK": "1"}) == 5
    assert rank({"SLURM_PROCID": "3"}) == 3
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    assert started_together(step)
    assert not started_together(step | {"SLURM_STEP_NUM_TASKS": "1"})
    assert not started_together({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})  # in a batch script, outside srun
    assert not started_together(step | {"SLURM_JOB_NAME": "interactive"})
    assert started_together({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"})


@pytest.mark.parametrize("tasks", [None, TASKS])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("geometry", [None, Distances(), LocalFrames()])
def test_losses_of_parts_add_up_by_their_counts(
    tasks: TaskMixture | None, conditional: bool, geometry: LocalLoss | None
) -> None:
    model, batch = small_model().float(), float_batch([5, 4, 5, 3, 2, 5, 1])
    if conditional:
        model = conditional_model().float()
        batch = batch.replace(condition=torch.randn(7, 2, generator=torch.Generator().manual_seed(1)))
    model.process = replace(model.process, geometry=geometry)
    noised = model.noise(batch, PowerTimes(), torch.Generator().manual_seed(3), tasks=tasks)
    whole, total = model.losses_of(noised, self_condition=True), model.counts_of(noised)
    assert whole.keys() == total.keys()
    assert ("contributions" in whole) == conditional
    assert ("geometry" in whole) == (geometry is not None)
    parts = [noised.rows(slice(start, start + 3)) for start in (0, 3, 6)]
    assert [part.clean.num_molecules for part in parts] == [3, 3, 1]
    for name, loss in whole.items():
        shares = [model.losses_of(part, self_condition=True)[name] * model.counts_of(part)[name] for part in parts]
        torch.testing.assert_close(torch.stack(shares).sum() / total[name].clamp(min=1), loss)


def float_batch(sizes: list[int]) -> MolBatch:
    batch = random_batch(sizes)
    return batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())


class Cramped(PairTransformer):
    """A network that runs out of memory above so many molecules."""

    room = 3
    error: BaseException = MemoryError()

    def forward(self, noisy: MolBatch, *args: Any) -> Any:
        if self.training and noisy.num_molecules > self.room:
            raise self.error
        return super().forward(noisy, *args)


def cramped(out: Path, **changes: Any) -> dict[str, Any]:
    """A training of such a network."""
    denoiser = config(out)["denoiser"] | {"_target_": "test_ddp.Cramped"}
    return config(out, denoiser=denoiser, quality=None, **changes)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_without_enough_memory_one_line_says_what_does_the_same_in_parts(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_out_of_memory(error)
    monkeypatch.setattr(Cramped, "error", error)
    advice = r"8 molecules at a time do not fit; resume=true batch_size=4 trainer\.accumulate_grad_batches=2 goes"
    with pytest.raises(MoldiffError, match=advice):
        train(cramped(tmp_path / "run"))
    advice = r"4 molecules at a time do not fit; resume=true batch_size=2 trainer\.accumulate_grad_batches=4 goes"
    with pytest.raises(MoldiffError, match=advice):
        train(cramped(tmp_path / "again", batch_size=4, trainer={"accumulate_grad_batches": 2}))


def test_a_batch_in_parts_has_the_loss_curve_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train(config(tmp_path / "whole", trainer={"max_steps": STEPS}))
    said = capsys.readouterr().out
    parts = {"max_steps": STEPS, "accumulate_grad_batches": 4}
    out = train(cramped(tmp_path / "run", batch_size=2, trainer=parts))
    assert_same_curve(out, whole, rel=2e-3)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("step")] == [
        line.split("  ")[0] for line in said.splitlines() if line.startswith("step")
    ]
    history = json.loads((out / "config.json").read_text())["history"]
    assert [(part["steps"], part["batch_size"]) for part in history] == [(STEPS, 8)]


def test_a_training_goes_on_in_more_parts_and_resuming_is_exact_with_them_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"batch_size": 2, "trainer": {"accumulate_grad_batches": 4}}
    train(cramped(tmp_path / "whole", **settings))
    ended = cramped(tmp_path / "parted", **settings)
    train(ended | {"trainer": ended["trainer"] | {"max_steps": 4}})
    train(ended | {"resume": True})
    assert same_weights_of_state(tmp_path / "whole", tmp_path / "parted")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parted")
    roomy = config(tmp_path / "moved", denoiser=ended["denoiser"], batch_size=8, quality=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cramped, "room", 8)
        train(roomy | {"trainer": roomy["trainer"] | {"max_steps": 4}})
    capsys.readouterr()
    train(cramped(tmp_path / "moved", **settings, resume=True))
    assert "warning: resume" not in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "moved")] == [str(step) for step in range(1, 7)]
    for mine, theirs in zip(rows(tmp_path / "moved"), rows(tmp_path / "whole"), strict=True):
        assert float(mine["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=2e-3)
        assert bool(mine["valid/loss"]) == bool(theirs["valid/loss"])


def same_weights_of_state(one: Path, other: Path) -> bool:
    first, second = (load_state(path / STATE_FILE)["state_dict"] for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in second)


def test_other_errors_and_a_hopeless_lack_of_memory_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cramped, "room", 0)
    with pytest.raises(MoldiffError, match="out of memory: not even one molecule at a time fits"):
        train(cramped(tmp_path / "hopeless", batch_size=1))
    monkeypatch.setattr(Cramped, "error", RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        train(cramped(tmp_path / "other"))
