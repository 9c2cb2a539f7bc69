"""Molecules in pieces are drawn on from restarts; all others, and what is known, stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import NUM_CLASSES, STATISTICS, VOCABULARY, small_model, small_process
from torch import nn

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction, molecule_generator
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.sampler import BROKEN_LEVEL, BROKEN_RESTARTS, PartialState, PowerSampler
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.batch import DenoisedBatch, SampleSpec
from moldiff.sampling.molecule_sampler import MemoryBudget, MoleculeSampler
from moldiff.sampling.sample import Sample
from moldiff.tasks.task import NewMolecules, Task

CARBON_1 = 3  # CH3 of the vocabulary


def in_pieces(molecule: Molecule) -> bool:
    return molecule.pieces()[0] > 1


def bonded(number: int, *bonds: tuple[int, int]) -> Molecule:
    zeros = np.zeros(number, dtype=int)
    rows = np.array([(i, j, 1) for i, j in bonds], dtype=int).reshape(-1, 3)
    return Molecule(np.zeros((number, 3)), zeros + 6, zeros, zeros, np.zeros((number, 4, 3)), rows)


@pytest.mark.parametrize(
    ("molecule", "expected"),
    [
        (bonded(1), False),
        (bonded(2), True),
        (bonded(3, (0, 1), (1, 2)), False),
        (bonded(4, (0, 1), (2, 3)), True),
        (bonded(4, (0, 1), (1, 2), (0, 2)), True),
    ],
)
def test_pieces_by_hand(molecule: Molecule, expected: bool) -> None:
    assert in_pieces(molecule) == expected


def estimate(number: int, *, whole: bool) -> Prediction:
    """Two atoms CH3 in each molecule, bonded or, 10 Å apart, not."""
    atom = torch.full((number, 2, NUM_CLASSES), -20.0)
    atom[..., CARBON_1] = 20.0
    bond = torch.full((number, 2, 2, 4), -20.0)
    bond[..., 0] = 20.0
    order = 1 if whole else 0
    for i, j in ((0, 1), (1, 0)):
        bond[:, i, j] = -20.0
        bond[:, i, j, order] = 20.0
    pos = torch.tensor([[0.0, 0, 0], [1.5 if whole else 10.0, 0, 0]]).expand(number, 2, 3).clone()
    return Prediction(pos=pos, hydrogen=torch.randn(number, 2, 4, 3), atom_type=atom, bond=bond)


class Breaking(nn.Module):
    """Joins molecules of three atoms at once, and those of two only when it is called for so many times."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))
        self.calls = calls

    def forward(self, noisy: MolBatch, noise_level: NoiseLevel, previous: Prediction | None = None) -> Prediction:
        self.calls -= 1
        batch, size = noisy.node_mask.shape
        two = estimate(batch, whole=self.calls <= 0)
        found = Prediction.zeros(noisy, NUM_CLASSES)
        found.bond[..., 0] = 20.0
        found.pos[:, :2], found.bond[:, :2, :2] = two.pos, two.bond
        found.atom_type[..., CARBON_1] = 20.0
        for row in range(batch) if size == 3 else ():
            if noisy.node_mask[row, 2]:
                found.pos[row] = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [2.5, 1.0, 0]])
                found.atom_type[row, 1] = torch.eye(NUM_CLASSES)[CARBON_1 - 1] * 40.0
                for i, k in ((0, 1), (1, 0), (1, 2), (2, 1)):
                    found.bond[row, i, k] = torch.tensor([-20.0, 20.0, -20.0, -20.0])
        return found


class TwoOrThree(Task):
    """Molecules of two atoms, but for number 7, which has three."""

    def sizes(self) -> tuple[int, int]:
        return 2, 3

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        return PartialState.unknown(torch.ones(1, 3 if index == 7 else 2, dtype=torch.bool))


