"""An experiment is one line and repeats: a short run on the shipped sample follows the stored curve."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from trainings import QUIET, rows

from moldiff.cli.compose import compose_options
from moldiff.training.train import train

pytestmark = QUIET

CURVE = Path(__file__).parents[1] / "curves" / "quick.csv"
"""Losses of `moldiff train experiment=quick` with the options below, as first measured."""
OPTIONS = ["trainer.max_time=null", "trainer.max_steps=24", "trainer.validate_every=8", "trainer.accelerator=cpu"]
OPTIONS += ["trainer.precision=32-true", "compile=false", "batch_size=32", "trainer.num_validation=48"]


def measured(out: Path) -> list[dict[str, float]]:
    names = ["step", "valid/pos", "valid/hydrogen", "valid/atom_type", "valid/bond", "valid/bound"]
    return [{name: float(row[name]) for name in names} for row in rows(out) if row["valid/loss"]]


def test_a_short_run_of_an_experiment_follows_its_stored_curve(tmp_path: Path) -> None:
    train(compose_options("train", ["experiment=quick", *OPTIONS, f"out={tmp_path / 'run'}"]))
    with CURVE.open() as file:
        stored = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    curve = measured(tmp_path / "run")
    assert [row["step"] for row in curve] == [row["step"] for row in stored] == [8, 16, 24]
    for row, expected in zip(curve, stored, strict=True):
        assert row == pytest.approx(expected, rel=0.02)  # rounding differs between processors
