"""A training that ends in any way goes on as if it had never ended: same weights, same table, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from own_files import subset
from trainings import QUIET, Nursery, config, rows, same_weights, weights

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.pretrained import load_pretrained
from moldiff.errors import MoldiffError
from moldiff.training.checkpoint import STATE_FILE, load_state, save_state
from moldiff.training.train import train

pytestmark = QUIET

LONG = {"max_steps": 60, "validate_every": 5, "num_validation": 4}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """The uninterrupted training, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start = time.monotonic()
    assert nursery.run(config(out, trainer=LONG), out.with_name("log.txt")) == 0
    (out.parent / "seconds").write_text(str(time.monotonic() - start))
    return out


def assert_same(out: Path, whole: Path) -> None:
    assert same_weights(out, whole)
    assert rows(out) == rows(whole)
    assert same_weights(out / "best", whole / "best")
    one, other = load_state(out / STATE_FILE), load_state(whole / STATE_FILE)
    assert one["global_step"] == other["global_step"] == LONG["max_steps"]
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in other["state_dict"])


def kill_at_random(nursery: Nursery, whole: Path, folder: Path, *, kills: int, seed: int) -> None:
    """Kill a training at random moments of its life, resume it each time, and compare its end."""
    out, log = folder / "run", folder / "log.txt"
    moments = random.Random(seed)
    longest = float((whole.parent / "seconds").read_text())
    steps = set()
    for _ in range(kills):
        pid = nursery.start(config(out, resume=out.exists(), trainer=LONG), log)
        time.sleep(moments.uniform(0.0, 0.6 * longest))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait(pid) in (0, -signal.SIGKILL), log.read_text()
        if (out / STATE_FILE).is_file():
            steps.add(load_state(out / STATE_FILE)["global_step"])
    assert nursery.run(config(out, resume=out.exists(), trainer=LONG), log) == 0, log.read_text()
    assert steps, "no kill came late enough to find a state"
    assert_same(out, whole)


