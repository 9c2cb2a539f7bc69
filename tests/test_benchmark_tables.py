"""The tables of the documents, and what a measurement tells of its course."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moldiff.evaluation.metric import MetricResult
from tests.benchmarks.tasks.bonds import Graphs
from tests.benchmarks.tasks.settings import Progress
from tests.benchmarks.tasks.tables import PUBLISHED, errors, into_card, keep, refresh

pytestmark = pytest.mark.usefixtures("one_thread")
DOCS = Path(__file__).parents[1] / "docs"


def test_the_time_left_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 30.0, 40.0, 100.0])
    monkeypatch.setattr("tests.benchmarks.tasks.settings.time.monotonic", lambda: next(clock))
    progress = Progress(100)
    for done in (10, 15, 20):
        progress.show(done, what="gap: ")
    assert capsys.readouterr().err.splitlines() == [
        "moldiff: gap: 10 of 100, about 4 min left",
        "moldiff: gap: 20 of 100, about 7 min left",
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
