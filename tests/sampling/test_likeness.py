"""Likeness to a reference: overlays, ranking, and steering that leaves alone what a task keeps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.diversity import ShapeReference
from moldiff.molecules import convert
from moldiff.molecules.formats.reader import read
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.config import Likeness
from moldiff.sampling.generator import Generator, load
from moldiff.sampling.sample import Sample
from moldiff.tasks import Conformers, Formula, Grow

HISTAMINE = "NCCc1c[nH]cn1"
FAST = PowerSampler(num_steps=6)
LIGAND = "pkg://moldiff.example_data/ligands/histamine.sdf"
pytestmark = [needs_weights, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load("qm9", device="cpu")


@pytest.fixture(scope="module")
def ligand() -> Path:
    return Path(compose_options("sample", [f"like={LIGAND}"])["like"]["reference"])


def embedded(smiles: str, seed: int = 1) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=seed)
    return mol


def molecule(mol: Chem.Mol) -> Molecule:
    found = convert.from_rdkit(mol)
    assert isinstance(found, Molecule)
    return found


def turned(one: Molecule) -> Molecule:
    """The molecule rotated and far away."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    return Molecule(
        one.pos @ rotation + 30,
        one.atomic_number,
        one.formal_charge,
        one.num_hydrogens,
        one.hydrogen_offset @ rotation,
        one.bonds,
    )


def scores(samples: Sequence[Sample]) -> list[float]:
    return [float(one.record()["like_score"]) for one in samples]  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_molecule_is_laid_over_itself(weight: float) -> None:
    mol = embedded(HISTAMINE)
    overlay = ShapeReference(mol, pharmacophore=weight).overlay(turned(molecule(mol)))
    assert (overlay.shape, overlay.pharmacophore, overlay.score) == pytest.approx((1, 1, 1), abs=1e-3)
    np.testing.assert_allclose(overlay.molecule.pos, molecule(mol).pos, atol=0.02)
    np.testing.assert_allclose(overlay.molecule.hydrogen_offset, molecule(mol).hydrogen_offset, atol=0.02)


def test_the_score_weighs_its_parts() -> None:
    reference, other = embedded(HISTAMINE), molecule(embedded("OCCc1ccccc1"))
    for weight in (0.25, 0.5):
        overlay = ShapeReference(reference, pharmacophore=weight).overlay(other)
        assert 0 < overlay.pharmacophore < overlay.shape < 1
        assert overlay.score == pytest.approx((1 - weight) * overlay.shape + weight * overlay.pharmacophore)
    alike = ShapeReference(reference).overlay(molecule(embedded("NCCc1cccnc1"))).score
    assert alike > ShapeReference(reference).overlay(molecule(embedded("FC(F)(F)F"))).score


def test_compared_as_it_lies_a_molecule_stays() -> None:
    mol = embedded(HISTAMINE)
    lying = ShapeReference(mol, align=False)
    assert lying.overlay(molecule(mol)).score == pytest.approx(1, abs=1e-6)
    away = turned(molecule(mol))
    overlay = lying.overlay(away)
    assert overlay.score == pytest.approx(0, abs=1e-6)
    assert overlay.molecule is away


def test_the_best_come_first_laid_over_the_reference(generator: Generator) -> None:
    plain = generator.sample(8, sampler=FAST, workers=0, keep=("valid",))
    samples = generator.sample(8, sampler=FAST, workers=0, keep=("valid",), like=Likeness(reference=HISTAMINE))
    assert sorted(one.index for one in samples) == [one.index for one in plain]
    assert scores(samples) == sorted(scores(samples), reverse=True)
    assert samples.complete
    assert samples.drawn == 8
    by_index = {one.index: one for one in plain}
    for one in samples:
        before = by_index[one.index].molecule
        np.testing.assert_allclose(distances(one.molecule), distances(before), atol=1e-3)
        assert one.record()["like_round"] == 0
        assert json.loads(str(one.record()["task"]))["like"]["reference"] == HISTAMINE
    results = {result.name: result.value for result in samples.results}
    assert results["task_like_round_0_best"] == scores(samples)[0]
    assert results["task_like_round_0_drawn"] == pytest.approx(np.mean(scores(samples)))


def distances(one: Molecule) -> np.ndarray:
    return np.linalg.norm(one.pos[:, None] - one.pos, axis=-1)


def test_steering_keeps_the_best_of_all_rounds(generator: Generator) -> None:
    like = Likeness(reference=HISTAMINE, rounds=2, parents=2)
    options = {"sampler": FAST, "workers": 0, "keep": ("valid", "unique"), "filters": ["mw<200"], "like": like}
    heard: list[float] = []
    samples = generator.sample(6, on_progress=heard.append, **options)  # type: ignore[arg-type]
    assert len(samples) == 6
    assert len({one.smiles for one in samples}) == 6
    assert scores(samples) == sorted(scores(samples), reverse=True)
    results = {result.name: result for result in samples.results}
    kept = [results[f"task_like_round_{k}_kept"].value for k in range(3)]
    best = [results[f"task_like_round_{k}_best"].value for k in range(3)]
    assert kept == sorted(kept)  # type: ignore[type-var]
    assert best == sorted(best)  # type: ignore[type-var]
    assert best[-1] == scores(samples)[0]
    assert results["task_passes_mw<200"].denominator == 18 == results["task_like_round_2_drawn"].counted * 3  # type: ignore[operator]
    names = {one.molecule.name for one in samples}
    assert len(names) == 6, "every molecule has a name of its own"
    later = [one for one in samples if one.task["like_round"]]
    assert all(str(one.task["like_parent"]).startswith("qm9-0-") for one in later)
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(18, abs=0.5)
    again = generator.sample(6, **options)  # type: ignore[arg-type]
    assert [one.molecule.pos.tobytes() for one in again] == [one.molecule.pos.tobytes() for one in samples]


