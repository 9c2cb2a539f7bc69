"""What a training shows and keeps as it goes: table, picture, forecast, the best model."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from own_files import subset
from trainings import QUIET, SAMPLE, config, rows, same_weights, weights

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.pretrained import load_pretrained
from moldiff.errors import MoldiffError
from moldiff.training.callbacks import peak_memory
from moldiff.training.loggers import MetricsTable, write_curve
from moldiff.training.train import train

pytestmark = QUIET


def test_table_has_one_row_a_step_and_forgets_what_comes_again(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path)
    table.log_metrics({"train/loss": 2.5}, step=1)
    table.log_metrics({"train/loss": torch.tensor(1.5)}, step=2)  # type: ignore[dict-item]
    table.log_metrics({"valid/loss": 3.0}, step=2)
    table.log_metrics({"train/loss": 0.5}, step=3)
    table.finalize("success")
    assert (tmp_path / "log" / "metrics.csv").read_text() == "step,train/loss,valid/loss\n1,2.5,\n2,1.5,3.0\n3,0.5,\n"
    resumed = MetricsTable(tmp_path, step=2)
    assert resumed.rows == {1: {"train/loss": 2.5}, 2: {"train/loss": 1.5, "valid/loss": 3.0}}
    resumed.log_metrics({"train/loss": 0.25}, step=3)
    resumed.save()
    assert [row["train/loss"] for row in rows(tmp_path)] == ["2.5", "1.5", "0.25"]
    assert MetricsTable(tmp_path, step=0).rows == {}


def test_curve_shows_losses_and_quality(tmp_path: Path) -> None:
    path = tmp_path / "curve.svg"
    write_curve(path, {})
    assert not path.exists()
    steps = {1: {"train/loss": 4.0}, 2: {"train/loss": 2.0, "valid/loss": 3.0}, 4: {"train/loss": float("nan")}}
    write_curve(path, steps)
    assert "Quality of samples" not in path.read_text()
    steps[4] = {"train/loss": 1.0, "sample/p2_valid": 0.5, "sample/a<b": 1.0}
    write_curve(path, steps)
    root = ElementTree.fromstring(path.read_text())
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"Loss", "train/loss 1", "valid/loss 3", "Quality of samples", "p2_valid 0.5", "a<b 1"} <= set(texts)
    lines = {}
    for group in root.iter(f"{space}g"):
        if "/" in group.attrib.get("id", ""):
            numbers = group.find(f"{space}path").attrib["d"].replace("M", "").split("L")  # type: ignore[union-attr]
            lines[group.attrib["id"]] = [tuple(map(float, pair.split())) for pair in numbers]
    assert {name: len(points) for name, points in lines.items()} == {
        "train/loss": 3,
        "valid/loss": 1,
        "sample/p2_valid": 1,
        "sample/a<b": 1,
    }
    (x1, y1), (_, y2), (x4, y4) = lines["train/loss"]
    assert x1 < x4
    assert y1 < y2 < y4  # losses fall, and y points down
    assert y2 == pytest.approx(y1 + (y4 - y1) * 2 / 3, abs=0.1)
    before = path.read_bytes()
    write_curve(path, steps)
    assert path.read_bytes() == before


def test_training_draws_its_curve_and_keeps_the_best_model(tmp_path: Path) -> None:
    out = train(config(tmp_path / "run", trainer={"max_steps": 9}))
    assert "p2_valid_unique" in (out / "curve.svg").read_text()
    scores = {int(row["step"]): float(row["sample/p2_valid_unique"]) for row in rows(out) if row["valid/loss"]}
    assert list(scores) == [3, 6, 9]
    best = max(scores, key=lambda step: scores[step])
    found = load_pretrained(out / "best")
    assert found.config["history"][-1]["steps"] == best
    assert found.config["quality"]["p2_valid_unique"] == pytest.approx(scores[best])
    assert (out / "best" / "novelty.safetensors").read_bytes() == (out / "novelty.safetensors").read_bytes()
    assert same_weights(out, out / "best") == (best == 9)
    without = train(config(tmp_path / "none", trainer={"best_by": None}))
    assert not (without / "best").exists()


def test_a_set_without_validation_part_has_a_curve_and_a_best_model_too(tmp_path: Path) -> None:
    prepared = MoleculeDataset.load(SAMPLE)
    parts = {"train": prepared.split("train")[:3], "valid": np.array([], int), "test": np.array([], int)}
    subset(prepared, parts, tmp_path / "few", name="few")
    small = {"data": {"folder": str(tmp_path / "few")}}
    out = train(config(tmp_path / "run", **small, trainer={"max_steps": 4}))
    train(config(out, **small, resume=True, trainer={"max_steps": 9}))
    scored = {int(row["step"]): float(row["sample/p2_valid_unique"]) for row in rows(out) if row["sample/p2_valid"]}
    assert list(scored) == [3, 6, 9]
    best = max(scored, key=lambda step: scored[step])
    assert load_pretrained(out / "best").config["history"][-1]["steps"] == best
    assert "p2_valid_unique" in (out / "curve.svg").read_text()


def test_forecast_comes_once_after_fifty_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path / "run", trainer={"max_steps": 55, "validate_every": 40, "log_every": 1000}))
    found = re.findall(
        r"forecast: about 55 steps, done in 0:00:0\d without validation and samples; (\S+) s a step; "
        r"(\S+) GB of memory a process so far\n",
        capsys.readouterr().out,
    )
    assert len(found) == 1
    assert 0 < float(found[0][0]) < 5
    assert 0.05 < float(found[0][1]) < 20


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 8 * 2)
    assert peak_memory(torch.device("cpu")) > before
    del held


def test_without_loggers_nothing_is_logged_and_training_works(tmp_path: Path) -> None:
    out = train(config(tmp_path / "run", logger={}))
    assert weights(out)
    assert not (out / "log").exists()


def test_tensorboard_writes_events_or_names_the_package(tmp_path: Path) -> None:
    logger = {"tensorboard": {"_target_": "moldiff.training.loggers.tensorboard"}}
    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        with pytest.raises(MoldiffError, match=r'logger: tensorboard is not installed; pip install "moldiff\[tensor'):
            train(config(tmp_path / "run", logger=logger))
        return
    both = logger | config(tmp_path)["logger"]
    out = train(config(tmp_path / "run", logger=both))
    train(config(out, resume=True, logger=both, trainer={"max_steps": 8}))
    assert len(list((out / "tensorboard").glob("events.out.tfevents.*"))) == 2
    assert len(rows(out)) == 8
