"""`moldiff train` on files of a user's own: any number of molecules, from any folder, prepared only once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moldiff.cli.main import main
from moldiff.diffusion.pretrained import load_pretrained

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
]

TINY = [
    "denoiser=small",
    "denoiser.num_layers=1",
    "denoiser.hidden_dim=16",
    "denoiser.pair_dim=8",
    "denoiser.steerable_dim=8",
    "compile=false",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.validate_every=1",
    "trainer.num_quality_samples=0",
    "data.source.num_workers=0",
]


@pytest.mark.parametrize(
    ("smiles", "train", "valid"),
    [
        (["CCO"], 1, 0),
        (["C"], 1, 0),  # a single heavy atom has no bond
        (["CCO", "O"], 2, 0),
        (["CCO", "CCN", "CCC", "CC=O", "CSC"], 5, 0),  # one size only
        (["CO", "CN", "CC", "C=O", "C#N", "CF", "CCl", "CS", "CBr", "OO"], 8, 1),
    ],
)
def test_b63_few_molecules_train_with_a_warning(
    smiles: list[str], train: int, valid: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.smi").write_text("".join(f"{text}\n" for text in smiles))
    assert main(["train", "data.path=mine.smi", *TINY]) == 0
    out, err = capsys.readouterr()
    assert "model in runs/mine; to use it: moldiff sample model=runs/mine" in out
    plural = "s" if train > 1 else ""
    warning = f"warning: only {train} molecule{plural} to train on: the model may learn them by heart"
    assert warning in " ".join(err.split())
    counts = json.loads(Path("prepared/mine/meta.json").read_text())["counts"]
    assert (counts["train"], counts["valid"]) == (train, valid)
    history = load_pretrained("runs/mine").config["history"]
    assert [part["steps"] for part in history] == [2]


def test_own_molecules_are_prepared_once_and_fine_tune(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.smi").write_text("CCO\nCCN\nCCC\n")
    assert main(["train", "data.path=mine.smi", *TINY]) == 0
    Path("more.smi").write_text("CCO\nCCN\nCCC\nCSC\n")
    capsys.readouterr()
    assert main(["train", "data.path=mine.smi", "out=again", *TINY]) == 0
    assert "prepared/mine: up to date" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "data.path=more.smi", "init=runs/mine", *TINY]) == 0
    assert "init: mine knows 4 of the 5 atom classes of the data; new, with fresh weights: S" in capsys.readouterr().out
    assert [part["steps"] for part in load_pretrained("runs/more").config["history"]] == [2, 2]


def test_b55_relative_paths_are_those_of_the_folder_it_is_started_in(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "mine.smi").write_text("CCO\nCCN\n")
    assert main(["train", "data.path=data/*.smi", "out=here", *TINY]) == 0
    assert (folder / "prepared" / "data" / "meta.json").is_file()
    assert (folder / "here" / "model.safetensors").is_file()


@pytest.mark.parametrize("more", [["hydra.job.chdir=true"], pytest.param(["-m", "seed=1,2"], marks=pytest.mark.slow)])
def test_b55_training_in_its_run_folder_and_in_several_jobs(
    more: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "another folder").mkdir()
    monkeypatch.chdir(folder / "another folder")
    Path("../mine.smi").write_text("CCO\nCCN\n")
    assert main(["train", "data.path=../mine.smi", *TINY, *more]) == 0
    runs = ["runs/mine/0", "runs/mine/1"] if "-m" in more else ["runs/mine"]
    assert Path.cwd() == folder / "another folder"
    assert sorted(path.parent.as_posix() for path in Path().rglob("model.safetensors")) == runs
    assert [path.parent.as_posix() for path in Path().rglob("meta.json")] == ["prepared/mine"]
    assert "runs/mine" in capfd.readouterr().out.splitlines()[-1]
    assert {path.name for path in folder.iterdir()} == {"another folder", "mine.smi"}
    if "-m" in more:
        weights = [Path(run, "model.safetensors").read_bytes() for run in runs]
        assert main(["train", "data.path=../mine.smi", "seed=2", "out=alone", *TINY]) == 0
        assert weights[0] != weights[1] == Path("alone/model.safetensors").read_bytes()


def test_without_a_file_it_says_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data=files"]) == 2
    assert "data.path: nothing given, expected a file, folder or pattern" in capsys.readouterr().err
    assert main(["train", "data.path=nope.sdf"]) == 2
    assert "nope.sdf: no such file or folder" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_processes_started_together_do_not_prepare(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.smi").write_text("CCO\n")
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "data.path=mine.smi", *TINY]) == 2
    said = "several processes were started together; run first: moldiff prepare data.path=mine.smi out=prepared/mine"
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
