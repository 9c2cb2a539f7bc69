"""`evaluate` on files with good, broken and unreadable records."""

from __future__ import annotations

import csv
import importlib.util
import json

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from moldiff.errors import MoldiffError
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.molecule_set import NO_BONDS, NO_COORDINATES
from moldiff.evaluation.report import Report
from moldiff.molecules.formats.reader import read
from moldiff.molecules.molecule import InvalidMolecule, Status

WATER = [("O", 0, 0, 0.1173), ("H", 0, 0.7572, -0.4692), ("H", 0, -0.7572, -0.4692)]
WATER_BONDS = [(1, 2, 1), (1, 3, 1)]
HYDRONIUM = [("O", 0, 0, 0), ("H", 0.94, 0, 0.3), ("H", -0.47, 0.81, 0.3), ("H", -0.47, -0.81, 0.3)]
METHYL = [("H", 1, 0, 0.3), ("C", 0, 0, 0), ("H", -0.5, 0.9, 0.3), ("H", -0.5, -0.9, 0.3)]


def record(title, atoms, bonds) -> str:
    """One V2000 record; atoms = (symbol, x, y, z), bonds = (i, j, order) counted from 1."""
    lines = [title, "  test            3D", "", f"{len(atoms):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000"]
    lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {el:<3s} 0  0  0  0  0  0  0  0  0  0  0  0" for el, x, y, z in atoms]
    lines += [f"{i:3d}{j:3d}{order:3d}  0" for i, j, order in bonds]
    return "\n".join([*lines, "M  END", "$$$$", ""])


def ethanol() -> str:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=3) == 0
    mol.SetProp("_Name", "ethanol")
    return Chem.MolToMolBlock(mol) + "$$$$\n"


def fraction(report: Report, name: str) -> tuple[float, float]:
    return report[name].numerator, report[name].denominator


@pytest.fixture
def mixed(tmp_path):
    """Water, a neutral O with three H, ethanol, water with a coordinate NaN, a record that is no MOL block."""
    bad = record("nan", WATER, WATER_BONDS).replace("    0.1173", "       nan")
    hydronium = record("too many H", HYDRONIUM, [(1, 2, 1), (1, 3, 1), (1, 4, 1)])
    path = tmp_path / "mixed.sdf"
    path.write_text(record("water", WATER, WATER_BONDS) + hydronium + ethanol() + bad + "garbage\n$$$$\n")
    return path


def test_every_record_counts_and_has_a_row(mixed):
    report = evaluate(mixed)
    assert [row["name"] for row in report.rows] == ["water", "too many H", "ethanol", "nan", "garbage"]
    assert [row["number"] for row in report.rows] == [1, 2, 3, 4, 5]
    assert [row["status"] for row in report.rows] == ["ok", "valence", "ok", "non-finite", "unreadable"]
    assert all(row["reason"] for row in report.rows if row["status"] != "ok")
    assert fraction(report, "p2_valid") == (2, 5)
    assert fraction(report, "p1_molecule_stable") == (2, 5)
    assert fraction(report, "p2_atom_stable") == (3 + 3 + 9, 3 + 4 + 9)
    assert report.options["records"] == 5
    assert report.options["records_unreadable"] == 1


def test_the_atom_at_fault_is_counted_as_in_the_file(tmp_path):
    path = tmp_path / "methyl.sdf"
    path.write_text(record("methyl", METHYL, [(1, 2, 1), (2, 3, 1), (2, 4, 1)]))
    row = evaluate(path).rows[0]
    assert row["status"] == Status.RADICAL
    assert row["reason"].startswith("atom 1 (C)")
    assert row["smiles"] is None


def test_b40_aromatic_bonds_of_water_are_unstable(tmp_path):
    path = tmp_path / "strange.sdf"
    path.write_text(record("strange", WATER, [(1, 2, 4), (1, 3, 4)]) + record("water", WATER, WATER_BONDS))
    assert fraction(evaluate(path), "p2_molecule_stable") == (1, 2)


def test_files_are_written_and_strict(mixed, tmp_path):
    def refuse(constant):
        raise ValueError(constant)

    evaluate(mixed, out=tmp_path / "report")
    document = json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=refuse)
    assert document["options"]["input"] == str(mixed)
    rows = list(csv.DictReader((tmp_path / "report" / "molecules.csv").read_text().splitlines()))
    assert len(rows) == len(document["molecules"]) == 5
    assert "P1" in (tmp_path / "report" / "report.md").read_text()


