"""`confidence`: in every record, changing no molecule, and what candidates and the order of a file go by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

import moldiff
from moldiff.cli.main import main

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]


def sample(tmp_path: Path, *options: str) -> list[Chem.Mol]:
    out = tmp_path / "out.sdf"
    assert main(["sample", "steps=15", "workers=0", "overwrite=true", f"out={out}", *options]) == 0
    return list(Chem.SDMolSupplier(str(out), removeHs=False))


def of(mol: Chem.Mol) -> float:
    return float(mol.GetProp("confidence"))


def test_a_file_begins_with_the_surest(tmp_path: Path) -> None:
    as_drawn = sample(tmp_path, "n=8")
    by_confidence = sample(tmp_path, "n=8", "sort=confidence")
    assert all(0 <= of(mol) <= 1 for mol in as_drawn)
    assert len({of(mol) for mol in as_drawn}) > 4
    assert [of(mol) for mol in by_confidence] == sorted(map(of, as_drawn), reverse=True)
    records = [[(Chem.MolToMolBlock(mol), mol.GetPropsAsDict()) for mol in mols] for mols in (as_drawn, by_confidence)]
    assert all(record in records[1] for record in records[0])


def test_the_surest_sound_candidate_is_delivered(tmp_path: Path) -> None:
    chosen = sample(tmp_path, "n=4", "candidates=3", "size=6..9")
    run = moldiff.load("qm9").stream(4, candidates=3, size=(6, 9), steps=15, workers=0)
    for mol in chosen:
        index = mol.GetIntProp("index")
        every = run.molecules.draw_each([run.molecules.spec(index, number) for number in range(3)], None)
        best = max((one for one in every if str(one.status) == "ok"), key=lambda one: one.confidence)
        assert of(mol) == pytest.approx(best.confidence, abs=1e-3)
        assert mol.GetProp("SMILES") == best.smiles
    assert "each molecule is the surest of 3 that were drawn for it" in run.notes()


def test_it_is_the_same_in_any_batch() -> None:
    run = moldiff.load("qm9").stream(6, steps=10, workers=0)
    together = [one.confidence for one in run.molecules.draw(range(6))]
    alone = [run.molecules.draw([index])[0].confidence for index in range(6)]
    assert together == pytest.approx(alone, abs=1e-3)


def test_one_order_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", f"out={tmp_path / 'a.sdf'}", "sort=confidence", "like=CCO"]) == 2
    assert "sort: got confidence together with like" in capsys.readouterr().err


@pytest.mark.slow
def test_the_surer_half_is_nearer_to_a_minimum() -> None:
    """The quarters of the card of `drugs` lose 5.5, 6.5, 8.3 and 11.6 kcal/mol."""
    found = moldiff.load("drugs").sample(40, seed=77, keep=(), filters=())
    drops = {}
    for one in found:
        if one.smiles is None:
            continue
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(one.mol, mmffVariant="MMFF94s")
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(one.mol, properties)
        before = field.CalcEnergy()
        field.Minimize(maxIts=500)
        drops[one.confidence] = (before - field.CalcEnergy()) / one.molecule.num_heavy_atoms
    by_confidence = [drops[confidence] for confidence in sorted(drops, reverse=True)]
    half = len(by_confidence) // 2
    assert np.median(by_confidence[:half]) < 0.85 * np.median(by_confidence[half:])
