"""Numbers of atoms and bonds by class, by hand and as a prediction expects them, and properties fitted to them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import (
    MODEL_CONFIG,
    STATISTICS,
    VOCABULARY,
    conditional_model,
    random_batch,
    random_level,
    random_prediction,
    small_denoiser,
)
from trainings import SAMPLE

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import evaluation_batches
from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.conditioning import (
    Properties,
    PropertyDropout,
    bond_counts,
    class_counts,
    expected_bond_counts,
    fitted_slopes,
    num_bond_counts,
    num_counts,
)
from moldiff.diffusion.model import NoisyBatch
from moldiff.diffusion.pretrained import build_model, load_pretrained, save_pretrained
from moldiff.errors import MoldiffError
from moldiff.training.module import counted, learnt_properties
from moldiff.training.train import load_matching_weights

K = VOCABULARY.num_atom_classes


def one_hot_prediction(batch: MolBatch, num_classes: int) -> Prediction:
    """What the network would say if it were certain of the batch."""
    certain = 1e4
    return Prediction(
        pos=batch.pos,
        hydrogen=batch.hydrogen,
        atom_type=certain * torch.nn.functional.one_hot(batch.atom_type, num_classes).to(batch.pos),
        bond=certain * torch.nn.functional.one_hot(batch.bond, 4).to(batch.pos),
    )


def three_atoms() -> MolBatch:
    """Classes 1, 0, 1; a double bond between the first two and a single one between the last two; then padding."""
    bond = torch.zeros(1, 4, 4, dtype=torch.long)
    bond[0, 0, 1] = bond[0, 1, 0] = 2
    bond[0, 1, 2] = bond[0, 2, 1] = 1
    mask = torch.tensor([[True, True, True, False]])
    return MolBatch(torch.zeros(1, 4, 3), torch.zeros(1, 4, 4, 3), torch.tensor([[1, 0, 1, 0]]), bond, mask)


def test_counts_by_hand() -> None:
    batch = three_atoms()
    assert class_counts(batch, 2).tolist() == [[1, 2, 1, 1, 0, 1]]  # classes 0 and 1; orders 1 to 3; a one
    # Then, by order, the bonds between classes (0, 0), (0, 1), (1, 1).
    assert bond_counts(batch, 2).tolist() == [[1, 2, 1, 1, 0, 1, *(0, 1, 0), *(0, 1, 0), *(0, 0, 0)]]


def test_lengths() -> None:
    batch = random_batch([4, 5])
    assert class_counts(batch, K).shape == (2, num_counts(K))
    assert bond_counts(batch, K).shape == (2, num_bond_counts(K))


def test_a_certain_prediction_expects_what_is_there() -> None:
    batch = random_batch([4, 6, 3])
    found = expected_bond_counts(one_hot_prediction(batch, K), batch)
    torch.testing.assert_close(found.double(), bond_counts(batch, K).double(), atol=1e-6, rtol=0)


def test_an_uncertain_one_expects_the_mean() -> None:
    batch = three_atoms()
    even = Prediction(
        pos=batch.pos, hydrogen=batch.hydrogen, atom_type=torch.zeros(1, 4, 2), bond=torch.zeros(1, 4, 4, 4)
    )
    expected = expected_bond_counts(even, batch)[0, : num_counts(2)]
    torch.testing.assert_close(expected, torch.tensor([1.5, 1.5, 0.75, 0.75, 0.75, 1.0]))


def test_slopes_are_found_again_where_some_values_are_not_known() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 5, (3000, 6), generator=generator).float()
    slopes = torch.randn(6, 3, generator=generator)
    targets = counts @ slopes
    targets[::3, 1] = math.nan
    torch.testing.assert_close(fitted_slopes(counts, targets), slopes, atol=1e-4, rtol=0)


def test_bonds_tell_more_of_real_molecules_than_classes() -> None:
    prepared = MoleculeDataset.load(SAMPLE)
    indices = prepared.split("train")
    properties = learnt_properties(prepared, ["alpha", "lumo", "atoms"], indices)
    left = {}
    for counts_of in (class_counts, bond_counts):
        counts, targets = counted(prepared, properties, indices, counts_of)
        left[counts_of] = (targets - counts @ fitted_slopes(counts, targets, ridge=0.1)).abs().mean(0)
    assert left[class_counts][0] < 0.25  # of a standard deviation
    assert left[bond_counts][1] < left[class_counts][1]
    assert left[bond_counts][2] < 0.01  # atoms are counted exactly


def test_every_set_knows_its_number_of_atoms() -> None:
    prepared = MoleculeDataset.load(SAMPLE)
    assert list(prepared.learnable)[-1] == "atoms"
    assert "atoms" not in prepared.properties
    molecules = [prepared.molecule(index) for index in range(20)]
    values = prepared.values(["mu", "atoms"])
    assert values[:20, 1].tolist() == [molecule.num_atoms for molecule in molecules]
    assert values[:20, 0].tolist() == pytest.approx([molecule.properties["mu"] for molecule in molecules])
    mine = np.arange(len(prepared), dtype=np.float32)
    own = replace(
        prepared,
        properties={**prepared.properties, "atoms": "mine"},
        flat={**prepared.flat, "y": np.column_stack([prepared.flat["y"], mine])},
    )
    assert own.learnable["atoms"] == "mine"
    assert own.values(["atoms"])[:, 0].tolist() == mine.tolist()
    with pytest.raises(MoldiffError, match="no property 'gop'; it has: mu, alpha"):
        prepared.values(["gop"])
    batches = list(evaluation_batches(prepared, np.arange(3), batch_size=3, properties=["atoms"]))
    told = [value for batch in batches if batch.condition is not None for value in batch.condition[:, 0].tolist()]
    assert sorted(told) == sorted(float(molecule.num_atoms) for molecule in molecules[:3])


def test_companions_are_told_beside_anything() -> None:
    values = torch.arange(20_000.0).view(5_000, 4)
    dropout = PropertyDropout(unconditional=0.2, alone=0.8, companions=["atoms"], accompanied=0.6)
    told = dropout(values, torch.Generator().manual_seed(0)).isfinite()
    others, atoms = told[:, :3].sum(1), told[:, 3].float()
    assert set(others.tolist()) == {0, 1}
    for number in (0, 1):
        assert float(atoms[others == number].mean()) == pytest.approx(0.6, abs=0.05)
    assert dropout.chosen({"atoms": "", "gap": "eV", "mu": "D"}, "mine") == ["gap", "mu", "atoms"]
    with pytest.raises(MoldiffError, match="mine has no properties to be learnt"):
        dropout.chosen({"atoms": ""}, "mine")


def test_the_network_sees_what_the_estimate_lacks() -> None:
    denoiser = small_denoiser(0, num_properties=2)
    batch = random_batch([4, 5]).replace(condition=torch.tensor([[1.0, math.nan], [0.5, 2.0]], dtype=torch.double))
    level, previous = random_level(batch), random_prediction(batch)
    before = denoiser(batch, level, previous)
    assert denoiser.condition is not None
    denoiser.condition.slopes.normal_(generator=torch.Generator().manual_seed(1))
    after = denoiser(batch, level, previous)
    assert (after.atom_type - before.atom_type).abs().max() > 1e-6
    without = batch.replace(condition=None)
    plain = denoiser(without, level, previous)
    first = denoiser(batch, level, None)
    denoiser.condition.slopes.zero_()
    assert torch.equal(denoiser(without, level, previous).atom_type, plain.atom_type)  # nothing told, nothing lacking
    assert torch.equal(denoiser(batch, level, None).atom_type, first.atom_type)  # no estimate, nothing lacking


def test_contributions_know_what_they_leave_unexplained() -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser = small_denoiser(0, num_properties=3).float()
    counts = torch.randint(0, 5, (4000, num_bond_counts(K)), generator=generator).float()
    noise = torch.tensor([0.5, 0.0, 2.0]) * torch.randn(4000, 3, generator=generator)
    targets = counts[:, :3] * torch.tensor([0.2, -0.3, 0.1]) + noise
    targets[::2, 2] = math.nan
    denoiser.fit_counts(counts, targets)
    assert denoiser.condition is not None
    contributions = denoiser.contributions
    assert contributions is not None
    rest = (targets - contributions(counts)).square().nanmean(0).sqrt()
    assert rest[0] == pytest.approx(0.5, rel=0.15)
    assert rest[1] < 0.01
    torch.testing.assert_close(contributions.unexplained, rest.clamp(max=1))  # more than all of it cannot be left
    assert contributions.explained.tolist() == pytest.approx([1 - float(rest[0]) ** 2, 1, 0], abs=1e-4)


def test_what_the_classes_add_up_to_is_a_loss_of_what_is_told() -> None:
    model = conditional_model()
    batch = random_batch([4, 5, 3]).replace(condition=torch.randn(3, 2, dtype=torch.double))
    told = torch.tensor([[True, False], [True, True], [True, True]])
    clean = batch.replace(condition=torch.where(told, batch.condition, torch.nan))
    level = random_level(batch)
    known = NoiseLevel(level.pos, level.atom.clone(), level.bond, level.hydrogen)
    known.atom[2, 0] = 0  # of the third molecule one class is known, so it does not count
    noised = NoisyBatch(clean, batch, known)
    prediction = random_prediction(batch)
    model.denoise = lambda *_: prediction  # type: ignore[method-assign, assignment]
    contributions = model.contributions
    assert contributions is not None
    contributions.unexplained[1] = 0.05  # counts as 0.1
    missing = contributions(expected_bond_counts(prediction, batch) - bond_counts(batch, K))
    missing = missing / torch.tensor([1, 0.1])
    expected = (missing[0, 0] ** 2 + missing[1].square().sum()) / 3
    assert expected > 0.1
    torch.testing.assert_close(model.losses_of(noised, self_condition=False)["contributions"], expected)
    assert int(model.counts_of(noised)["contributions"]) == 3
    model.denoise = lambda *_: one_hot_prediction(batch, K)  # type: ignore[method-assign, assignment]
    assert float(model.losses_of(noised, self_condition=False)["contributions"]) < 1e-10
    untold = NoisyBatch(clean.replace(condition=torch.full((3, 2), torch.nan)), batch, known)
    assert float(model.losses_of(untold, self_condition=False)["contributions"]) == 0


def test_counts_are_exact_where_the_network_is_not() -> None:
    denoiser = small_denoiser(0, num_properties=2).float()
    batch, previous = random_batch([4, 5]), random_prediction(random_batch([4, 5]))
    condition = torch.tensor([[1.0, 2.0], [0.5, 2.0]])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float(), condition=condition)
    previous = Prediction(**{name: value.float() for name, value in vars(previous).items()})
    level = NoiseLevel(*(value.float() for value in vars(random_level(batch)).values()))
    seen: list[torch.Tensor] = []
    assert denoiser.condition is not None
    denoiser.condition.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    denoiser(batch, level, previous)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        denoiser(batch, level, previous)
    assert torch.equal(*seen)


def test_properties_are_taken_over_by_name(tmp_path: Path) -> None:
    values, sizes = np.array([[1.0, 10.0, 3.0], [2.0, 20.0, 5.0]]), np.array([4, 5])
    old = Properties.of({"gap": "eV", "mu": "D"}, values[:, :2], sizes)
    new = Properties.of({"mu": "D", "atoms": "", "gap": "eV"}, values[:, [1, 2, 0]], sizes)
    trained = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS, properties=old)
    with torch.no_grad():
        for parameter in trained.denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    save_pretrained(tmp_path / "old", trained, MODEL_CONFIG)
    model = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS, properties=new)
    line = load_matching_weights(model, load_pretrained(tmp_path / "old"), MODEL_CONFIG["denoiser"])
    assert line.endswith("; properties, with fresh weights: atoms")
    batch = random_batch([4, 5]).replace(condition=torch.tensor([[1.0, math.nan], [0.5, 2.0]], dtype=torch.double))
    level = random_level(batch)
    ordered = torch.stack([batch.condition[:, 1], torch.full((2,), 0.3).double(), batch.condition[:, 0]], dim=1)  # type: ignore[index]
    one = trained.double().denoise(batch, level)
    other = model.double().denoise(batch.replace(condition=ordered), level)
    torch.testing.assert_close(one.atom_type, other.atom_type, rtol=0, atol=1e-12)