def test_steering_leaves_alone_what_a_task_keeps(generator: Generator, ligand: Path) -> None:
    task = Grow(core=str(ligand), keep=[3, 4, 5, 6, 7], new_atoms=(2, 3))
    like = Likeness(reference=str(ligand), rounds=1, parents=2)
    samples = generator.sample(5, task=task, sampler=PowerSampler(num_steps=12), workers=0, keep=("valid",), like=like)
    assert {one.task["like_round"] for one in samples} <= {0, 1}
    whole = molecule(next(iter(read(ligand).records)).mol)
    for one in samples:
        np.testing.assert_array_equal(one.molecule.pos[:5], whole.pos[3:8])
        assert one.molecule.atomic_number[:5].tolist() == [6, 7, 6, 6, 7]
        assert one.task["attach"] == "0"
    assert "like: molecules are compared as they lie" in samples.notes


def test_steering_keeps_a_formula(generator: Generator) -> None:
    like = Likeness(reference=HISTAMINE, rounds=1, parents=1, align=True)
    samples = generator.sample(3, task=Formula(formula="C5H9N3"), sampler=FAST, workers=0, keep=("valid",), like=like)
    for one in samples:
        mol = Chem.AddHs(Chem.MolFromSmiles(str(one.smiles)))
        assert Chem.rdMolDescriptors.CalcMolFormula(mol) == "C5H9N3"


def test_ctrl_c_ranks_what_is_finished(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldiff.sampling.molecule_sampler._MAX_BLOCK", 3)

    def interrupt(done: float) -> None:
        if done > 8:
            raise KeyboardInterrupt

    like = Likeness(reference=HISTAMINE, rounds=3, parents=1)
    run = generator.stream(6, sampler=FAST, workers=0, on_progress=interrupt, like=like)
    samples = list(run)
    assert len(samples) == 6
    assert run.interrupted
    assert not run.complete
    assert scores(samples) == sorted(scores(samples), reverse=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": -1}, "like.rounds: got -1, expected a whole number of at least 0"),
        ({"parents": 0}, "like.parents: got 0, expected a whole number of at least 1"),
        ({"noise": 0.0}, "like.noise: got 0.0, expected a number above 0, up to 1"),
        ({"pharmacophore": 2.0}, "like.pharmacophore: got 2.0, expected a number from 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(MoldiffError, match=said):
        Likeness(reference=HISTAMINE, **options)  # type: ignore[arg-type]


def test_runs_that_cannot_be_ranked_are_refused(generator: Generator) -> None:
    like = Likeness(reference=HISTAMINE, rounds=1)
    with pytest.raises(MoldiffError, match=r"expected keep=\[valid\] and more"):
        generator.stream(2, keep=(), like=like)
    with pytest.raises(MoldiffError, match="trajectories are not moved"):
        generator.stream(2, trajectory=True, like=like)
    with pytest.raises(MoldiffError, match="can only be ranked"):
        generator.stream(2, task=Conformers(smiles="CCCO", rmsd=0.5), like=like)
    with pytest.raises(MoldiffError, match="like: got 'nope', which is neither a file"):
        generator.stream(2, like=Likeness(reference="nope"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("like=nope.sdf", "nope.sdf"),
        ("like.rounds=2", "like: nothing given, expected a molecule in 3D to come near, such as like=ligand.sdf"),
        ("like=CCO like.round=2", "did you mean like.rounds?"),
        ("like=CCO trajectory=true", "trajectory: got true together with like"),
        ("like=CCO like.noise=2", "like.noise: got 2"),
        ("like=CCO keep=[]", "expected keep=[valid] and more"),
    ],
)
def test_wrong_input_is_one_clear_line(
    typed: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "n=1", "steps=1", *typed.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_best_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"sample n=4 steps=6 workers=0 seed=3 like={LIGAND} like.rounds=1 filters=[mw<300] out=a.sdf"
    assert main(shlex.split(command.replace("[mw<300]", "'[mw<300]'"))) == 0
    out, err = capsys.readouterr()
    assert "like: molecules are moved onto the reference" in err
    assert "like round 1 best" in out
    assert "passes mw<300" in out
    mols = [record.mol for record in read("a.sdf").records if record.mol is not None]
    values = [float(mol.GetProp("like_score")) for mol in mols]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    centre = next(iter(read(Path(compose_options("sample", [f"like={LIGAND}"])["like"]["reference"])).records))
    assert centre.mol is not None
    away = mols[0].GetConformer().GetPositions().mean(0) - centre.mol.GetConformer().GetPositions().mean(0)
    assert np.linalg.norm(away) < 2
