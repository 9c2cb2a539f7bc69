"""Coordinates of other people under `moldiff sample task=bonds`, read back by RDKit alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from moldiff.cli.main import main

DIMER = [("O", 0, 0, 0.1173), ("H", 0, 0.7572, -0.4692), ("H", 0, -0.7572, -0.4692)]


def xyz(smiles: str, comment: str = "") -> str:
    """A frame with a relaxed conformer of a molecule."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=7) == 0
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
    lines = Chem.MolToXYZBlock(mol).splitlines()
    return "\n".join([lines[0], comment, *lines[2:], ""])


def bonded(folder: Path, content: str, *options: str) -> list[str]:
    """SMILES of what the command writes."""
    (folder / "a.xyz").write_text(content)
    out = folder / "b.sdf"
    assert main(["sample", "task=bonds", f"input={folder / 'a.xyz'}", f"out={out}", "steps=10", *options]) == 0
    return [Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in Chem.SDMolSupplier(str(out), removeHs=False)]


def refusal(folder: Path, content: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    (folder / "a.xyz").write_text(content)
    out = folder / "refused.sdf"
    assert main(["sample", "task=bonds", f"input={folder / 'a.xyz'}", f"out={out}", "steps=10", *options]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def test_s8_a_charge_that_is_asked_for_is_kept_or_refused(tmp_path, capsys):
    acetate = xyz("CC(=O)[O-]")
    assert "record 1: no structure of charge 0" in refusal(tmp_path, acetate, capsys, "charge=0")
    assert "record 1: no structure of charge 0" in refusal(tmp_path, acetate, capsys)
    assert "record 1: no structure of charge 1" in refusal(tmp_path, acetate, capsys, "charge=1")
    assert bonded(tmp_path, acetate, "charge=-1") == ["CC(=O)[O-]"]
    assert bonded(tmp_path, xyz("CC(=O)[O-]", "charge=-1")) == ["CC(=O)[O-]"]


def test_s8_a_charge_for_each_record(tmp_path, capsys):
    both = xyz("CC(=O)[O-]") + xyz("CCO")
    assert bonded(tmp_path, both, "charge=[-1,0]") == ["CC(=O)[O-]", "CCO"]
    assert bonded(tmp_path, both, "charge=0") == ["CCO"]
    assert "record 1 left out: no structure of charge 0" in capsys.readouterr().err
    assert "charge: got [0], expected a whole number, or 2 for as many records" in refusal(
        tmp_path, both, capsys, "charge=[0]"
    )


@pytest.mark.parametrize("smiles", ["CN=C=O", "CCN=C=O", "O=C=Nc1ccccc1", "N=C=O", "CC(=O)N=C=O"])
def test_s9_isocyanates_are_neutral(tmp_path, smiles):
    assert bonded(tmp_path, xyz(smiles)) == [Chem.CanonSmiles(smiles)]


@pytest.mark.parametrize("smiles", ["CC#[N+][O-]", "C[N+]#[C-]", "C[N+](=O)[O-]", "C[N+](C)(C)[O-]"])
def test_s9_without_a_neutral_form_there_are_as_few_charges_as_can_be(tmp_path, smiles):
    assert bonded(tmp_path, xyz(smiles)) == [Chem.CanonSmiles(smiles)]


def test_s24_several_pieces_are_named(tmp_path, capsys):
    lines = [f"{symbol} {x} {y} {z + shift}" for shift in (0, 2.9) for symbol, x, y, z in DIMER]
    dimer = "\n".join(["6", "dimer", *lines, ""])
    assert "record 1: 2 pieces" in refusal(tmp_path, dimer, capsys)
    assert bonded(tmp_path, dimer + xyz("CCO")) == ["CCO"]
    assert "record 1 left out: 2 pieces" in capsys.readouterr().err


def test_s6_a_radical_of_one_heavy_atom_is_left_out(tmp_path, capsys):
    methyl = "4\nCH3\nC 0 0 0\nH 1.08 0 0\nH -0.54 0.935 0\nH -0.54 -0.935 0\n"
    assert bonded(tmp_path, methyl + xyz("O")) == ["O"]
    assert "record 1 left out: atom 0 (C) with 3 hydrogens lacks bonds" in capsys.readouterr().err
