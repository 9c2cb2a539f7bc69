"""Molecules of a seed stay the same from version to version.

`PYTHONPATH=tests python tests/sampling/test_same_molecules.py` stores them anew, which is only right where a change is
meant to draw other molecules, and the changelog says so.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import needs_weights

import moldiff
from moldiff.sampling.config import Likeness
from moldiff.sampling.sample import Sample
from moldiff.tasks import Analogues, Bonds, Conformers, Formula, Grow, Replace

LIGAND = str(files("moldiff.example_data") / "ligands" / "histamine.sdf")
STORED = Path(__file__).parents[1] / "data" / "same_molecules.json"
ALL: dict[str, Any] = {"keep": (), "workers": 0, "steps": 10}
CASES: dict[str, dict[str, Any]] = {
    "plain": {**ALL, "seed": 3, "size": (5, 9)},
    "kept": {"workers": 0, "steps": 10, "keep": ("valid", "unique", "novel"), "filters": ["sa<6", "pains"]},
    "limited": {**ALL, "elements": ["C", "N"], "charge": 1, "first": 7, "size": 6},
    "restarts": {**ALL, "task": Formula(formula="C7H10O2"), "steps": 8, "first": 35},
    "drugs": {**ALL, "model": "drugs", "size": 10},
    "grow": {**ALL, "task": Grow(core=LIGAND, keep=[3, 4, 5, 6, 7], new_atoms=2)},
    "replace": {**ALL, "task": Replace(core=LIGAND, remove=[1, 2])},
    "conformers": {**ALL, "task": Conformers(smiles="C[C@@H](N)O")},
    "bonds": {**ALL, "task": Bonds(input=LIGAND)},
    "analogues": {**ALL, "task": Analogues(of=LIGAND, noise=0.5)},
    "like": {"workers": 0, "steps": 10, "size": 6, "like": Likeness(reference=LIGAND, rounds=1, parents=1)},
}


def drawn(case: str) -> list[dict[str, Any]]:
    """What is compared of some molecules, and of what the network says of them."""
    options = dict(CASES[case])
    return [_plain(one) for one in moldiff.load(options.pop("model", "qm9"), device="cpu").sample(3, **options)]


def _plain(sample: Sample) -> dict[str, Any]:
    molecules = {"molecule": sample.molecule, "argmax": sample.argmax}
    return {
        "index": sample.index,
        "restarts": sample.restarts,
        **{f"{name} bonds": one.bonds.tolist() for name, one in molecules.items()},
        **{f"{name} elements": one.atomic_number.tolist() for name, one in molecules.items()},
        "pos": sample.molecule.pos.round(2).tolist(),
    }


@needs_weights
@pytest.mark.parametrize("case", CASES)
def test_molecules_of_a_seed_are_the_stored_ones(case: str) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))[case]
    for one, other in zip(drawn(case), stored, strict=True):
        np.testing.assert_allclose(one.pop("pos"), other.pop("pos"), atol=0.02)
        assert one == other


if __name__ == "__main__":
    rows = (f"{json.dumps(case)}: {json.dumps(drawn(case))}" for case in CASES)
    STORED.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
