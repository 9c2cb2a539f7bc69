"""`summary=`: what the table at the end of a run says, for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from models import needs_weights

from moldiff.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


@needs_weights
def test_the_summary_says_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, summary = tmp_path / "out.sdf", tmp_path / "run.json"
    options = ["n=3", "size=4", "steps=10", "workers=0", "first=5", f"out={out}", f"summary={summary}"]
    assert main(["sample", *options]) == 0
    table = " ".join(capsys.readouterr().out.split())
    found = json.loads(summary.read_text())
    assert (found["asked"], found["kept"], found["first"], found["complete"]) == (3, 3, 5, True)
    assert found["file"] == str(out)
    assert found["settings"]["model"] == "qm9"
    (valid,) = (one for one in found["results"] if one["name"] == "p2_valid")
    assert f"valid │ {valid['numerator']}/{valid['denominator']}" in table
    assert f"drawn │ {found['drawn']}" in table
    described = (Path(__file__).parents[2] / "docs" / "files.md").read_text().partition("## The summary")[2]
    entries = [name for line in re.findall(r"^\| (`.*?) \|", described, re.MULTILINE) for name in line.split(", ")]
    assert sorted(found) == sorted(name.strip("`") for name in entries)
    assert set(valid) == {"name", "value", "numerator", "denominator", "definition", "counted", "unit"}


@needs_weights
def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    summary = tmp_path / "run.json"
    options = ["n=9", "max_draws=2", "size=4", "steps=10", "workers=0", f"out={tmp_path / 'a.sdf'}"]
    assert main(["sample", *options, f"summary={summary}"]) == 1
    found = json.loads(summary.read_text())
    assert (found["asked"], found["drawn"], found["complete"], found["interrupted"]) == (9, 2, False, False)


def test_another_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "summary=run.txt"]) == 2
    assert "summary: got run.txt, expected a name that ends in .json" in capsys.readouterr().err
