"""Molecules in a pocket from the command line, as RDKit alone reads them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.cli.main import main
from moldiff.diffusion.shipped import available_models

pytest.importorskip("gemmi")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif("qm9" not in available_models(), reason="the weights qm9 are not here"),
]
RECEPTOR = "pkg://moldiff.example_data/receptors/1s3v.pdb"
CENTER = np.array([-2.7, 27.8, 3.4])
PLACE = f"task=pocket receptor={RECEPTOR} steps=10 workers=0"


@pytest.fixture(autouse=True)
def coarse_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of Vina that take less time."""
    monkeypatch.setattr("moldiff.evaluation.docking._BOX", 24.0)
    monkeypatch.setattr("moldiff.evaluation.docking._SPACING", 1.0)


def command(text: str, folder: Path) -> int:
    return main(["sample", *shlex.split(text), f"out={folder / 'out.sdf'}"])


def protein() -> np.ndarray:
    from importlib.resources import files

    lines = (files("moldiff.example_data") / "receptors" / "1s3v.pdb").read_text().splitlines()
    return np.array([[float(line[k : k + 8]) for k in (30, 38, 46)] for line in lines if line.startswith("ATOM")])


def molecules(folder: Path) -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(str(folder / "out.sdf"), removeHs=False))


def heavy(mol: Chem.Mol) -> np.ndarray:
    return mol.GetConformer().GetPositions()[[atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]]


def test_molecules_lie_in_the_pocket_without_clashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"n=3 center=[-2.7,27.8,3.4] {PLACE}", tmp_path) == 0
    assert "are free around -2.7 27.8 3.4 of 1s3v.pdb" in capsys.readouterr().err
    found = molecules(tmp_path)
    assert len(found) == 3
    for mol in found:
        pos = heavy(mol)
        distance = np.linalg.norm(pos[:, None] - protein(), axis=-1)
        assert np.linalg.norm(pos.mean(0) - CENTER) < 6
        assert 2.4 < distance.min() < 4.5
        assert mol.GetProp("clashes") == "0"
        assert float(mol.GetProp("pocket_energy")) < -2
        residues = mol.GetProp("contacts").split()
        assert residues
        assert all(one.startswith("A:") for one in residues)


def test_another_pose_is_not_called_changed_but_a_moved_atom_is(tmp_path: Path) -> None:
    """The search enlarges the rounding of other batches, so that nobody can tell who turned a molecule as a whole."""

    def findings(search: int) -> dict[str, int]:
        (tmp_path / "out.sdf").unlink(missing_ok=True)
        assert command(f"n=2 center=[-2.7,27.8,3.4] search={search} {PLACE}", tmp_path) == 0
        turned, nudged = molecules(tmp_path)
        turned.GetConformer().SetPositions(turned.GetConformer().GetPositions() + 1.0)
        nudged.GetConformer().SetPositions(
            nudged.GetConformer().GetPositions() + 0.05 * np.eye(nudged.GetNumAtoms(), 3)
        )
        with Chem.SDWriter(str(tmp_path / "edited.sdf")) as writer:
            for mol in (turned, nudged):
                writer.write(mol)
        assert main(["verify", f"input={tmp_path / 'edited.sdf'}", f"out={tmp_path / 'v.json'}", "quiet=true"]) == 1
        return dict(json.loads((tmp_path / "v.json").read_text())["counts"])

    assert findings(0) == {"reproduced": 0, "changed": 2, "foreign": 0, "unknown": 0}
    assert findings(1) == {"reproduced": 0, "changed": 1, "foreign": 0, "unknown": 1}
    (tmp_path / "out.sdf").unlink()
    assert command(f"n=2 center=[-2.7,27.8,3.4] search=0 {PLACE}", tmp_path) == 0
    assert main(["verify", f"input={tmp_path / 'out.sdf'}", "quiet=true"]) == 0


