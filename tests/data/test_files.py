"""A user's files as a source: which files, which columns, which molecules; workers, splits and the account."""

import builtins
import gzip
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from own_files import own_files
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rich.console import Console
from scipy.spatial.distance import pdist
from test_io import METHYL, METHYL_BONDS, block, read_text, water

from moldiff.data.dataset import rare_classes
from moldiff.data.prepare import prepare
from moldiff.data.sources.files import Files, find_files, name_of
from moldiff.data.writer import account_table, reason_kind
from moldiff.errors import MoldiffError
from moldiff.molecules import convert, identity
from moldiff.molecules.convert import with_ideal_hydrogens
from moldiff.molecules.formats.reader import read
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import AtomClass

MOL2 = """# made by hand
@<TRIPOS>MOLECULE
water
3 2 0 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 O  0.0000  0.0000  0.1173 O.3
2 H1 0.0000  0.7572 -0.4692 H
3 H2 0.0000 -0.7572 -0.4692 H
@<TRIPOS>BOND
1 1 2 1
2 1 3 1
"""
EXTXYZ = (
    '3\nProperties=species:S:1:forces:R:3:pos:R:3 energy=-76.4 name="water one" pbc="F F F" charge=0\n'
    "O 9 9 9 0 0 0.1173\nH 9 9 9 0 0.7572 -0.4692\nH 9 9 9 0 -0.7572 -0.4692\n"
)


def files(folder, content, name="a.smi", **options):
    path = Path(folder) / name
    path.write_text(content)
    return own_files(path, **options)


def outcomes(folder, content, name="a.smi", **options):
    found = list(files(folder, content, name, **options).records())
    return [identity.strict_key(r.outcome) if isinstance(r.outcome, Molecule) else r.outcome.reason for r in found]


# Types of files


def test_mol2(tmp_path):
    cut = MOL2[MOL2.index("@") :].split("2 H1")[0]
    found = read_text(tmp_path, MOL2 + MOL2[MOL2.index("@") :] + cut, "a.mol2")
    assert [record.name for record in found] == ["water"] * 3
    assert [type(record.molecule()) for record in found[:2]] == [Molecule, Molecule]
    assert found[2].problem.reason == "fewer lines in @<TRIPOS>ATOM than the 3 that its counts say"
    (garbage,) = read_text(tmp_path, "hello\n", "b.mol2")
    assert "expected @<TRIPOS>MOLECULE" in garbage.problem.reason


def test_extended_xyz(tmp_path):
    (record,) = read_text(tmp_path, EXTXYZ, "a.extxyz")
    assert record.name == "water one"
    assert record.mol.GetConformer().GetPositions()[1].tolist() == [0, 0.7572, -0.4692]
    (record,) = files(tmp_path, EXTXYZ, "a.xyz").records()
    assert record.outcome.properties == {"net_charge": 0.0, "energy": -76.4, "charge": 0.0}
    assert record.notes == ("bonds perceived from coordinates",)
    (bad,) = read_text(tmp_path, EXTXYZ.replace("species:S", "kind:S"), "a.xyz")
    assert "expected species:S:1 and pos:R:3" in bad.problem.reason


def test_xyz_of_an_ion_says_its_charge(tmp_path):
    lines = "N 0 0 0\nH 0.6 0.6 0.6\nH -0.6 -0.6 0.6\nH -0.6 0.6 -0.6\nH 0.6 -0.6 -0.6\n"
    with_charge = f"5\nProperties=species:S:1:pos:R:3 charge=1\n{lines}"
    assert outcomes(tmp_path, with_charge, "a.xyz") == ["[NH4+]"]
    assert outcomes(tmp_path, f"5\nammonium charge=1\n{lines}", "a.xyz") == ["[NH4+]"]
    (without,) = outcomes(tmp_path, f"5\nammonium\n{lines}", "a.xyz")
    assert without.startswith("bond perception failed")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs the package pyarrow")
