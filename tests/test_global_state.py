"""What belongs to the whole process stays as the user left it, and another default of theirs does no harm."""

import csv
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import needs_weights

import moldiff
from moldiff.diffusion.property_predictor import load_predictor
from moldiff.molecules.formats.reader import records
from moldiff.tasks import Conformers, Grow

pytestmark = pytest.mark.usefixtures("one_thread")


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@needs_weights
def test_loading_and_sampling_leave_the_global_random_state() -> None:
    moldiff.load("qm9")  # what is imported for the first time is not ours
    before = random_states()
    generator = moldiff.load("qm9")
    load_predictor("qm9_predictor")
    assert random_states() == before
    generator.sample(1, steps=3, keep=(), workers=0)
    assert random_states() == before


def test_no_module_sets_the_limit_of_csv() -> None:
    code = (
        "import csv, pkgutil, importlib, moldiff\n"
        "before = csv.field_size_limit()\n"
        "for name in ('molecules.formats.smiles', 'sampling.generator', 'data.sources.files', 'evaluation.evaluate'):\n"
        "    importlib.import_module(f'moldiff.{name}')\n"
        "print(before == csv.field_size_limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_cells_beyond_the_limit_of_csv_are_read_and_it_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    note = "x" * (before + 1)
    (tmp_path / "long.csv").write_text(f"smiles,note\nCCO,{note}\nCCN,short\n")
    found = []
    for record in records(tmp_path / "long.csv"):
        assert csv.field_size_limit() == before
        found.append(record)
    assert [record.problem for record in found] == [None, None]


@needs_weights
@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("qm9", {"trajectory": True}),
        ("qm9", {"task": Grow(core="c1ccccc1", new_atoms=1)}),
        ("qm9", {"task": Conformers(smiles="CC(O)C")}),
        ("qm9_properties", {"condition": {"gap": 0.25}, "candidates": 2}),
    ],
)
def test_sampling_under_a_default_of_float64(model: str, options: dict[str, Any]) -> None:
    wide = moldiff.load(model).sample(1, steps=5, keep=(), workers=0, **options)[0]
    torch.set_default_dtype(torch.float32)
    plain = moldiff.load(model).sample(1, steps=5, keep=(), workers=0, **options)[0]
    assert wide.smiles == plain.smiles
    np.testing.assert_array_equal(wide.molecule.pos, plain.molecule.pos)


@needs_weights
@pytest.mark.usefixtures("double_by_default")
def test_evaluation_under_a_default_of_float64() -> None:
    ligand = Path(str(resources.files("moldiff.example_data"))) / "ligands/histamine.sdf"
    report = moldiff.evaluate(ligand, reference=ligand)
    torch.set_default_dtype(torch.float32)
    plain = moldiff.evaluate(ligand, reference=ligand)
    assert [(row.name, row.numerator) for row in report.results] == [(row.name, row.numerator) for row in plain.results]
