"""Which arithmetic a training uses: the fastest of a trial, the same on resuming, and float32 where it is short."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import random_batch, small_model
from torch import nn
from trainings import QUIET, config

import moldiff.sampling.molecule_sampler
import moldiff.training.callbacks
from moldiff.diffusion.compute import FLOAT32, Precision, compile_blocks, seconds, verdict
from moldiff.diffusion.process.schedule import PowerTimes
from moldiff.sampling.generator import load
from moldiff.sampling.molecule_sampler import with_trial
from moldiff.training.callbacks import ArithmeticTrial
from moldiff.training.checkpoint import load_state
from moldiff.training.train import train

pytestmark = QUIET

CPU = torch.device("cpu")
LOW = Precision(bfloat16=True)
COMPILED = Precision(bfloat16=True, compiled=True)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that knows everything, and trainings of any length that are worth a trial."""
    for name in ("has_fast_bfloat16", "can_compile"):
        monkeypatch.setattr(moldiff.training.callbacks, name, lambda device: True)
    monkeypatch.setattr(moldiff.training.callbacks, "_TRIAL_STEPS", 1)


def settle(
    monkeypatch: pytest.MonkeyPatch,
    figures: dict[Precision, tuple[float, float]],
    *,
    steps: int = 10_000,
    bfloat16: bool | None = None,
    compiled: bool | None = None,
) -> tuple[Precision, list[Precision]]:
    """What is chosen when a batch takes so many seconds, the first one so many by the clock; and what was tried."""
    tried: list[Precision] = []

    def measure(trainer: Any, module: Any, arithmetic: Precision) -> tuple[float, float]:
        tried.append(arithmetic)
        return figures[arithmetic]

    monkeypatch.setattr(ArithmeticTrial, "_measure", staticmethod(measure))
    data = SimpleNamespace(batches=SimpleNamespace(widths=[7, 9]))
    trainer = SimpleNamespace(
        max_steps=steps,
        accumulate_grad_batches=1,
        global_step=0,
        callbacks=[],
        is_global_zero=True,
        train_dataloader=data,
    )
    used: list[Precision] = []
    module = SimpleNamespace(device=CPU, use=used.append)
    ArithmeticTrial(bfloat16=bfloat16, compiled=compiled).on_train_start(trainer, module)
    return used[-1], tried


FASTER = {FLOAT32: (1.0, 1.2), LOW: (0.5, 0.6), COMPILED: (0.4, 60.0)}


@pytest.mark.usefixtures("able")
def test_the_fastest_is_chosen_and_one_line_says_what_each_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settle(monkeypatch, FASTER) == (COMPILED, [FLOAT32, LOW, COMPILED])
    assert capsys.readouterr().out == (
        "arithmetic: bfloat16, compiled (a batch took 1 s float32, 0.5 s bfloat16, 0.4 s bfloat16, compiled)\n"
    )
    slower = {FLOAT32: (1.0, 1.0), LOW: (1.5, 1.5), Precision(compiled=True): (1.1, 60.0)}
    assert settle(monkeypatch, slower)[0] == FLOAT32


@pytest.mark.usefixtures("able")
def test_compiling_has_to_save_more_than_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two widths cost 2 x 60 s; a fifth of 10,000 steps is 2,400 s, and of 1,001 steps 240 s.
    assert settle(monkeypatch, FASTER, steps=10_000)[0] == COMPILED
    dear = FASTER | {COMPILED: (0.4, 1300.0)}
    assert settle(monkeypatch, dear, steps=10_000)[0] == LOW
    assert settle(monkeypatch, FASTER, steps=900) == (LOW, [FLOAT32, LOW])  # 18 minutes: not even tried
    failing = FASTER | {COMPILED: (float("inf"), 0.0)}
    assert settle(monkeypatch, failing)[0] == LOW


@pytest.mark.usefixtures("able")
def test_what_is_asked_for_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(monkeypatch, FASTER, bfloat16=True, compiled=False) == (LOW, [])
    assert settle(monkeypatch, FASTER, bfloat16=False, compiled=True) == (Precision(compiled=True), [])
    assert settle(monkeypatch, FASTER, compiled=False) == (LOW, [FLOAT32, LOW])


def test_a_short_training_or_a_plain_machine_has_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("has_fast_bfloat16", "can_compile"):
        monkeypatch.setattr(moldiff.training.callbacks, name, lambda device: True)
    assert settle(monkeypatch, FASTER, steps=199) == (FLOAT32, [])
    for name in ("has_fast_bfloat16", "can_compile"):
        monkeypatch.setattr(moldiff.training.callbacks, name, lambda device: False)
    assert settle(monkeypatch, FASTER) == (FLOAT32, [])


