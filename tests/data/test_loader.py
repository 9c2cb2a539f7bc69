import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches, bucket_widths, evaluation_batches
from moldiff.diffusion.batch import collate
from moldiff.errors import MoldiffError

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
FIELDS = ("pos", "hydrogen", "atom_type", "bond", "node_mask")


@pytest.fixture(scope="module")
def sample():
    return MoleculeDataset.load(SAMPLE)


def test_widths_waste_little_with_few_shapes():
    sizes = np.repeat([4, 5, 6, 7, 8, 9], [1, 5, 20, 100, 600, 4000])
    assert bucket_widths(sizes, max_waste=0.1, min_pairs=0) == [9]
    assert bucket_widths(sizes, max_waste=0.0, min_pairs=0) == [4, 5, 6, 7, 8, 9]
    # 600 of size 8 and the smaller ones make a bucket of 64 x 726 pairs.
    assert bucket_widths(sizes, max_waste=0.02, min_pairs=0) == [8, 9]
    assert bucket_widths(sizes, max_waste=0.0, min_pairs=64 * 726) == [8, 9]
    assert bucket_widths(np.array([3]), max_waste=0.1, min_pairs=1e9) == [3]
    wide = np.repeat(np.arange(10, 46), 50)
    widths = bucket_widths(wide, max_waste=0.1, min_pairs=0)
    padded = np.array(widths)[np.searchsorted(widths, wide)]
    assert 1 - (wide**2).sum() / (padded**2).sum() <= 0.1
    assert len(widths) <= 10


def test_batches_are_the_collated_molecules(sample):
    batches = BucketedBatches(sample, sample.split("train"), batch_size=64, max_waste=0.02, properties=("gap", "mu"))
    assert len(batches.widths) > 1
    for k in range(len(batches)):
        batch, ids = batches[k].validate(), batches.molecules(k)
        expected = collate([sample.molecule(i) for i in ids], sample.vocabulary, size=batch.max_atoms)
        for name in FIELDS:
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name
        properties = [[sample.molecule(i).properties[name] for name in ("gap", "mu")] for i in ids]
        torch.testing.assert_close(batch.condition, torch.tensor(properties))


def test_training_covers_every_molecule_with_full_batches(sample):
    train = sample.split("train")
    batches = BucketedBatches(sample, train, batch_size=64)
    assert batches.widths == [9]
    assert len(batches) == 13
    seen = torch.cat([batches.molecules(k) for k in range(13)])
    assert len(seen) == 13 * 64
    assert sorted(set(seen.tolist())) == sorted(train.tolist())
    assert [batch.num_molecules for batch in batches] == [64] * 13


def test_small_widths_hold_more_molecules(sample):
    batches = BucketedBatches(sample, sample.split("train"), batch_size=16, max_waste=0.02)
    reference = batches.widths[-1]
    for width, size in zip(batches.widths, batches.batch_sizes, strict=True):
        assert size == int(16 * (reference / width) ** 2)
    assert {(batch.max_atoms, batch.num_molecules) for batch in batches} == set(
        zip(batches.widths, batches.batch_sizes, strict=True)
    )


def test_order_follows_from_seed_and_epoch(sample):
    train = sample.split("train")
    left, right = (BucketedBatches(sample, train, batch_size=50, seed=3) for _ in range(2))
    other = BucketedBatches(sample, train, batch_size=50, seed=4)
    orders = []
    for epoch in range(3):
        left.set_epoch(epoch)
        right.set_epoch(epoch)
        other.set_epoch(epoch)
        assert all(torch.equal(left.molecules(k), right.molecules(k)) for k in range(len(left)))
        orders += [tuple(left.molecules(0).tolist()), tuple(other.molecules(0).tolist())]
    assert len(set(orders)) == 6
    left.set_epoch(0)
    assert tuple(left.molecules(0).tolist()) == orders[0]


def test_an_epoch_can_be_resumed_at_any_batch(sample):
    train = sample.split("train")
    whole = list(BucketedBatches(sample, train, batch_size=100, seed=1).epoch(5))
    rest = list(BucketedBatches(sample, train, batch_size=100, seed=1).epoch(5, start=3))
    assert len(whole) == 8
    assert len(rest) == 5
    for before, after in zip(whole[3:], rest, strict=True):
        assert torch.equal(before.pos, after.pos)
        assert torch.equal(before.bond, after.bond)


def test_an_epoch_has_every_molecule_and_few_twice(sample):
    train = sample.split("train")
    batches = BucketedBatches(sample, train, batch_size=100, max_waste=0.02)
    seen = torch.cat([batches.molecules(k) for k in range(len(batches))]).tolist()
    assert set(seen) == set(train.tolist())
    # Only the refill of the last step of a width may be met twice.
    assert len(seen) - len(train) < 100 * len(batches.widths)
    exact = BucketedBatches(sample, train, batch_size=100)
    assert sorted(i for k in range(len(exact)) for i in exact.molecules(k).tolist()) == sorted(train.tolist())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_b63_sets_smaller_than_a_batch_still_make_a_step(sample, count):
    batches = BucketedBatches(sample, sample.split("train")[:count], batch_size=64)
    assert len(batches) == 1
    assert batches[0].num_molecules == count


def test_evaluation_sees_every_molecule_once_in_order(sample):
    valid = sample.split("valid")
    batches = evaluation_batches(sample, valid, batch_size=32)
    seen = torch.cat([batches.molecules(k) for k in range(len(batches))]).tolist()
    assert seen == valid.tolist()
    assert sum(batch.num_molecules for batch in batches) == 100


@pytest.mark.parametrize("num_workers", [1, 2])
def test_b62_worker_processes_give_the_same_batches(sample, num_workers):
    batches = BucketedBatches(sample, sample.split("train")[:20], batch_size=8, seed=2)
    assert len(pickle.loads(pickle.dumps(batches))) == len(batches)
    alone = list(DataLoader(batches, batch_size=None))
    spawned = list(DataLoader(batches, batch_size=None, num_workers=num_workers, multiprocessing_context="spawn"))
    assert len(alone) == len(spawned) == 3
    for left, right in zip(alone, spawned, strict=True):
        assert torch.equal(left.pos, right.pos)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.array([], dtype=np.int64)}, "qm9-sample: got no molecule"),
        ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"properties": ("gapp",)}, "no property 'gapp'; it has: mu, alpha, homo, lumo, gap, cv"),
    ],
)
def test_batches_refuse(sample, changes, message):
    options = {"indices": sample.split("train"), "batch_size": 4} | changes
    with pytest.raises(MoldiffError, match=message):
        BucketedBatches(sample, options.pop("indices"), **options)


# QM9
