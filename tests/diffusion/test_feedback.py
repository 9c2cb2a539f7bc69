"""Steering towards property values: what the network is told, which draws are taken, and that it gets nearer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from models import (
    NUM_CLASSES,
    STATISTICS,
    VOCABULARY,
    conditional_model,
    random_batch,
    random_prediction,
    small_process,
)
from torch import Tensor, nn

from moldiff.diffusion.batch import BatchNoise, MolBatch, NoiseLevel, PerMoleculeNoise, Prediction, molecule_generator
from moldiff.diffusion.conditioning import Contributions, Properties, expected_bond_counts, num_bond_counts
from moldiff.diffusion.guidance import FeedbackProcess, GuidedDiffusion, PropertyFeedback
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.sampler import PartialState, PowerSampler, run_sampler
from moldiff.sampling.batch import stack_starts

HYDROGENS = torch.from_numpy(VOCABULARY.table[:, 2]).float()


def steerable_model() -> MoleculeDiffusion:
    """A conditional model whose contributions explain three quarters of both properties."""
    model = conditional_model().float()
    model.contributions.unexplained.fill_(0.5)  # type: ignore[union-attr]
    return model


def hydrogens_counted(explained: Sequence[float] = (1.0,)) -> Contributions:
    """Properties that are the number of hydrogens, in so many shares."""
    slopes = torch.zeros(num_bond_counts(NUM_CLASSES), len(explained))
    slopes[:NUM_CLASSES] = HYDROGENS[:, None]
    return Contributions(slopes, (1 - torch.tensor(explained)).sqrt())


def test_the_network_is_told_more_of_what_is_lacking() -> None:
    batch = random_batch([4, 5, 3])
    prediction = random_prediction(batch)
    contributions = hydrogens_counted([1.0, 0.25])
    found = contributions(expected_bond_counts(prediction, batch))[:, 0]
    asked = torch.stack([found + torch.tensor([0.5, 9.0, -0.1]), found - 0.4], dim=1)
    asked[0, 1] = math.nan
    feedback = PropertyFeedback(contributions, asked, torch.tensor([True, True, False]), 0.5)
    torch.testing.assert_close(feedback.condition, asked, equal_nan=True)
    feedback.update(prediction, batch)
    more = torch.tensor([[0.25, math.nan], [2.0, -0.05], [0.0, 0.0]])  # 2 is the farthest; nothing of the third is free
    torch.testing.assert_close(feedback.condition, asked + more, equal_nan=True)
    feedback.update(prediction, batch)
    more = torch.tensor([[0.5, math.nan], [2.0, -0.1], [0.0, 0.0]])
    torch.testing.assert_close(feedback.condition, asked + more, equal_nan=True)


def test_what_is_lacking_is_exact_where_the_network_is_not() -> None:
    batch = random_batch([4, 5])
    feedback = PropertyFeedback(hydrogens_counted(), torch.tensor([[300.0], [301.0]]), torch.tensor([True, True]), 0.5)
    lacking = feedback.lacking(random_prediction(batch), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(feedback.lacking(random_prediction(batch), batch), lacking)


def test_the_nearest_draw_is_taken() -> None:
    batch, process = random_batch([5, 4]), small_process(corrector=1000.0)  # every class is redrawn
    prediction = random_prediction(batch)
    t, s = (NoiseLevel.uniform(torch.full((2,), level), batch.node_mask) for level in (0.5, 0.4))
    asked = torch.tensor([[9.0], [2.0]])
    feedback = PropertyFeedback(hydrogens_counted(), asked, torch.tensor([True, True]), 0.5)

    def off(found: MolBatch) -> Tensor:
        return ((HYDROGENS[found.atom_type] * found.node_mask).sum(1) - asked[:, 0]).abs()

    chosen = FeedbackProcess(**vars(process), feedback=feedback).step(
        batch, prediction, t, s, BatchNoise(torch.Generator().manual_seed(3))
    )
    draws = BatchNoise(torch.Generator().manual_seed(3))
    every = torch.stack([off(process.step(batch, prediction, t, s, draws)) for _ in range(8)])
    assert torch.equal(off(chosen), every.amin(0))
    assert (every.amin(0) < every.amax(0)).all()
    assert torch.equal(chosen.bond, chosen.bond.mT)


def test_what_is_known_stays_and_counts() -> None:
    batch, process = random_batch([5]), small_process(corrector=1000.0)
    level = NoiseLevel.uniform(torch.full((1,), 0.5), batch.node_mask)
    level = replace(level, atom=level.atom.clone())
    level.atom[0, :3] = 0
    lower = NoiseLevel(*(0.8 * field for field in vars(level).values()))
    feedback = PropertyFeedback(hydrogens_counted(), torch.tensor([[4.0]]), torch.tensor([True]), 0.5)
    draws = BatchNoise(torch.Generator().manual_seed(0))
    found = FeedbackProcess(**vars(process), feedback=feedback).step(
        batch, random_prediction(batch), level, lower, draws
    )
    assert torch.equal(found.atom_type[0, :3], batch.atom_type[0, :3])


def test_molecules_without_a_free_class_are_not_steered_whatever_their_padding() -> None:
    model = GuidedDiffusion(steerable_model(), scale=1.0)
    given = random_batch([3], width=3)
    known = PartialState(
        given.replace(pos=given.pos.float(), hydrogen=given.hydrogen.float(), condition=torch.tensor([[1.0, 4.0]])),
        NoiseLevel(torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 3, 3), torch.ones(1, 3)),
    )
    told = []
    for starts in ([known], [known, start(5, (1.0, 4.0))]):
        stacked = stack_starts(starts)
        noisy = model.to_model_units(stacked.clean)
        feedback = PropertyFeedback.of(model, noisy, stacked.level)
        assert feedback is not None
        feedback.update(random_prediction(noisy), noisy)
        told.append(feedback.condition)
        assert torch.equal(told[-1][0], noisy.condition[0])  # type: ignore[index]
    assert not torch.equal(told[1][1], noisy.condition[1])  # type: ignore[index]


class Sluggish(nn.Module):
    """Goes half of the way towards the number of hydrogens that it is told, and has no coordinates in mind."""

    contributions = hydrogens_counted()

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        """Logits that tilt with what is told; everything else is zero."""
        told = torch.zeros(len(noisy.pos), 1) if noisy.condition is None else noisy.condition.nan_to_num()
        atoms = 0.15 * (told - 4.0)[:, None] * HYDROGENS
        bonds = torch.tensor([2.0, 0.0, -1.0, -2.0]).expand(*noisy.bond.shape, 4)
        return Prediction(0 * noisy.pos, 0 * noisy.hydrogen, atoms.expand(*noisy.atom_type.shape, -1), bonds)


def sluggish_model() -> MoleculeDiffusion:
    properties = Properties.of({"hydrogens": ""}, torch.tensor([[-1.0], [1.0]]).numpy(), torch.tensor([4, 5]).numpy())
    return MoleculeDiffusion(Sluggish(), small_process(), VOCABULARY, STATISTICS, properties)


def start(size: int, asked: Sequence[float]) -> PartialState:
    one = PartialState.unknown(torch.ones(1, size, dtype=torch.bool))
    return PartialState(one.clean.replace(condition=torch.tensor([list(asked)])), one.level)


def drawn(
    model: MoleculeDiffusion, starts: Sequence[PartialState], indices: Sequence[int], num_steps: int = 8
) -> Prediction:
    draws = PerMoleculeNoise([molecule_generator(5, index) for index in indices])
    return run_sampler(model, PowerSampler(num_steps=num_steps), stack_starts(starts), draws)


def test_steering_gets_nearer() -> None:
    asked = [4.0, 5.0, 7.0, 8.0]  # within what it may be told more
    starts = [start(5, [value]) for value in asked]
    off = {}
    for feedback in (0.0, 0.5):
        model = GuidedDiffusion(sluggish_model(), scale=1.0, feedback=feedback)
        shares = drawn(model, starts, range(4), num_steps=20).atom_type.softmax(-1)
        off[feedback] = (shares @ HYDROGENS).sum(1) - torch.tensor(asked)
    assert float(off[0.0].abs().mean()) > 0.5
    assert float(off[0.5].abs().mean()) < 0.2 * float(off[0.0].abs().mean())


def test_steered_molecules_do_not_depend_on_their_batch() -> None:
    model = GuidedDiffusion(steerable_model(), scale=1.0)
    starts = [start(size, values) for size, values in ((5, (1.0, 4.0)), (3, (math.nan, 2.0)), (4, (2.0, math.nan)))]
    together = drawn(model, starts, range(3))
    for row, one in enumerate(starts):
        alone, size = drawn(model, [one], [row]), one.clean.max_atoms
        torch.testing.assert_close(together.atom_type[row, :size], alone.atom_type[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.pos[row, :size], alone.pos[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scale", "feedback"), [(0.0, 0.5), (1.0, 0.0)])
def test_without_steering_nothing_changes(scale: float, feedback: float) -> None:
    model = steerable_model()
    guided = GuidedDiffusion(model, scale=scale, feedback=feedback)
    plain = GuidedDiffusion(model, scale=scale, feedback=0.0)
    starts = [start(5, (1.0, 4.0))]
    assert torch.equal(drawn(guided, starts, [0]).atom_type, drawn(plain, starts, [0]).atom_type)
    assert not torch.equal(
        drawn(GuidedDiffusion(model, scale=1.0), starts, [0]).atom_type, drawn(plain, starts, [0]).atom_type
    )
