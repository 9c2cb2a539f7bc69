"""`ph=` and PDBQT: what the files hold, read by RDKit and meeko alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import AllChem

import moldiff
from moldiff.cli.main import main
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.postprocess import protonated
from moldiff.sampling.verify import Finding

pytest.importorskip("molscrub")
pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]

AMINO_ACID = "C[C@H](N)CC(=O)O"
IN_WATER = "C[C@H]([NH3+])CC(=O)[O-]"


def conformers(tmp_path: Path, *options: str, out: str = "out.sdf") -> Path:
    path = tmp_path / out
    arguments = ["sample", "task=conformers", f'smiles="{AMINO_ACID}"', "n=2", "steps=20", "workers=0", f"out={path}"]
    assert main([*arguments, *options]) == 0
    return path


def records(path: Path) -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(str(path), removeHs=False))


def heavy(mol: Chem.Mol) -> np.ndarray:
    rows = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    return mol.GetConformer().GetPositions()[rows]


def test_rdkit_reads_the_charges_that_are_stated_at_the_same_heavy_atoms(tmp_path: Path) -> None:
    charged = records(conformers(tmp_path, "ph=7.4"))
    drawn = records(conformers(tmp_path, out="drawn.sdf"))
    for mol, before in zip(charged, drawn, strict=True):
        assert mol.GetProp("SMILES") == Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles(IN_WATER)
        assert mol.GetProp("drawn_SMILES") == Chem.CanonSmiles(AMINO_ACID)
        assert mol.GetProp("protonated_by").startswith("molscrub ")
        assert mol.GetProp("ph") == "7.4"
        np.testing.assert_array_equal(heavy(mol), heavy(before))
        (nitrogen,) = mol.GetSubstructMatch(Chem.MolFromSmarts("[NH3+]"))
        pos = mol.GetConformer().GetPositions()
        ends = [atom.GetIdx() for atom in mol.GetAtomWithIdx(nitrogen).GetNeighbors()]
        arms = pos[ends] - pos[nitrogen]
        arms /= np.linalg.norm(arms, axis=1)[:, None]
        angles = np.degrees(np.arccos((arms @ arms.T)[np.triu_indices(4, 1)]))
        assert ((angles > 95) & (angles < 125)).all()


def test_the_charged_form_is_relaxed_and_verified(tmp_path: Path) -> None:
    path = conformers(tmp_path, "ph=7.4", "relax=mmff94s")
    assert [one.finding for one in moldiff.verify(path)] == [Finding.REPRODUCED] * 2
    for mol in records(path):
        assert mol.GetProp("relaxed") == "ok"
        properties = AllChem.MMFFGetMoleculeProperties(mol, mmffVariant="MMFF94s")
        field = AllChem.MMFFGetMoleculeForceField(mol, properties)
        assert np.abs(field.CalcGrad()).max() < 0.5


def test_another_charge_is_found_by_verify(tmp_path: Path) -> None:
    path = conformers(tmp_path, "ph=7.4")
    path.write_text(path.read_text().replace(">  <ph>\n7.4", ">  <ph>\n1", 1))
    found = moldiff.verify(path)
    assert [str(one.finding) for one in found] == ["changed", "reproduced"]
    assert found[0].reason.startswith("other hydrogens, charges or orders of bonds; these settings draw")


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("NC(=N)c1ccccc1", "NC(=[NH2+])c1ccccc1"),
        ("OP(O)(=O)c1ccccc1", "[O-]P([O-])(=O)c1ccccc1"),
        ("Oc1ccccc1", "Oc1ccccc1"),
        ("Cc1nnn[nH]1", "Cc1nnn[n-]1"),
        ("O=C(O)C1CN2CCC1CC2", "O=C([O-])C1C[NH+]2CCC1CC2"),
        ("CCN(C)CCO", "CC[NH+](C)CCO"),  # the nitrogen becomes a centre
    ],
)
def test_groups_get_the_state_that_they_have_in_water(smiles: str, expected: str, tmp_path: Path) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    after, fields = protonated(molecule, 7.4)
    assert str(fields["protonated_by"]).startswith("molscrub")
    np.testing.assert_array_equal(after.pos, molecule.pos)
    path = tmp_path / "a.sdf"
    moldiff.write(path, [after])
    (read,) = Chem.SDMolSupplier(str(path))
    assert Chem.GetFormalCharge(read) == after.formal_charge.sum()
    assert Chem.MolToSmiles(read, isomericSmiles=False) == Chem.CanonSmiles(expected)


def test_a_folder_of_pdbqt_holds_a_ligand_a_file(tmp_path: Path) -> None:
    meeko = pytest.importorskip("meeko")
    out = conformers(tmp_path, "ph=7.4", out="ligands.pdbqt")
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["qm9-0-0.pdbqt", "qm9-0-1.pdbqt"]
    for file in files:
        text = file.read_text()
        assert "MODEL" not in text  # which Vina refuses
        assert f"REMARK moldiff SMILES = {Chem.CanonSmiles(IN_WATER)}\n" in text
        (mol,) = meeko.RDKitMolCreate.from_pdbqt_mol(meeko.PDBQTMolecule(text, skip_typing=True))
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles(IN_WATER)
    conformers(tmp_path, out="ligands.pdbqt")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ligands.1.pdbqt", "ligands.pdbqt"]
    assert [file.name for file in sorted(out.iterdir())] == [file.name for file in files]


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "ph=15", f"out={tmp_path / 'a.sdf'}"]) == 2
    assert "ph: got 15, expected a number from 0 to 14, such as 7.4" in capsys.readouterr().err
    assert main(["sample", f"out={tmp_path / 'a.pdbqt.gz'}"]) == 2
    assert "unknown type of file" in capsys.readouterr().err
    (tmp_path / "a.pdbqt").touch()
    assert main(["sample", f"out={tmp_path / 'a.pdbqt'}"]) == 2
    assert "is a file, expected the name of a folder" in capsys.readouterr().err


def test_a_run_at_a_ph_goes_on_as_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = conformers(tmp_path, "ph=7.4").read_bytes()
    end = whole.index(b"$$$$") + 5
    path = tmp_path / "out.sdf"
    path.write_bytes(whole[:end])
    conformers(tmp_path, "ph=7.4", "resume=true")
    assert path.read_bytes() == whole
    path.write_bytes(whole[:end])
    options = ["sample", "task=conformers", f'smiles="{AMINO_ACID}"', "n=2", "steps=20", f"out={path}", "resume=true"]
    assert main(options) == 2
    assert "was drawn with ph=7.4, expected None" in capsys.readouterr().err


def test_the_settings_say_it(tmp_path: Path) -> None:
    summary = tmp_path / "run.json"
    conformers(tmp_path, "ph=7", f"summary={summary}")
    assert json.loads(summary.read_text())["settings"]["ph"] == "7"


@pytest.mark.slow
def test_most_of_known_acids_and_bases_get_the_state_that_they_have(tmp_path: Path) -> None:
    """The figure of docs/docking.md."""
    lines = Path(__file__).with_name("protonation.tsv").read_text().splitlines()[1:]
    right, path = 0, tmp_path / "a.sdf"
    for _, smiles, expected in (line.split("\t") for line in lines):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        molecule = from_rdkit(mol)
        assert isinstance(molecule, Molecule)
        moldiff.write(path, [protonated(molecule, 7.4)[0]])
        (read,) = Chem.SDMolSupplier(str(path))
        right += Chem.MolToSmiles(read, isomericSmiles=False) == Chem.CanonSmiles(expected)
    assert len(lines) == 95
    assert right == 81
