"""The document on data says what was measured, and names options that exist."""

import re
import shutil
import sys
from importlib import import_module, util
from pathlib import Path

import pytest

from moldiff.cli.compose import compose_options

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.skipif(util.find_spec("biotite") is None, reason="needs biotite")
def test_tables_are_those_of_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "tests" / "benchmarks")])
    benchmark = import_module("prepare")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    benchmark.document(tmp_path / "docs", {})
    assert (tmp_path / "docs" / "data.md").read_text(encoding="utf-8") == TEXT
    benchmark.document(tmp_path / "docs", {"from_3d": {"per_second_and_core": 1.25, "machine": {"processor": "X"}}})
    assert "| SDF with 3D, QM9's size | 1.2 | 1,000 | X |" in (tmp_path / "docs" / "data.md").read_text(
        encoding="utf-8"
    )


def test_options_exist() -> None:
    options = {
        "data": {
            **compose_options("train", ["data=files"])["data"],
            **compose_options("train", ["data=drugs"])["data"],
        },
        "trainer": compose_options("train", [])["trainer"],
    }
    named = re.findall(r"`(data|trainer)\.(\w+)", TEXT)
    assert len(named) >= 6
    assert all(name in options[group] for group, name in named)
