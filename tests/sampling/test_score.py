"""Scores of the user's own and what they decide, from the command line and from Python, as RDKit alone reads files."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import QED

from moldiff.cli.main import main
from moldiff.diffusion.shipped import available_models
from moldiff.sampling.config import Likeness
from moldiff.sampling.generator import load

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif("qm9" not in available_models(), reason="the weights qm9 are not here"),
]
FAST = "steps=8 size=5..7 workers=0 keep=[valid] seed=3"
MODULE = """
import os, time
from rdkit.Chem import QED

def qed(mols):
    assert all(mol.GetNumConformers() == 1 for mol in mols)
    return [-QED.qed(mol) for mol in mols]

def odd(mols):
    found = []
    for mol in mols:
        kind = (mol.GetNumAtoms() - 1) % 4
        if kind == 1: time.sleep(60)
        if kind == 2: os._exit(7)
        found.append(None if kind == 3 else mol.GetNumAtoms())
    return found

def words(mols): return ["high" for _ in mols]
def few(mols): return [1.0, 2.0]
def fails(mols): raise KeyError("weights")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of the user's own."""
    (tmp_path / "own_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(name: str = "out.sdf") -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(name, removeHs=False))


def test_the_command_ranks_by_a_function_of_the_working_folder(folder: Path) -> None:
    options = f"n=6 {FAST} score=own_scores:qed sort=score out=out.sdf"
    call = [sys.executable, "-P", "-m", "moldiff.cli.main", "sample", *shlex.split(options)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    mols = read()
    scores = [float(mol.GetProp("score")) for mol in mols]
    assert len(scores) == 6
    assert scores == sorted(scores)
    assert scores == pytest.approx([-QED.qed(mol) for mol in mols], abs=1e-4)
    one = {mol.GetProp("index"): float(mol.GetProp("score")) for mol in mols}
    assert main(["sample", *shlex.split(f"{options} candidates=3 overwrite=true")]) == 0
    best = {mol.GetProp("index"): float(mol.GetProp("score")) for mol in read()}
    assert all(best[index] <= one[index] for index in one.keys() & best.keys())
    assert sum(best.values()) < sum(one.values())


def test_rounds_come_to_lower_scores_of_a_function_from_python() -> None:
    def score(mols: list[Chem.Mol]) -> list[float]:
        return [-float(QED.qed(mol)) for mol in mols]

    options = {"seed": 3, "size": (5, 7), "steps": 8, "workers": 0, "keep": ("valid",), "score": score}
    plain = load("qm9").sample(5, **options)
    found = load("qm9").sample(5, like=Likeness(rounds=2, parents=2), **options)
    scores = [float(one.task["score"]) for one in found]
    assert scores == sorted(scores)
    assert {one.task["like_round"] for one in found} - {0}  # some of a later round are among the best
    assert sum(scores) < sum(float(one.task["score"]) for one in plain)
    assert scores == pytest.approx([-QED.qed(one.mol) for one in found])


def test_what_hangs_or_crashes_has_no_score_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    limits = "score=own_scores:odd score_limit=0.5 sort=score out=out.sdf"
    assert main(["sample", *shlex.split(f"n=20 {FAST} {limits}")]) == 0
    reasons = (None, "not finished within 0.5 s", "ended with code 7", "it returned no number")
    kinds = [(mol.GetNumAtoms() - 1) % 4 for mol in read()]
    assert len(kinds) == 20
    assert {*kinds} == {0, 1, 2, 3}
    for mol, kind in zip(read(), kinds, strict=True):
        reason = reasons[kind]
        assert mol.HasProp("score") == (reason is None)
        assert reason is None or reason in mol.GetProp("score_problem")
    assert "molecules have no score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("score=vina", "score: got vina without a pocket, expected task=pocket, or module:function"),
        ("score=qed", "score: got 'qed', expected vina, vinardo or module:function, such as"),
        ("score=own_scores:none", "score: own_scores:none cannot score ethanol: AttributeError"),
        ("score=no_such_module:f", "ethanol: ModuleNotFoundError: No module named 'no_such_module'"),
        ("score=own_scores:words", "ethanol: it returned 'high', expected a number"),
        ("score=own_scores:few", "ethanol: it returned 2 values for 1 molecules"),
        ("score=own_scores:fails", "ethanol: KeyError: 'weights'"),
        ("score=own_scores:qed score_limit=0", "score_limit: got 0, expected a number above 0 (s)"),
        ("sort=score", "sort: got score without one, expected score="),
        ("like.rounds=1", "like: nothing given, expected a molecule in 3D to come near, such as like=ligand.sdf, or a"),
        ("score=own_scores:qed like.rounds=1 sort=score", "sort: got score together with like"),
    ],
)
def test_a_wrong_score_gives_one_line_before_drawing(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "n=2", "out=out.sdf", *shlex.split(options)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out.sdf").exists()
