"""Measurements that are ended and go on, and the tables that are made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import MODEL_CONFIG
from test_benchmark_tasks import model_for

from moldiff.cli.compose import compose_options
from moldiff.diffusion.pretrained import save_model
from moldiff.errors import MoldiffError
from moldiff.evaluation.result import MetricResult
from tests.benchmarks.tasks import __main__
from tests.benchmarks.tasks.bonds import Graphs
from tests.benchmarks.tasks.journal import Journal, Progress
from tests.benchmarks.tasks.settings import Row, Settings
from tests.benchmarks.tasks.tables import PUBLISHED, errors, into_card, keep, refresh

pytestmark = pytest.mark.usefixtures("one_thread")
DOCS = Path(__file__).parents[1] / "docs"


def test_an_ended_measurement_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compose_options("train", ["data=sample"])["data"]["folder"]
    save_model(tmp_path / "model", model_for(folder), MODEL_CONFIG, dtype=torch.float32)
    arguments = ["grow", "--model", str(tmp_path / "model"), "--data", folder, "--molecules", "6", "--samples", "2"]
    arguments += ["--steps", "2", "--device", "cpu", "--out"]
    monkeypatch.setattr(__main__, "_AT_ONCE", 4)
    assert __main__.main([*arguments, str(tmp_path / "whole.json")]) == 0
    measure, rows = __main__._MEASURES["grow"][0], []

    def ended(settings: Settings, places: range) -> list[Row]:
        rows.append(places)
        if len(rows) == 3:
            raise KeyboardInterrupt
        return type(measure).rows(measure, settings, places)

    monkeypatch.setitem(__main__._MEASURES, "grow", (_Other(measure, ended), 6, 2))
    assert __main__.main([*arguments, str(tmp_path / "ended.json")]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    journal = tmp_path / "ended.rows.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 4
    assert __main__.main([*arguments, str(tmp_path / "ended.json"), "--seed", "1"]) == 2
    assert "rows of a measurement with other options" in capsys.readouterr().err
    with journal.open("a") as file:
        file.write('{"removed": [')  # the line that was being written
    assert __main__.main([*arguments, str(tmp_path / "ended.json")]) == 0
    assert "moldiff: going on behind 4 of 6" in capsys.readouterr().err
    assert rows == [range(0, 2), range(2, 4), range(4, 6), range(4, 6)]
    assert not journal.exists()
    whole, gone_on = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "ended"))
    assert whole == gone_on
    assert whole["options"]["steps"] == 2
    assert len(whole["options"]["weights"]) == 12


class _Other:
    """A measure whose rows come from elsewhere."""

    def __init__(self, measure: object, rows: object) -> None:
        self.rows, self.columns, self.details = rows, measure.columns, measure.details  # type: ignore[attr-defined]


def test_rows_of_other_options_are_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "a.jsonl", {"seed": 0}).add([{"n": 1}, {"n": 2}])
    assert Journal(tmp_path / "a.jsonl", {"seed": 0}).rows == [{"n": 1}, {"n": 2}]
    with pytest.raises(
        MoldiffError, match="rows of a measurement with other options, expected the same, or no such file"
    ):
        Journal(tmp_path / "a.jsonl", {"seed": 1})


def test_the_time_left_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 30.0, 40.0, 100.0])
    monkeypatch.setattr("tests.benchmarks.tasks.journal.time.monotonic", lambda: next(clock))
    progress = Progress(200, 100)
    for done in (110, 115, 120):
        progress.show(done, what="gap: ")
    assert capsys.readouterr().err.splitlines() == [
        "moldiff: going on behind 100 of 200",
        "moldiff: gap: 110 of 200, about 4 min left",
        "moldiff: gap: 120 of 200, about 7 min left",
    ]


def columns() -> dict[str, list[MetricResult]]:
    def error(name: str, value: float, unit: str) -> MetricResult:
        return MetricResult(f"{name}_mae", 4 * value, 4.0, "Mean.", 4, unit)

    shares = [
        MetricResult(f"{name}_{kind}", number, 4, "Share.")
        for name in ("gap", "mu")
        for kind, number in (("judged", 4), ("valid", 3))
    ]
    return {
        "moldiff": [error("gap", 300.04, "meV"), error("mu", 0.5, "D"), *shares],
        "predictor on test": [error("gap", 60, "meV"), error("mu", 0.05, "D")],
        "number of atoms": [error("gap", 850, "meV"), error("mu", 1, "D")],
        "random": [error("gap", 1500, "meV"), error("mu", 1.6, "D")],
    }


def test_errors_stand_beside_what_others_print() -> None:
    lines = errors(columns()).splitlines()
    assert lines[0] == "| | gap (meV) | mu (D) |"
    assert lines[2] == "| **moldiff** | 300 | 0.5 |"
    assert "| our predictor on real molecules (the floor) | 60 | 0.05 |" in lines
    assert "| EDM (arXiv:2203.17003) | 655 | 1.11 |" in lines
    assert "| JODO (arXiv:2305.12347) | 335 | 0.628 |" in lines
    assert "| from the number of atoms alone, ours | 850 | 1 |" in lines
    assert "| of moldiff's molecules P2-valid | 75.0 % | 75.0 % |" in lines
    assert all(set(values) == {"alpha", "gap", "homo", "lumo", "mu", "cv"} for _, values in PUBLISHED.values())


def test_tables_of_documents_come_from_the_numbers(tmp_path: Path) -> None:
    text = "# Tasks\n\n<!-- benchmark: {} -->\nold\n<!-- end -->\nbehind\n"
    (tmp_path / "a.md").write_text(text.format("bonds"))
    (tmp_path / "b.md").write_text(text.format("properties"))
    found = Graphs().columns(
        [{"raw": True, "decoded": True, "RDKit": False}, {"raw": False, "decoded": True, "RDKit": True}]
    )
    results = {column: [result.to_dict() for result in rows] for column, rows in found.items()}
    keep(tmp_path, "bonds", {"options": {"steps": 5}, "versions": {"rdkit": "1"}, "results": results, "details": [1]})
    assert "details" not in json.loads((tmp_path / "benchmarks" / "bonds.json").read_text())
    assert [path.name for path in refresh(tmp_path)] == ["a.md", "b.md"]
    written = (tmp_path / "a.md").read_text()
    assert "| same graph | 50.00 % (1/2) | 100.00 % (2/2) | 50.00 % (1/2) |\n" in written
    assert "Made with: steps 5, rdkit 1.\n<!-- end -->\nbehind\n" in written
    assert "old" not in written
    assert "\nNot measured yet.\n<!-- end -->" in (tmp_path / "b.md").read_text()
    assert refresh(tmp_path) == []


def test_a_card_takes_the_table_in_once(tmp_path: Path) -> None:
    results = {column: [result.to_dict() for result in rows] for column, rows in columns().items()}
    for samples in (10, 20):
        keep(tmp_path, "properties", {"options": {"samples": samples}, "versions": {"rdkit": "1"}, "results": results})
        card = tmp_path / "model" / "card.md"
        card.parent.mkdir(exist_ok=True)
        if samples == 10:
            card.write_text("# model\n\nText.\n")
        into_card(tmp_path, card)
    text = card.read_text()
    assert text.startswith("# model\n\nText.\n\n## Property targets\n")
    assert text.count("| **moldiff** | 300 | 0.5 |") == 1
    assert "Made with: samples 20, rdkit 1." in text
    assert "samples 10" not in text


def test_the_tables_of_the_documents_are_those_of_their_numbers(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    assert refresh(tmp_path / "docs") == []
