"""Stereo guidance: what counts as the hand that is asked for, and conformers of molecules with many centres."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from moldiff.diffusion.guidance import StereoTargets
from moldiff.molecules.conformers import marks
from moldiff.tasks.conformers import stereo_targets

SMILES = [
    "C[C@H](O)CC",
    "OC[C@@H](N)C(=O)O",
    "C[C@](F)(Cl)Br",
    "CC[S@](=O)C",
    "CC[S@@](=O)C",
    "C[C@@H]1CC[C@H](O)CC1",
    "C[C@]12CC[C@@H]3c4ccc(O)cc4CC[C@H]3[C@@H]1CC[C@@H]2O",
    "C/C=C/CC",
    "C/C=C\\CC",
    "C/C(F)=C(/Cl)C",
    "C/C=N/O",
    "CC/C=C\\[C@H](O)C",
]


def embedded(smiles: str) -> tuple[Chem.Mol, torch.Tensor]:
    """A molecule, heavy atoms first, and coordinates of these [1, N, 3] with its stereo."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=7) == 0
    heavy = mol.GetNumHeavyAtoms()
    return mol, torch.tensor(mol.GetConformer().GetPositions()[None, :heavy])


def targets_of(mol: Chem.Mol) -> StereoTargets:
    found = stereo_targets(mol, marks(mol))
    assert found is not None
    return found


@pytest.mark.parametrize("smiles", SMILES)
def test_coordinates_with_the_stereo_of_the_smiles_are_what_is_wanted(smiles: str) -> None:
    mol, pos = embedded(smiles)
    targets = targets_of(mol)
    stated = targets.centres.shape[1] + targets.double_bonds.shape[1]
    assert stated == smiles.replace("@@", "@").count("@") + ("=C" in smiles or "=N" in smiles) * ("/" in smiles)
    right = float(targets.log_odds(pos)[0])
    assert right > stated * float(torch.nn.functional.logsigmoid(torch.tensor(1.0)))
    if targets.centres.shape[1]:  # the mirror image has every centre wrong
        assert float(targets.log_odds(-pos)[0]) < right - 2 * targets.centres.shape[1]


def test_the_other_side_of_a_double_bond_is_not_what_is_wanted() -> None:
    mol, _ = embedded("C/C=C/CC")
    _, pos = embedded("C/C=C\\CC")
    assert float(targets_of(mol).log_odds(pos)[0]) < -2


def test_a_molecule_without_stereo_counts_nothing_beside_others() -> None:
    mol, pos = embedded(SMILES[1])
    one = targets_of(mol)
    both = StereoTargets.stack([None, one])
    assert both is not None
    odds = both.log_odds(pos.expand(2, -1, -1))
    assert odds.tolist() == [0.0, pytest.approx(float(one.log_odds(pos)[0]))]
    assert StereoTargets.stack([None, None]) is None


def test_the_odds_do_not_depend_on_place_and_turn() -> None:
    mol, pos = embedded(SMILES[6])
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=pos.dtype, generator=torch.Generator().manual_seed(0)))
    turn = turn * torch.linalg.det(turn)
    targets = targets_of(mol)
    torch.testing.assert_close(targets.log_odds(pos @ turn + 3.0), targets.log_odds(pos))


@pytest.mark.parametrize(
    ("model", "smiles"),
    [
        ("qm9", "C[C@H](O)[C@@H](N)C"),
        ("qm9", "C/C=C\\[C@H](O)C"),
        ("drugs", "OC[C@H]1O[C@@H](Oc2ccccc2)[C@H](O)[C@@H](O)[C@@H]1O"),
    ],
)
def test_most_draws_have_the_stereo_that_was_asked_for(model: str, smiles: str, tmp_path: Path) -> None:
    """Without guidance one of two to one of thirty-two had; the file is read with RDKit alone."""
    out = tmp_path / "conformers.sdf"
    command = [sys.executable, "-m", "moldiff.cli.main", "sample", f"model={model}", f"out={out}", "n=6", "steps=40"]
    options = ["task=conformers", f'smiles="{smiles}"', "max_draws=12", "workers=0"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, timeout=600)
    records = list(Chem.SDMolSupplier(str(out), removeHs=False))
    assert len(records) == 6
    for mol in records:
        Chem.AssignStereochemistryFrom3D(mol)
        found = Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol)))
        assert found == Chem.CanonSmiles(smiles)
