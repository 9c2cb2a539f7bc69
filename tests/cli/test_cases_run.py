"""Situations from public bug reports: folders, tiny sets, one seed in several processes, the package's metadata."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import MODEL_CONFIG, small_model
from test_io import water

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches
from moldiff.data.prepare import prepare
from moldiff.data.sources.files import Files
from moldiff.diffusion.pretrained import save_pretrained


def moldiff(folder: Path, *words: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "moldiff.cli.main", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("more", "made"),
    [([], "prepared/my"), (["hydra.job.chdir=true"], "prepared/my"), (["-m"], "prepared/my/0")],
)
def test_b55_paths_are_those_of_the_folder_the_command_was_started_in(tmp_path, monkeypatch, capfd, more, made):
    other = tmp_path / "another folder"
    other.mkdir()
    monkeypatch.chdir(other)
    for name in ("my.sdf", "another folder/my.sdf"):
        (tmp_path / name).write_text(water * (3 if "/" in name else 1))
    for path, count in (("my.sdf", 3), ("../my.sdf", 1)):
        assert main(["prepare", f"data.path={path}", "num_workers=1", *more]) == 0
        assert [place.parent for place in tmp_path.rglob("meta.json")] == [other / made]
        assert MoleculeDataset.load(other / made).meta["counts"]["kept"] == count
        assert made.removesuffix("/0") in capfd.readouterr().out.splitlines()[-1]
    assert Path.cwd() == other


@pytest.mark.parametrize("more", [[], ["hydra.job.chdir=true"], ["-m"], ["-m", "hydra.job.chdir=true"]])
def test_b55_a_model_and_a_folder_for_the_results(tmp_path, monkeypatch, capfd, more):
    save_pretrained(tmp_path / "tiny", small_model(), MODEL_CONFIG, dtype=torch.float32)
    other = tmp_path / "another folder"
    (other / "results").mkdir(parents=True)
    monkeypatch.chdir(other)
    asked = ["model=../tiny", "n=2", "steps=2", "keep=[]", "out=results/a.sdf"]
    assert main(["sample", *asked, *more]) == 0
    written = [path.relative_to(other).as_posix() for path in tmp_path.rglob("*.sdf")]
    assert written == ["results/a/0.sdf" if "-m" in more else "results/a.sdf"]
    assert "results" in capfd.readouterr().out


def test_b60_the_same_seed_gives_the_same_molecules_in_every_process(tmp_path):
    save_pretrained(tmp_path / "tiny", small_model(), MODEL_CONFIG, dtype=torch.float32)
    asked = ["sample", "model=tiny", "seed=1", "n=8", "steps=2", "keep=[]"]
    for name, threads in (("a.sdf", 1), ("b.sdf", 1), ("c.sdf", 2)):
        done = moldiff(tmp_path, *asked, f"out={name}", threads=threads)
        assert done.returncode == 0, done.stderr
    first, second, third = ((tmp_path / name).read_text() for name in ("a.sdf", "b.sdf", "c.sdf"))
    assert first == second
    # Sums of another number of threads may differ in the last digit that the file shows.
    numbers = re.compile(r"-?\d+\.\d{4}")
    assert numbers.sub("", first) == numbers.sub("", third)
    differences = [
        abs(float(one) - float(other))
        for one, other in zip(numbers.findall(first), numbers.findall(third), strict=True)
    ]
    assert max(differences) < 2e-3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_b63_sets_too_small_to_split_are_trained_on_with_a_warning(tmp_path, capsys, count):
    (tmp_path / "few.sdf").write_text(water * count)
    made = prepare(Files(tmp_path / "few.sdf", num_workers=0), tmp_path / "set", progress=True)
    assert f"only {count} molecules to train on" in " ".join(capsys.readouterr().err.split())
    assert [len(made.split(part)) for part in ("train", "valid", "test")] == [count, 0, 0]
    batches = BucketedBatches(made, made.split("train"), batch_size=64)
    assert len(batches) == 1
    assert batches[0].num_molecules == count


def test_b75_metadata_ask_for_nothing_that_only_one_machine_has():
    needs = importlib.metadata.requires("moldiff")
    assert needs
    pinned = [need for need in needs if re.search(r"[+@]|==", need.partition(";")[0])]
    assert not pinned
    assert any(need.startswith("torch>=") for need in needs)
