import importlib.util
import json
import shutil
import subprocess
import sys
import textwrap
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from own_files import subset

from moldiff.data.dataset import MoleculeDataset, measure_statistics, observed_vocabulary
from moldiff.data.prepare import prepare
from moldiff.data.sources import SourceRecord, qm9
from moldiff.data.store import pack, take
from moldiff.diffusion.batch import draw_size
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules import identity, validity
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import AtomClass

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
FIELDS = ("pos", "hydrogen", "atom_type", "bond", "node_mask")


@pytest.fixture(scope="module")
def sample():
    return MoleculeDataset.load(SAMPLE)


def molecule(elements, hydrogens, bonds, pos, properties=None, name=""):
    offsets = np.zeros((len(elements), 4, 3))
    for row, count in enumerate(hydrogens):
        offsets[row, :count] = [0, 0, 1]
    arrays = [np.array(values, dtype=np.int64) for values in (elements, [0] * len(elements), hydrogens)]
    table = np.array(bonds, dtype=np.int64).reshape(-1, 3)
    return Molecule(np.array(pos, dtype=np.float64), *arrays, offsets, table, properties or {}, name)


METHANE = molecule([6], [4], [], [[5, 5, 5]], {"gap": 1.5}, "methane")
FORMALDEHYDE = molecule([6, 8], [2, 0], [(0, 1, 2)], [[0, 0, 0], [2, 0, 0]], {"gap": 0.5}, "formaldehyde")
PROPENE = molecule([6, 6, 6], [2, 1, 3], [(0, 1, 2), (1, 2, 1)], [[0, 0, 0], [3, 0, 0], [0, 3, 0]], {}, "propene")
SMALL = [METHANE, FORMALDEHYDE, PROPENE]


class ListSource:
    """Three good molecules and two bad records."""

    name = "list"
    properties = {"gap": "Hartree"}  # noqa: RUF012

    def describe(self):
        return {"source": {"package": "none"}, "geometry": "by hand", "hydrogens": "explicit"}

    def __len__(self):
        return 5

    def records(self):
        bad = InvalidMolecule(Status.VALENCE, "atom 0 (C): bond orders sum to 5, expected 4", 0)
        outcomes = [METHANE, bad, FORMALDEHYDE, PROPENE, InvalidMolecule(Status.UNREADABLE, "no 3D coordinates")]
        for number, outcome in enumerate(outcomes, start=1):
            yield SourceRecord(number, getattr(outcome, "name", "bad"), outcome)

    def splits(self, keys):
        return {"train": np.array([0, 2]), "valid": np.array([1]), "test": np.array([], dtype=np.int64)}


# Statistics


def test_statistics_of_molecules_counted_by_hand():
    flat = pack(SMALL, ["gap"])
    vocabulary = observed_vocabulary(flat)
    assert [str(c) for c in vocabulary.atom_classes] == ["CH1", "CH2", "CH3", "CH4", "O"]
    statistics = measure_statistics(flat, np.arange(3), vocabulary)
    assert statistics.size_counts == {1: 1, 2: 1, 3: 1}
    assert statistics.atom_marginal == pytest.approx((1 / 6, 2 / 6, 1 / 6, 1 / 6, 1 / 6))
    # Four pairs: two double bonds, one single, one none.
    assert statistics.bond_marginal == (0.25, 0.25, 0.5, 0.0)
    # Squares about the means: 0; twice 1; and, about (1, 1, 0), 2 + 5 + 5. Six atoms, three coordinates.
    assert statistics.pos_scale == pytest.approx(np.sqrt(14 / 18))
    assert statistics.hydrogen_scale == pytest.approx(np.sqrt(1 / 3))


def test_statistics_take_the_chosen_molecules_alone():
    flat = pack(SMALL, [])
    vocabulary = observed_vocabulary(flat)
    statistics = measure_statistics(flat, np.array([0]), vocabulary)
    assert statistics.size_counts == {1: 1}
    assert statistics.atom_marginal == (0, 0, 0, 1, 0)
    assert statistics.bond_marginal == (1, 0, 0, 0)  # no pair at all
    assert statistics.pos_scale == 1.0
    with pytest.raises(MoldiffError, match="no molecule"):
        measure_statistics(flat, np.array([], dtype=np.int64), vocabulary)


def test_statistics_survive_json(sample):
    again = Statistics.from_dict(json.loads(json.dumps(sample.statistics.to_dict())))
    assert again == sample.statistics
    with pytest.raises(MoldiffError, match="pos_scale"):
        Statistics.from_dict({k: v for k, v in sample.statistics.to_dict().items() if k != "pos_scale"})


def test_sizes_are_drawn_from_the_counts_and_use_one_number_whatever_the_counts():
    generators = [torch.Generator().manual_seed(k) for k in range(4000)]
    sizes = [draw_size(generator, {9: 3, 3: 1}) for generator in generators]
    assert set(sizes) == {3, 9}
    assert sizes.count(9) / len(sizes) == pytest.approx(0.75, abs=0.03)
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    draw_size(one, {9: 3, 3: 1})
    assert draw_size(other, {5: 1}) == 5
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


