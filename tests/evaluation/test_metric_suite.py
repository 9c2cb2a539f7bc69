"""All metrics together: workers, interruption, missing packages, references, and the command."""

from __future__ import annotations

import csv
import json
import weakref
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np
import pytest
from metric_examples import UNREADABLE, chain, embedded, fractions, sample_molecules, subjects, water
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from moldiff.cli.main import main
from moldiff.errors import MoldiffError
from moldiff.evaluation import suite
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.metric import MetricOutput, MetricResult
from moldiff.evaluation.metrics.relaxation import Relaxation
from moldiff.evaluation.molecule_set import ReferenceSet
from moldiff.molecules.formats.reader import records
from moldiff.molecules.formats.writer import write
from moldiff.molecules.molecule import Molecule


@pytest.fixture(scope="module")
def sample() -> list[Molecule]:
    return sample_molecules()


@dataclass(frozen=True)
class Stopped:
    """A metric of a user's own, during which Ctrl-C is pressed."""

    name: str = "own"
    needs: tuple[str, ...] = ()
    package: str | None = None

    def __call__(self, subjects, reference, on_progress):
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Counted(Stopped):
    """One that counts."""

    def __call__(self, subjects, reference, on_progress):
        return MetricOutput(
            [MetricResult("own_count", 1, len(subjects), "One.")], {"own_place": list(range(len(subjects)))}
        )


@pytest.mark.parametrize("name", ["p3", "druglike", "posebusters", "mmff", "xtb"])
def test_interrupted_workers_leave_numbers_of_the_finished_alone(name):
    metric = suite.SUITE[name]()
    if package := getattr(metric, "package", None):
        pytest.importorskip(package)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    found = replace(metric, num_workers=1)(subjects(*map(embedded, ("CO", "CCO", "CCN", "CCF"))), None, interrupt)
    assert found.interrupted
    assert fractions(found)[f"{name}_status_interrupted"] == (2, 4)
    first = next(result for result in found.results)
    assert (first.numerator, first.denominator) == (2, 2)


def strict(path):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_metrics_of_ones_own_and_interruption(tmp_path):
    report = evaluate([water(), UNREADABLE], metrics=[Counted(), Stopped("late"), "diversity"], out=tmp_path / "r.json")
    assert report.interrupted
    assert report["own_count"].denominator == 2
    assert report["p2_valid"].value == 0.5
    assert report.rows[1]["own_place"] == 1
    assert not any(result.name.startswith("diversity") for result in report.results)
    assert strict(tmp_path / "r.json")["interrupted"]
    assert len(list(csv.DictReader((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()))) == 2
    assert (tmp_path / "r.md").is_file()


@pytest.mark.parametrize("wrong", ["p4", ["p3", "p4"], ["p3", "p3"], ["full", "xtb"]])
def test_metrics_that_cannot_be_meant(wrong):
    with pytest.raises(MoldiffError, match=r"metrics: got .*(p4|p3 twice|xtb twice)"):
        evaluate([], metrics=wrong)


def test_missing_packages_are_an_error_by_name_and_a_note_in_full(monkeypatch):
    monkeypatch.setattr("moldiff.errors.find_spec", lambda name: None)
    with pytest.raises(MoldiffError, match=r'tblite is not installed; .*pip install "moldiff\[eval\]"'):
        evaluate([], metrics=["xtb"])
    chosen, skipped = suite.choose("full")
    assert [metric.name for metric in chosen] == [
        "p3",
        "geometry",
        "diversity",
        "distribution",
        "neighbours",
        "druglike",
        "mmff",
    ]
    assert set(skipped) == {"posebusters", "fcd", "xtb"}
    chosen, skipped = suite.choose([Relaxation(skip_if_missing=True)])
    assert (chosen, list(skipped)) == ([], ["xtb"])


def test_default_metrics_and_what_they_lack(tmp_path):
    report = evaluate([water(), embedded("CCO")])
    assert {"geometry", "diversity"} == set(report.options["metrics"])
    assert "reference" in report.skipped["distribution"]
    assert evaluate([water()], metrics=()).options["metrics"] == {}
    path = tmp_path / "a.smi"
    path.write_text("CCO\nCC\n")
    report = evaluate(path, reference=["CCO", "CCC"], metrics=["geometry", "diversity", "distribution", "p3"])
    assert set(report.skipped) == {"geometry", "distribution", "p3"}
    assert report["diversity_internal"].denominator == 1
    assert {result.name: result.value for result in report.reference_results}["diversity_internal"] is not None
    path = tmp_path / "a.xyz"
    path.write_text("3\nwater\nO 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692\n")
    report = evaluate(path, metrics=["p3", "geometry", "druglike"])
    assert set(report.skipped) == {"geometry", "druglike"}
    assert report["p3_valid"].value == 1


@pytest.mark.parametrize("name", list(suite.SUITE))
def test_single_atoms_and_nothing_valid(name):
    """Chloride, and sets without one valid molecule, are no trouble to any metric."""
    metric = suite.SUITE[name]()
    if package := getattr(metric, "package", None):
        pytest.importorskip(package)
    nothing = np.zeros(1, dtype=int)
    chloride = Molecule(
        np.zeros((1, 3)), np.array([17]), np.array([-1]), nothing, np.zeros((1, 4, 3)), np.zeros((0, 3), dtype=int)
    )
    compares = name in ("distribution", "neighbours", "fcd", "druglike")
    for some in (subjects(chloride), subjects(chain([1.4, 1.4]), UNREADABLE), subjects()):
        for other in (subjects(chloride, water()), subjects()) if compares else (None,):
            found = metric(some, other, None)
            assert found.results
            assert all(len(values) == len(some) for values in found.columns.values())
            json.dumps([result.to_dict() for result in found.results], allow_nan=False)


def test_molecules_of_any_kind():
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=3) == 0

    class Drawn:
        molecule = embedded("CC")

    report = evaluate([water(), mol, Drawn(), None])
    assert [row["smiles"] for row in report.rows] == ["O", "CCO", "CC", None]
    assert [row["status"] for row in report.rows] == ["ok", "ok", "ok", "unreadable"]
    report = evaluate(["CCO", "C1CC"])
    assert [row["status"] for row in report.rows] == ["ok", "unreadable"]
    assert report["p1_valid"].value is None
    with pytest.raises(MoldiffError, match="got str in place 1, expected a molecule"):
        evaluate([water(), "CCO"])


