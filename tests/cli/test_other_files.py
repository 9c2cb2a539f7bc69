"""Files of others through the commands: folders, patterns, tables, standard input and output, logs and quiet runs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from test_io import water

from moldiff.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
FAST = ("n=2", "size=4", "steps=3", "keep=[valid]", "workers=0", "device=cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def standard_input(content: bytes) -> Iterator[None]:
    """Let a command read this."""
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(content))
    try:
        yield
    finally:
        sys.stdin = before


def sdf_mols(text: str) -> list[Chem.Mol]:
    supplier = Chem.SDMolSupplier()
    supplier.SetData(text, removeHs=False)
    return list(supplier)


@needs_weights
def test_all_types_hold_the_same_molecules(folder: Path) -> None:
    """What was drawn for a seed, as SDF, Parquet, XLSX, CSV and extended XYZ, with the version in every record."""
    pq, openpyxl = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("openpyxl")
    for suffix in ("sdf", "parquet", "xlsx", "csv", "extxyz"):
        assert main(["sample", *FAST, f"out=a.{suffix}", "quiet=true"]) == 0
    mols = list(Chem.SDMolSupplier("a.sdf", removeHs=False))
    smiles = [mol.GetProp("SMILES") for mol in mols]
    rows = pq.read_table("a.parquet").to_pylist()
    assert [row["smiles"] for row in rows] == smiles
    for row, mol in zip(rows, mols, strict=True):
        assert row["atomic_numbers"] == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        flat = mol.GetConformer().GetPositions().ravel().tolist()
        assert np.ravel(row["coordinates"]).tolist() == pytest.approx(flat, abs=1e-4)
        assert (row["version"], row["seed"], row["index"]) == (mol.GetProp("version"), 0, int(mol.GetProp("index")))
    head, *sheet = openpyxl.load_workbook("a.xlsx").active.iter_rows(values_only=True)
    assert [row[0] for row in sheet] == smiles
    with open("a.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["smiles"] for row in table] == smiles
    assert list(table[0]) == list(head)
    assert [name.lower() for name in head].count("smiles") == 1
    assert Path("a.extxyz").read_text().count(f"version={rows[0]['version']}") == 2


@needs_weights
def test_a_parquet_file_is_evaluated_and_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert main(["sample", *FAST, "out=a.parquet", "quiet=true"]) == 0
    assert main(["verify", "input=a.parquet", "quiet=true", "out=v.json"]) == 0
    assert json.loads(Path("v.json").read_text())["counts"]["reproduced"] == 2
    assert main(["evaluate", "input=a.parquet", "metrics=[]", "out=r.json"]) == 0
    found = json.loads(Path("r.json").read_text())
    assert [row["num_heavy_atoms"] for row in found["molecules"]] == [4, 4]
    assert "2/2" in capsys.readouterr().out


def test_several_files_make_a_table_with_a_column_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    Path("runs/one.sdf").write_text(2 * water)
    Path("runs/two.smi").write_text("CCO\nCCO\nC(C)(C)(C)(C)C\n")
    for given in ("input=runs", "input=runs/*", "input=[runs/one.sdf,runs/two.smi]"):
        assert main(["evaluate", given, "metrics=[]", "out=report"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "┃ metric ┃ one.sdf ┃ two.smi ┃" in said
        assert "│ valid │ 100.00 % (2/2) │ 66.67 % (2/3) │" in said
        found = json.loads(Path("report/report.json").read_text())["reports"]
        for name, one in found.items():
            assert main(["evaluate", f"input=runs/{name}", "metrics=[]", "out=alone.json"]) == 0
            alone = json.loads(Path("alone.json").read_text())
            assert {key: one[key] for key in ("results", "molecules")} == {
                key: alone[key] for key in ("results", "molecules")
            }
        capsys.readouterr()
        text = Path("report/report.md").read_text()
        assert "| metric | one.sdf | two.smi |" in text
        assert "| valid | 100.00 % (2/2) | 66.67 % (2/3) |" in text
        assert "## two.smi" in text
        with open("report/molecules.csv", newline="") as file:
            assert [row["set"] for row in csv.DictReader(file)] == 2 * ["one.sdf"] + 3 * ["two.smi"]


def test_the_reference_stands_beside_several_files_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.smi").write_text("CCO\n")
    Path("b.smi").write_text("CCO\nCCN\n")
    assert main(["evaluate", "input=[a.smi,b.smi]", "reference=b.smi", "out=r.json", "metrics=[diversity]"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "┃ metric ┃ a.smi ┃ b.smi ┃ reference ┃" in said
    assert said.count("Diversity") == 1
    found = json.loads(Path("r.json").read_text())["reports"]
    assert [len(one["reference_results"]) > 0 for one in found.values()] == [False, True]


def test_a_folder_that_edm_wrote_is_one_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("edm").mkdir()
    for k in range(3):
        Path(f"edm/molecule_{k:03}.txt").write_text("2\n\nO 0.0 0.0 0.0\nH 0.0 0.0 0.96\n"[: 20 if k == 2 else 99])
    assert main(["evaluate", "input=edm", "metrics=[]", "out=r.json"]) == 0
    found = json.loads(Path("r.json").read_text())
    assert [row["name"] for row in found["molecules"]] == [f"molecule_{k:03}.txt" for k in range(3)]
    assert [row["p1_fragments"] for row in found["molecules"]] == [1, 1, None]
    assert "got 'H 0', expected an element and three coordinates" in found["molecules"][2]["reason"]
    assert main(["view", "input=edm"]) == 0
    assert Path("edm.html").read_text().count("molecule_001.txt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("evaluate input=nothing/*.sdf", "nothing/*.sdf: no file matches this pattern"),
        ("evaluate input=empty", "empty: no file of molecules in this folder, expected any of .sdf"),
        ("evaluate input=[a.smi,b.smi]", "b.smi: no such file or folder"),
        ("verify input=mixed", "mixed: is a folder, expected a file"),
        ("evaluate input=cut.parquet", "cut.parquet: cannot be read as Parquet"),
        ("evaluate input=-.foo", "-.foo: unknown type of file"),
        ("evaluate input=a.smi log=nowhere/a.log", "log: nowhere/a.log: No such file or directory"),
        ("sample out=-.foo", "-.foo: unknown type of file"),
        ("sample out=a.xlsx.gz", "a.xlsx.gz: unknown type of file"),
        ("sample out=- resume=true", "resume: got true with standard output, expected out=NAME.sdf"),
        ("sample -m seed=1,2 out=-", "out: got - with -m, expected the name of a file, which gets a number"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    Path("a.smi").write_text("CCO\n")
    Path("empty").mkdir()
    Path("mixed").mkdir()
    for name in "ab":
        Path(f"mixed/{name}.smi").write_text("CCO\nCCN\n")
    Path("cut.parquet").write_bytes(b"PAR1" + 100 * b"x")
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("-", 2 * water, 2),
        ("-", "CCO ethanol\nCCN\n", 2),
        ("-", "smiles,gap\nCCO,1\n", 1),
        ("-", "2\n\nO 0 0 0\nH 0 0 0.96\n", 1),
        ("-.csv", "CCO,1\nCCN,2\n", 2),
    ],
)
def test_standard_input_is_evaluated(name: str, text: str, count: int, folder: Path) -> None:
    with standard_input(text.encode()):
        assert main(["evaluate", f"input={name}", "metrics=[]", "out=r.json", "quiet=true"]) == 0
    found = json.loads(Path("r.json").read_text())
    assert (found["options"]["input"], len(found["molecules"])) == (name, count)


def test_empty_and_closed_standard_input_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with standard_input(b""):
        assert main(["evaluate", "input=-"]) == 2
    assert capsys.readouterr().err == "moldiff: error: -: the file is empty\n"
    with standard_input(b""):
        sys.stdin.close()
        assert main(["evaluate", "input=-"]) == 2
    assert capsys.readouterr().err == "moldiff: error: -: standard input is closed, expected molecules\n"


@needs_weights
def test_standard_output_gets_molecules_and_nothing_else(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["sample", *FAST, "out=a.sdf", "summary=a.json"]) == 0
    capfdbinary.readouterr()
    assert main(["sample", *FAST, "out=-", "summary=b.json"]) == 0
    written, said = capfdbinary.readouterr()
    assert written == Path("a.sdf").read_bytes()
    assert b"standard output" in said
    assert b"asked" in said
    assert os.listdir() == ["a.sdf", "a.json", "b.json"] or len(os.listdir()) == 3
    assert json.loads(Path("b.json").read_text()) == json.loads(Path("a.json").read_text()) | {"file": "-"}
    pq = pytest.importorskip("pyarrow.parquet")
    assert main(["sample", *FAST, "out=-.parquet", "quiet=true"]) == 0
    written, said = capfdbinary.readouterr()
    assert said == b""
    smiles = [mol.GetProp("SMILES") for mol in Chem.SDMolSupplier("a.sdf")]
    assert [row["smiles"] for row in pq.read_table(io.BytesIO(written)).to_pylist()] == smiles
    with standard_input(written):
        assert main(["verify", "input=-", "quiet=true"]) == 0


@needs_weights
def test_a_reader_that_has_seen_enough_is_one_line(folder: Path) -> None:
    words = ["sample", *FAST, "n=500", "out=-", "quiet=true"]
    with subprocess.Popen(
        [sys.executable, "-m", "moldiff.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert first == b"qm9-0-0\n"
    assert process.returncode == 1
    assert said == "moldiff: interrupted: standard output was closed by its reader\n"
    assert os.listdir() == []


@needs_weights
def test_a_log_has_what_the_terminal_has_and_a_quiet_run_says_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *FAST, "out=a.sdf", "log=my.log"]) == 0
    out = capsys.readouterr().out
    log = Path("my.log").read_text()
    assert (
        log
        == f"$ moldiff sample {' '.join(FAST)} out=a.sdf log=my.log\n".replace("keep=[valid]", "'keep=[valid]'") + out
    )
    assert main(["sample", *FAST, "out=b.sdf", "log=my.log", "quiet=true"]) == 0
    assert capsys.readouterr() == ("", "")
    more = Path("my.log").read_text().removeprefix(log)
    assert more.splitlines()[1:] == [line.replace("a.sdf", "b.sdf") for line in out.splitlines()]
    assert main(["sample", *FAST, "n=9", "max_draws=2", "out=c.sdf", "log=my.log", "quiet=true"]) == 1
    warned = capsys.readouterr().err
    assert warned.startswith("moldiff: warning: 2 of 9 molecules kept; max_draws=2 reached")
    assert Path("my.log").read_text().endswith(warned)
    assert main(["sample", "n=0", "log=my.log", "quiet=true"]) == 2
    assert capsys.readouterr().err == "moldiff: error: n: got 0, expected a whole number of at least 1\n"
    assert Path("my.log").read_text().endswith("moldiff: error: n: got 0, expected a whole number of at least 1\n")


@needs_weights
def test_a_run_without_molecules_has_a_summary_too(folder: Path) -> None:
    options = ["max_draws=2", "has=['[Si]']", "out=a.sdf", "summary=a.json", "quiet=true"]
    assert main(["sample", *FAST, *options]) == 2
    found = json.loads(Path("a.json").read_text())
    assert (found["file"], found["kept"], found["drawn"], found["max_draws"]) == (None, 0, 2, 2)
    assert os.listdir() == ["a.json"]


def test_a_reference_is_a_folder_or_a_pattern_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is known is in two of three files, one of which cannot be read; names of models' files mean nothing here."""
    Path("a.smi").write_text("CCO\nCCC\nCCN\nCCF\n")
    Path("known/deep").mkdir(parents=True)
    Path("known/one.smi").write_text("OCC\n")
    Path("known/deep/two.sdf").write_text(water)
    Path("known/cut.sdf.gz").write_bytes(b"no gzip")
    Path("known/deep/three.smi").write_text("NCC\nC(\n")
    for reference, novel in (("known", 2), ("known/*.smi", 3), ("known/deep/*", 3), ("known/one.smi", 3)):
        assert main(["evaluate", "input=a.smi", f"reference={reference}", "metrics=[]", "out=r.json"]) == 0
        report = json.loads(Path("r.json").read_text())
        found = {one["name"]: one for one in report["results"]}
        assert (found["p2_novel"]["numerator"], found["p2_novel"]["denominator"]) == (novel, 4)
        assert report["options"]["reference_skipped"] == {"known": 2, "known/deep/*": 1}.get(reference, 0)
        assert main(["view", "input=a.smi", f"reference={reference}"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "input=a.smi", "reference=known/*.csv", "metrics=[]"]) == 2
    assert capsys.readouterr().err == "moldiff: error: known/*.csv: no file matches this pattern\n"
