"""One record or file that is odd, far too large or damaged does not end the run: it is counted and the rest read."""

import gzip
import json
import resource
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem
from test_io import WATER, WATER_BONDS, block, water

from moldiff.cli.main import main
from moldiff.data.sources.files import Files
from moldiff.evaluation.molecule_set import MoleculeSet, score
from moldiff.molecules.formats.reader import read
from moldiff.view.histograms import Distributions, plots
from moldiff.view.page import view

ODD = water.replace(" O   0  0  0  0  0", " O   0  0  0  0  2147483648", 1)
"""A record with a number that no field of an atom line can hold."""


def xyz(number):
    """A frame of so many atoms, none near another."""
    return f"{number}\nmany\n" + "".join(f"C {3 * k} 0 0\n" for k in range(number))


def test_s23_an_odd_number_in_an_atom_line_is_a_counted_record(tmp_path, capsys):
    assert water != ODD
    (tmp_path / "a.sdf").write_text(water + ODD + water)
    assert main(["evaluate", f"input={tmp_path / 'a.sdf'}", f"out={tmp_path / 'report'}"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["status"] for row in report["molecules"]] == ["ok", "unsanitizable", "ok"]
    assert report["molecules"][1]["reason"].startswith("RDKit cannot work with it")
    assert main(["view", f"input={tmp_path / 'a.sdf'}"]) == 0
    assert (tmp_path / "a.html").read_text().count('<li class="card"') == 3


def test_an_error_that_nobody_thought_of_is_the_reason_of_its_record(tmp_path, monkeypatch):
    (tmp_path / "a.sdf").write_text(water * 2)
    calls = []

    def odd(molecule):
        calls.append(molecule)
        if len(calls) == 1:
            raise RuntimeError("Pre-condition Violation")
        return "O"

    monkeypatch.setattr("moldiff.molecules.identity.strict_key", odd)
    rows = score(MoleculeSet.of(read(tmp_path / "a.sdf").records)).rows
    assert [row.status for row in rows] == ["unreadable", "ok"]
    assert rows[0].reason == "unexpected RuntimeError: Pre-condition Violation"


@pytest.mark.parametrize("name", ["a.xyz", "a.smi"])
def test_s23_a_record_of_40000_atoms_takes_no_memory(tmp_path, name):
    text = xyz(40_000) + "3\n\n" + "".join(f"{s} {x} {y} {z}\n" for s, x, y, z in WATER)
    (tmp_path / name).write_text(text if name == "a.xyz" else "C" * 40_000 + "\nO\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many, good = read(tmp_path / name).records
    score(MoleculeSet.of([many, good]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB; it was 36 GB
    assert many.problem.reason == "40000 atoms, more than 2500"
    assert good.problem is None


def test_s23_one_far_atom_does_not_stretch_the_histogram_of_bond_lengths(tmp_path):
    atoms = [*WATER[:2], ("H", 0, 9999, 0)]
    (tmp_path / "a.sdf").write_text(water * 3 + block("far", atoms, WATER_BONDS))
    found = Distributions.of(record.mol for record in read(tmp_path / "a.sdf").records)
    assert sum(found.lengths.values()) == 8
    assert max(found.lengths) <= 200
    assert plots(found, None).count("<rect") < 400
    assert view(tmp_path / "a.sdf").stat().st_size < 3_000_000


def test_s23_a_damaged_file_in_a_folder_is_a_counted_reject(tmp_path):
    packed = bytearray(gzip.compress(water.encode() * 200, mtime=0))
    packed[12:40] = bytes(28)
    (tmp_path / "a.sdf").write_text(water)
    (tmp_path / "b.sdf.gz").write_bytes(packed)
    found = list(Files(tmp_path, num_workers=0).records())
    assert [record.file for record in found] == ["a.sdf", "b.sdf.gz"]
    assert found[1].outcome.reason == "a compressed file damaged before its first record"


def test_s23_a_damaged_parquet_file_in_a_folder_is_a_counted_reject(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.sdf").write_text(water)
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(range(200)) + (100).to_bytes(4, "little") + b"PAR1")
    found = list(Files(tmp_path, num_workers=0).records())
    assert found[1].outcome.reason.startswith("cannot be read as Parquet")


@needs_weights
def test_s6_bonds_of_a_lone_atom_that_lacks_some_leave_the_others_alone(tmp_path, capsys):
    methyl = "4\nmethyl\nC 0 0 0\nH 1.08 0 0\nH -.54 .935 0\nH -.54 -.935 0\n"
    (tmp_path / "a.xyz").write_text(methyl + "3\nwater\n" + "".join(f"{s} {x} {y} {z}\n" for s, x, y, z in WATER))
    out = tmp_path / "out.sdf"
    assert main(["sample", "task=bonds", f"input={tmp_path / 'a.xyz'}", "workers=0", f"out={out}"]) == 0
    assert "record 1 left out: atom 0 (C) with 3 hydrogens lacks bonds" in capsys.readouterr().err
    assert [Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier(str(out))] == ["O"]
    assert Path(out).read_text().count("$$$$") == 1