@pytest.mark.usefixtures("able")
def test_a_training_measures_its_own_batches_and_keeps_the_choice_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = iter([(1.0, 1.0), (0.5, 0.5)])

    def stopwatch(run: Any, device: torch.device) -> tuple[float, float]:
        run()
        return next(taken)

    monkeypatch.setattr(moldiff.training.callbacks, "seconds", stopwatch)
    automatic = {"precision": "auto", "num_quality_samples": 0, "max_steps": 3}
    settings = config(tmp_path / "run", compile="auto", trainer=automatic)
    train(settings)
    assert "arithmetic: bfloat16 (a batch took 1 s float32, 0.5 s bfloat16)" in capsys.readouterr().out
    kept = load_state(tmp_path / "run" / "state.safetensors")["callbacks"]["ArithmeticTrial"]
    assert kept == {"machine": "cpu True True", "bfloat16": True, "compiled": False}
    train(settings | {"resume": True, "trainer": settings["trainer"] | {"max_steps": 4}})
    assert "arithmetic" not in capsys.readouterr().out
    assert next(taken, None) is None


def test_bfloat16_gives_every_weight_the_gradient_that_float32_gives_it() -> None:
    """Weights that were cast for the estimate without gradients must not be taken for those of the second pass."""
    model = small_model().float()
    batch = random_batch([5, 6])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())
    noised = model.noise(batch, PowerTimes(), torch.Generator().manual_seed(0))
    gradients = []
    for arithmetic in (FLOAT32, LOW):
        with arithmetic.autocast(CPU):
            losses = model.losses_of(noised, self_condition=True)
        torch.stack(list(losses.values())).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad(set_to_none=True)
    exact, rounded = gradients
    assert exact.shape == rounded.shape
    assert 0 < (exact - rounded).norm() < 0.1 * exact.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, where it imports its compiler
def test_blocks_are_compiled_and_left_again() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    network, plain = Network(), nn.Linear(2, 2)
    for module, block in ((network, network.layers[0]), (plain, plain)):
        for wanted in (True, False):
            compile_blocks(module, wanted, dynamic=False)
            assert (block._compiled_call_impl is not None) == wanted
    assert copy.deepcopy(network).layers[0](torch.zeros(1, 2)).shape == (1, 2)


def test_a_long_run_of_samples_is_compiled_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[tuple[float, float]] = []
    compiled: list[bool] = []

    def stopwatch(run: Any, device: torch.device) -> tuple[float, float]:
        assert len(run().prediction.pos) == 64
        return taken.pop(0)

    monkeypatch.setattr(moldiff.sampling.molecule_sampler, "seconds", stopwatch)
    monkeypatch.setattr(moldiff.sampling.molecule_sampler, "can_compile", lambda device: True)
    monkeypatch.setattr(
        moldiff.sampling.molecule_sampler, "compile_blocks", lambda network, wanted, dynamic: compiled.append(wanted)
    )
    molecules = load("qm9", device="cpu").stream(100_000, steps=50).molecules
    assert molecules.arithmetic == FLOAT32
    # 100,000 molecules are 1,562.5 batches, each 50 / 3 times as long as the trial, shared by two workers.
    with caplog.at_level("INFO"):
        taken[:] = [(0.3, 0.4), (0.25, 60.0)]
        assert with_trial(molecules, 0, 100_000, 2).arithmetic == Precision(compiled=True)
    assert caplog.messages == ["arithmetic: float32, compiled (a batch took 0.3 s float32, 0.25 s float32, compiled)"]
    assert compiled == [False, True, False]
    taken[:] = [(0.3, 0.4), (0.25, 330.0)]  # it would save 651 s and cost each worker as much as the trial, at once
    assert with_trial(molecules, 0, 100_000, 2).arithmetic == FLOAT32
    assert with_trial(molecules, 0, 1000, 2) is molecules


def test_molecules_can_be_drawn_in_bfloat16_and_their_records_say_so() -> None:
    generator = load("qm9", device="cpu")
    low = generator.sample(3, size=5, steps=4, keep=(), arithmetic=LOW)
    plain = generator.sample(3, size=5, steps=4, keep=())
    assert [sample.origin.get("precision") for sample in low] == ["bfloat16"] * 3
    assert all("precision" not in sample.origin for sample in plain)
    distances = [np.abs(a.molecule.pos - b.molecule.pos).max() for a, b in zip(low, plain, strict=True)]
    assert all(distance > 1e-5 for distance in distances)


def test_the_least_of_the_repeats_counts() -> None:
    calls = iter([300_000, 3_000, 1_000, 200_000])

    def run() -> None:
        sum(range(next(calls) * 10))

    least, first = seconds(run, CPU)
    assert 0 < least < first
    assert verdict(FLOAT32, {FLOAT32: 0.25}) == "arithmetic: float32 (a batch took 0.25 s float32)"