def test_b42_samples_as_smiles(tmp_path):
    """No coordinates, so no P1; each of the other numbers keeps its own denominator."""
    path = tmp_path / "samples.smi"
    path.write_text("CCO\nOCC\nCCO\nC(C)(C)(C)(C)C\nCC\nC1CC\n")
    report = evaluate(path, reference=["CC"])
    assert fraction(report, "p2_valid") == (4, 6)
    assert fraction(report, "p2_unique") == (2, 4)
    assert fraction(report, "p2_novel") == (1, 2)
    assert fraction(report, "p2_valid_unique_novel") == (1, 6)
    assert fraction(report, "p2_atom_stable") == (3 * 9 + 8 + 20, 3 * 9 + 8 + 21)
    assert report["p1_valid"].value is None
    assert report.notes["p1_valid"] == NO_COORDINATES
    assert report.rows[0]["p1_stable"] is None


def test_samples_as_xyz(tmp_path):
    """No bonds, so no P2; the distances can still be looked up."""
    path = tmp_path / "samples.xyz"
    path.write_text("3\nwater\n" + "".join(f"{el} {x} {y} {z}\n" for el, x, y, z in WATER))
    report = evaluate(path)
    assert fraction(report, "p1_molecule_stable") == (1, 1)
    assert report["p2_valid"].value is None
    assert report.notes["p2_valid"] == NO_BONDS
    assert report.rows[0]["status"] == Status.UNREADABLE
    assert report.rows[0]["p1_smiles"] == "[H]O[H]"


def test_p1_sees_atoms_that_are_no_molecule(tmp_path):
    """A hydrogen molecule has no heavy atom to ride on, but its distance can be looked up."""
    path = tmp_path / "hydrogen.sdf"
    path.write_text(record("H2", [("H", 0, 0, 0), ("H", 0, 0, 0.74)], [(1, 2, 1)]))
    report = evaluate(path)
    assert fraction(report, "p1_molecule_stable") == (1, 1)
    assert fraction(report, "p2_valid") == (0, 1)


def test_dummy_atoms_are_not_valid_in_any_protocol(tmp_path):
    path = tmp_path / "dummy.sdf"
    atoms = [("*", 1.3, 0.1, 0.2), ("O", 0, 0, 0), ("H", -0.4, 0.8, 0.2)]
    path.write_text(record("dummy", atoms, [(1, 2, 1), (2, 3, 1)]))
    report = evaluate(path)
    assert fraction(report, "p1_valid") == (0, 1)
    assert fraction(report, "p2_valid") == (0, 1)
    assert "dummy atom" in report.rows[0]["reason"]


def test_reference_from_a_file(mixed, tmp_path):
    path = tmp_path / "train.smi"
    path.write_text("[H]O[H]\nnot-a-molecule\n")
    report = evaluate(mixed, reference=path)
    assert fraction(report, "p2_novel") == (1, 2)
    assert report.options["reference_molecules"] == 1
    assert report.options["reference_skipped"] == 1
    assert fraction(evaluate(mixed, reference=mixed), "p2_novel") == (0, 2)


@pytest.mark.parametrize("count", [0, 10])
def test_b46_no_valid_sample_is_a_result_not_an_error(count, tmp_path):
    report = evaluate([InvalidMolecule(Status.UNREADABLE, "x")] * count, out=tmp_path)
    assert report["p2_valid"].value == (0 if count else None)
    assert report["p2_unique"].value is None
    assert report["p2_novel"].value is None
    assert report.notes["p2_unique"]
    json.loads((tmp_path / "report.json").read_text())


def test_molecules_from_python_equal_the_file(mixed):
    from_python = evaluate([entry.as_drawn() for entry in read(mixed).records])
    for result in evaluate(mixed).results:
        assert fraction(from_python, result.name) == (result.numerator, result.denominator)


def test_wrong_paths(tmp_path):
    with pytest.raises(MoldiffError, match="no such file"):
        evaluate(tmp_path / "absent.sdf")
    (tmp_path / "water.sdf").write_text(record("water", WATER, WATER_BONDS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MoldiffError, match="no file of molecules in this folder"):
        evaluate(tmp_path / "water.sdf", reference=tmp_path / "empty")
    with pytest.raises(MoldiffError, match="no such file"):
        evaluate(tmp_path / "water.sdf", reference=tmp_path / "absent.smi")


def test_unknown_result_name():
    with pytest.raises(KeyError):
        evaluate([])["p2_vaild"]


def test_the_package_offers_the_function_each_time_it_is_asked():
    import moldiff

    assert [moldiff.evaluate([])["p2_valid"].value for _ in range(2)] == [None, None]
    for name in moldiff.__all__:
        assert not hasattr(getattr(moldiff, name), "__path__"), name
        assert importlib.util.find_spec(f"moldiff.{name}") is None, f"module and function share the name {name}"
