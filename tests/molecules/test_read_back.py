"""Files read back by RDKit alone: the reader finds faults, and those of all tasks, models and formats have none."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import AllChem
from read_back import counts, findings, num_records

from moldiff.cli.main import main
from moldiff.diffusion.shipped import available_models

pytestmark = pytest.mark.usefixtures("one_thread")


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    return mol


def record(mol: Chem.Mol, **fields: str) -> str:
    data = "".join(f">  <{key}>\n{value}\n\n" for key, value in fields.items())
    return f"{Chem.MolToMolBlock(mol, kekulize=False)}{data}$$$$\n"


def moved(mol: Chem.Mol, atom: int, onto: int, distance: float) -> Chem.Mol:
    """An atom set so far (Å) from another, in the direction that it is in."""
    mol = Chem.Mol(mol)
    pos = mol.GetConformer().GetPositions()
    arm = pos[atom] - pos[onto]
    mol.GetConformer().SetAtomPosition(atom, pos[onto] + arm / (arm @ arm) ** 0.5 * distance)
    return mol


BUTENOL = r"C/C=C\CO"
GOOD = {"butenol": BUTENOL, "lactic": "C[C@H](O)C(=O)O", "sulfoxide": "CC[S@](C)=O", "thiol": "CCS", "borane": "CB(C)C"}


@pytest.mark.parametrize("smiles", GOOD.values(), ids=GOOD)
def test_nothing_is_found_in_what_is_right(tmp_path: Path, smiles: str) -> None:
    written = Chem.MolToSmiles(Chem.MolFromSmiles(smiles))
    (tmp_path / "a.sdf").write_text(record(embedded(smiles), SMILES=written, status="ok") * 2)
    (tmp_path / "a.smi").write_text(f"{written}\tname\n" * 2)
    (tmp_path / "a.csv").write_text(f"smiles,name,SMILES,status\n{written},,{written},ok\n{written},,,\n")
    (tmp_path / "a.xyz").write_text(Chem.MolToXYZBlock(embedded(smiles)) * 2)
    for path in tmp_path.iterdir():
        assert num_records(path) == 2
        assert findings(path) == []


def faulty() -> dict[str, tuple[str, str, str]]:
    """Name of a file by its fault, its text, and the kind that is to be found."""
    butenol, radical = embedded(BUTENOL), Chem.RWMol(embedded("CCO"))
    radical.RemoveAtom(8)
    text = record(butenol)
    oxygen = next(atom.GetIdx() for atom in butenol.GetAtoms() if atom.GetAtomicNum() == 8)
    hydroxyl = next(n.GetIdx() for n in butenol.GetAtomWithIdx(oxygen).GetNeighbors() if n.GetAtomicNum() == 1)
    return {
        "either": ("a.sdf", text.replace("  2  3  2  0", "  2  3  2  3"), "stereo"),
        "other isomer": ("a.sdf", record(butenol, SMILES="C/C=C/CO"), "stereo"),
        "other molecule": ("a.sdf", record(butenol, SMILES="CCCCO"), "field"),
        "size": ("a.sdf", record(butenol, size="4"), "field"),
        "title": ("a.sdf", record(butenol, model="qm9", seed="0", index="1"), "field"),
        "lost end": ("a.sdf", text.replace("$$$$\n", ""), "graph"),
        "radical": ("a.sdf", record(radical), "graph"),
        "two pieces": ("a.sdf", record(Chem.CombineMols(butenol, moved(butenol, 0, 1, 1.5))), "graph"),
        "ion": ("a.sdf", record(embedded("CC(=O)[O-]")), "charge"),
        "H on O": ("a.sdf", record(moved(butenol, hydroxyl, oxygen, 0.007)), "x-h"),
        "torn": ("a.sdf", record(moved(butenol, 0, 1, 2.4)), "bond"),
        "near": ("a.sdf", record(moved(butenol, 0, oxygen, 0.9)), "clash"),
        "word": ("a.smi", "C[P@TB8](O)(F)(Cl)Br\n", "stereo"),
        "ion of a line": ("a.smi", "CC(=O)[O-]\n", "charge"),
        "not canonical": ("a.smi", "OCC\n", "field"),
        "columns differ": ("a.csv", "smiles,name,SMILES\nCCO,,CO\n", "field"),
        "no SMILES": ("a.csv", "smiles,name\n,\n", "graph"),
        "H on O, no bonds": ("a.xyz", Chem.MolToXYZBlock(moved(butenol, hydroxyl, oxygen, 0.007)), "x-h"),
    }


@pytest.mark.parametrize("fault", faulty())
def test_every_fault_is_found(tmp_path: Path, fault: str) -> None:
    name, text, kind = faulty()[fault]
    (tmp_path / name).write_text(text)
    assert counts(findings(tmp_path / name))[kind] == 1


TASKS = {
    "new": "size=8",
    "formula": "task=formula formula=C6H10O2",
    "conformers": r"task=conformers 'smiles=\"C/C=C\\[C@H](O)CC\"'",
    "grow": r"task=grow 'core=\"C/C=C\\CO\"' new_atoms=3",
    "replace": r"task=replace 'core=\"C/C=C\\CCO\"' remove=[4,5] new_atoms=3",
    "link": "task=link core=pieces.sdf new_atoms=3",
    "analogues": r"task=analogues 'of=\"C/C=C\\CC=O\"'",
    "bonds": "task=bonds input=butenol.xyz",
}
FORMATS = ("sdf", "smi", "csv", "xyz")


@needs_weights
@pytest.mark.parametrize("model", [name for name in available_models() if "predictor" not in name])
@pytest.mark.parametrize("task", TASKS)
def test_files_of_every_task_model_and_format_are_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    butenol = embedded(BUTENOL)
    Path("butenol.xyz").write_text(Chem.MolToXYZBlock(butenol))
    far = Chem.Mol(embedded("CO"))
    for atom in range(far.GetNumAtoms()):
        x, y, z = far.GetConformer().GetPositions()[atom]
        far.GetConformer().SetAtomPosition(atom, (x, y, z + 6.0))
    Path("pieces.sdf").write_text(record(embedded("CC=O")) + record(far))
    for suffix in FORMATS:
        words = shlex.split(TASKS[task].replace('\\"', '"').replace("\\\\", "\\"))
        out = f"a.{suffix}"
        assert main(["sample", f"model={model}", "n=2", "steps=20", "workers=0", f"out={out}", *words]) == 0
        assert num_records(out) == (1 if task == "bonds" else 2)
        # A bond of twenty calls may be stretched, as far as `keep=sound` allows.
        assert [one for one in findings(out) if one.kind != "bond"] == []


@needs_weights
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("qm9", 'task=conformers smiles="C=CC(=O)O" n=10'),
        ("qm9", 'task=conformers smiles="C[C@@H]1C[C@H]1CO" n=10'),
        ("qm9", 'task=conformers smiles="C=CC" n=10'),
        ("qm9", "task=conformers smiles=N n=10"),
        ("drugs", "task=conformers smiles=CCO n=10"),
        ("drugs", 'task=conformers smiles="CN1CCC[C@H]1c1cccnc1" n=10'),
        ("qm9", "size=2 n=10"),
        ("qm9", "size=3 n=10"),
        ("qm9", "task=formula formula=C2H6O n=10"),
    ],
)
def test_s1_hydrogens_of_small_molecules_lie_on_their_bonds(tmp_path: Path, model: str, options: str) -> None:
    out = tmp_path / "a.sdf"
    assert main(["sample", f"model={model}", "steps=20", "workers=0", f"out={out}", *options.split()]) == 0
    assert num_records(out) == 10
    assert findings(out) == []
