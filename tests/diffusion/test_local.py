"""Losses of the geometry around each atom: worked out by hand, blind to motions, and part of a training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from models import random_batch, random_level, random_prediction, small_process
from torch import Tensor
from trainings import QUIET, config, rows

from moldiff.cli.compose import compose_options
from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.instantiate import instantiate
from moldiff.diffusion.process.geometry_loss import Distances, LocalFrames, LocalLoss
from moldiff.training.train import train

pytestmark = QUIET

LOSSES = [Distances(), LocalFrames()]


def chain(*pos: tuple[float, float, float]) -> MolBatch:
    """Atoms in a row, each bonded to the next, the first with one hydrogen of length 1 along x."""
    count = len(pos)
    bond = torch.diag(torch.ones(count - 1, dtype=torch.long), 1)
    hydrogen = torch.zeros(1, count, 4, 3, dtype=torch.double)
    hydrogen[0, 0, 0, 0] = 1.0
    mask = torch.ones(1, count, dtype=torch.bool)
    atoms = torch.zeros(1, count, dtype=torch.long)
    return MolBatch(torch.tensor([pos], dtype=torch.double), hydrogen, atoms, (bond + bond.mT)[None], mask).validate()


def estimate(batch: MolBatch, **changes: Tensor) -> Prediction:
    """The molecules themselves as an estimate, some fields changed."""
    return Prediction(
        **{"pos": batch.pos, "hydrogen": batch.hydrogen, "atom_type": batch.pos, "bond": batch.pos} | changes
    )


def moved(batch: MolBatch, matrix: Tensor, shift: float) -> Prediction:
    return estimate(batch, pos=batch.pos @ matrix + shift, hydrogen=batch.hydrogen @ matrix)


def random_rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.double))[0]
    return matrix * torch.linalg.det(matrix)


def counted_errors(loss: LocalLoss, prediction: Prediction, clean: MolBatch) -> Tensor:
    return loss.errors(prediction, clean)[loss.pairs(clean)]


def test_distances_of_near_atoms_and_bonds_to_hydrogens_count() -> None:
    clean = chain((0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0))
    assert Distances().pairs(clean).long().tolist()[0] == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
    longer = clean.pos.clone()
    longer[0, 0, 0] = -0.5  # the first bond is 1.5 instead of 1 long
    errors = Distances().errors(estimate(clean, pos=longer, hydrogen=0.7 * clean.hydrogen), clean)[0]
    assert errors[0, 1].item() == errors[1, 0].item() == pytest.approx(0.25, abs=1e-6)
    assert errors[0, 2].item() == pytest.approx((math.hypot(1.5, 1) - math.sqrt(2)) ** 2, abs=1e-6)
    assert errors[0, 0].item() == pytest.approx(0.09, abs=1e-4)
    assert errors[1:, 1:].abs().max() < 1e-9


def test_frames_see_where_neighbours_and_hydrogens_are() -> None:
    clean = chain((0, 0, 0), (1, 0, 0), (1, 1, 0))
    other = clean.pos.clone()
    other[0, 2] = torch.tensor([2.0, 0.5, 0.0])
    turned = clean.hydrogen[..., [1, 0, 2]]  # the hydrogen of the first atom points along y
    errors = LocalFrames().errors(estimate(clean, pos=other, hydrogen=turned), clean)[0]
    scale = 1 / (1 + 0.1**2)  # squared length of a softly normalised axis of length 1
    # From the first atom the axes are x and y in both; the third atom moved by (1, -0.5).
    soft = 0.5**2 / (0.5**2 + 0.1**2)
    along, across = math.sqrt(scale), math.sqrt(scale) - 0.5 * math.sqrt(soft)
    assert errors[0, 1].item() == pytest.approx(0, abs=1e-9)
    assert errors[0, 2].item() == pytest.approx(along**2 + across**2, rel=0.01)
    assert errors[0, 0].item() == pytest.approx(2, rel=0.05)
    assert errors[1, 1].item() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_molecule_moved_is_no_error_and_motions_change_none(loss: LocalLoss, seed: int) -> None:
    clean, rotation = random_batch([5, 4, 3], seed), random_rotation(seed)
    assert counted_errors(loss, moved(clean, rotation, 3.0), clean).max() < 1e-9
    prediction = random_prediction(clean, seed)
    expected = counted_errors(loss, prediction, clean)
    assert expected.mean() > 0.1
    turned = moved(clean.replace(pos=prediction.pos, hydrogen=prediction.hydrogen), -rotation, 0.0)
    if isinstance(loss, Distances):  # blind to handedness
        torch.testing.assert_close(counted_errors(loss, turned, clean), expected)
    mirrored = clean.replace(pos=-clean.pos, hydrogen=-clean.hydrogen)
    torch.testing.assert_close(counted_errors(loss, turned, mirrored), expected)


def test_frames_tell_mirror_images_apart() -> None:
    clean = random_batch([5])
    errors = counted_errors(LocalFrames(), moved(clean, -torch.eye(3).double(), 0.0), clean)
    assert errors.max() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_and_single_atoms_are_left_out(loss: LocalLoss) -> None:
    batch, wide = random_batch([1, 2, 4], 0, 4), random_batch([1, 2, 4], 0, 7)
    prediction = random_prediction(batch)
    padded = wide.replace(pos=pad(batch.pos), hydrogen=pad(batch.hydrogen), atom_type=wide.atom_type)
    padded = padded.replace(bond=torch.nn.functional.pad(batch.bond, (0, 3, 0, 3)))
    wider = estimate(padded, pos=pad(prediction.pos), hydrogen=pad(prediction.hydrogen))
    torch.testing.assert_close(counted_errors(loss, wider, padded), counted_errors(loss, prediction, batch))
    alone = random_batch([1])
    found = counted_errors(loss, random_prediction(alone), alone)
    assert found.isfinite().all()
    assert len(found) == isinstance(loss, Distances)


def pad(values: Tensor) -> Tensor:
    """Three atoms of zeros more on axis 1."""
    return torch.cat([values, values.new_zeros(values.shape[0], 3, *values.shape[2:])], 1)


def test_a_straight_chain_has_no_frames() -> None:
    assert not LocalFrames().pairs(chain((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0))).any()
    assert not LocalFrames().pairs(chain((0, 0, 0), (1, 0, 0))).any()
    assert LocalFrames().pairs(chain((0, 0, 0), (1, 0, 0), (1, 1, 0))).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_where_all_atoms_are_estimated_in_one_place(loss: LocalLoss) -> None:
    clean = random_batch([5, 3])
    pos = torch.zeros_like(clean.pos).requires_grad_()
    hydrogen = torch.zeros_like(clean.hydrogen).requires_grad_()
    counted_errors(loss, estimate(clean, pos=pos, hydrogen=hydrogen), clean).sum().backward()
    for value in (pos, hydrogen):
        assert value.grad is not None
        assert value.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_without_noise_do_not_count_and_others_by_the_weight_of_the_noisier(loss: LocalLoss) -> None:
    clean = random_batch([5, 4])
    level = random_level(clean)
    level.pos[0, :3] = 0
    process, prediction = small_process(geometry=loss), random_prediction(clean)
    noisier = torch.maximum(level.pos[:, :, None], level.pos[:, None])
    counted = loss.pairs(clean) & (noisier > 0)
    assert int(process.counts(clean, level)["geometry"]) == counted.sum() < loss.pairs(clean).sum()
    expected = (process.pos.weight(noisier) * loss.errors(prediction, clean))[counted].mean()
    torch.testing.assert_close(process.loss(prediction, clean, level)["geometry"], expected)
    nothing = NoiseLevel(*(torch.zeros_like(field) for field in vars(level).values()))
    assert float(process.loss(prediction, clean, nothing)["geometry"]) == 0
    assert "geometry" not in small_process().loss(prediction, clean, level)


@pytest.mark.parametrize("name", ["Distances", "LocalFrames"])
@pytest.mark.parametrize("process", ["joint_linear", "joint_cosine"])
def test_a_local_loss_is_chosen_on_the_command_line(name: str, process: str) -> None:
    target = f"moldiff.diffusion.process.geometry_loss.{name}"
    config = compose_options("train", [f"process={process}", f"process.geometry={{_target_: {target}}}"])
    assert type(instantiate(config["process"]).geometry).__name__ == name
    assert config["field_weights"]["geometry"] == 1.0


def test_a_training_learns_from_a_local_loss_and_logs_it(tmp_path: Path) -> None:
    process = {
        "_target_": "moldiff.diffusion.process.joint.JointProcessConfig",
        "geometry": {"_target_": "moldiff.diffusion.process.geometry_loss.LocalFrames"},
    }
    options = config(tmp_path / "run", process=process)
    options["field_weights"] = options["field_weights"] | {"geometry": 1.0}
    train(options)
    logged = [row for row in rows(tmp_path / "run") if row.get("train/geometry")]
    assert len(logged) == 6
    for row in logged:
        names = ("pos", "hydrogen", "atom_type", "bond", "geometry")
        total = sum(options["field_weights"][name] * float(row[f"train/{name}"]) for name in names)
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4)
        assert float(row["train/geometry"]) > 0
