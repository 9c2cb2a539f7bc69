"""`moldiff.verify`: which records of a file their own fields draw again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import AllChem

import moldiff
from moldiff.cli.main import main
from moldiff.sampling.verify import Finding

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]

LIGAND = "data/ligands/histamine.sdf"


def sampled(tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "out.sdf"
    assert main(["sample", f"out={out}", "workers=0", "steps=15", *options]) in (0, 1)
    return out


@pytest.mark.parametrize(
    "options",
    [
        "n=5 size=5..9",
        "n=3 relax=mmff94s",
        "n=3 elements=[C,H,N] charge=1",
        "n=2 model=drugs filters=[sa<6]",
        "n=2 model=qm9_properties condition.gap=0.25 candidates=2",
        "n=2 model=qm9_properties condition.gap=0.25 candidates=2 size=5..7",
        "n=3 decode=raw keep=[]",
        "n=2 sampler.churn=0.2",
        f"n=2 task=grow core={LIGAND} new_atoms=1",
        f"n=2 task=replace core={LIGAND} remove=[1,2]",
        'n=2 task=conformers smiles="C[C@@H](N)O"',
        f"n=1 task=bonds input={LIGAND} model=drugs",
        f"n=2 task=analogues of={LIGAND} noise=0.4 model=drugs",
        "n=2 task=formula formula=C4H8O",
        f"n=3 like={LIGAND} size=6",
    ],
)
def test_what_a_run_wrote_is_drawn_again(tmp_path: Path, options: str) -> None:
    path = sampled(tmp_path, *options.split())
    found = moldiff.verify(path)
    assert found
    assert [one.finding for one in found] == [Finding.REPRODUCED] * len(found)
    assert max(one.shift or 0 for one in found) < 1e-3


def test_a_hundred_records_of_two_workers_are_drawn_again(tmp_path: Path) -> None:
    path = sampled(tmp_path, "n=100", "workers=2")
    found = moldiff.verify(path)
    assert [one.finding for one in found] == [Finding.REPRODUCED] * 100


def test_a_changed_coordinate_and_a_foreign_record_are_found(tmp_path: Path) -> None:
    path = sampled(tmp_path, "n=4")
    text = path.read_text()
    second = text.index("$$$$") + 5
    line = re.compile(r"^ {1,4}-?\d+\.\d{4}", re.MULTILINE).search(text, second)
    assert line is not None
    moved = f"{float(line[0]) + 0.02:10.4f}"
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    path.write_text(text[: line.start()] + moved + text[line.end() :] + Chem.MolToMolBlock(mol) + "$$$$\n")
    found = moldiff.verify(path)
    assert [str(one.finding) for one in found] == ["reproduced", "changed", "reproduced", "reproduced", "foreign"]
    assert found[1].reason == "atoms moved by up to 0.02 Å"
    assert found[1].shift == pytest.approx(0.02, abs=1e-3)
    assert found[4].reason == "no field model"


def test_what_was_done_to_a_molecule_is_said(tmp_path: Path) -> None:
    path = sampled(tmp_path, "n=1", "size=6")
    (mol,) = Chem.SDMolSupplier(str(path), removeHs=False)
    drawn = mol.GetConformer().GetPositions()
    kinds = {
        "moved or turned as a whole": (drawn + 1, mol),
        "atoms moved by up to": (drawn * 1.1, mol),
        "these settings draw": (drawn, Chem.RWMol(mol)),
        "SMILES C": (drawn, Chem.Mol(mol)),
    }
    kinds["these settings draw"][1].GetAtomWithIdx(0).SetAtomicNum(16)
    kinds["SMILES C"][1].SetProp("SMILES", "C")
    for reason, (pos, changed) in kinds.items():
        changed.GetConformer().SetPositions(pos)
        with Chem.SDWriter(str(path)) as writer:
            writer.write(changed)
        (found,) = moldiff.verify(path)
        assert found.finding is Finding.CHANGED
        assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("weights", "0123456789ab", "drawn with weights 0123456789ab, this qm9 is"),
        ("model", "nowhere", "model: "),
        ("sampler", '{"num_steps": 1000000000}', "drawn in 1000000000 network calls, expected 10000 at most"),
        ("sampler", '{"worse": 1}', "settings that moldiff does not write: "),
        ("precision", "bfloat16", "drawn in bfloat16, in which a molecule depends on the others of its batch"),
        ("task", '{"name": "fold"}', "drawn for a task 'fold' that is not one of moldiff's own"),
        ("task", json.dumps({"like": {"rounds": 2}}), "drawn from near others of its run (like.rounds), not from"),
        (
            "task",
            json.dumps({"name": "grow", "core": "gone.sdf", "core_sha256": "00"}),
            "drawn from gone.sdf, which is",
        ),
        ("task", json.dumps({"name": "grow", "core": "Mol from Python"}), "drawn from Mol from Python, which no field"),
    ],
)
def test_what_cannot_be_drawn_here_is_not_judged(tmp_path: Path, field: str, value: str, reason: str) -> None:
    path = sampled(tmp_path, "n=1", "size=4")
    (mol,) = Chem.SDMolSupplier(str(path), removeHs=False)
    mol.SetProp(field, value)
    with Chem.SDWriter(str(path)) as writer:
        writer.write(mol)
    (found,) = moldiff.verify(path)
    assert found.finding is Finding.UNKNOWN
    assert found.reason.startswith(reason)


def test_a_record_of_another_version_says_so(tmp_path: Path) -> None:
    path = sampled(tmp_path, "n=1", "size=4")
    (mol,) = Chem.SDMolSupplier(str(path), removeHs=False)
    mol.SetProp("version", "0.0.9")
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() * 1.1)
    with Chem.SDWriter(str(path)) as writer:
        writer.write(mol)
    (found,) = moldiff.verify(path)
    assert found.reason.endswith(f"(written by 0.0.9, this is {moldiff.__version__})")


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = sampled(tmp_path, "n=2", "size=4"), tmp_path / "verified.json"
    assert main(["verify", f"input={path}"]) == 0
    assert re.search(r"reproduced\W+2", capsys.readouterr().out)
    path.write_text(path.read_text().replace("qm9-0-1\n", "mine\n").replace("<weights>\n", "<weight>\n", 1))
    assert main(["verify", f"input={path}", f"out={report}"]) == 1
    assert re.search(r"foreign\W+1\W+1: no field weights", capsys.readouterr().out)
    said = json.loads(report.read_text())
    assert said["counts"] == {"reproduced": 1, "changed": 0, "foreign": 1, "unknown": 0}
    assert [one["finding"] for one in said["records"]] == ["foreign", "reproduced"]
    assert main(["verify", f"input={tmp_path / 'none.sdf'}"]) == 2
    assert main(["verify", f"input={path}", "out=report"]) == 2
