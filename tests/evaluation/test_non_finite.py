"""Molecules of which a coordinate is not a number end no run: they are counted, and others are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import Overflowing
from models import MODEL_CONFIG, STATISTICS, VOCABULARY, needs_weights, small_denoiser, small_process
from rdkit import Chem

from moldiff.cli.main import main
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.sampler import PowerSampler
from moldiff.sampling.config import Likeness
from moldiff.sampling.generator import Generator
from moldiff.tasks import Analogues, Conformers, Formula, Grow

FAST = PowerSampler(num_steps=6)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def generator() -> Generator:
    model = MoleculeDiffusion(Overflowing(small_denoiser()), small_process(), VOCABULARY, STATISTICS).float().eval()
    return Generator(
        PretrainedModel(model, Path("nowhere"), "small", "0123456789ab", MODEL_CONFIG), torch.device("cpu")
    )


def counted(results: Any) -> int:
    return int({result.name: result for result in results}["p2_status_non-finite"].numerator)


@pytest.mark.parametrize(
    "task",
    [
        None,
        Grow(core="CCO", new_atoms=2),
        Conformers(smiles="CCO"),
        Conformers(smiles=["CCO", "CCN"], rmsd=0.01),
        Formula(formula="C3H8O"),
        Analogues(of="CCO", noise=0.7),
    ],
    ids=lambda task: type(task).__name__,
)
def test_molecules_that_are_not_finite_are_counted(generator: Generator, task: Any) -> None:
    samples = generator.sample(8, task=task, sampler=FAST, max_draws=60)
    assert counted(samples.results) > 0
    assert all(sample.molecule.is_finite for sample in samples)
    everything = generator.sample(8, task=task, sampler=FAST, keep=(), max_draws=60, trajectory=True)
    assert counted(everything.results) > 0


def test_filters_and_rankings_go_on_past_molecules_that_are_not_finite(generator: Generator) -> None:
    everything = generator.stream(8, sampler=FAST, keep=(), filters=["sa<9"])
    assert list(everything)
    assert counted(everything.results()) > 0
    like = Likeness(reference="CCO", rounds=1)
    samples = generator.sample(6, sampler=FAST, keep=("valid",), filters=["sa<9"], like=like)
    assert counted(samples.results) > 0
    assert len(samples) == 6


@needs_weights
def test_a_size_far_from_the_training_data_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.sdf"
    assert main(["sample", "size=20", "n=4", "steps=20", "workers=0", f"out={out}"]) == 0
    assert "rejected: non-finite" in capsys.readouterr().out
    assert [mol.GetNumHeavyAtoms() for mol in Chem.SDMolSupplier(str(out))] == [20] * 4
