"""Which parts of a ligand count as substituents of its rings, and that the benchmark grows them on ligands alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import MODEL_CONFIG, SIZES
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from moldiff.cli.compose import compose_options
from moldiff.data.dataset import MoleculeDataset, measure_statistics
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import save_pretrained
from moldiff.diffusion.process.joint import JointProcessConfig
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import load
from tests.benchmarks.tasks import __main__
from tests.benchmarks.tasks.settings import Settings
from tests.benchmarks.tasks.substituents import Substituents, has_substituent, ring_substituents


def embedded(smiles: str, name: str = "") -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    return replace(molecule, name=name)


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("CC(=O)Oc1ccccc1", [[0, 1, 2, 3]]),  # the ester's own bonds are no ring's
        ("Cc1ccc(Cl)cc1", [[0], [5]]),
        ("C1CC1c1ccccc1", [[0, 1, 2]]),  # from the smaller ring's side alone, the other is more than half
        ("O=C1CCCCC1", []),  # a double bond is none to cut
        ("CCO", []),
    ],
)
def test_substituents_of_rings(smiles: str, expected: list[list[int]]) -> None:
    assert sorted(ring_substituents(embedded(smiles))) == expected


def test_only_ligands_with_a_substituent_are_grown() -> None:
    assert has_substituent(embedded("Cc1ccccc1", "pdb_TOL"))
    assert not has_substituent(embedded("Cc1ccccc1", "moses_1"))
    assert not has_substituent(embedded("c1ccccc1", "pdb_BNZ"))


def test_a_substituent_is_drawn_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = compose_options("train", ["data=sample"])["data"]["folder"]
    prepared = MoleculeDataset.load(data)
    statistics = measure_statistics(prepared.flat, prepared.split("train"), prepared.vocabulary)
    frequencies = torch.tensor(statistics.atom_marginal), torch.tensor(statistics.bond_marginal)
    network = PairTransformer(num_atom_classes=prepared.vocabulary.num_atom_classes, **SIZES)
    model = MoleculeDiffusion(network, JointProcessConfig().build(*frequencies), prepared.vocabulary, statistics).eval()
    save_pretrained(tmp_path / "model", model, MODEL_CONFIG, dtype=torch.float32)
    wholes = [embedded("CC1CC1", "pdb_A"), embedded("OC1CCC1", "pdb_B")]
    settings = Settings(generator=load(tmp_path / "model", device="cpu"), molecules=wholes, samples=2)
    measure = Substituents()
    rows = measure.rows(settings, range(2))
    assert [row["removed"] for row in rows] == [[0], [0]]
    for results in measure.columns(rows).values():
        values = {result.name: result for result in results}
        assert values["grow_kept_untouched"].numerator == values["grow_kept_untouched"].denominator == 4
    words = ["ligands", "--model", str(tmp_path / "model"), "--data", data, "--out", str(tmp_path / "out.json")]
    assert __main__.main(words) == 2  # a set without ligands
    assert "none of the 0 molecules" in capsys.readouterr().err
