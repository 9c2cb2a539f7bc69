"""`hydra.job.chdir=true`: work in the folder of the output, with the paths of the folder a command is started in."""

import os
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from models import needs_weights
from rdkit import Chem
from test_train_command import TINY

from moldiff.cli.compose import compose_options
from moldiff.cli.jobs import return_to_start, with_outputs, work_in_run_folder
from moldiff.cli.main import main
from moldiff.data.sources.files import find_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command is started in, with characters that mean something in a pattern."""
    started_in = tmp_path / "a [b]*"
    started_in.mkdir()
    (started_in / "mine.smi").write_text("CCO\nCCN\n")
    monkeypatch.chdir(started_in)
    return started_in


def options(command: str, *typed: str) -> dict[str, Any]:
    return with_outputs(command, compose_options(command, typed))


@pytest.mark.parametrize(
    ("command", "typed", "key", "expected"),
    [
        ("sample", "model=qm9", "model", "qm9"),
        ("sample", "model=tiny", "model", "{}/tiny"),
        ("sample", "task=grow core=mine.smi", "task.core", "{}/mine.smi"),
        ("sample", "task=grow core=gone.sdf", "task.core", "{}/gone.sdf"),
        ("sample", "task=grow core=CCO", "task.core", "CCO"),
        ("sample", "like=mine.smi", "like.reference", "{}/mine.smi"),
        ("sample", "like=CCO", "like.reference", "CCO"),
        ("evaluate", "input=a.sdf reference=qm9", "reference", "qm9"),
        ("evaluate", "input=a.sdf reference=b.sdf", "reference", "{}/b.sdf"),
        ("evaluate", "input=a.sdf", "out", None),
        ("view", "input=a.sdf", "out", "{}/a.html"),
        ("prepare", "data.path=mine.smi", "data.source.path", "{}/mine.smi"),
        ("prepare", "data.path=mine.smi", "out", "{}/prepared/mine"),
        ("prepare", "data=drugs", "data.source.parts", ""),
        ("train", "data.path=mine.smi", "data.folder", "{}/prepared/mine"),
        ("train", "init=qm9", "init", "qm9"),
        ("train", "data=sample init=runs/a", "init", "{}/runs/a"),
    ],
)
def test_paths_in_the_run_folder(command: str, typed: str, key: str, expected: str | None, folder: Path) -> None:
    with work_in_run_folder(command, options(command, *typed.split())) as found:
        value = reduce(lambda place, name: place[name], key.split("."), found)
    assert value == (expected and expected.format(folder))


def test_a_pattern_finds_the_same_files(folder: Path) -> None:
    with work_in_run_folder("prepare", options("prepare", "data.path=*.smi", "out=set")) as found:
        assert find_files(found["data"]["source"]["path"]) == [folder / "mine.smi"]


def test_files_of_the_package_are_found_by_their_path() -> None:
    named = options("prepare", "data.path=pkg://moldiff.example_data/ligands/histamine.sdf")
    assert Path(named["data"]["source"]["path"]).is_file()
    assert named["out"] == "prepared/histamine"


@pytest.mark.parametrize(
    ("command", "typed", "run_folder"),
    [
        ("sample", "out=new/a.sdf", "new"),
        ("train", "data=sample out=new/run", "new/run"),
        ("prepare", "data.path=mine.smi out=new/set", "new"),
        ("evaluate", "input=a.sdf out=new/report", "new"),
        ("evaluate", "input=a.sdf", ""),
    ],
)
def test_the_run_folder_goes_when_nothing_was_written(command: str, typed: str, run_folder: str, folder: Path) -> None:
    if command == "sample":
        (folder / "new").mkdir()
    before = sorted(folder.rglob("*"))
    asked = options(command, *typed.split())
    with work_in_run_folder(command, asked):
        assert Path.cwd() == folder / run_folder
    assert Path.cwd() == folder
    assert sorted(folder.rglob("*")) == before


def test_wrong_input_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data.path=gone.sdf", "out=new/run", "hydra.job.chdir=true"]) == 2
    assert "gone.sdf: no file" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.smi"]


def test_only_further_processes_of_a_training_go_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLDIFF_STARTED_IN", str(folder.parent))
    return_to_start()
    assert Path.cwd() == folder
    monkeypatch.setenv("LOCAL_RANK", "1")
    return_to_start()
    assert Path.cwd() == folder.parent


@pytest.mark.slow
def test_two_processes_of_a_training_find_the_same_files(folder: Path) -> None:
    two = ["trainer.devices=2", "trainer.strategy=ddp", "hydra.job.chdir=true", "out=run"]
    command = [sys.executable, "-m", "moldiff.cli.main", "train", "data.path=mine.smi", *TINY, *two]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"model in {folder / 'run'};")
    assert {path.name for path in folder.iterdir()} == {"mine.smi", "prepared", "run"}


@needs_weights
def test_files_in_a_list_are_those_of_the_folder_where_the_command_is_started(
    folder: Path,
) -> None:
    Path("sub").mkdir()
    options = ["n=3", "size=3", "steps=8", "workers=0", "hydra.job.chdir=true", "out=sub/a.sdf", "overwrite=true"]
    assert main(["sample", *options, "summary=run.json"]) == 0
    first = [Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier("sub/a.sdf")]
    Path("known.smi").write_text(f"{first[0]}\n")
    assert main(["sample", *options, "exclude=[known.smi,lead]"]) == 0
    assert first[0] not in [Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier("sub/a.sdf")]
    assert (folder / "run.json").is_file()
