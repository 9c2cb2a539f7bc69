"""Files that are hostile, or broken in ways that nobody expects: they fill no memory and spoil no other record."""

import gzip
from importlib import import_module
from pathlib import Path

import numpy as np
from test_files import MOL2, files, outcomes
from test_io import V3000, WATER, WATER_BONDS, block, water

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.data.prepare import prepare

parts = import_module(
    "moldiff.molecules.formats.reader"
)  # `moldiff.molecules.formats.reader` is the function of that name


def test_counts_that_no_memory_could_hold(tmp_path):
    many = "1000000000"
    v3000 = V3000.replace("COUNTS 3 2", f"COUNTS {many} 2") + V3000.replace("COUNTS 3 2", f"COUNTS 3 {many}")
    assert outcomes(tmp_path, v3000 + water, "a.sdf") == ["malformed V3000 block"] * 2 + ["O"]
    assert outcomes(tmp_path, f"{many}\nx\nO 0 0 0\n", "a.xyz")[0].startswith(f"{many} atoms, more than 1000000")
    assert outcomes(tmp_path, MOL2.replace("3 2 0 0 0", f"{many} 2 0 0 0"), "a.mol2")[0].startswith("fewer lines in")
    assert outcomes(tmp_path, "C%99999999999\n" + "C" * 1000 + "\n") == [
        "cannot read 'C%99999999999' as SMILES",
        "1000 heavy atoms, more than max_heavy_atoms",
    ]


def test_small_files_that_unpack_to_large_ones_fill_no_memory(tmp_path, monkeypatch):
    """Lines and records beyond their limits (made small here) are cut, and what follows them is still read."""
    monkeypatch.setattr("moldiff.molecules.formats.record._MAX_LINE", 100)
    monkeypatch.setattr("moldiff.molecules.formats.record._MAX_BLOCK", 4_000)
    (long,) = parts.parts(compressed(tmp_path, "x" * 10_000 + "\n$$$$\n"))
    assert [len(line) for line in long.arguments[0]] == [100]
    for junk in ("x" * 100_000 + "\n", "x\n" * 100_000):
        found = list(parts.parts(compressed(tmp_path, junk + "$$$$\n" + water)))
        assert sum(len(line) + 64 for line in found[0].arguments[0]) <= 4_000
        assert [record.parse().problem is None for record in found] == [False, True]
    frames = ["2\nlong\nO 0 0 0\n" + "H" * 9_000 + "\n", "90\n" + "x\n" * 91, "1\n\nO 0 0 0\n"]
    read = [record.parse() for record in parts.parts(compressed(tmp_path, "".join(frames), "a.xyz.gz"))]
    assert [record.problem and record.problem.reason for record in read] == [
        f"atom 1: got {'H' * 40!r}, expected an element and three coordinates",
        "lines longer than those of atoms",
        None,
    ]


def test_a_smiles_of_no_molecule(tmp_path):
    assert outcomes(tmp_path, "C" * 100_001 + "\nCCO\n") == ["SMILES of 100001 characters, more than 100000", "CCO"]


def compressed(folder, text, name="a.sdf.gz"):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_names_that_are_paths_or_scripts_stay_text(tmp_path, monkeypatch, capsys):
    script = "</script><script>alert(1)</script>"
    fields = f">  <../../k>\n1\n\n>  <who>\n{script}\n\n"
    (tmp_path / "in" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "deep")
    Path("a.sdf").write_text("".join(block(name, WATER, WATER_BONDS, data=fields) for name in ("../../escape", script)))
    assert main(["prepare", "data.path=a.sdf", "num_workers=1"]) == 0
    assert main(["view", "input=a.sdf", "out=page.html"]) == 0
    capsys.readouterr()
    assert list(MoleculeDataset.load("prepared/a").names) == ["../../escape", script]
    assert list(MoleculeDataset.load("prepared/a").properties) == ["net_charge", "../../k"]
    assert "<script>alert" not in Path("page.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["deep"]


def test_a_torn_molecule_does_not_spoil_the_scale_of_a_set(tmp_path):
    atoms = [("C", 0, 0, 0), ("C", 1.52, 0, 0), ("O", 2.0, 1.34, 0.1), ("C", 3.4, 1.4, 0.1), ("C", 4000, 0, 0)]
    torn = block("torn", atoms, [(k, k + 1, 1) for k in range(1, 5)])
    away = water.replace("   -0.4692 H", "    9.4692 H", 1)
    assert outcomes(tmp_path, torn + away + water, "a.sdf") == [
        "a bond C-C of 3996.60 Å, expected at most 3.04",
        "a bond O-H of 9.38 Å, expected at most 1.94",
        "O",
    ]


def test_molecules_far_from_the_origin_keep_their_shape(tmp_path):
    atoms = [("C", 0, 0, 0), ("C", 1.52, 0, 0), ("O", 2.0, 1.34, 0.1)]
    bonds = [(1, 2, 1), (2, 3, 1)]
    far = block("far", [(symbol, 90_000 + x, y, z) for symbol, x, y, z in atoms], bonds)
    one, other = files(tmp_path, far + block("near", atoms, bonds), "a.sdf").records()
    assert "moved to the origin" in one.notes
    assert not other.notes or "moved to the origin" not in other.notes
    np.testing.assert_allclose(np.diff(one.outcome.pos, axis=0), np.diff(other.outcome.pos, axis=0), atol=1e-9)
    assert np.abs(one.outcome.pos).max() < 2
    assert one.keys == other.keys


def test_numbers_too_large_to_be_kept_are_not_known(tmp_path):
    text = "smiles,gap,size\nCCO,1e300,2\nCCN,0.5,3\nCCC,-4e38,4\nCCF,nan,5\n"
    made = prepare(files(tmp_path, text, "a.csv"), tmp_path / "set", progress=False)
    assert list(made.properties) == ["net_charge", "size"]
    few = files(tmp_path, text, "a.csv", properties=["gap"])
    made = prepare(few, tmp_path / "set", progress=False)
    np.testing.assert_array_equal(made.flat["y"][:, 0], np.array([np.nan, 0.5, np.nan, np.nan], dtype=np.float32))
