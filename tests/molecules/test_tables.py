"""Parquet, XLSX, CSV and extended XYZ, read by pyarrow, openpyxl, csv and ASE alone; folders of files."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.formats import table
from moldiff.molecules.formats.reader import find_files, read, read_sets
from moldiff.molecules.formats.writer import Writer, write
from moldiff.molecules.molecule import Molecule

SMILES = ("C[C@@H](O)N", "C[NH3+]", "c1ccncc1", "C/C=C/C")


@dataclass(frozen=True)
class Drawn:
    """A molecule with data fields."""

    molecule: Molecule
    fields: Mapping[str, Any]

    def record(self) -> Mapping[str, Any]:
        return self.fields


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    found = []
    for k, text in enumerate(SMILES):
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        Chem.Kekulize(mol, clearAromaticFlags=True)
        mol.SetProp("_Name", f"molecule {k}")
        molecule = from_rdkit(mol)
        assert isinstance(molecule, Molecule)
        fields = {"SMILES": text, "novel": k % 2 == 0, "seed": 2**32 - 1, "gap": 0.1 + k, "task": '=1+1, {"a": "b c"}'}
        found.append(Drawn(molecule, fields | ({"note": "a\x07b"} if k == 2 else {})))
    return found


def built(row: Mapping[str, Any]) -> Chem.Mol:
    """The molecule of a row of Parquet, as a reader of the documentation builds it."""
    mol = Chem.RWMol()
    for number, charge in zip(row["atomic_numbers"], row["formal_charges"], strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    for first, second, order in row["bonds"]:
        mol.AddBond(first, second, Chem.BondType.values[order])
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.array(row["coordinates"]))
    mol.AddConformer(conformer)
    Chem.SanitizeMol(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    return Chem.RemoveHs(mol)


def test_parquet_holds_the_molecules_with_typed_fields_in_row_groups(
    drawn: list[Drawn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table, "_GROUP", 3)
    assert write(tmp_path / "a.parquet", drawn) == 4
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2
    found = pq.read_table(tmp_path / "a.parquet")
    types = {name: str(found.schema.field(name).type) for name in ("smiles", "novel", "seed", "gap", "task", "note")}
    assert types == dict(smiles="string", novel="bool", seed="int64", gap="double", task="string", note="string")
    rows = found.to_pylist()
    assert [Chem.MolToSmiles(built(row)) for row in rows] == [Chem.CanonSmiles(text) for text in SMILES]
    assert [row["gap"] for row in rows] == [0.1, 1.1, 2.1, 3.1]
    assert [row["note"] for row in rows] == [None, None, "a\x07b", None]
    for row, one in zip(rows, drawn, strict=True):
        assert np.array_equal(np.array(row["coordinates"])[: one.molecule.num_heavy_atoms], one.molecule.pos)


def test_parquet_is_read_back_in_3d(drawn: list[Drawn], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path / "a.parquet", drawn)
    for record, one in zip(read(tmp_path / "a.parquet").records, drawn, strict=True):
        molecule = record.molecule()
        assert isinstance(molecule, Molecule)
        assert np.allclose(molecule.pos, one.molecule.pos)
        assert np.array_equal(molecule.bonds, one.molecule.bonds)
        assert record.name == one.molecule.name
        assert record.mol is not None
        assert (record.mol.GetProp("novel"), record.mol.GetProp("SMILES")) == (
            str(one.fields["novel"]).lower(),
            one.fields["SMILES"],
        )


def test_rows_of_parquet_that_do_not_fit_together_are_rejected_one_by_one(tmp_path: Path) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    water: dict[str, Any] = {
        "atomic_numbers": [8, 1, 1],
        "formal_charges": [0, 0, 0],
        "coordinates": [[0.0, 0.0, 0.1], [0.76, 0.0, -0.47], [-0.76, 0.0, -0.47]],
        "bonds": [[0, 1, 1], [0, 2, 1]],
    }
    rows = [
        water,
        water | {"atomic_numbers": [8, 1]},
        water | {"coordinates": [[0.0, 0.0]] * 3},
        water | {"bonds": [[0, 7, 1]]},
        water | {"bonds": [[0, 1, 9]]},
        water | {"atomic_numbers": [8, 1, 900]},
        water | {"atomic_numbers": [], "formal_charges": [], "coordinates": [], "bonds": []},
        water | {"coordinates": [[float("nan")] * 3] * 3},
        water | {"bonds": None},
        water | {"coordinates": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet").records
    assert len(found) == len(rows)
    assert isinstance(found[0].molecule(), Molecule)
    assert all("do not fit together" in str(one.problem) for one in found[1:7])
    reasons = [getattr(one.molecule(), "reason", "") for one in found[7:]]
    assert "not finite" in reasons[0]
    assert "no bonds" in reasons[1]
    assert "no SMILES" in reasons[2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], "cannot be read as Parquet"),
        (lambda whole: b"PAR1" + whole[100:], "cannot be read as Parquet"),
        (lambda whole: b"SDF, not Parquet", "cannot be read as Parquet"),
        (lambda whole: b"", "the file is empty"),
    ],
)
def test_broken_parquet_is_one_line(content: Any, reason: str, drawn: list[Drawn], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path / "a.parquet", drawn)
    (tmp_path / "b.parquet").write_bytes(content((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(MoldiffError, match=reason) as caught:
        read(tmp_path / "b.parquet")
    assert "\n" not in str(caught.value)


def test_parquet_without_molecules_names_its_columns(tmp_path: Path) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"coordinates": [[[0.0]]], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(MoldiffError, match="no column of SMILES found; columns found: 'coordinates', 'id'"):
        read(tmp_path / "a.parquet")


def test_xlsx_has_numbers_as_numbers_and_no_formulas(drawn: list[Drawn], tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    assert write(tmp_path / "a.xlsx", drawn) == 4
    head, *rows = openpyxl.load_workbook(tmp_path / "a.xlsx").active.iter_rows()
    assert [cell.value for cell in head] == ["smiles", "name", "novel", "seed", "gap", "task", "note"]
    assert [cell.value for cell in rows[2]] == [
        SMILES[2],
        "molecule 2",
        True,
        2**32 - 1,
        2.1,
        drawn[2].fields["task"],
        "ab",
    ]
    assert [cell.data_type for cell in rows[2]] == ["s", "s", "b", "n", "n", "s", "s"]


def test_a_sheet_that_is_full_says_so(drawn: list[Drawn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openpyxl")
    writer = Writer(tmp_path / "a.xlsx")
    assert writer._table is not None
    assert writer._table.most == table.MAX_SHEET_ROWS == 1_048_575
    writer._table = writer._table._replace(most=1)
    with writer:
        writer.write(drawn[0].molecule)
        with pytest.raises(MoldiffError, match=r"holds 1 records at most, expected \.csv for more"):
            writer.write(drawn[1].molecule)
    assert writer.count == 1


@pytest.mark.parametrize(("suffix", "package"), [("parquet", "pyarrow"), ("xlsx", "openpyxl")])
def test_a_missing_library_is_named_before_anything_is_written(
    suffix: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moldiff.errors.find_spec", lambda name: None)
    advice = rf'{package} is not installed; to install it: pip install "moldiff\[{suffix}\]"'
    with pytest.raises(MoldiffError, match=advice):
        Writer(tmp_path / f"a.{suffix}")
    with pytest.raises(MoldiffError, match="unknown type of file"):
        Writer(tmp_path / f"a.{suffix}.gz")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.xlsx", "a.csv"])
def test_what_was_finished_before_ctrl_c_is_a_whole_file(name: str, drawn: list[Drawn], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("openpyxl")

    def interrupted() -> None:
        with Writer(tmp_path / name) as writer:
            writer.write(drawn[0].molecule)
            writer.write(drawn[1].molecule)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == [name]
    if name != "a.xlsx":
        assert [record.name for record in read(tmp_path / name).records] == ["molecule 0", "molecule 1"]


def test_csv_has_one_column_of_smiles(drawn: list[Drawn], tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [*drawn, drawn[1].molecule])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["smiles", "name", "novel", "seed", "gap", "task", "note"]
    assert [row["smiles"] for row in rows] == [*SMILES, "C[NH3+]"]


def test_extended_xyz_is_read_by_ase(drawn: list[Drawn], tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", drawn)
    found = read(tmp_path / "a.extxyz").records
    for record, one in zip(found, drawn, strict=True):
        assert record.mol is not None
        assert record.name == one.molecule.name
        assert record.mol.GetProp("task") == one.fields["task"]
        assert record.mol.GetProp("charge") == str(one.molecule.formal_charge.sum())
    ase = pytest.importorskip("ase.io")
    frames = ase.read(tmp_path / "a.extxyz", ":")
    assert [frame.info["task"] for frame in frames] == [one.fields["task"] for one in drawn]
    assert np.allclose(frames[0].positions[:4], drawn[0].molecule.pos)
    assert not frames[0].pbc.any()


@pytest.mark.parametrize(
    ("comment", "name", "fields"),
    [
        ("a name of some words", "a name of some words", {}),
        ("water charge=1", "water charge=1", {"charge": "1"}),
        ("energy=-76.4 charge=0", "", {"energy": "-76.4", "charge": "0"}),
        ('Lattice="9 0 0 0 9 0 0 0 9" pbc="F F F" name=w free', "w", {"name": "w", "free": "T"}),
        (r'Properties=species:S:1:pos:R:3 note="a \"b\" = c" dipole={0 0 1} s = "x y"', "", None),
    ],
)
def test_comments_of_extended_xyz(comment: str, name: str, fields: dict[str, str] | None, tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text(f"3\n{comment}\nO 0 0 0.1\nH 0.76 0 -0.47\nH -0.76 0 -0.47\n")
    (record,) = read(tmp_path / "a.xyz").records
    assert record.mol is not None
    expected = {"note": 'a "b" = c', "dipole": "{0 0 1}", "s": "x y"} if fields is None else fields
    assert record.name == name
    assert {key: record.mol.GetProp(key) for key in record.mol.GetPropNames()} == expected
    assert record.remarks == ()


def test_a_periodic_cell_is_remarked_on_and_bad_columns_are_refused(tmp_path: Path) -> None:
    atoms = "H 0 0 0\nH 0 0 0.74\n"
    (tmp_path / "a.xyz").write_text(f'2\nLattice="9 0 0 0 9 0 0 0 9"\n{atoms}2\nProperties=mass:R:1\n{atoms}')
    first, second = read(tmp_path / "a.xyz").records
    assert first.remarks == ("periodic cell (Lattice), which is not used",)
    assert "got Properties=mass:R:1, expected species:S:1 and pos:R:3" in str(second.problem)
    (tmp_path / "b.xyz").write_text("1\n" + '"\\' * 10**6 + "\nC 0 0 0\n")
    assert len(read(tmp_path / "b.xyz").records) == 1  # within seconds


def frame(symbol: str) -> str:
    """The file of a molecule as EDM writes it."""
    return f"2\n\n{symbol} 0.000000000 0.000000000 0.000000000\nH 0.000000000 0.000000000 0.950000000\n"


def test_a_folder_of_single_molecules_is_one_set(tmp_path: Path) -> None:
    for k, symbol in enumerate("OFN"):
        (tmp_path / f"molecule_{k:03}.txt").write_text(frame(symbol))
    (tmp_path / "molecule_003.txt").write_text(frame("O")[:30])
    (tmp_path / "README.txt").write_text("CCO ethanol\nThese are molecules.\n")
    (tmp_path / ".hidden.txt").write_text(frame("O"))
    assert len(find_files(tmp_path)) == 4
    ((name, found),) = read_sets(tmp_path).items()
    assert (name, found.path) == (tmp_path.name, tmp_path)
    assert [(one.number, one.name) for one in found.records] == [(k + 1, f"molecule_{k:03}.txt") for k in range(4)]
    assert [one.problem is None for one in found.records] == [True, True, True, False]
    names = [tmp_path / f"molecule_{k:03}.txt" for k in range(2)]
    assert list(read_sets(names)) == ["molecule_000.txt", "molecule_001.txt"]  # named one by one
    assert len(read_sets(f"{tmp_path}/molecule_00[01].txt")) == 1


def test_files_of_a_mixed_folder_are_sets_and_none_is_lost(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("CCO\nCCN\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.smi").write_text("CCO\nCCN\nC1C\n")
    (tmp_path / "b" / "empty.sdf").touch()
    (tmp_path / "notes.md").write_text("no molecules")
    sets = read_sets(tmp_path)
    assert {name: len(found.records) for name, found in sets.items()} == {
        str(tmp_path / "a.smi"): 2,
        str(tmp_path / "b" / "a.smi"): 3,
        "empty.sdf": 1,
    }
    assert str(sets["empty.sdf"].records[0].problem).count("the file is empty") == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("empty", "no file of molecules in this folder, expected any of .sdf"),
        ("*.sdf", "no file matches this pattern"),
        ("a.sdf", "no such file or folder"),
        ("broken.sdf", "the file is empty"),
    ],
)
def test_where_nothing_is_found_one_line_says_so(path: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "broken.sdf").touch()
    place = f"{tmp_path}/other/*.sdf" if path == "*.sdf" else tmp_path / path
    with pytest.raises(MoldiffError, match=reason) as caught:
        read_sets(place)
    assert "\n" not in str(caught.value)