def test_killed_at_random_moments(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    kill_at_random(nursery, whole, tmp_path, kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_killed_fifty_times(seed: int, nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    kill_at_random(nursery, whole, tmp_path, kills=5, seed=seed)


def test_killed_while_files_are_written(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    killed = 0
    for number in (1, 2, 3, 4, 5, 6, 7, 8, 11):  # table, picture, weights, config, keys, best, state ...
        status = nursery.run(config(out, resume=out.exists(), trainer=LONG), log, kill_in_write=number)
        killed += status == -signal.SIGKILL
        if (out / STATE_FILE).is_file():
            load_state(out / STATE_FILE)
        if (out / "config.json").is_file():
            weights(out)
    assert killed == 9
    assert any(path.name.startswith(".") for path in out.rglob("*")), "a half-written file was left behind"
    assert nursery.run(config(out, resume=True, trainer=LONG), log) == 0, log.read_text()
    assert_same(out, whole)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_full_disk_leaves_the_last_state_intact(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    assert nursery.run(config(out, trainer=LONG | {"max_steps": 20}), log) == 0
    before = (out / STATE_FILE).read_bytes()
    exported = (out / "model.safetensors").stat().st_size
    for limit in (exported // 2, (exported + len(before)) // 2):
        assert nursery.run(config(out, resume=True, trainer=LONG), log, file_limit=limit) == 3
        assert (out / STATE_FILE).read_bytes() == before
    assert f"error: {out / STATE_FILE}: File too large" in log.read_text()
    assert nursery.run(config(out, resume=True, trainer=LONG), log) == 0, log.read_text()
    assert_same(out, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interruption_before_the_first_validation_saves_state_and_model(
    number: signal.Signals, nursery: Nursery, whole: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    late = LONG | {"validate_every": 1000, "max_steps": 100_000}
    pid = nursery.start(config(out, trainer=late), log)
    while "step 7 " not in (log.read_text() if log.exists() else ""):
        time.sleep(0.01)
    os.kill(pid, number)
    assert nursery.wait(pid) == 130
    step = load_state(out / STATE_FILE)["global_step"]
    assert step >= 7
    assert load_pretrained(out).config["history"][0]["steps"] == step
    assert len(rows(out)) == step
    end = late | {"max_steps": step + 3}
    assert nursery.run(config(out, resume=True, trainer=end), log) == 0, log.read_text()
    assert nursery.run(config(tmp_path / "straight", trainer=end), log) == 0
    assert same_weights(out, tmp_path / "straight")


def test_kill_9_before_the_first_validation_costs_no_more_than_the_pause_between_two_states(
    nursery: Nursery, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    late = LONG | {"validate_every": 1000, "max_steps": 100_000, "save_minutes": 0.001}
    pid = nursery.start(config(out, trainer=late), log)
    while not (out / STATE_FILE).is_file() or load_state(out / STATE_FILE)["global_step"] < 3:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    nursery.wait(pid)
    step = load_state(out / STATE_FILE)["global_step"]
    assert 3 <= step < 1000
    assert (out / "log" / "metrics.csv").is_file()
    end = late | {"max_steps": step + 3}
    assert nursery.run(config(out, resume=True, trainer=end), log) == 0, log.read_text()
    assert nursery.run(config(tmp_path / "straight", trainer=end | {"save_minutes": 10.0}), log) == 0
    assert same_weights(out, tmp_path / "straight")
    assert rows(out) == rows(tmp_path / "straight")


def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """B54: weights, averaged weights, optimizer, step and what is logged."""
    train(config(tmp_path / "parted", trainer={"max_steps": 5}))
    train(config(tmp_path / "parted", resume=True, trainer={"max_steps": 10}))
    train(config(tmp_path / "whole", trainer={"max_steps": 10}))
    assert same_weights(tmp_path / "parted", tmp_path / "whole")
    assert rows(tmp_path / "parted") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "parted")] == [str(step) for step in range(1, 11)]
    history = load_pretrained(tmp_path / "parted").config["history"]
    assert [part["steps"] for part in history] == [10]
    train(config(tmp_path / "other", seed=1, trainer={"max_steps": 10}))
    assert not same_weights(tmp_path / "other", tmp_path / "whole"), "the comparison can fail"


def test_a_finished_training_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    out = train(config(tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    train(config(out, resume=True))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    train(config(tmp_path / "run", resume=True, trainer={"max_steps": 2}))
    assert "resume: no state was saved yet, so the training starts from the beginning" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("precious")
    for folder in ("other", "missing"):
        with pytest.raises(MoldiffError, match="not found, expected the folder of an interrupted training"):
            train(config(tmp_path / folder, resume=True))


def test_resume_auto_starts_or_goes_on(tmp_path: Path) -> None:
    train(config(tmp_path / "run", resume="auto", trainer={"max_steps": 4}))
    train(config(tmp_path / "run", resume="auto"))
    train(config(tmp_path / "whole"))
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("precious")
    with pytest.raises(MoldiffError, match="is not empty"):
        train(config(tmp_path / "other", resume="auto"))


def test_b59_of_two_trainings_in_one_folder_one_is_refused(nursery: Nursery, tmp_path: Path) -> None:
    out, logs = tmp_path / "run", [tmp_path / "one.txt", tmp_path / "two.txt"]
    pids = [nursery.start(config(out, trainer=LONG), log) for log in logs]
    assert sorted(nursery.wait(pid) for pid in pids) == [0, 2]
    said = "".join(log.read_text() for log in logs)
    assert f"another training is writing to {out}" in said or f"{out} is not empty" in said
    assert load_state(out / STATE_FILE)["global_step"] == LONG["max_steps"]
    log = tmp_path / "three.txt"
    assert nursery.run(config(out, trainer=LONG), log) == 2
    assert "is not empty; choose another folder, or resume=true" in log.read_text()


def test_a_running_training_is_not_resumed_beside_itself(nursery: Nursery, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    pid = nursery.start(config(out, trainer=LONG | {"max_steps": 100_000}), log)
    while not (out / STATE_FILE).is_file():
        time.sleep(0.01)
    with pytest.raises(MoldiffError, match="another training is writing to"):
        train(config(out, resume=True))
    os.kill(pid, signal.SIGKILL)
    nursery.wait(pid)
    train(config(out, resume=True, trainer=LONG | {"max_steps": load_state(out / STATE_FILE)["global_step"] + 1}))


def test_other_options_are_refused_or_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = train(config(tmp_path / "run"))
    wider = config(out)["denoiser"] | {"pair_dim": 32}
    with pytest.raises(MoldiffError, match=r"started with denoiser\.pair_dim=16, now it is 32"):
        train(config(out, resume=True, denoiser=wider))
    capsys.readouterr()
    train(config(out, resume=True, batch_size=4))
    assert "warning: resume: this training was started with batch_size=8, now it is 4" in capsys.readouterr().err


def test_other_molecules_are_refused(tmp_path: Path) -> None:
    out = train(config(tmp_path / "run"))
    prepared = MoleculeDataset.load(config(out)["data"]["folder"])
    parts = {name: prepared.split(name)[:10] for name in ("train", "valid", "test")}
    subset(prepared, parts, tmp_path / "few", name="few")
    with pytest.raises(MoldiffError, match="few has changed since; to train on it, start anew with init="):
        train(config(out, resume=True, data={"folder": str(tmp_path / "few")}))


def test_state_keeps_nested_values_and_pickles_nothing(tmp_path: Path) -> None:
    """B50: tensors, plain numbers, texts, lists and dictionaries, in a file of safetensors."""
    state = {
        "optimizer": {"state": {0: {"mean": torch.arange(3.0), "step": 7}}, "param_groups": [{"betas": (0.9, 0.98)}]},
        "none": None,
        "text": "ü",
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    path = tmp_path / "state"
    save_state(path, state)
    found = load_state(path)
    assert torch.equal(found["optimizer"]["state"][0].pop("mean"), torch.arange(3.0))
    assert found["optimizer"] == {"state": {0: {"step": 7}}, "param_groups": [{"betas": [0.9, 0.98]}]}
    assert (found["none"], found["text"], found["scalar"].dtype) == (None, "ü", torch.float64)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert "__metadata__" in json.loads(path.read_bytes()[8 : 8 + length])


class Payload:
    def __reduce__(self) -> Any:
        return (os.system, ("touch stolen",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\): empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"<html>404</html>", "web page"),
        ("cut", "truncated"),
        ("pickle", "damaged|truncated"),
        ("weights", "got weights without a state"),
    ],
)
def test_what_is_no_state_is_refused_in_one_line(
    content: bytes | str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = train(config(tmp_path / "run", trainer={"max_steps": 1}))
    path = out / STATE_FILE
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "pickle":
        torch.save({"x": Payload()}, path)
    elif content == "weights":
        path.write_bytes((out / "model.safetensors").read_bytes())
    else:
        path.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(MoldiffError, match=message) as caught:
        train(config(out, resume=True))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "stolen").exists()