# Prepared sets


def test_sample_is_what_its_description_says(sample):
    assert len(sample) == 1000
    assert {part: len(sample.split(part)) for part in sample.splits} == {"train": 800, "valid": 100, "test": 100}
    assert sorted(np.concatenate(list(sample.splits.values()))) == list(range(1000))
    assert sample.meta["counts"]["kept"] == 1000
    assert sample.meta["source"] == {"package": "qm9pack", "version": "1.0.3"}
    assert sample.meta["geometry"] == "B3LYP/6-31G(2df,p)"
    assert sample.properties["cv"] == "cal/(mol K)"
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 2**20
    assert {path.suffix for path in SAMPLE.iterdir()} == {".safetensors", ".json", ".txt", ".csv"}
    packaged = Path(str(files("moldiff.example_data"))) / "sample"
    assert MoleculeDataset.load(packaged).smiles == sample.smiles


def test_packing_keeps_every_molecule(tmp_path):
    prepared = prepare(ListSource(), tmp_path / "set", progress=False)
    for index, before in enumerate(SMALL):
        after = prepared.molecule(index)
        for name in ("pos", "atomic_number", "formal_charge", "num_hydrogens", "hydrogen_offset", "bonds"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert (after.name, after.properties) == (before.name, before.properties)
    assert prepared.molecule(-1).name == "propene"
    assert list(prepared.smiles) == ["C", "C=O", "C=CC"]
    assert prepared.statistics.size_counts == {1: 1, 3: 1}
    assert prepared.vocabulary.atom_classes[-1] == AtomClass(8, 0, 0)  # seen outside the training part


def test_every_record_is_accounted_for(tmp_path):
    prepared = prepare(ListSource(), tmp_path / "set", progress=False)
    counts = prepared.meta["counts"]
    assert (counts["seen"], counts["kept"], counts["rejected"]) == (5, 3, 2)
    assert counts["rejected_by_status"] == {"valence": 1, "unreadable": 1}
    assert (tmp_path / "set" / "rejected.csv").read_text().splitlines() == [
        "record,name,reason",
        '2,bad,"atom 0 (C): bond orders sum to 5, expected 4"',
        "5,bad,no 3D coordinates",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_novelty_keys_are_those_of_the_training_part(tmp_path, sample):
    prepare(ListSource(), tmp_path / "set", progress=False)
    expected = sorted(identity.key_hash(text) for text in ("C", "C=CC"))
    novelty = NoveltyIndex.load(tmp_path / "set")
    assert novelty.canonical.tolist() == novelty.strict.tolist() == expected
    shipped = NoveltyIndex.load(SAMPLE)
    train = [sample.molecule(i) for i in sample.split("train")[:50]]
    assert np.isin([identity.key_hash(identity.canonical_key(m)) for m in train], shipped.canonical).all()
    assert np.isin([identity.key_hash(identity.strict_key(m)) for m in train], shipped.strict).all()


def test_preparing_again_replaces_the_set_as_a_whole(tmp_path, sample):
    first = prepare(ListSource(), tmp_path / "set", progress=False)
    splits = {"train": np.array([2, 0]), "valid": np.array([5]), "test": np.array([9])}
    second = subset(sample, splits, tmp_path / "set", name="few")
    assert (len(first), len(second)) == (3, 4)
    assert [second.names[i] for i in range(4)] == [sample.names[i] for i in (2, 0, 5, 9)]
    assert second.split("valid").tolist() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_foreign_folders_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(MoldiffError, match="is not a prepared set"):
        prepare(ListSource(), tmp_path, progress=False)
    assert (tmp_path / "thesis.txt").exists()


def test_a_source_without_any_good_record(tmp_path):
    class Empty(ListSource):
        def records(self):
            yield SourceRecord(1, "bad", InvalidMolecule(Status.UNREADABLE, "no 3D coordinates"))

    with pytest.raises(MoldiffError, match=r"list: no molecule kept of 1 records; first reason: no 3D coordinates"):
        prepare(Empty(), tmp_path / "set", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("molecules.safetensors", lambda raw: raw[:-200], "wrong checksum"),
        ("molecules.safetensors", lambda raw: b"", r"0 bytes, wrong checksum"),
        ("molecules.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "wrong checksum"),
        ("molecules.safetensors", None, "not found"),
        ("meta.json", lambda raw: raw[:100], "damaged"),
        ("meta.json", lambda raw: b"[1]", "got format_version None, expected 1"),
        (
            "meta.json",
            lambda raw: raw.replace(b'"format_version": 1', b'"format_version": 999'),
            "got format_version 999",
        ),
        ("meta.json", lambda raw: raw.replace(b'"vocabulary"', b'"vocab"'), "damaged"),
        ("meta.json", None, "is not a prepared set"),
        ("smiles.txt", lambda raw: raw[: len(raw) // 2], "lines, expected 1000"),
        ("smiles.txt", None, "cannot be read"),
    ],
)
def test_damaged_folders_are_named_in_one_line(tmp_path, name, damage, message):
    folder = shutil.copytree(SAMPLE, tmp_path / "set")
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(MoldiffError, match=message) as caught:
        MoleculeDataset.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(MoldiffError, match="run `moldiff prepare data=qm9` first"):
        MoleculeDataset.load(tmp_path / "none")


def test_unknown_part(sample):
    with pytest.raises(MoldiffError, match="got 'dev', expected one of train, valid, test"):
        sample.split("dev")


def test_pyg_data_set_has_the_same_molecules(sample):
    graphs = sample.to_pyg()
    assert len(graphs) == 1000
    for index in (0, 17, 999):
        graph, expected = graphs[index], sample.molecule(index)
        assert graph.num_nodes == expected.num_heavy_atoms
        np.testing.assert_array_equal(graph.pos, expected.pos)
        np.testing.assert_array_equal(graph.hydrogen_offset, expected.hydrogen_offset)
        np.testing.assert_array_equal(graph.num_hydrogens, expected.num_hydrogens)
        np.testing.assert_array_equal(torch.cat([graph.edge_index, graph.bond_order[None]]).T, expected.bonds)
        np.testing.assert_allclose(graph.y[0], list(expected.properties.values()))
    assert len(graphs[torch.tensor([3, 1])]) == 2


def test_take_is_packing_of_the_chosen():
    flat = pack(SMALL, ["gap"])
    expected = pack([PROPENE, METHANE], ["gap"])
    picked = take(flat, np.array([2, 0]))
    for name, value in expected.items():
        np.testing.assert_array_equal(picked[name], value)
        assert picked[name].dtype == value.dtype


def test_training_side_needs_neither_rdkit_nor_hydra():
    code = """
        import sys
        for name in ("rdkit", "hydra", "qm9pack"):
            sys.modules[name] = None
        from moldiff.data.dataset import MoleculeDataset
        from moldiff.data.loader import BucketedBatches
        prepared = MoleculeDataset.load(sys.argv[1])
        batches = BucketedBatches(prepared, prepared.split("train"), batch_size=16)
        print(batches[0].validate().num_molecules, len(prepared.to_pyg()), prepared.molecule(3).num_heavy_atoms)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(SAMPLE)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()[:2] == ["16", "1000"]


# Batches


def test_qm9_row_with_loosely_written_numbers():
    row = {
        "Index": "3", "SMILES": "O", "Elements": "['O','H','H']",
        "XYZ_Ang": "[[0.,0.,.1173],[0.,.7572,-.4692],[0.,-.7572,-0.4692]]",
        "Dipole_debye": "1.85", "Polarizability_bohr3": "6.31", "HOMO_au": "-.2928", "LUMO_au": ".0687",
        "HOMO_LUMO_gap_au": "0.3615", "Heatcapacity_Cv_cal_mol_K": "6.002",
    }  # fmt: skip
    record = qm9.build(row)
    number, name, water = record.number, record.name, record.outcome
    assert (number, name, water.name) == (3, "gdb_3", "gdb_3")
    assert water.num_hydrogens.tolist() == [2]
    np.testing.assert_allclose(water.hydrogen_offset[0, 1], [0, -0.7572, -0.5865])
    assert water.properties["homo"] == -0.2928
    far = qm9.build(row | {"XYZ_Ang": "[[0.,0.,0.],[0.,9.,0.],[0.,-9.,0.]]"})
    assert far.outcome.reason == "bonds in the coordinates do not match the SMILES: O"
    cut = qm9.build(row | {"XYZ_Ang": "[[0.,0.,0.],[0.,9."})
    assert cut.outcome.reason.startswith("unreadable row")


def test_qm9_split_follows_the_usual_convention(monkeypatch):
    monkeypatch.setattr(qm9, "_tables", list)
    parts = qm9.QM9().splits(np.arange(130_829))
    assert {part: len(indices) for part, indices in parts.items()} == {
        "train": 100_000,
        "valid": 17_746,
        "test": 13_083,
    }
    np.random.seed(0)
    permutation = np.random.permutation(130_829)
    np.testing.assert_array_equal(np.concatenate([parts["train"], parts["valid"], parts["test"]]), permutation)
    assert {part: len(indices) for part, indices in qm9.QM9(limit=50).splits(np.arange(50)).items()} == {
        "train": 40, "valid": 5, "test": 5,
    }  # fmt: skip


def test_qm9_package_missing(monkeypatch):
    monkeypatch.setattr(qm9.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MoldiffError, match=r'pip install "moldiff\[qm9\]"'):
        qm9.QM9()


@pytest.mark.skipif(importlib.util.find_spec("qm9pack") is None, reason="needs the package qm9pack")
def test_start_of_qm9_becomes_a_set(tmp_path):
    prepared = prepare(qm9.QM9(limit=120, num_workers=1), tmp_path / "set", progress=False)
    assert len(prepared) == 120
    assert list(prepared.smiles[:6]) == ["C", "N", "O", "C#C", "C#N", "C=O"]
    assert prepared.molecule(0).properties["alpha"] == pytest.approx(13.21)
    assert prepared.meta["counts"]["rejected"] == 0
    assert all(validity.check(prepared.molecule(i)) is None for i in range(120))
