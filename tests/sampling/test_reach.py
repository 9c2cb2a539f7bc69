"""What lies outside the sizes, elements and charges that a model has learnt is one line, with a model that fits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import moldiff
from moldiff.cli.main import main
from moldiff.diffusion.shipped import advice, available_models, of_atoms, shipped_models
from moldiff.errors import MoldiffError
from moldiff.tasks import Analogues, Bonds, Conformers, Formula, Grow, Link, Replace
from moldiff.tasks.task import TaskSpec

pytestmark = [needs_weights, pytest.mark.usefixtures("one_thread")]
IBUPROFEN = "CC(C)Cc1ccc(C(C)C(=O)O)cc1"
DRUGS = "; model=drugs has learnt them, in molecules of 8 to 30 heavy atoms"


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    return mol


def two_rings() -> Chem.Mol:
    far = embedded("c1ccccc1")
    pos = far.GetConformer().GetPositions() + 6.0
    far.GetConformer().SetPositions(pos)
    return Chem.CombineMols(embedded("c1ccccc1"), far)


def warned(options: Mapping[str, Any], caplog: pytest.LogCaptureFixture, model: str = "qm9") -> list[str]:
    caplog.clear()
    moldiff.load(model).stream(1, **options)
    return [record.message for record in caplog.records]


SIZES: list[tuple[Mapping[str, Any], str]] = [
    ({"size": 20}, "20"),
    ({"size": (8, 12)}, "8 to 12"),
    ({"task": Conformers(smiles=IBUPROFEN)}, "15"),
    ({"task": Analogues(of=IBUPROFEN)}, "15"),
    ({"task": Formula(formula="C13H18O2")}, "15"),
    ({"task": Bonds(input=embedded(IBUPROFEN))}, "15"),
    ({"task": Grow(core=IBUPROFEN, new_atoms=2)}, "17"),
    ({"task": Grow(core="c1ccccc1", new_atoms="4..5")}, "10 to 11"),
    ({"task": Replace(core=IBUPROFEN, remove="C(=O)O")}, "15"),
    ({"task": Link(core=two_rings(), new_atoms=8)}, "20"),
]


@pytest.mark.parametrize(("options", "size"), SIZES, ids=[str(number) for number in range(len(SIZES))])
def test_sizes_outside_are_said_once_with_the_model_that_fits(
    options: Mapping[str, Any], size: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = f"warning: size: got {size} heavy atoms, the model has learnt 1 to 9, others may come out badly{DRUGS}"
    assert warned(options, caplog) == [said]
    assert warned(options, caplog, "drugs") == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 9},
        {"task": Conformers(smiles="CCO")},
        {"task": Grow(core="CCO")},
        {"task": Formula(formula="C2H6O")},
    ],
)
def test_nothing_is_said_within(options: Mapping[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert warned(options, caplog) == []


def test_no_model_is_named_where_none_fits(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = warned({"size": 40}, caplog, "drugs")
    assert line.endswith("others may come out badly")
    (line,) = warned({"task": Conformers(smiles="CCO")}, caplog, "drugs")
    assert line.endswith("; model=qm9 has learnt them, in molecules of 1 to 9 heavy atoms")


@pytest.mark.parametrize(
    ("options", "charge"),
    [
        ({"charge": -1}, "-1"),
        ({"task": Conformers(smiles="CC(=O)[O-]")}, "-1"),
        ({"task": Analogues(of="C[NH3+]")}, "+1"),
        ({"task": Formula(formula="C2H8N+")}, "+1"),
        ({"task": Bonds(input=embedded("CC(=O)[O-]"), charge=-1)}, "-1"),
        ({"task": Grow(core="CC(=O)[O-]", attach=0, new_atoms=1)}, "-1"),
    ],
)
def test_charges_outside_are_said(options: Mapping[str, Any], charge: str, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = warned(options, caplog)
    assert (
        line == f"warning: charge: got {charge}, the model has learnt neutral molecules only, others may come out badly"
    )


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Conformers(smiles="c1ccsc1CCCCO"), "atom 3 (S): the model does not know S"),
        (Grow(core="CCCCCCCS", new_atoms=1), "atom 7 (S): the model does not know SH"),
        (Replace(core="CCCCCCCCl", remove=0), "atom 7 (Cl): the model does not know Cl"),
        (Analogues(of="CCCCCCCBr"), "atom 7 (Br): the model does not know Br"),
        (Bonds(input=embedded("CCCCCCCI")), "atom 7 (I) with 0 hydrogens: the model does not know it"),
        (Formula(formula="C9H12S"), "formula: got S in C9H12S, expected elements of the model: C, F, H, N, O"),
        (Grow(core=IBUPROFEN), "15 atoms are kept and the model has seen 9 at most"),
    ],
)
def test_elements_outside_name_the_model_that_has_learnt_them(task: TaskSpec, said: str) -> None:
    with pytest.raises(MoldiffError) as caught:
        moldiff.load("qm9").stream(1, task=task)
    assert said in str(caught.value)
    assert str(caught.value).endswith(DRUGS)
    assert "\n" not in str(caught.value)


def test_elements_that_no_model_has_learnt_name_none() -> None:
    with pytest.raises(MoldiffError) as caught:
        moldiff.load("qm9").stream(1, task=Conformers(smiles="C[Si](C)(C)C"))
    assert "the model does not know Si, only C F H N O" in str(caught.value)
    assert "model=" not in str(caught.value)
    with pytest.raises(MoldiffError, match=r"expected elements that the model knows: .*model=drugs"):
        moldiff.load("qm9").stream(1, elements=["C", "S"])


def test_advice_is_by_atoms_and_sizes() -> None:
    assert {model.name for model in shipped_models()} == set(available_models())
    assert "model=qm9 " in advice(of_atoms([(6, 3), (9, 0)]))
    assert "model=drugs " in advice(of_atoms([(6, 3), (17, 0)]))
    assert advice(of_atoms([(6, 3), (92, 0)])) == ""
    assert advice(of_atoms([(6, None)] * 31)) == ""


def test_the_command_says_it_before_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["sample", "task=conformers", f'smiles="{IBUPROFEN}"', "n=1", "steps=2", "keep=[]", "workers=0"]
    assert main(command) == 0
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == (
        f"moldiff: warning: size: got 15 heavy atoms, the model has learnt 1 to 9, others may come out badly{DRUGS}"
    )
    assert len([line for line in errors if "warning" in line]) == 1
