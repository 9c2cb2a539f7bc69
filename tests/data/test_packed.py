"""Packed sets in memory and mapped from files give the same, and what is larger than memory never is in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from moldiff.data import dataset, store, writer
from moldiff.data.dataset import MoleculeDataset, measure_statistics, rare_classes
from moldiff.data.loader import BucketedBatches
from moldiff.data.prepare import prepare
from moldiff.data.sources.files import Files
from moldiff.data.store import blocks, load_arrays, pack, read_columns, save_arrays, take

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
FIELDS = ("pos", "hydrogen", "atom_type", "bond", "node_mask")


@pytest.fixture(scope="module")
def sample():
    return MoleculeDataset.load(SAMPLE)


def test_a_mapped_set_gives_the_same_batches_and_molecules(sample, monkeypatch):
    monkeypatch.setattr(dataset, "MAP_FROM", 1)
    mapped = MoleculeDataset.load(SAMPLE)
    assert isinstance(mapped.flat["pos"], np.memmap)
    assert not isinstance(sample.flat["pos"], np.memmap)
    assert mapped.smiles == sample.smiles
    assert mapped.names[-1] == sample.names[999]
    train = sample.split("train")
    left, right = (BucketedBatches(made, train, batch_size=64, properties=("gap",)) for made in (sample, mapped))
    for one, other in zip(left, right, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in (*FIELDS, "condition"))
    one, other = sample.molecule(17), mapped.molecule(17)
    np.testing.assert_array_equal(one.hydrogen_offset, other.hydrogen_offset)
    np.testing.assert_array_equal(one.bonds, other.bonds)


def test_packing_is_undone_by_molecule(sample):
    molecules = [sample.molecule(k) for k in range(50)]
    flat = pack(molecules, list(sample.properties))
    expected = take(sample.flat, np.arange(50))
    assert flat.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(flat[name], value)


def test_statistics_do_not_depend_on_blocks(sample, monkeypatch):
    train = sample.split("train")
    monkeypatch.setattr(store, "_BLOCK", 64)
    assert len(list(blocks(sample.flat, train))) == 13
    again = measure_statistics(sample.flat, train, sample.vocabulary)
    assert again.size_counts == sample.statistics.size_counts
    assert again.atom_marginal == sample.statistics.atom_marginal
    assert again.pos_scale == pytest.approx(sample.statistics.pos_scale, rel=1e-12)
    assert again.hydrogen_scale == pytest.approx(sample.statistics.hydrogen_scale, rel=1e-12)
    assert rare_classes(sample.flat, 20).keys() == rare_classes(take(sample.flat, np.arange(1000)), 20).keys()


def test_files_are_those_of_safetensors(tmp_path, sample):
    arrays = {name: sample.flat[name] for name in store.STORED} | {"none": np.zeros((0, 3), dtype=np.float32)}
    save_arrays(tmp_path / "own", arrays)
    save_file(arrays, tmp_path / "theirs")
    for found in (load_file(tmp_path / "own"), *(load_arrays(tmp_path / "theirs", map_from=n) for n in (1, 2**30))):
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype
    (tmp_path / "cut").write_bytes((tmp_path / "own").read_bytes()[:-10])
    with pytest.raises(SafetensorError):
        load_arrays(tmp_path / "cut", map_from=1)


@pytest.mark.parametrize("map_from", [1, 2**30])
def test_columns_of_lines(tmp_path, map_from):
    path = tmp_path / "lines.txt"
    path.write_bytes("CCO\tétha\tnol\r\nC\t\nN\nlast\tone".encode())
    left, right = read_columns(path, map_from=map_from)
    assert left == ["CCO", "C", "N", "last"]
    assert right == ["étha\tnol", "", "", "one"]
    assert left[-2:] == ["N", "last"]
    with pytest.raises(IndexError):
        left[4]
    path.write_bytes(b"")
    assert len(read_columns(path, map_from=map_from)[0]) == 0


def test_gathering_in_small_pieces_gives_the_same_set(tmp_path, monkeypatch):
    lines = [f"{'C' * (1 + k % 5)}O,{k},{k / 2}" for k in range(40)] + ["CBr,bromide,7"]
    (tmp_path / "a.csv").write_text("\n".join(["smiles,name,half", *lines]) + "\n")

    def made(name):
        source = Files(tmp_path / "a.csv", num_workers=0)
        return prepare(source, tmp_path / name, min_count=2, progress=False)

    whole = made("whole")
    monkeypatch.setattr(writer, "_CHUNK", 7)
    monkeypatch.setattr(store, "_BLOCK", 3)
    pieces = made("pieces")
    assert len(whole) == 40
    files = ("molecules.safetensors", "smiles.txt", "rejected.csv", "novelty.safetensors")
    for name in files:
        assert (whole.path / name).read_bytes() == (pieces.path / name).read_bytes(), name
    assert whole.molecule(39).properties == {"net_charge": 0.0, "half": 19.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "pieces", "whole"]
