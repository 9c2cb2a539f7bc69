"""The lead pinned beside the cards, of molecules that `moldiff sample` drew for each task, by their records alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMolecule
from scipy.spatial import cKDTree
from test_view import Page

from moldiff.cli.main import main

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]
RING = "C1CC1C(N)=O"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, several in {"ring": [RING], "two": ["CC(C)CO", RING], "piece": ["C1CC1"], "other": ["C#N"]}.items():
        with Chem.SDWriter(f"{name}.sdf") as writer:
            for smiles in several:
                mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
                EmbedMolecule(mol, randomSeed=1)
                mol.GetConformer().SetPositions(
                    mol.GetConformer().GetPositions() + np.array([5.0 * (name == "other"), 0, 0])
                )
                writer.write(mol)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "leads", "shown"),
    [
        (["task=link", 'core="C1CC1*.*C(N)=O"', "new_atoms=1"], ["C1CC1*.*C(N)=O"], [0, 0]),
        (["task=link", "core=[piece.sdf,other.sdf]", "new_atoms=2", "steps=20"], ["C1CC1.C#N"], [0, 0]),
        (["task=conformers", f"smiles='{RING}'"], [RING], [0, 0]),
        (["task=conformers", "input=two.sdf"], ["CC(C)CO", RING], [0, 1]),
        (["like=ring.sdf", "size=6"], [RING], [0, 0]),
        ([f"like='{RING}'", "size=6"], [RING], [0, 0]),
    ],
)
def test_it_is_what_the_task_was_given(options: list[str], leads: list[str], shown: list[int], folder: Path) -> None:
    n = 1 if len(leads) > 1 else 2
    command = ["sample", f"n={n}", "steps=6", "workers=0", "quiet=true", "out=a.sdf", "keep=[valid]", *options]
    assert main(command) == 0
    assert main(["view", "input=a.sdf"]) == 0
    page = Page(Path("a.html"))
    assert page.data["leads"] == shown
    pinned = [attrs["data-smiles"] for _, attrs in page.having("mol")][: len(leads)]
    assert [Chem.CanonSmiles(text or "") for text in pinned] == [Chem.CanonSmiles(text) for text in leads]
    if "conformers" in options[0]:
        assert [len(core) for core in page.data["cores"]] == [Chem.MolFromSmiles(leads[k]).GetNumAtoms() for k in shown]


PROTEIN = Path(str(files("moldiff.example_data") / "receptors" / "1s3v.pdb"))


def test_the_pocket_is_around_what_was_drawn_into_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gemmi")
    copy = folder / "protein.pdb"
    copy.write_bytes(PROTEIN.read_bytes())
    command = "sample n=2 steps=10 workers=0 quiet=true out=a.sdf keep=[] task=pocket receptor=protein.pdb"
    assert main([*command.split(), "residues=[A:7,A:30,A:34,A:115]"]) == 0
    assert main(["view", "input=a.sdf"]) == 0
    data = Page(Path("a.html")).data
    assert len(data["pockets"]) == 1
    assert set(data["pocket"]) == {0}
    protein = Chem.MolFromPDBFile(str(copy), sanitize=False)
    places = {atom.GetIdx(): atom.GetPDBResidueInfo() for atom in protein.GetAtoms()}
    amino = [
        k for k, info in places.items() if not info.GetIsHeteroAtom() and protein.GetAtomWithIdx(k).GetAtomicNum() > 1
    ]
    drawn = [mol.GetConformer().GetPositions() for mol in Chem.SDMolSupplier("a.sdf", sanitize=False, removeHs=False)]
    near = cKDTree(np.concatenate(drawn)).query(protein.GetConformer().GetPositions()[amino])[0] <= 5.0
    wanted = {f"A:{places[k].GetResidueNumber()}" for k in np.array(amino)[near]}
    assert {name for name, *_ in data["pockets"][0]["residues"]} == wanted

    assert main(["view", "input=ring.sdf"]) == 0  # of another source
    assert Page(Path("ring.html")).data["pocket"] == [None]
    assert main(["view", "input=ring.sdf", "receptor=protein.pdb"]) == 2
    assert "receptor: nothing of protein.pdb within 5 Å of the molecules" in capsys.readouterr().err
    copy.write_text(copy.read_text() + "\n")  # another file now
    assert main(["view", "input=a.sdf"]) == 0
    assert Page(Path("a.html")).data["pocket"] == [None, None]
    assert main(["view", "input=a.sdf", "receptor=protein.pdb"]) == 0
    assert Page(Path("a.html")).data["pocket"] == [0, 0]


def test_a_file_that_has_changed_is_not_shown(folder: Path) -> None:
    command = ["sample", "n=1", "steps=20", "workers=0", "quiet=true", "task=link", "new_atoms=2"]
    assert main([*command, "core=[piece.sdf,other.sdf]"]) == 0
    other = Path("other.sdf")
    other.write_text(other.read_text() + "\n")
    assert main(["view", "input=molecules.sdf"]) == 0
    assert Page(Path("molecules.html")).data["leads"] == [None]
    assert main(["verify", "input=molecules.sdf", "quiet=true", "out=v.json"]) == 1
    assert "which is missing here, or another" in Path("v.json").read_text()