@pytest.mark.parametrize("count", [0, 10])
def test_b46_no_valid_molecule_in_any_metric(count, tmp_path):
    slow = [name for name in suite.SUITE if name not in ("posebusters", "fcd", "xtb")]
    report = evaluate([chain([1.4] * 2)] * count, reference=["CCO", "CC"], metrics=slow, out=tmp_path)
    assert report["p2_valid"].value == (0 if count else None)
    for name in ("diversity_internal", "druglike_qed_mean", "p2_unique"):
        assert report[name].value is None
    strict(tmp_path / "report.json")


def test_reference_stands_beside(sample, tmp_path):
    real = tmp_path / "real.sdf"
    write(real, sample[50:])
    report = evaluate(sample[:30], reference=real, out=tmp_path)
    beside = {result.name: result for result in report.reference_results}
    assert beside["p2_valid"].denominator == beside["p1_valid"].denominator == 30
    assert not any("novel" in name for name in beside)  # the reference is not novel to itself
    assert report["distribution_bond_length"].value < 0.05
    assert beside["distribution_bond_length"].value is not None  # one half against the other
    assert report["distribution_bond_length[C-C]"].unit == "Å"
    assert not any("[" in result.name for result in report.results)
    assert report.options["reference_compared"] == "50 of 50 molecules of real.sdf"
    document = strict(tmp_path / "report.json")
    assert document["details"]
    assert document["reference_results"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| metric | value | reference |" in text
    assert "- `distribution_angle`: Wasserstein-1 distance of angles" in text
    assert "- `metrics.distribution.min_count`: 50" in text


def test_reference_from_a_prepared_set(sample):
    folder = str(files("moldiff.example_data").joinpath("sample"))
    known = ReferenceSet.of(folder, 20)
    assert known.trained_on
    assert len(known.molecules) == 20
    assert known.source == "20 of 100 test molecules of qm9-sample"
    report = evaluate(sample[:10], reference=folder, metrics="geometry", reference_size=20)
    beside = {result.name: result for result in report.reference_results}
    assert beside["p2_novel"].denominator == 10
    assert beside["geometry_sound"].value == 1


def test_sample_of_a_long_reference_is_random_and_the_same_every_time():
    smiles = ["C" * length for length in range(1, 101)]
    first, again = ReferenceSet.of(smiles, 10), ReferenceSet.of(smiles, 10)
    assert first.molecules.smiles == again.molecules.smiles
    assert len(set(first.molecules.smiles)) == 10
    assert max(map(len, first.molecules.smiles)) > 50
    assert len(first.index) == 100


def test_command_line(sample, tmp_path, capsys):
    path = tmp_path / "some.sdf"
    write(path, sample[:5])
    out = tmp_path / "report.json"
    assert main(["evaluate", f"input={path}", "metrics=[p3,geometry]", "metrics.p3.num_workers=1", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "P3: bonds perceived by RDKit" in printed
    document = strict(out)
    assert document["options"]["metrics"]["p3"]["num_workers"] == 1
    assert document["molecules"][0]["p3_status"] == "ok"
    assert main(["evaluate", f"input={path}", "metrics=[p4]"]) == 2
    assert "metrics: got 'p4', expected one of" in capsys.readouterr().err


def test_a_metric_of_ones_own_from_the_command_line(tmp_path):
    """A YAML in a folder of configs names its class, beside metrics of the suite; settings are set as theirs are."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "own.yaml").write_text(
        "defaults: [diversity, _self_]\nown:\n  _target_: test_metric_suite.Counted\n  name: own\n"
    )
    write(tmp_path / "a.sdf", [water()])
    out = tmp_path / "r.json"
    words = [f"input={tmp_path / 'a.sdf'}", "metrics=own", "metrics.own.name=own", f"out={out}"]
    assert main(["evaluate", *words, "--config-dir", str(tmp_path)]) == 0
    names = {result["name"] for result in json.loads(out.read_text(encoding="utf-8"))["results"]}
    assert {"own_count", "diversity_internal"} <= names


def test_records_of_a_file_are_not_kept(tmp_path, monkeypatch):
    write(tmp_path / "a.sdf", sample_molecules())
    alive, most = weakref.WeakSet(), 0

    def watched(path):
        nonlocal most
        for record in records(path):
            alive.add(record)
            most = max(most, len(alive))
            yield record

    monkeypatch.setattr("moldiff.evaluation.evaluate.records", watched)
    assert evaluate(tmp_path / "a.sdf")["p2_valid"].denominator == 100
    assert most <= 3
