"""Molecules in pieces are drawn on from restarts; all others, and what is known, stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from models import NUM_CLASSES, small_model

from moldiff.diffusion.batch import Prediction
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.noise import molecule_generator
from moldiff.diffusion.sampler import PowerSampler, Start
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.batch import (
    ATTEMPTS,
    LEVEL,
    Beginning,
    Chunk,
    MemoryBudget,
    _restart,
    draw_within,
    joined,
    outcomes,
    sampler_of_restart,
)
from moldiff.tasks.task import NewMolecules

SAMPLER = PowerSampler(num_steps=5)
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


def joint(first: Prediction, second: Prediction) -> Prediction:
    return Prediction(**{name: torch.cat([value, getattr(second, name)]) for name, value in vars(first).items()})


class Redrawn:
    """Draws whole molecules from the second round on, and keeps what it was asked for."""

    def __init__(self, model: MoleculeDiffusion, rounds: int) -> None:
        self.model, self.rounds, self.asked = model, rounds, []

    def __call__(self, beginnings: Sequence[Beginning]) -> Iterator[tuple[list[Beginning], Chunk]]:
        self.asked.append([one.index for one in beginnings])
        whole = len(self.asked) >= self.rounds
        for one in beginnings:  # a batch each
            start, prediction = one.start, estimate(1, whole=whole)
            yield [one], Chunk(self.model, start, prediction, [()], [(bonded(1),)])


@pytest.mark.parametrize(("rounds", "whole"), [(1, True), (2, True), (3, False)])
def test_only_molecules_in_pieces_are_drawn_on(rounds: int, whole: bool) -> None:
    model = small_model().float()
    start = Start.unknown(torch.ones(1, 2, dtype=torch.bool))
    beginnings = [Beginning(index, molecule_generator(0, index), start) for index in (4, 7, 9)]
    prediction = joint(joint(estimate(1, whole=False), estimate(1, whole=True)), estimate(1, whole=False))
    together = Start.unknown(torch.ones(3, 2, dtype=torch.bool))
    drawn = Chunk(model, together, prediction, [()] * 3, [(bonded(1),), (bonded(1),), (bonded(1),)])
    before = outcomes(drawn, "valence")
    redraw = Redrawn(model, rounds)
    found = joined(beginnings, drawn, redraw)
    assert redraw.asked == [[4, 9]] * min(rounds, ATTEMPTS)
    assert [in_pieces(one.molecule) for one in found] == [not whole, False, not whole]
    np.testing.assert_array_equal(found[1].molecule.hydrogen_offset, before[1].molecule.hydrogen_offset)
    assert [one.restarts for one in found] == [min(rounds, ATTEMPTS), 0, min(rounds, ATTEMPTS)]
    assert [len(one.frames or ()) for one in found] == [1 + min(rounds, ATTEMPTS), 1, 1 + min(rounds, ATTEMPTS)]


def test_what_is_known_stays_and_the_rest_goes_back_part_of_the_way() -> None:
    start = Start.unknown(torch.ones(1, 2, dtype=torch.bool))
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
    drawn = Chunk(small_model().float(), start, prediction, [()])
    again = _restart(Beginning(3, generator, start), drawn, 0)
    assert again.start.level.pos.tolist() == [[LEVEL, 0.0]]
    assert again.start.level.atom.tolist() == [[LEVEL, 0.0]]
    assert (again.start.level.bond == 0.5).all()
    assert again.start.clean.pos.tolist() == [[prediction.pos[0, 0].tolist(), [7.0, 8.0, 9.0]]]
    assert again.start.clean.atom_type.tolist() == [[CARBON_1, 0]]
    assert torch.equal(generator.get_state(), state)
    assert not torch.equal(again.generator.get_state(), state)


def test_a_molecule_does_not_depend_on_its_batch() -> None:
    """Nor does what becomes of it after a restart; random weights leave some in pieces."""
    model, task = small_model().float(), NewMolecules({4: 1, 5: 1, 6: 1})
    sampler = replace(SAMPLER, settle=0.0)
    redraw = partial(draw_within, MemoryBudget(1_000), model, sampler_of_restart(sampler))

    def drawn(indices: Sequence[int]) -> dict[int, Molecule]:
        beginnings = [Beginning.of(task, 5, index) for index in indices]
        found = {}
        for chunk, part in draw_within(MemoryBudget(1_000), model, sampler, beginnings):
            found |= {one.index: end.molecule for one, end in zip(chunk, joined(chunk, part, redraw), strict=True)}
            ends = zip(chunk, outcomes(part, "valence"), strict=True)
            restarted.update(one.index for one, end in ends if in_pieces(end.molecule))
        return found

    restarted: set[int] = set()
    together = drawn(range(120))
    assert len(restarted) >= 2
    for index in {0, *sorted(restarted)[:3]}:
        alone = drawn([index])[index]
        np.testing.assert_allclose(alone.pos, together[index].pos, atol=1e-4)
        np.testing.assert_array_equal(alone.atomic_number, together[index].atomic_number)
        np.testing.assert_array_equal(alone.bonds, together[index].bonds)


@pytest.mark.parametrize(("num_steps", "expected"), [(40, [10, 6]), (50, [14, 6]), (80, [26, 6]), (1, [1])])
def test_a_restart_takes_a_share_of_the_calls(num_steps: int, expected: list[int]) -> None:
    stages = sampler_of_restart(PowerSampler(num_steps=num_steps)).stages()
    assert [len(stage.grid) for stage in stages] == expected
