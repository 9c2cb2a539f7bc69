"""Reports of metrics: JSON, CSV, tables for people."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

import numpy as np
from by_hand import samples
from rich.console import Console

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.molecule_set import NO_REFERENCE, score
from moldiff.evaluation.report import Report, format_value, markdown, summary_table


def report() -> Report:
    scores = score(samples())
    return Report(scores.results, [asdict(row) for row in scores.rows], {"input": "samples.sdf"}, scores.notes)


def test_json_is_strict_and_complete(tmp_path):
    def refuse(constant):
        raise ValueError(constant)

    paths = report().write(tmp_path / "out")
    document = json.loads(paths[0].read_text(), parse_constant=refuse)
    assert document["options"] == {"input": "samples.sdf"}
    assert set(document["versions"]) == {"moldiff", "rdkit", "numpy", "python"}
    assert len(document["molecules"]) == 6
    novel = next(row for row in document["results"] if row["name"] == "p2_novel")
    assert novel["value"] is None
    assert novel["note"] == NO_REFERENCE
    assert all(row["definition"] for row in document["results"])


def test_numbers_that_are_not_finite_become_null():
    document = Report([MetricResult("p9_sum", float("nan"), 2, "A sum.")], [{"x": np.float32("inf")}]).to_dict()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["results"][0]["value"] is None
    assert json.loads(text)["molecules"] == [{"x": None}]


def test_csv_has_one_line_per_record(tmp_path):
    path = report().write(tmp_path)[2]
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "valence", "ok", "unreadable"]
    assert rows[5]["smiles"] == ""


def test_protocols_never_share_a_table():
    one = report()
    tables = one.tables()
    assert [table.title.split(":")[0] for table in tables] == ["P1", "P2"]
    text = one.markdown()
    first, second = text.split("### P2")
    assert "valid trimmed" in first
    assert "valid trimmed" not in second
    assert "rejected: valence" in second
    assert "rejected: radical" not in second  # nothing was


def test_markdown_columns_of_a_model_card():
    raw, decoded = [MetricResult("p2_valid", 3, 4, "d")], [MetricResult("p2_valid", 4, 4, "d")]
    text = markdown({"model, raw": raw, "model, decoded": decoded, "real test molecules": []})
    assert "| metric | model, raw | model, decoded | real test molecules |" in text
    assert "| valid | 75.00 % (3/4) | 100.00 % (4/4) | – |" in text


def test_values_for_people():
    assert format_value(MetricResult("p2_valid", 1, 3, "d")) == "33.33 %"
    assert format_value(MetricResult("energy_mean", 12.5, 2, "d")) == "6.25"
    assert format_value(MetricResult("p2_novel", 0, 0, "d")) == "–"


def test_sampling_summary_accounts_for_every_molecule():
    console = Console(width=100, file=io.StringIO())
    console.print(summary_table(score(samples()).results, asked=6, drawn=8, path="out.sdf"))
    text = console.file.getvalue()
    for expected in ("asked", "drawn", "4/6", "2/4", "rejected: valence", "rejected: unreadable", "out.sdf"):
        assert expected in text