def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {"id": ["NA", "b", "c"], "smiles": ["CCO", None, "C1CC"], "gap": [0.5, 1.5, None], "more": [[1], [], []]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first, second, third = read(tmp_path / "a.parquet").records
    assert (first.name, first.mol.GetProp("gap"), first.mol.HasProp("more")) == ("NA", "0.5", 0)
    assert second.problem.reason == "no SMILES"
    assert third.problem.reason == "cannot read 'C1CC' as SMILES"
    with pytest.raises(MoldiffError, match="no column 'x'; columns found: 'id', 'smiles', 'gap', 'more'"):
        list(own_files(tmp_path / "a.parquet", smiles_column="x").records())
    (tmp_path / "b.parquet").write_text("nonsense")
    with pytest.raises(MoldiffError, match="cannot be read as Parquet"):
        read(tmp_path / "b.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_text("nonsense")
    plain = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MoldiffError, match=r'needs pyarrow, which is not installed: pip install "moldiff\[parquet\]"'):
        read(tmp_path / "a.parquet")


def test_gzip_with_a_wrong_checksum_loses_only_its_end(tmp_path):
    raw = bytearray(gzip.compress((water * 50).encode()))
    raw[-8] ^= 1
    (tmp_path / "a.sdf.gz").write_bytes(raw)
    found = read(tmp_path / "a.sdf.gz").records
    assert sum(record.problem is None for record in found) == 50


def test_rows_that_are_too_short_or_long(tmp_path):
    assert outcomes(tmp_path, "name,smiles,gap\na\nb,CCO\nc,CCN,1,2,3\n", "a.csv") == ["no SMILES", "CCO", "CCN"]


@pytest.mark.parametrize(
    ("header", "name"),
    [("id,smiles,x", "a"), ("x,smiles,pref_name", "c"), ("chembl_id,smiles,x", "a"), ("x,smiles,y", "")],
)
def test_columns_of_names(tmp_path, header, name):
    (record,) = files(tmp_path, f"{header}\na,CCO,c\n", "a.csv").records()
    assert record.name == name


# Which files


def test_files_are_found_by_name_folder_and_pattern(tmp_path):
    for name in ("b.sdf", "a.smi", "c.csv.gz", "deep/d.mol2", "e.pdb", "f.txt", ".g.sdf", ".hidden/h.sdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in find_files(tmp_path)]
    assert found == ["a.smi", "b.sdf", "c.csv.gz", "deep/d.mol2"]
    assert find_files(f"{tmp_path}/*.s*") == [tmp_path / "a.smi", tmp_path / "b.sdf"]
    assert find_files(tmp_path / "f.txt") == [tmp_path / "f.txt"]
    (tmp_path / "[1].sdf").touch()
    assert find_files(tmp_path / "[1].sdf") == [tmp_path / "[1].sdf"]


def test_names_of_sets(tmp_path):
    names = {
        "x/mine.sdf.gz": "mine",
        "x/mine/": "mine",
        "x/mine/*.sdf": "mine",
        "first_200.props.sdf": "first_200.props",
    }
    assert {path: name_of(tmp_path / path) for path in names} == names


def test_a_prepared_set_is_no_source(tmp_path):
    made = prepare(files(tmp_path, "CCO\n"), tmp_path / "set", progress=False)
    with pytest.raises(MoldiffError, match=r"is a prepared set already, ready for `moldiff train data.folder="):
        Files(made.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hydrogens": "yes"}, "hydrogens: got 'yes', expected add or keep or none"),
        ({"fragments": "all"}, "fragments: got 'all', expected largest or reject"),
        ({"conformers": "omega"}, "conformers: got 'omega', expected etkdg or reject"),
        ({"elements": ["Qq"]}, "elements: got 'Qq'"),
        ({"valid_share": 0.6, "test_share": 0.4}, "leave something to train on"),
        ({"seed": -1}, "seed: got -1"),
        ({"time_limit": 0.0}, "time_limit: got 0.0"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(MoldiffError, match=message):
        files(tmp_path, "CCO\n", **options)


# Which molecules


def test_polar_hydrogens_alone_are_completed(tmp_path):
    atoms = [("C", 0, 0, 0), ("O", 1.43, 0, 0), ("H", 1.75, 0.9, 0.1)]
    assert outcomes(tmp_path, block("m", atoms, [(1, 2, 1), (2, 3, 1)]), "a.sdf") == ["CO"]


def test_a_structure_with_hydrogens_on_carbon_is_taken_as_complete(tmp_path):
    carbonyl = [*METHYL, ("O", 0, 0, 1.4)]
    text = block("methoxy", carbonyl, [*METHYL_BONDS, (1, 5, 1)])
    assert outcomes(tmp_path, text, "a.sdf") == ["atom 4 (O): bond orders sum to 1, expected 2"]


def test_drawings_get_coordinates(tmp_path):
    flat = block("flat", [("C", 0, 0, 0), ("C", 1, 0.5, 0), ("O", 2, 0, 0)], [(1, 2, 1), (2, 3, 1)], header="2D")
    assert outcomes(tmp_path, flat, "a.sdf") == ["CCO"]
    assert outcomes(tmp_path, flat, "a.sdf", conformers="reject") == ["no 3D coordinates"]


def test_drawings_that_call_themselves_3d(tmp_path):
    atoms = [("C", 0, 0, 0), ("C", 1.5, 0, 0), ("C", -0.75, 1.3, 0), ("C", -0.75, -1.3, 0)]
    isobutane = block("flat", atoms, [(1, 2, 1), (1, 3, 1), (1, 4, 1)])
    (record,) = files(tmp_path, isobutane, "a.sdf").records()
    assert "3D by ETKDGv3 and MMFF94s" in record.notes
    (water_record,) = files(tmp_path, water, "a.sdf").records()
    assert water_record.notes == ()  # a flat molecule is not a drawing


def test_coordinates_in_other_units(tmp_path):
    def ethane(scale):
        atoms = [("C", 0, 0, 0), ("C", 1.53 * scale, 0, 0.1)]
        return outcomes(tmp_path, block("e", atoms, [(1, 2, 1)]), "a.sdf")[0]

    assert ethane(1) == "CC"
    assert ethane(1.8897) == "half of the bonds are longer than 2.89 Å, expected coordinates in Å"
    assert ethane(0.1).startswith("atoms 0 (C) and 1 (C) are 0.")


def test_conformers_are_the_same_each_time(tmp_path):
    one, same, other = (
        next(files(tmp_path, "CC(=O)Oc1ccccc1C(=O)O\n", seed=seed).records()).outcome.pos for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_atoms_that_clash(tmp_path):
    atoms = [("O", 0, 0, 0), ("H", 0, 0, 0.96), ("H", 0, 0.3, 0.9)]
    (reason,) = outcomes(tmp_path, block("w", atoms, [(1, 2, 1), (1, 3, 1)]), "a.sdf")
    assert reason == "atoms 1 (H) and 2 (H) are 0.31 Å apart, expected at least 0.6"


def test_reasons_name_the_atom_as_the_file_counts_it(tmp_path):
    assert outcomes(tmp_path, "CC(C)(C)(C)C\nC[Be](C)(C)(C)(C)C\n") == [
        "atom 1 (C): valence 5 is greater than permitted",
        "atom 1 (Be): element not in the valence table",
    ]


def test_large_molecules(tmp_path):
    assert outcomes(tmp_path, "CCCCC\nCC\n", max_heavy_atoms=4) == ["5 heavy atoms, more than max_heavy_atoms", "CC"]


def test_atoms_of_fragments_are_counted_as_in_the_file(tmp_path):
    atoms = [("C", 9, 0, 0), ("C", 0, 0, 0), ("Cu", 1.5, 0, 0.1)]
    (reason,) = outcomes(tmp_path, block("w", atoms, [(2, 3, 1)]), "a.sdf")
    assert reason == "atom 2 (Cu): element not in the valence table"


def test_records_without_hydrogens_among_others(tmp_path):
    ethanol = block("etoh", [("C", 0, 0, 0), ("C", 1.52, 0, 0), ("O", 2.0, 1.34, 0.1)], [(1, 2, 1), (2, 3, 1)])
    made = prepare(files(tmp_path, ethanol + water, "a.sdf", hydrogens="keep"), tmp_path / "set", progress=False)
    assert list(made.names) == ["water"]
    assert made.meta["hydrogens"] == "explicit"
    assert '1,etoh,"hydrogens are missing that other records have' in (made.path / "rejected.csv").read_text()


def test_rare_classes_go_the_rarest_first(tmp_path):
    content = "CBr\nCCl\nCCl\nCCl\nCC\n"
    source = files(tmp_path, content)
    made = prepare(source, tmp_path / "set", min_count=2, progress=False)
    assert len(made) == 4
    assert (made.path / "rejected.csv").read_text().splitlines() == [
        "record,name,reason,file",
        '1,,"class Br is in 1 molecules, fewer than min_count=2",a.smi',
    ]
    # Without CBr the class CH3 is still in four molecules, Cl in three.
    assert set(rare_classes(made.flat, 4)) == {0, 1, 2, 3}
    assert rare_classes(made.flat, 3) == {}
    assert len(prepare(files(tmp_path, content), tmp_path / "all", min_count=None, progress=False)) == 5


def test_elements_of_every_kind_are_in_the_vocabulary(tmp_path):
    content = "CP(C)C\nCS(C)=O\nCCl\nCBr\nCI\nCB(O)O\nC[Si](C)(C)C\nC[N+](C)(C)C\nCF\n"
    made = prepare(files(tmp_path, content), tmp_path / "set", progress=False)
    assert len(made) == 9
    elements = {atom_class.atomic_number for atom_class in made.vocabulary.atom_classes}
    assert elements == {5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53}
    assert AtomClass(7, 1, 0) in made.vocabulary.atom_classes


def test_hydrogens_of_heavy_atom_sets_find_their_places(tmp_path):
    (record,) = files(tmp_path, "CC(=O)Nc1ccc([NH3+])cc1C#C\n").records()
    molecule = record.outcome
    bare = replace(molecule, hydrogen_offset=np.zeros_like(molecule.hydrogen_offset))
    placed = with_ideal_hydrogens(bare)
    lengths = np.linalg.norm(placed.hydrogen_offset, axis=-1)
    assert ((lengths > 0.9).sum(1) == molecule.num_hydrogens).all()
    pos = convert.to_rdkit(placed).GetConformer().GetPositions()
    assert pdist(pos).min() > 0.9
    # Hydrogens that the heavy atoms leave no choice are where MMFF94s puts them, within a few hundredths.
    ring = [
        k for k in range(molecule.num_heavy_atoms) if molecule.num_hydrogens[k] == 1 and molecule.atomic_number[k] == 6
    ]
    np.testing.assert_allclose(placed.hydrogen_offset[ring, 0], molecule.hydrogen_offset[ring, 0], atol=0.12)


# Properties and parts


def test_properties_are_the_numbers_that_most_records_have(tmp_path):
    table = "smiles,gap,note,rare\nCCO,1.5,x,\nCCN,,y,\nCCC,2.5,3,7\n"
    made = prepare(files(tmp_path, table, "a.csv"), tmp_path / "set", progress=False)
    assert made.properties == {"net_charge": "e", "gap": ""}
    assert made.molecule(2).properties == {"net_charge": 0.0, "gap": 2.5}
    made = prepare(files(tmp_path, table, "a.csv", properties=["rare"]), tmp_path / "set", progress=False)
    assert [made.molecule(k).properties for k in range(3)] == [{}, {}, {"rare": 7.0}]
    with pytest.raises(MoldiffError, match="no kept record has a number for 'gapp'; there are: net_charge, gap"):
        prepare(files(tmp_path, table, "a.csv", properties=["gapp"]), tmp_path / "set", progress=False)


def test_random_parts(tmp_path):
    splits = files(tmp_path, "CCO\n").splits(np.arange(100))
    assert {part: len(indices) for part, indices in splits.items()} == {"train": 80, "valid": 10, "test": 10}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(100))
    assert files(tmp_path, "CCO\n").splits(np.arange(100))["test"].tolist() == splits["test"].tolist()
    assert files(tmp_path, "CCO\n", seed=1).splits(np.arange(100))["test"].tolist() != splits["test"].tolist()
    for count in (1, 2, 5):
        assert len(files(tmp_path, "CCO\n").splits(np.arange(count))["train"]) == count


def test_parts_that_the_file_says(tmp_path):
    table = "smiles,part\nCCO,test\nCCN,train\nCCC,train\nCCF,?\n"
    made = prepare(files(tmp_path, table, "a.csv", split_field="part"), tmp_path / "set", progress=False)
    assert {part: indices.tolist() for part, indices in made.splits.items()} == {
        "train": [1, 2],
        "valid": [],
        "test": [0],
    }
    assert "part: got '?', expected train, valid, test" in (made.path / "rejected.csv").read_text()


# Workers


def test_b29_a_record_on_which_rdkit_hangs(tmp_path):
    sulfates = "C1(OS(=O)(=O)[O-])C(OS(=O)(=O)[O-])C(OS(=O)(=O)[O-])C(OS(=O)(=O)[O-])C1OS(=O)(=O)[O-]"
    mol = Chem.AddHs(Chem.MolFromSmiles(sulfates))
    rdDistGeom.EmbedMolecule(mol, randomSeed=5)
    atoms = zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True)
    lines = [f"{atom.GetSymbol()} {x:.4f} {y:.4f} {z:.4f}" for atom, (x, y, z) in atoms]
    hard = "\n".join([str(len(lines)), "Properties=species:S:1:pos:R:3 charge=-5", *lines, ""])
    found = outcomes(tmp_path, EXTXYZ + hard + EXTXYZ, "a.xyz", num_workers=1, time_limit=2.0)
    assert found == ["O", "not finished within 2 s", "O"]


def test_processes_give_what_one_gives(tmp_path):
    content = "CCO ethanol\nC1CC bad\nCCN amine\n" * 8
    alone, together = (list(files(tmp_path, content, num_workers=workers).records()) for workers in (0, 2))
    for left, right in zip(alone, together, strict=True):
        assert (left.number, left.name, left.keys, left.notes) == (right.number, right.name, right.keys, right.notes)
        if isinstance(left.outcome, Molecule):
            np.testing.assert_array_equal(left.outcome.pos, right.outcome.pos)


# The account


def test_reasons_are_counted_by_kind():
    assert reason_kind("atom 12 (N): bond orders sum to 4, expected 3") == "N: bond orders sum to 4, expected 3"
    assert reason_kind("cannot read 'C1CC' as SMILES") == "cannot read '...' as SMILES"
    assert reason_kind("Can't kekulize mol. Unkekulized atoms: 0 1 2 10: draw") == (
        "Can't kekulize mol. Unkekulized atoms: #: draw"
    )
    assert reason_kind("no 3D coordinates") == "no 3D coordinates"


def test_the_table_shows_every_record(capsys):
    reasons = {f"reason [{k}]": 1 for k in range(20)}
    counts = {"seen": 25, "kept": 5, "rejected": 20, "rejected_by_reason": reasons, "notes": {"hydrogens added": 3}}
    Console(width=80).print(account_table("mine", counts))
    shown = capsys.readouterr().out
    assert "reason [14]" in shown
    assert "other reasons, see rejected.csv │  5" in " ".join(shown.split()).replace("csv │ 5", "csv │  5")
