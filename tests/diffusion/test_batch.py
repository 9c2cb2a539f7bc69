"""Vocabulary, molecules, batches and geometry."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
import torch
from models import VOCABULARY, random_batch

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import center, collate, to_molecules
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import VALENCES, AtomClass, Vocabulary


@pytest.fixture(scope="module")
def prepared() -> MoleculeDataset:
    return MoleculeDataset.load(str(resources.files("moldiff.example_data") / "sample"))


def test_two_hundred_real_molecules_survive_the_batch(prepared: MoleculeDataset) -> None:
    molecules = [prepared.molecule(k) for k in range(200)]
    batch = collate(molecules, prepared.vocabulary).validate()
    for before, after in zip(molecules, to_molecules(batch, prepared.vocabulary), strict=True):
        np.testing.assert_array_equal(after.atomic_number, before.atomic_number)
        np.testing.assert_array_equal(after.formal_charge, before.formal_charge)
        np.testing.assert_array_equal(after.num_hydrogens, before.num_hydrogens)
        np.testing.assert_allclose(after.pos, before.pos, atol=1e-6)
        assert {tuple(b) for b in after.bonds.tolist()} == {tuple(b) for b in before.bonds.tolist()}
        for atom in range(before.num_heavy_atoms):  # hydrogens come back sorted by length
            one, other = (sorted(m.hydrogen_offset[atom].round(5).tolist()) for m in (before, after))
            np.testing.assert_allclose(one, other, atol=2e-5)
        np.testing.assert_array_equal(after.bond_sums(), before.bond_sums())


def test_vocabulary_round_trip_through_json_and_indices(prepared: MoleculeDataset) -> None:
    vocabulary = prepared.vocabulary
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    indices = np.arange(vocabulary.num_atom_classes)
    np.testing.assert_array_equal(vocabulary.encode(*vocabulary.decode(indices)), indices)


def test_valence_table_is_that_of_protocol_p2() -> None:
    assert VALENCES[(6, 0)] == (4,)
    assert VALENCES[(7, 1)] == (4,)
    assert VALENCES[(15, -1)] == (6,)
    assert VALENCES[(16, 0)] == (2, 4, 6)
    sulfone = Vocabulary((AtomClass(16, 0, 1),), {})
    assert sulfone.allowed_bond_sums(0) == (1, 3, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Vocabulary((), {}), "no atom class"),
        (lambda: Vocabulary((AtomClass(6, 0, 0), AtomClass(6, 0, 0)), {}), "twice"),
        (lambda: Vocabulary((AtomClass(78, 0, 0),), {}), "no valence known for class Pt"),
        (lambda: Vocabulary.from_dict({}), "atom_classes"),
        (lambda: collate([], VOCABULARY), "no molecule"),
        (lambda: VOCABULARY.encode(np.array([9]), np.array([0]), np.array([0])), "atom 0: class F is not in"),
    ],
)
def test_wrong_input_is_named(build: object, message: str) -> None:
    with pytest.raises(MoldiffError, match=message):
        build()  # type: ignore[operator]


def test_collate_refuses_a_molecule_that_is_too_wide(prepared: MoleculeDataset) -> None:
    with pytest.raises(MoldiffError, match="expected at most 2"):
        collate([prepared.molecule(0)], prepared.vocabulary, size=2)


def test_validate_names_what_is_wrong() -> None:
    batch = random_batch([4, 3])
    nan = batch.pos.clone()
    nan[0, 0, 0] = float("nan")
    lopsided = batch.bond.clone()
    lopsided[0, 0, 1] += 1
    padded = batch.bond.clone()
    padded[1, 3, 0] = padded[1, 0, 3] = 1
    late = torch.tensor([[True, True, True, True], [False, True, True, True]])
    for changes, message in [
        ({"pos": nan}, "MolBatch.pos: got a value that is not finite"),
        ({"pos": batch.pos[:, :3]}, r"MolBatch.pos: got shape \(2, 3, 3\), expected \(2, 4, 3\)"),
        ({"bond": lopsided}, "asymmetric"),
        ({"bond": padded}, "at padding"),
        ({"node_mask": late}, "expected the atoms first"),
    ]:
        with pytest.raises(MoldiffError, match=message):
            batch.replace(**changes).validate()


def test_molecule_counts_bond_orders_with_hydrogens() -> None:
    formaldehyde = Molecule(
        pos=np.zeros((2, 3)),
        atomic_number=np.array([6, 8]),
        formal_charge=np.array([0, 0]),
        num_hydrogens=np.array([2, 0]),
        hydrogen_offset=np.zeros((2, 4, 3)),
        bonds=np.array([[0, 1, 2]]),
    )
    assert formaldehyde.bond_sums().tolist() == [4, 2]
    assert formaldehyde.num_atoms == 4


def test_center_uses_the_reference_atoms_where_there_are_any() -> None:
    pos = torch.tensor([[[1.0, 0, 0], [3, 0, 0], [0, 0, 0]], [[2.0, 0, 0], [4, 0, 0], [6, 0, 0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    first = torch.tensor([[True, False, False], [False, False, False]])
    assert center(pos, mask)[..., 0].tolist() == [[-1, 1, 0], [-2, 0, 2]]
    assert center(pos, mask, first)[..., 0].tolist() == [[0, 2, 0], [-2, 0, 2]]
