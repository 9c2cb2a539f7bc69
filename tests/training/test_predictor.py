"""The property predictor: invariance, the linear part, its folder, and a short training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import NUM_CLASSES, STATISTICS, VOCABULARY, random_batch
from scipy.spatial.transform import Rotation
from trainings import QUIET, SAMPLE

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import to_molecules
from moldiff.diffusion.conditioning import Properties, class_counts, half_of
from moldiff.diffusion.property_predictor import PropertyNetwork, PropertyPredictor, load_predictor, predictor_for
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.training.predictor import main

pytestmark = QUIET

SIZES = {"hidden_dim": 16, "pair_dim": 8, "steerable_dim": 8, "num_layers": 2, "num_heads": 2, "num_probes": 4}
PROPERTIES = Properties.of(
    {"gap": "eV", "cv": "J/K"}, np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]]), np.array([4, 5, 6])
)


def network() -> PropertyNetwork:
    torch.manual_seed(0)
    made = PropertyNetwork(num_atom_classes=NUM_CLASSES, num_properties=2, **SIZES)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval().requires_grad_(False)


def predictor() -> PropertyPredictor:
    return PropertyPredictor(
        network(), VOCABULARY, STATISTICS, PROPERTIES, SIZES, {"half": "a"}, {"gap": 0.1, "cv": 0.2}, "mine"
    )


def test_the_same_for_any_pose_order_and_padding() -> None:
    made = network().double()
    made.counts.normal_(generator=torch.Generator().manual_seed(1))
    batch = random_batch([5, 3], seed=1)
    values = made(batch)
    assert values.shape == (2, 2)
    matrix = -torch.from_numpy(Rotation.random(random_state=0).as_matrix())
    turned = batch.replace(pos=batch.pos @ matrix.T, hydrogen=batch.hydrogen @ matrix.T)
    torch.testing.assert_close(made(turned), values, rtol=0, atol=1e-10)
    order = torch.tensor([2, 0, 1, 3, 4])
    shuffled = batch.replace(
        pos=batch.pos[:, order],
        hydrogen=batch.hydrogen[:, order],
        atom_type=batch.atom_type[:, order],
        bond=batch.bond[:, order][:, :, order],
    )
    torch.testing.assert_close(made(shuffled), values, rtol=0, atol=1e-10)
    wider = random_batch([5, 3], seed=1)
    pad = torch.nn.functional.pad
    wider = wider.replace(
        pos=pad(wider.pos, (0, 0, 0, 2)),
        hydrogen=pad(wider.hydrogen, (0, 0, 0, 0, 0, 2)),
        atom_type=pad(wider.atom_type, (0, 2)),
        bond=pad(wider.bond, (0, 2, 0, 2)),
        node_mask=pad(wider.node_mask, (0, 2)),
    )
    torch.testing.assert_close(made(wider), values, rtol=0, atol=1e-10)


def test_counts_are_fitted_by_least_squares() -> None:
    made = network()
    batch = random_batch([6] * 200, seed=2)
    counts = class_counts(batch, NUM_CLASSES).float()
    assert counts[:, :NUM_CLASSES].sum(1).tolist() == [6] * 200
    assert counts[:, -1].tolist() == [1] * 200
    bonds = torch.stack([(batch.bond == order).sum((1, 2)) / 2 for order in (1, 2, 3)], dim=1)
    assert torch.equal(counts[:, NUM_CLASSES:-1], bonds.float())
    truth = torch.randn(counts.shape[1], 2, generator=torch.Generator().manual_seed(0))
    targets = counts @ truth
    targets[3, 1] = torch.nan
    made.fit_counts(counts, targets)
    torch.testing.assert_close(counts @ made.counts, counts @ truth, rtol=0, atol=1e-2)


def test_predictions_do_not_depend_on_their_company(tmp_path: Path) -> None:
    made = predictor()
    molecules = to_molecules(random_batch([4, 6, 3, 6]), VOCABULARY)
    strange = replace(molecules[0], atomic_number=np.full(4, 15))
    broken = replace(molecules[1], pos=np.full((6, 3), np.nan))
    values = made.predict([molecules[0], strange, *molecules[1:], broken])
    assert (values[1], values[-1]) == ({}, {})
    alone = [made.predict([molecule])[0] for molecule in molecules]
    for one, other in zip([values[0], *values[2:-1]], alone, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    made.save(tmp_path / "mine")
    again = load_predictor(tmp_path / "mine")
    assert (again.properties, again.vocabulary, again.statistics) == (PROPERTIES, VOCABULARY, STATISTICS)
    assert (again.errors, again.training, again.name) == ({"gap": 0.1, "cv": 0.2}, {"half": "a"}, "mine")
    for one, other in zip(again.predict(molecules), alone, strict=True):
        assert one == pytest.approx(other, rel=0.02, abs=0.02)  # stored in half precision
    assert predictor_for(PROPERTIES, None) is None  # none that ships knows a gap in eV


def test_the_shipped_predictor_knows_the_properties_of_qm9() -> None:
    prepared = MoleculeDataset.load(SAMPLE)
    units, sizes = dict(prepared.properties), np.diff(prepared.flat["atom_slices"])
    made = predictor_for(Properties.of(units, prepared.flat["y"], sizes), "b")
    assert made is not None
    assert (made.name, made.training["half"], made.training["molecules"]) == ("qm9_predictor", "a", 50_000)
    molecules = [prepared.molecule(place) for place in range(200)]
    found = made.predict(molecules)
    for name, error in made.errors.items():
        errors = [abs(values[name] - m.properties[name]) for values, m in zip(found, molecules, strict=True)]
        assert 0.5 * error < np.mean(errors) < 1.5 * error


def test_what_is_no_predictor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoldiffError, match="predictor: got 'nowhere', expected the folder of one or one of"):
        load_predictor("nowhere")
    predictor().save(tmp_path)
    (tmp_path / "predictor.safetensors").write_bytes(b"")
    with pytest.raises(MoldiffError, match="empty, expected the model's weights"):
        load_predictor(tmp_path)
    (tmp_path / "predictor.json").write_text("{")
    with pytest.raises(MoldiffError, match="damaged, expected a property predictor"):
        load_predictor(tmp_path)


def test_training_learns_from_one_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sizes = ["--layers", "1", "--hidden", "16", "--batch-size", "32", "--precision", "32-true"]
    assert main(["train", "--data", SAMPLE, "--out", str(out), "--steps", "12", "--validate-every", "6", *sizes]) == 0
    shown = capsys.readouterr().out
    assert "step 12  mean absolute errors: mu" in shown
    made = load_predictor(out)
    prepared = MoleculeDataset.load(SAMPLE)
    half = half_of(prepared.split("train"), "a")
    assert made.training["half"] == "a"
    assert (made.training["molecules"], made.training["steps"]) == (len(half), 12)
    assert made.properties.names == tuple(prepared.properties)
    mean = float(prepared.flat["y"][half][:, list(prepared.properties).index("alpha")].mean())
    assert made.properties.entries[made.properties.names.index("alpha")].mean == pytest.approx(mean, rel=1e-5)
    # The counts of atoms and bonds alone explain most of the polarisability.
    test = [prepared.molecule(int(place)) for place in prepared.split("test")]
    true = np.array([molecule.properties["alpha"] for molecule in test])
    error = np.abs(np.array([values["alpha"] for values in made.predict(test)]) - true).mean()
    assert error == pytest.approx(made.errors["alpha"], rel=1e-3)
    assert error < 0.5 * np.abs(true - true.mean()).mean()
    assert main(["measure", "--data", SAMPLE, "--model", str(out)]) == 0
    assert f"alpha    {made.errors['alpha']:.5g} Bohr^3" in capsys.readouterr().out
    seen = [prepared.molecule(int(place)) for place in half]
    found = [values["cv"] - m.properties["cv"] for values, m in zip(made.predict(seen), seen, strict=True)]
    assert abs(np.mean(found)) < 1e-3  # the constants are settled on the training molecules
    assert main(["train", "--data", SAMPLE, "--out", str(out), "--steps", "1"]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err


def test_molecules_of_the_set_know_their_properties() -> None:
    molecule = MoleculeDataset.load(SAMPLE).molecule(0)
    assert isinstance(molecule, Molecule)
    assert set(molecule.properties) == {"mu", "alpha", "homo", "lumo", "gap", "cv"}