def sampler_with(model: MoleculeDiffusion, task: Task, num_steps: int, *, seed: int = 0) -> MoleculeSampler:
    return MoleculeSampler(
        model=model,
        sampler=PowerSampler(num_steps=num_steps),
        task=task,
        seed=seed,
        decode="valence",
        trajectory=True,
        budget=MemoryBudget(1_000),
    )


@pytest.mark.parametrize(("calls", "restarts"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_only_molecules_in_pieces_are_drawn_on(calls: int, restarts: int) -> None:
    model = MoleculeDiffusion(Breaking(calls), small_process(), VOCABULARY, STATISTICS)
    found = {one.index: one for one in sampler_with(model, TwoOrThree(), 1).draw(range(6, 9))}
    assert [found[k].restarts for k in (6, 7, 8)] == [restarts, 0, restarts]
    assert [in_pieces(found[k].molecule) for k in (6, 7, 8)] == [calls == 4, False, calls == 4]
    assert [len(found[k].trajectory or ()) for k in (6, 7, 8)] == [1 + restarts, 1, 1 + restarts]
    assert [in_pieces(found[k].argmax) for k in (6, 7, 8)] == [calls > 1, False, calls > 1]
    assert restarts <= BROKEN_RESTARTS


def test_what_is_known_stays_and_the_rest_goes_back_part_of_the_way() -> None:
    start = PartialState.unknown(torch.ones(1, 2, dtype=torch.bool))
    known = torch.tensor([[False, True]])
    level = replace(
        start.level,
        pos=start.level.pos.masked_fill(known, 0.0),
        atom=start.level.atom.masked_fill(known, 0.0),
        bond=torch.full_like(start.level.bond, 0.5),
    )
    start = replace(start, level=level, clean=start.clean.replace(pos=torch.tensor([[[0.0, 0, 0], [7.0, 8.0, 9.0]]])))
    generator = molecule_generator(0, 3)
    state = generator.get_state()
    prediction = estimate(1, whole=False)
    again = DenoisedBatch(small_model().float(), [SampleSpec(3, generator, start)], start, prediction).restart(0)
    assert again.start.level.pos.tolist() == [[BROKEN_LEVEL, 0.0]]
    assert again.start.level.atom.tolist() == [[BROKEN_LEVEL, 0.0]]
    assert (again.start.level.bond == 0.5).all()
    assert again.start.clean.pos.tolist() == [[prediction.pos[0, 0].tolist(), [7.0, 8.0, 9.0]]]
    assert again.start.clean.atom_type.tolist() == [[CARBON_1, 0]]
    assert torch.equal(generator.get_state(), state)
    assert not torch.equal(again.generator.get_state(), state)


def test_a_molecule_does_not_depend_on_its_batch() -> None:
    """Nor does what becomes of it after a restart; random weights leave some in pieces."""
    model = small_model().float()
    sampler = sampler_with(model, NewMolecules({4: 1, 5: 1, 6: 1}), 5, seed=5)
    sampler = replace(sampler, sampler=replace(sampler.sampler, settle=0.0))

    def drawn(indices: Sequence[int]) -> dict[int, Sample]:
        specs = [sampler.spec(index) for index in indices]
        return {one.index: one for one in sampler.draw_each(specs, lambda _: None)}

    together = drawn(range(120))
    restarted = [index for index, one in together.items() if one.restarts]
    assert len(restarted) >= 2
    for index in {0, *restarted[:3]}:
        alone, other = drawn([index])[index].molecule, together[index].molecule
        np.testing.assert_allclose(alone.pos, other.pos, atol=1e-4)
        np.testing.assert_array_equal(alone.atomic_number, other.atomic_number)
        np.testing.assert_array_equal(alone.bonds, other.bonds)


@pytest.mark.parametrize(("num_steps", "expected"), [(40, [10, 6]), (50, [14, 6]), (80, [26, 6]), (1, [1])])
def test_a_restart_takes_a_share_of_the_calls(num_steps: int, expected: list[int]) -> None:
    stages = PowerSampler(num_steps=num_steps).of_restart().stages()
    assert [len(stage.grid) for stage in stages] == expected
