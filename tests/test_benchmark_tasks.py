"""The benchmark of the tasks: which parts it removes, and what it counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG, SIZES
from rdkit import Chem
from rdkit.Chem import AllChem, rdDistGeom

import moldiff
from moldiff.cli.compose import compose_options
from moldiff.data.dataset import MoleculeDataset, measure_statistics
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import save_pretrained
from moldiff.diffusion.process.joint import JointProcessConfig
from moldiff.diffusion.sampler import BROKEN_RESTARTS, PowerSampler
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.molecule import Molecule
from moldiff.tasks.formula import Formula
from tests.benchmarks.tasks.__main__ import main
from tests.benchmarks.tasks.conformers import conformer_results, embedded_rmsd, sanitized
from tests.benchmarks.tasks.parts import choose_part, is_untouched
from tests.benchmarks.tasks.settings import Settings


def embedded(smiles: str) -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    return molecule


def parts(smiles: str, kind: str) -> set[tuple[int, ...]]:
    molecule, random = embedded(smiles), np.random.default_rng(0)
    found = [choose_part(molecule, kind, random) for _ in range(40)]
    return {tuple(part) for part in found if part is not None}


def model_for(folder: str) -> MoleculeDiffusion:
    """Random weights for the classes of a prepared set."""
    prepared = MoleculeDataset.load(folder)
    statistics = measure_statistics(prepared.flat, prepared.split("train"), prepared.vocabulary)
    frequencies = torch.tensor(statistics.atom_marginal), torch.tensor(statistics.bond_marginal)
    torch.manual_seed(0)
    network = PairTransformer(num_atom_classes=prepared.vocabulary.num_atom_classes, **SIZES)
    return MoleculeDiffusion(network, JointProcessConfig().build(*frequencies), prepared.vocabulary, statistics).eval()


def test_parts_that_can_be_removed() -> None:
    assert parts("CCO", "grow") == {(0,), (2,)}
    assert parts("CCCCC", "link") == {(2,)}
    assert parts("c1ccccc1", "grow") == parts("C=CC=C", "link") == set()
    assert parts("c1ccccc1CC", "grow") == {(6, 7), (7,)}
    cut_twice = parts("C1CCCC1", "replace")
    assert all(len(part) <= 3 for part in cut_twice)
    assert (0,) in cut_twice
    assert parts("CC(C)O", "replace") == {(0,), (2,), (3,)}


def test_what_counts_as_untouched() -> None:
    whole = embedded("c1ccccc1CO")
    kept = np.arange(6)
    assert is_untouched(whole, whole, kept)
    other_kekule = whole.bonds.copy()
    ring = (other_kekule[:, :2] < 6).all(1)
    other_kekule[ring, 2] = 3 - other_kekule[ring, 2]
    assert is_untouched(replace(whole, bonds=other_kekule), whole, kept)
    moved = whole.pos.copy()
    moved[2, 0] += 0.002
    assert not is_untouched(replace(whole, pos=moved), whole, kept)
    lost = whole.num_hydrogens.copy()
    lost[1] = 0
    assert not is_untouched(replace(whole, num_hydrogens=lost), whole, kept)
    gained = np.concatenate([whole.bonds, [[0, 3, 1]]])
    assert not is_untouched(replace(whole, bonds=gained), whole, kept)


def test_conformers_are_counted_by_molecule_and_one_by_one() -> None:
    results = conformer_results([[0.1, 0.9], [0.6], []])
    assert [(r.numerator, r.denominator) for r in results[::2]] == [(1, 3), (1, 3)]
    assert [r.value for r in results[1::2]] == pytest.approx([0.35, 0.6])


@pytest.mark.parametrize("task", ["grow", "link", "replace", "conformers", "bonds"])
def test_every_table_is_made(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = compose_options("train", ["data=sample"])["data"]["folder"]
    save_pretrained(tmp_path / "model", model_for(folder), MODEL_CONFIG, dtype=torch.float32)
    out = tmp_path / "numbers.json"
    arguments = ["--model", str(tmp_path / "model"), "--data", folder, "--molecules", "6", "--samples", "2"]
    assert main([task, *arguments, "--steps", "2", "--out", str(out)]) == 0
    assert f"### {task}" in capsys.readouterr().out
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert len(results) >= 2
    for column in results.values():
        names = {row["name"]: row for row in column}
        untouched = names.get(f"{task}_kept_untouched")
        assert untouched is None or untouched["numerator"] == untouched["denominator"] > 0
    if task == "conformers":
        off = {row["name"]: row for row in results["moldiff"]}["conformers_hydrogens_off"]
        assert 0 <= off["numerator"] <= off["denominator"] == 12


def test_etkdg_embeds_what_it_cannot_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """From random coordinates, so that both have equally many conformers."""
    embed_conformer, tried = rdDistGeom.EmbedMultipleConfs, []

    def failing(mol: Chem.Mol, number: int, options: Any) -> list[int]:
        tried.append(options.useRandomCoords)
        return list(embed_conformer(mol, number - 2 if len(tried) == 1 else number, options))

    monkeypatch.setattr(rdDistGeom, "EmbedMultipleConfs", failing)
    whole = embedded("CCO")
    settings = Settings(generator=moldiff.load("qm9", device="cpu"), molecules=[whole], samples=5)
    truth = Chem.RemoveHs(sanitized(whole))
    assert len(embedded_rmsd(whole, truth, settings, relax=False)) == 5
    assert tried == [False, True]


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", "--model", "nope"]) == 2
    assert capsys.readouterr().err.startswith("moldiff: error: model: got 'nope'")


def test_what_a_restart_joined_is_not_called_raw() -> None:
    """Few steps leave many molecules in pieces."""
    generator, sampler = moldiff.load("qm9", device="cpu"), PowerSampler(num_steps=8)
    settings = Settings(generator=generator, molecules=[], samples=1, sampler=sampler)
    samples = settings.draw(Formula(formula="C7H10O2"), first=0, samples=40)
    raw = generator.sample(40, task=Formula(formula="C7H10O2"), sampler=sampler, keep=(), decode="raw")
    assert any(sample.restarts for sample in samples)
    for sample, other in zip(samples, raw, strict=True):
        assert sample.record()["restarts"] == sample.restarts <= BROKEN_RESTARTS
        (one, verdict), _ = settings.forms(sample).values()
        assert verdict == other.verdict
        np.testing.assert_array_equal(one.bonds, other.molecule.bonds)
        np.testing.assert_allclose(one.pos, other.molecule.pos, atol=1e-4)
        assert (sample.argmax is sample.molecule) == (
            not (sample.repaired or sample.restarts or sample.replaced_hydrogens)
        )
