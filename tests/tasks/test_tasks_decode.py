"""Decoding with parts known, classes forbidden and totals asked for, against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from models import NUM_CLASSES, VOCABULARY

from moldiff.diffusion.batch import MolBatch, NoiseLevel, Prediction
from moldiff.diffusion.decoding import SumConstraint, decode_argmax, decode_valence, solve_assignment
from moldiff.diffusion.sampler import PartialState, mask_logits

SIZE = 4
HYDROGENS = VOCABULARY.table[:, 2]


def random_prediction(seed: int) -> tuple[Prediction, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(1, SIZE, NUM_CLASSES, generator=generator, dtype=torch.double) * 2
    bonds = torch.randn(1, SIZE, SIZE, 4, generator=generator, dtype=torch.double) * 2
    pos = torch.zeros(1, SIZE, 3, dtype=torch.double)
    prediction = Prediction(pos, torch.zeros(1, SIZE, 4, 3), atoms, bonds + bonds.transpose(1, 2))
    return prediction, torch.ones(1, SIZE, dtype=torch.bool)


def half_known(mask: torch.Tensor) -> tuple[MolBatch, NoiseLevel]:
    """CH2-CH2 with a single bond are known, two more atoms and all other bonds are not."""
    bond = torch.zeros(1, SIZE, SIZE, dtype=torch.long)
    bond[0, 0, 1] = bond[0, 1, 0] = 1
    atoms = torch.tensor([[2, 2, 0, 0]])
    clean = MolBatch(torch.zeros(1, SIZE, 3), torch.zeros(1, SIZE, 4, 3), atoms, bond, mask)
    free = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    return clean, NoiseLevel(free, free, 1 - (1 - free[:, :, None]) * (1 - free[:, None]), free)


def test_known_and_forbidden_entries_have_no_other_choice() -> None:
    prediction, mask = random_prediction(0)
    clean, level = half_known(mask)
    allowed = torch.zeros(1, SIZE, NUM_CLASSES, dtype=torch.bool)
    allowed[0, :2, 2] = allowed[0, 2:, 3] = True  # methyl for the free ones
    found = mask_logits(prediction, PartialState(clean, level, allowed))
    assert found.atom_type.softmax(-1).argmax(-1).tolist() == [[2, 2, 3, 3]]
    assert (found.atom_type > -1e3).sum(-1).tolist() == [[1, 1, 1, 1]]
    assert decode_argmax(found, mask).bond[0, 0, 1] == 1
    assert (found.bond[0] > -1e3).sum(-1).tolist() == [[1, 1, 4, 4], [1, 1, 4, 4], [4, 4, 4, 4], [4, 4, 4, 4]]


@pytest.mark.parametrize("seed", range(5))
def test_decoding_keeps_what_is_known_and_obeys_valences(seed: int) -> None:
    prediction, mask = random_prediction(seed)
    clean, level = half_known(mask)
    decoded = decode_valence(mask_logits(prediction, PartialState(clean, level)), mask, VOCABULARY)
    assert not decoded.failed.any()
    assert decoded.batch.atom_type[0, :2].tolist() == [2, 2]
    assert decoded.batch.bond[0, 0, 1] == 1
    sums = decoded.batch.bond[0].sum(-1).tolist()
    classes = decoded.batch.atom_type[0].tolist()
    assert all(total in VOCABULARY.allowed_bond_sums(index) for total, index in zip(sums, classes, strict=True))


def best_with_total(atoms: np.ndarray, pairs: np.ndarray, hydrogens: int) -> float:
    i, j = np.triu_indices(len(atoms), 1)
    best = -np.inf
    for orders in product(range(4), repeat=len(i)):
        sums = np.bincount(i, orders, len(atoms)) + np.bincount(j, orders, len(atoms))
        choices = [[k for k in range(atoms.shape[1]) if s in VOCABULARY.allowed_bond_sums(k)] for s in sums.tolist()]
        for classes in product(*choices):
            if HYDROGENS[list(classes)].sum() == hydrogens:
                best = max(best, pairs[i, j, orders].sum() + atoms[np.arange(len(atoms)), classes].sum())
    return float(best)


@pytest.mark.parametrize("hydrogens", [2, 5, 6])
def test_a_total_of_hydrogens_is_met_by_the_best_assignment(hydrogens: int) -> None:
    prediction, _ = random_prediction(hydrogens)
    atoms = prediction.atom_type[0, :3].log_softmax(-1).numpy()
    pairs = prediction.bond[0, :3, :3].log_softmax(-1).numpy()
    answer = solve_assignment(atoms, pairs, VOCABULARY, connected=False, totals=[SumConstraint(HYDROGENS, hydrogens)])
    assert answer is not None
    classes, orders = answer
    i, j = np.triu_indices(3, 1)
    assert HYDROGENS[classes].sum() == hydrogens
    score = atoms[np.arange(3), classes].sum() + pairs[i, j, orders[i, j]].sum()
    assert score == pytest.approx(best_with_total(atoms, pairs, hydrogens))


def test_a_molecule_that_obeys_valences_but_misses_its_total_is_mended() -> None:
    prediction, mask = random_prediction(1)
    plain = decode_valence(prediction, mask, VOCABULARY)
    hydrogens = int(HYDROGENS[plain.batch.atom_type[0].numpy()].sum())
    again = Prediction(prediction.pos, prediction.hydrogen, prediction.atom_type, prediction.bond)
    for asked in (hydrogens - 2, hydrogens):
        decoded = decode_valence(again, mask, VOCABULARY, totals=[[SumConstraint(HYDROGENS, asked)]])
        assert not decoded.failed.any()
        assert HYDROGENS[decoded.batch.atom_type[0].numpy()].sum() == asked
    impossible = decode_valence(again, mask, VOCABULARY, totals=[[SumConstraint(HYDROGENS, 99)]])
    assert impossible.failed.tolist() == [True]
