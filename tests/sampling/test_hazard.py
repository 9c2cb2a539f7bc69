"""Molecules of a hazardous class are marked and warned of, and refused where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem

from moldiff.cli.main import main
from moldiff.evaluation.metrics.druglike import first_alert, groups

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {
    "sulfur mustard": "ClCCSCCCl",
    "nitrogen mustard": "ClCCN(C)CCCl",
    "fluoride or cyanide of an organophosphorus acid": "CCOP(=O)(C#N)N(C)C",
    "phosgene or chloropicrin": "ClC(Cl)=O",
    "three or more nitro groups": "Cc1c([N+](=O)[O-])cc([N+](=O)[O-])cc1[N+](=O)[O-]",
    "two or more nitrate esters": "C(CO[N+](=O)[O-])O[N+](=O)[O-]",
    "two or more peroxides": "CC1(C)OOC(C)(C)OO1",
}
HARMLESS = ("CC(=O)Oc1ccccc1C(=O)O", "CCOP(=O)(OCC)OCC", "O=[N+]([O-])c1ccccc1", "CCSCC", "OCCN(C)CCO", "N#CCO")


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_the_schedules_and_explosives_are_known(name: str) -> None:
    assert first_alert("HAZARD", Chem.MolFromSmiles(CLASSES[name])) == name


@pytest.mark.parametrize("smiles", HARMLESS)
def test_common_molecules_are_not_marked(smiles: str) -> None:
    assert first_alert("HAZARD", Chem.MolFromSmiles(smiles)) is None


def test_every_class_has_a_source() -> None:
    rows = groups("HAZARD")
    assert len(rows) >= len(CLASSES)
    assert all(row["source"] and Chem.MolFromSmarts(row["smarts"]) is not None for row in rows)
    assert any("schedule 1" in row["source"] for row in rows)


@needs_weights
def test_a_run_marks_warns_and_refuses_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.sdf"
    options = ["sample", "n=2", "task=conformers", 'smiles="C#N"', "steps=10", "workers=0", f"out={out}"]
    assert main(options) == 0
    said = capsys.readouterr().err
    assert "warning: 2 molecules are of a hazardous class, marked in their records: qm9-0-0 (cyanogen halide or" in said
    assert [mol.GetProp("hazard") for mol in Chem.SDMolSupplier(str(out))] == [
        "cyanogen halide or hydrogen cyanide"
    ] * 2
    out.unlink()
    assert main([*options, "filters=[hazard]", "max_draws=3"]) == 2
    assert "rejected: 3 filters" in capsys.readouterr().err
    assert not out.exists()
    assert main(["sample", "n=2", "size=5", "steps=10", "workers=0", f"out={out}"]) == 0
    assert "hazard" not in capsys.readouterr().err + out.read_text()