def in_pocket(smiles: str, path: Path, shift: np.ndarray | None = None) -> Chem.Mol:
    """A molecule in the free space, as a file."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    pos = mol.GetConformer().GetPositions()
    mol.GetConformer().SetPositions(pos - pos.mean(0) + CENTER + (0.0 if shift is None else shift))
    Chem.MolToMolFile(mol, str(path))
    return mol


@pytest.mark.parametrize(
    ("options", "smiles", "kept"),
    [
        ("task=grow new_atoms=3..4", "CN", 2),
        ("task=replace remove=[2] new_atoms=2..3", "CNC", 2),
    ],
)
def test_a_core_stays_where_it_is_in_the_protein(options: str, smiles: str, kept: int, tmp_path: Path) -> None:
    core = in_pocket(smiles, tmp_path / "core.mol", np.array([-0.5, 2.5, 0.5]))
    place = PLACE.replace("task=pocket ", "")
    assert command(f"n=2 core={tmp_path / 'core.mol'} max_draws=10 {options} {place}", tmp_path) == 0
    found = molecules(tmp_path)
    assert found
    for mol in found:
        assert np.abs(heavy(mol)[:kept] - heavy(core)[:kept]).max() < 1e-3
        assert mol.GetProp("attached") == "true"
        assert mol.HasProp("pocket_energy")


def test_a_link_joins_pieces_in_the_protein(tmp_path: Path) -> None:
    one, other = (in_pocket("CO", tmp_path / f"{x}.mol", np.array([x, 2.5, 0.5])) for x in (-2.2, 1.4))
    pieces = f"core=[{tmp_path / '-2.2.mol'},{tmp_path / '1.4.mol'}]"
    place = PLACE.replace("task=pocket ", "")
    assert command(f"n=1 task=link {pieces} new_atoms=3..4 max_draws=20 keep=[] {place}", tmp_path) == 0
    for mol in Chem.SDMolSupplier(str(tmp_path / "out.sdf"), sanitize=False, removeHs=False):
        assert np.abs(heavy(mol)[:4] - np.concatenate([heavy(one), heavy(other)])).max() < 1e-3


def test_poses_of_a_molecule_keep_its_graph_and_stereo_and_are_ranked(tmp_path: Path) -> None:
    pytest.importorskip("vina")
    smiles = "C[C@H](O)c1ccncc1"
    place = PLACE.replace("task=pocket", "task=conformers")
    options = f"n=4 'smiles={chr(34)}{smiles}{chr(34)}' center=[-2.7,27.8,3.4] {place} score=vina sort=score"
    assert command(options, tmp_path) == 0
    found = molecules(tmp_path)
    assert len(found) == 4
    scores = [float(mol.GetProp("score")) for mol in found]
    assert scores == sorted(scores)
    for mol in found:
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles(smiles)
        assert np.linalg.norm(heavy(mol).mean(0) - CENTER) < 6
        assert np.linalg.norm(heavy(mol)[:, None] - protein(), axis=-1).min() > 2.4
        assert float(mol.GetProp("score")) == pytest.approx(float(mol.GetProp("vina_minimized")), abs=2e-3)


def test_the_deepest_of_several_candidates_is_taken(tmp_path: Path) -> None:
    place = f"center=[-2.7,27.8,3.4] new_atoms=9 {PLACE}"
    assert command(f"n=3 {place}", tmp_path) == 0
    one = {mol.GetProp("index"): float(mol.GetProp("pocket_energy")) for mol in molecules(tmp_path)}
    assert command(f"n=3 candidates=3 overwrite=true {place}", tmp_path) == 0
    best = {mol.GetProp("index"): float(mol.GetProp("pocket_energy")) for mol in molecules(tmp_path)}
    both = one.keys() & best.keys()
    assert both
    assert all(best[index] <= one[index] for index in both)  # the first candidate is the molecule without others
    assert sum(best.values()) < sum(one.values())


def test_the_search_finds_deeper_poses_of_the_same_molecules_without_strain(tmp_path: Path) -> None:
    place = f"n=4 center=[-2.7,27.8,3.4] new_atoms=9 {PLACE}"
    found = {}
    for rounds in (0, 10):
        assert command(f"{place} search={rounds} keep=[] overwrite=true", tmp_path) == 0
        found[rounds] = molecules(tmp_path)
    values = {
        rounds: [np.median([float(mol.GetProp(name)) for mol in mols]) for name in ("pocket_energy", "strain_mmff94s")]
        for rounds, mols in found.items()
    }
    assert [Chem.MolToSmiles(mol) for mol in found[0]] == [Chem.MolToSmiles(mol) for mol in found[10]]
    assert values[10][0] < values[0][0]
    assert values[10][1] < values[0][1]


def test_an_interrupted_run_goes_on_to_the_same_file(tmp_path: Path) -> None:
    place = f"residues=[A:7,A:30,A:34,A:115] new_atoms=6..8 {PLACE}"
    assert command(f"n=4 {place}", tmp_path) == 0
    whole = (tmp_path / "out.sdf").read_bytes()
    records = whole.split(b"$$$$\n")
    (tmp_path / "out.sdf").write_bytes(b"$$$$\n".join(records[:2]) + b"$$$$\n")
    assert command(f"n=4 {place} resume=true", tmp_path) == 0
    assert (tmp_path / "out.sdf").read_bytes() == whole
    task = json.loads(molecules(tmp_path)[0].GetProp("task"))
    assert task["residues"] == ["A:7", "A:30", "A:34", "A:115"]
    assert len(task["receptor_sha256"]) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("center=[0,0,0]", "receptor: nothing given, expected a protein"),
        ("receptor=none.pdb center=[0,0,0]", "receptor: none.pdb: no such file"),
        (f"receptor={RECEPTOR}", "pocket: got none of ligand, center and residues, expected one of them"),
        (f"receptor={RECEPTOR} center=[1,2,3] residues=[A:7]", "pocket: got center and residues of ligand, center"),
        (f"receptor={RECEPTOR} center=[1,2]", "center: got [1, 2], expected three numbers"),
        (f"receptor={RECEPTOR} center=[99,0,0]", "center: nothing of 1s3v.pdb within 8 Å of 99.0, 0.0, 0.0"),
        (f"receptor={RECEPTOR} residues=[B:7]", "residues: 1s3v.pdb has no 'B:7', expected such as A:5 to A:182"),
        (f"receptor={RECEPTOR} ligand=CCO", "ligand: got 'CCO', expected a file of molecules in 3D"),
        (f"receptor={RECEPTOR} center=[-2.7,27.8,3.4] strength=-1", "strength: got -1, expected a number from 0"),
        (f"receptor={RECEPTOR} center=[-2.7,27.8,3.4] search=-1", "search: got -1, expected a whole number from 0"),
        ("task=grow core=CCO center=[1,2,3]", "center: got one without a receptor, expected a PDB or mmCIF file"),
        (f"task=grow core=CCO receptor={RECEPTOR}", "core: got 'CCO', expected a file of molecules in 3D"),
        (f"receptor={RECEPTOR} center=[-2.7,27.8,3.4] relax=mmff94s", "relax: got 'mmff94s' with a pocket"),
        (f"receptor={RECEPTOR} center=[-2.7,27.8,3.4] size=9", "size: got (9, 9) together with a task"),
    ],
)
def test_wrong_options_give_one_line(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = "" if "task=" in options else "task=pocket "
    assert command(f"{task}n=1 {options}", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.sdf").exists()
