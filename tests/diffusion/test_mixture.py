"""What is known of a molecule, in training and at the start of sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path

from moldiff.diffusion.batch import MolBatch, NoiseLevel, PerMoleculeNoise, molecule_generator
from moldiff.diffusion.process.gaussian import GaussianProcess
from moldiff.diffusion.process.joint import JointProcessConfig
from moldiff.diffusion.process.schedule import PowerTimes
from moldiff.diffusion.process.task_mixture import TaskMixture, hops, known_part
from moldiff.errors import MoldiffError

SIZES = (1, 2, 3, 5, 9, 9, 9, 9) * 40


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.fixture
def batch(generator: torch.Generator) -> MolBatch:
    """Random trees with some more bonds: connected graphs."""
    count, width = len(SIZES), max(SIZES)
    mask = torch.arange(width) < torch.tensor(SIZES)[:, None]
    bond = torch.zeros(count, width, width, dtype=torch.long)
    for row, size in enumerate(SIZES):
        for atom in range(1, size):
            other = int(torch.randint(atom, (), generator=generator))
            bond[row, atom, other] = bond[row, other, atom] = int(torch.randint(1, 4, (), generator=generator))
    pos = torch.randn(count, width, 3, generator=generator) * mask[..., None]
    hydrogen = torch.randn(count, width, 4, 3, generator=generator) * mask[..., None, None]
    atom_type = torch.randint(0, 3, mask.shape, generator=generator) * mask
    return MolBatch(pos, hydrogen, atom_type, bond, mask).validate()


def test_hops_are_the_shortest_path(batch: MolBatch) -> None:
    root = torch.tensor([size // 2 for size in SIZES])
    found = hops(batch.bond, root)
    for row, size in enumerate(SIZES):
        expected = shortest_path(batch.bond[row].numpy() > 0, unweighted=True)[root[row]]
        assert found[row, :size].tolist() == expected[:size].tolist()


def test_hops_to_another_fragment_are_as_many_as_there_are_atoms() -> None:
    bond = torch.zeros(1, 4, 4, dtype=torch.long)
    bond[0, 0, 1] = bond[0, 1, 0] = 1
    assert hops(bond, torch.tensor([0])).tolist() == [[0, 1, 4, 4]]


def test_some_but_not_all_atoms_are_known_and_often_connected(batch: MolBatch, generator: torch.Generator) -> None:
    known = known_part(batch, generator)
    assert not (known & ~batch.node_mask).any()
    connected = []
    for row, size in enumerate(SIZES):
        number = int(known[row].sum())
        assert number == 0 if size == 1 else 1 <= number < size
        if size == 9 and number > 1:
            inside = known[row].numpy()
            graph = batch.bond[row].numpy()[np.ix_(inside, inside)] > 0
            connected.append(bool(np.isfinite(shortest_path(graph, unweighted=True)).all()))
    assert 0.5 < np.mean(connected) < 1


@pytest.mark.parametrize(
    ("task", "pos", "atom", "bond"),
    [
        ("whole", 0, 0, 0),
        ("fields", 0, 0, 0),
        ("graph", 0, 1, 1),
        ("composition", 0, 1, 0),
        ("geometry", 1, None, 0),
    ],
)
def test_a_task_knows_what_its_name_says(
    task: str, pos: int, atom: int | None, bond: int, batch: MolBatch, generator: torch.Generator
) -> None:
    mixture = TaskMixture(**{"whole": 0.0, task: 1.0})
    level = mixture(batch, PowerTimes(), generator)
    assert ((level.pos == 0) == bool(pos)).all()
    assert ((level.bond == 0) == bool(bond)).all()
    if atom is None:  # known in about half of the molecules
        assert 0.3 < float((level.atom[:, 0] == 0).float().mean()) < 0.7
    else:
        assert ((level.atom == 0) == bool(atom)).all()
    same = bool((level.pos == level.atom).all())
    assert same == (task == "whole")
    # Places of hydrogens are hidden but where they are drawn with the coordinates or known.
    assert torch.equal(level.hydrogen, {"graph": level.pos, "geometry": 0 * level.pos}.get(task, 1 + 0 * level.pos))


def test_a_molecule_settles_on_its_graph_at_low_noise_with_hydrogens_at_any(
    batch: MolBatch, generator: torch.Generator
) -> None:
    level = TaskMixture(whole=0.0, settle=1.0)(batch, PowerTimes(), generator)
    assert (level.atom == 0).all()
    assert (level.bond == 0).all()
    assert float(level.pos.max()) <= 0.4
    known = level.pos == 0
    assert torch.equal(known, level.hydrogen == 0)
    assert 0.2 < float(known.any(1).float().mean()) < 0.45
    hidden = level.hydrogen.amax(1) == 1
    assert 0.05 < float(hidden.float().mean()) < 0.2
    assert not torch.equal(level.pos, level.hydrogen)


def test_of_a_known_part_atoms_bonds_and_coordinates_are_known(batch: MolBatch, generator: torch.Generator) -> None:
    level = TaskMixture(whole=0.0, part=1.0)(batch, PowerTimes(), generator)
    known = level.pos == 0
    assert torch.equal(known, level.atom == 0)
    assert torch.equal(known, level.hydrogen == 0)
    assert torch.equal(level.bond == 0, known[:, :, None] & known[:, None])


def test_shares_are_those_asked_for(batch: MolBatch, generator: torch.Generator) -> None:
    level = TaskMixture(whole=1.0, graph=3.0)(batch, PowerTimes(), generator)
    assert abs(float((level.bond[:, 0, 0] == 0).float().mean()) - 0.75) < 0.08


@pytest.mark.parametrize("shares", [{"whole": -1.0}, {"whole": 0.0}, {"part": float("nan")}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(MoldiffError, match="tasks"):
        TaskMixture(**shares)


def test_start_is_the_prior_where_nothing_is_known_and_the_data_where_all_is(batch: MolBatch) -> None:
    process = JointProcessConfig(pos=GaussianProcess()).build(torch.ones(3), torch.tensor([5.0, 2.0, 1.0, 1.0]))
    ones = torch.ones(len(SIZES))

    def draws() -> PerMoleculeNoise:
        return PerMoleculeNoise([molecule_generator(0, row) for row in range(len(SIZES))])

    prior = process.prior(batch.node_mask, draws())
    start = process.start(batch, NoiseLevel.uniform(ones, batch.node_mask), draws())
    assert all(torch.equal(getattr(start, name), value) for name, value in vars(prior).items() if name != "condition")
    same = process.start(batch, NoiseLevel.uniform(0 * ones, batch.node_mask), draws())
    assert all(torch.equal(getattr(same, name), value) for name, value in vars(batch).items() if name != "condition")


def test_noise_of_a_start_on_the_way_is_independent(batch: MolBatch) -> None:
    process = JointProcessConfig(pos=GaussianProcess()).build(torch.ones(3), torch.tensor([5.0, 2.0, 1.0, 1.0]))
    mask = batch.node_mask
    level = NoiseLevel.uniform(torch.full((len(SIZES),), 0.5), mask)

    def draws() -> PerMoleculeNoise:
        return PerMoleculeNoise([molecule_generator(0, row) for row in range(len(SIZES))])

    noise = process.prior(mask, draws())
    start = process.start(batch, level, draws())
    assert torch.allclose(start.pos, 0.5 * batch.pos + 0.5 * noise.pos, atol=1e-6)
    assert torch.allclose(start.hydrogen, 0.5 * batch.hydrogen + 0.5 * noise.hydrogen, atol=1e-6)
