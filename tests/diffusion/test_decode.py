"""Decoding against brute force and on cases drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from models import NUM_CLASSES, VOCABULARY
from rdkit import Chem
from scipy.spatial.distance import pdist

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import Prediction, to_molecules
from moldiff.diffusion.decoding import REACH, decode_argmax, decode_valence, solve_assignment
from moldiff.diffusion.sampler import PartialState
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.molecules.molecule import Status
from moldiff.molecules.validity import check
from moldiff.molecules.vocabulary import COVALENT, AtomClass, Vocabulary
from moldiff.sampling.batch import DenoisedBatch, SampleSpec


def log_softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def random_logits(size: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    atoms = log_softmax(generator.normal(size=(size, num_classes)) * 2)
    pairs = generator.normal(size=(size, size, 4)) * 2
    return atoms, log_softmax(pairs + pairs.transpose(1, 0, 2))


def by_brute_force(atoms: np.ndarray, pairs: np.ndarray, vocabulary: Vocabulary, *, connected: bool) -> float:
    """The best score of all assignments that obey every valence."""
    size, best = len(atoms), -np.inf
    i, j = np.triu_indices(size, 1)
    for orders in product(range(4), repeat=len(i)):
        matrix = np.zeros((size, size), dtype=int)
        matrix[i, j] = orders
        matrix += matrix.T
        if connected and not (np.linalg.matrix_power(matrix + np.eye(size, dtype=int), size) > 0).all():
            continue
        bonds = pairs[i, j, orders].sum()
        choices = [
            [atoms[a, k] for k in range(atoms.shape[1]) if matrix[a].sum() in vocabulary.allowed_bond_sums(k)]
            for a in range(size)
        ]
        if all(choices):
            best = max(best, bonds + sum(max(scores) for scores in choices))
    return float(best)


SULFUR = Vocabulary((AtomClass(6, 0, 1), AtomClass(8, 0, 0), AtomClass(16, 0, 0), AtomClass(6, 0, 3)), {})


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("vocabulary", [VOCABULARY, SULFUR], ids=["organic", "several valences"])
def test_programme_finds_the_best_of_all_assignments(vocabulary: Vocabulary, seed: int, connected: bool) -> None:
    atoms, pairs = random_logits(4, vocabulary.num_atom_classes, seed)
    answer = solve_assignment(atoms, pairs, vocabulary, connected=connected)
    expected = by_brute_force(atoms, pairs, vocabulary, connected=connected)
    assert answer is not None
    classes, orders = answer
    assert all(orders[a].sum() in vocabulary.allowed_bond_sums(int(classes[a])) for a in range(4))
    i, j = np.triu_indices(4, 1)
    score = atoms[np.arange(4), classes].sum() + pairs[i, j, orders[i, j]].sum()
    assert score == pytest.approx(expected)


def test_no_assignment_is_an_answer_too() -> None:
    only_methyl = Vocabulary((AtomClass(6, 0, 3),), {})
    atoms, pairs = random_logits(3, 1, 0)
    assert solve_assignment(atoms, pairs, only_methyl) is None
    atoms[0, 0] = np.nan
    assert solve_assignment(atoms, pairs, only_methyl) is None


def prediction_of(atoms: list[int], bonds: dict[tuple[int, int], int]) -> tuple[Prediction, torch.Tensor]:
    """A confident prediction of one molecule, with coordinates that do not matter."""
    size = len(atoms)
    atom_type = torch.nn.functional.one_hot(torch.tensor([atoms]), NUM_CLASSES).double() * 6
    order = torch.zeros(1, size, size, dtype=torch.long)
    for (i, j), value in bonds.items():
        order[0, i, j] = order[0, j, i] = value
    bond = torch.nn.functional.one_hot(order, 4).double() * 6
    pos = torch.arange(size * 3).view(1, size, 3).double()
    return Prediction(pos, torch.ones(1, size, 4, 3).double(), atom_type, bond), torch.ones(1, size, dtype=torch.bool)


ETHANOL = ([3, 2, 6], {(0, 1): 1, (1, 2): 1})  # CH3, CH2, OH


def test_what_obeys_the_rules_is_left_alone() -> None:
    prediction, mask = prediction_of(*ETHANOL)
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert not bool(decoded.repaired.any() | decoded.failed.any())
    assert torch.equal(decoded.batch.bond, decode_argmax(prediction, mask).bond)


def test_a_broken_valence_is_mended_and_said_so() -> None:
    prediction, mask = prediction_of([3, 2, 6], {(0, 1): 2, (1, 2): 1})
    prediction.bond[0, 0, 1, 1] = prediction.bond[0, 1, 0, 1] = 5.0  # single is the next best
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert decoded.repaired.tolist() == [True]
    molecule = to_molecules(decoded.batch, VOCABULARY)[0]
    assert molecule.bonds.tolist() == [[0, 1, 1], [1, 2, 1]]
    assert check(molecule) is None


def two_ethenes(apart: float) -> tuple[Prediction, torch.Tensor]:
    """Parallel ones at that distance (Å); cyclobutane is their best union."""
    prediction, mask = prediction_of([2, 2, 2, 2], {(0, 1): 2, (2, 3): 2})
    pos = torch.tensor([[0.0, 0, 0], [1.4, 0, 0], [1.4, apart, 0], [0, apart, 0]])
    return replace(prediction, pos=pos.double()[None]), mask


def test_loose_fragments_within_reach_are_joined_where_that_is_asked_for() -> None:
    prediction, mask = two_ethenes(1.9)
    assert not bool(decode_valence(prediction, mask, VOCABULARY, connected=False).repaired.any())
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert decoded.repaired.tolist() == [True]
    assert decoded.failed.tolist() == [False]
    assert check(to_molecules(decoded.batch, VOCABULARY)[0]) is None


def test_fragments_that_lie_apart_are_not_joined_by_a_long_bond() -> None:
    prediction, mask = two_ethenes(2.1)  # two carbons reach 1.3 x 1.52 Å
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert (decoded.repaired.tolist(), decoded.failed.tolist()) == ([False], [True])
    problem = check(to_molecules(decoded.batch, VOCABULARY)[0])
    assert problem is not None
    assert problem.status is Status.DISCONNECTED


def test_valences_are_mended_even_where_the_fragments_lie_apart() -> None:
    prediction, mask = two_ethenes(4.0)
    prediction.bond[0, 0, 1, 3] = prediction.bond[0, 1, 0, 3] = 7.0  # a triple bond between two CH2
    assert decode_argmax(prediction, mask).bond[0, 0, 1] == 3
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert (decoded.repaired.tolist(), decoded.failed.tolist()) == ([True], [True])
    assert decoded.batch.bond[0, 0, 1] == 2
    problem = check(to_molecules(decoded.batch, VOCABULARY)[0])
    assert problem is not None
    assert problem.status is Status.DISCONNECTED


def test_a_bond_that_the_prediction_has_may_stay_whatever_its_length() -> None:
    prediction, mask = prediction_of([3, 2, 6], {(0, 1): 2, (1, 2): 1})  # atoms 5.2 Å apart, and a broken valence
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert decoded.repaired.tolist() == [True]
    assert check(to_molecules(decoded.batch, VOCABULARY)[0]) is None


def test_radii_are_those_of_the_periodic_table() -> None:
    table = Chem.GetPeriodicTable()
    assert len(COVALENT) == 97
    np.testing.assert_allclose(COVALENT[1:], [table.GetRcovalent(z) for z in range(1, 97)], atol=0.011)


def test_no_bond_of_real_molecules_is_out_of_reach() -> None:
    prepared = MoleculeDataset.load(str(files("moldiff.example_data") / "sample"))
    ratios = []
    for number in range(len(prepared)):
        molecule = prepared.molecule(number)
        i, j = molecule.bonds[:, 0], molecule.bonds[:, 1]
        radius = COVALENT[molecule.atomic_number]
        ratios.append(np.linalg.norm(molecule.pos[i] - molecule.pos[j], axis=1) / (radius[i] + radius[j]))
    assert 1 < np.concatenate(ratios).max() < REACH


def test_non_finite_predictions_are_kept_and_marked_as_failed() -> None:
    prediction, mask = prediction_of(*ETHANOL)
    prediction.atom_type[0, 0] = float("nan")
    decoded = decode_valence(prediction, mask, VOCABULARY)
    assert decoded.failed.tolist() == [True]
    assert decoded.repaired.tolist() == [False]


def one_of(model: Any, start: PartialState, prediction: Prediction) -> DenoisedBatch:
    """A batch of one molecule."""
    return DenoisedBatch(cast(Any, model), [SampleSpec(0, torch.Generator(), start)], start, prediction)


def test_hydrogens_that_decoding_adds_are_placed_and_the_others_stay() -> None:
    """CH2-CH2-OH by the argmax becomes CH3-CH2-OH, but the network gave the third hydrogen no place."""
    prediction, mask = prediction_of([2, 2, 6], {(0, 1): 1, (1, 2): 1})
    prediction.atom_type[0, 0, 3] = 5.0  # CH3 is the next best
    offset = torch.zeros(1, 3, 4, 3).double()
    offset[0, :, 0], offset[0, :, 1] = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, -1.0])
    pos = torch.tensor([[[0.0, 0, 0], [1.53, 0, 0], [2.0, 1.35, 0]]]).double()
    prediction = replace(prediction, pos=pos, hydrogen=offset)
    model = SimpleNamespace(vocabulary=VOCABULARY, statistics=SimpleNamespace(hydrogens_placed=True))
    (found,) = one_of(model, PartialState.unknown(mask), prediction).decode("valence")
    molecule = found.molecule
    assert (found.repaired, found.replaced_hydrogens) == (True, 0)
    assert molecule.num_hydrogens.tolist() == [3, 2, 1]
    np.testing.assert_allclose(np.linalg.norm(molecule.hydrogen_offset[0, :3], axis=1), 1.09, atol=0.05)
    assert pdist(molecule.hydrogen_offset[0, :3]).min() > 1.6
    np.testing.assert_allclose(molecule.hydrogen_offset[1, :2], offset[0, 1, :2].numpy())
    assert Contacts().check(molecule) is None


@pytest.mark.parametrize("length", [0.007, 1.9, 0.95])
def test_hydrogens_off_their_bonds_are_put_at_ideal_places_and_counted(length: float) -> None:
    """CH3-CH2-OH with its hydroxyl hydrogen on the oxygen, far away, or where it belongs."""
    prediction, mask = prediction_of([3, 2, 6], {(0, 1): 1, (1, 2): 1})
    pos = torch.tensor([[[0.0, 0, 0], [1.53, 0, 0], [2.0, 1.35, 0]]]).double()
    offset = torch.zeros(1, 3, 4, 3).double()
    offset[0, 0, :3] = torch.tensor([[-0.36, -0.51, 0.89], [-0.36, -0.51, -0.89], [-0.36, 1.03, 0.0]])
    offset[0, 1, :2] = torch.tensor([[0.36, -0.51, 0.89], [0.36, -0.51, -0.89]])
    offset[0, 2, 0] = torch.tensor([length, 0.0, 0.0])
    prediction = replace(prediction, pos=pos, hydrogen=offset)
    model = SimpleNamespace(vocabulary=VOCABULARY, statistics=SimpleNamespace(hydrogens_placed=True))
    chunk = one_of(model, PartialState.unknown(mask), prediction)
    (found,) = chunk.decode("valence")
    belongs = length == 0.95
    assert found.replaced_hydrogens == (0 if belongs else 1)
    assert np.linalg.norm(found.molecule.hydrogen_offset[2, 0]) == pytest.approx(0.97, abs=0.05)
    for atom in (0, 1):  # slots are ordered by length
        assert {tuple(one) for one in found.molecule.hydrogen_offset[atom].tolist()} == {
            tuple(one) for one in offset[0, atom].tolist()
        }
    (raw,) = chunk.decode("raw")
    assert np.linalg.norm(raw.molecule.hydrogen_offset[2, 0]) == pytest.approx(length)


def test_all_solutions_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = [100.0], []

    def slow(programme: object, time_limit: float) -> tuple[np.ndarray, np.ndarray]:
        given.append(time_limit)
        clock[0] += 2.0
        return np.zeros(4, dtype=np.int64), np.zeros((4, 4), dtype=np.int64)  # never in one piece

    monkeypatch.setattr("moldiff.diffusion.decoding.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("moldiff.diffusion.decoding._Programme.solve", slow)
    atoms, pairs = np.log(np.full((4, VOCABULARY.num_atom_classes), 0.1)), np.log(np.full((4, 4, 4), 0.25))
    assert solve_assignment(atoms, pairs, VOCABULARY, time_limit=5.0) is None
    assert given == [5.0, 3.0, 1.0]
