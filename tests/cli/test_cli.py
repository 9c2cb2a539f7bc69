"""The command line as a user meets it: files, exit codes, and one clear line for whatever is wrong."""

import gzip
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODEL_CONFIG, small_model

import moldiff
from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.cli.options import GENERAL, SCREENS
from moldiff.diffusion.pretrained import save_pretrained
from moldiff.sampling import generator
from moldiff.sampling.run import SamplingRun


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the command starts, with a model of random weights in `tiny`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    save_pretrained(tmp_path / "tiny", small_model(), MODEL_CONFIG, dtype=torch.float32)
    return tmp_path


def sample(*arguments: str) -> int:
    """Four molecules of the tiny model in two steps, as they come."""
    return main(["sample", "model=tiny", "n=4", "steps=2", "keep=[]", *arguments])


WRONG = [
    ("sampel", "did you mean sample?"),
    ("frobnicate", "expected one of: sample, evaluate, view, verify, prepare, merge, train"),
    ("sample nn=3", "did you mean n?"),
    ("sample sede=3", "did you mean seed?"),
    ("train max_steps=3", "did you mean trainer.max_steps?"),
    ("train denoiser.num_layer=3", "did you mean denoiser.num_layers?"),
    ("sample prior=uniform", "unknown option 'prior'"),
    ("sample +foo=1", "unknown option 'foo'"),
    ("sample ~n", "cannot be taken away"),
    ("sample foo", "expected key=value"),
    ("sample --n=3", "expected key=value; options have no dashes"),
    ("sample n=abc", "n: got abc (text), expected a whole number"),
    ("sample n=1.5", "expected a whole number"),
    ("sample n=null", "expected a whole number"),
    ("sample n=true", "n: got true (true or false), expected a whole number"),
    ("sample n=0", "n: got 0, expected a whole number of at least 1"),
    ("sample n=-3", "n: got -3"),
    ("sample model=tiny n=1000000000", "n: got 1000000000, expected a whole number from 1 to 100000000"),
    ("sample n=1,2", "expected one; a list is written n=[1,2], a job for each has -m"),
    ("sample -m n=1,x", "n: got x (text), expected a whole number"),
    ("sample -m seed=1,-1", "seed: got -1"),
    ("sample -m n=interval(1,2)", "got an interval, expected values that can be counted"),
    ("sample --multirun n=range(2,2)", "got no value"),
    ("sample -m out=tiny.sdf seed=1,2", "out: tiny is there already, expected a new folder"),
    (
        "sample hydra.run.dir=x",
        "hydra.run.dir: Hydra's own options are not for here, expected hydra.job.chdir or a launcher's at most",
    ),
    ("train hydra/launcher=x", "hydra/launcher=x: got a launcher for one job, expected -m or shards=K as well"),
    ("sample hydra.job.chdir=1", "hydra.job.chdir: got 1, expected true or false"),
    ("sample hydra.job.chdir=true n=0", "n: got 0"),
    ("sample seed=-1", "seed: got -1"),
    ("sample seed=99999999999", "seed: got 99999999999, expected a whole number from 0 to 4294967295"),
    ("sample steps=0", "steps: got 0"),
    ("sample max_draws=0", "max_draws: got 0"),
    ("sample size=0", "size: got 0, expected heavy atoms as a number such as 9 or a range such as 7..9"),
    ("sample size=9..7", "size: got 9..7"),
    ("sample size=big", "size: got big"),
    ("sample size=[7,9]", "size: got [7,9] (a list)"),
    ("sample keep=[good]", "keep: got 'good', expected any of valid, sound, unique, novel"),
    ("sample decode=best", "decode: got 'best', expected valence or raw"),
    ("sample precision=half", "precision: got 'half', expected auto, float32 or bfloat16"),
    ("sample sampler.churn=-1", "sampler.churn: got -1, expected a number >= 0"),
    ("sample sampler=euler", "sampler: got 'euler', expected one of: power"),
    ("sample out=a.pdb", "a.pdb: unknown type of file"),
    ("sample out=no/where/a.sdf", "no/where/a.sdf: the folder no/where does not exist"),
    ("sample out=tiny", "tiny: "),
    ("sample out=", "out: got nothing"),
    ("sample out=[CH3]", """'out="[CH3]"'"""),
    ("sample out=C(C).sdf", """'out="C(C).sdf"'"""),
    ("sample model=nope", "model: got 'nope'"),
    ("sample model=.", "a folder without config.json"),
    ("sample model=tiny device=abacus", "device: got 'abacus'"),
    ("sample model=tiny keep=[novel]", "no list of its training molecules"),
    ("sample --config-dir nope", "--config-dir: got 'nope', expected a folder"),
    ("sample --config-dir", "--config-dir: got ''"),
    ('sample model="${nothing}"', "nothing"),
    ("evaluate", "input: nothing given, expected a file of molecules"),
    ("evaluate input=nope.sdf", "nope.sdf: no such file"),
    ("evaluate input=tiny", "tiny: no file of molecules in this folder"),
    ("evaluate input=1", "input: got 1 (a whole number), expected text"),
    ("evaluate input=tiny/config.json", "unknown type of file"),
    ("view", "input: nothing given, expected a file of molecules"),
    ("view input=nope.sdf", "nope.sdf: no such file"),
    ("view input=tiny/config.json out=page.html", "unknown type of file"),
    ("view input=nope.sdf out=page.txt", "page.txt, expected a name that ends in .html"),
    ("prepare data=qm8", "data: got 'qm8', expected one of: drugs, files, qm9, sample"),
    ("prepare data=files", "data.path: nothing given"),
    ("prepare data.path=nope.sdf", "nope.sdf: no such file or folder"),
    ("prepare data.path=tiny", "no file of molecules in this folder"),
    ("prepare data.path=x.smi data.hydrogens=ad", "hydrogens: got 'ad', expected add or keep or none"),
    ("prepare data.path=x.smi hydrogens=keep", "did you mean data.hydrogens?"),
    ("prepare data=sample", "is prepared already"),
    ("prepare limit=0", "limit: got 0"),
    ("train data.folder=nope", "nope: no prepared set there; run `moldiff prepare data=qm9` first"),
    ("train experiment=slow", "experiment: got 'slow', expected one of: drugs, qm9, qm9_properties, quick"),
    ("train experiment=quick out=tiny", "out: tiny is not empty; choose another folder, or resume=true"),
    ("train experiment=quick resume=true out=fresh", "expected the folder of an interrupted training"),
    ("train experiment=quick init=nope out=fresh", "got 'nope'"),
    ("train batch_size=0", "batch_size: got 0"),
    ("train trainer.max_time=2h", "trainer.max_time: got '2h', expected days:hours:minutes:seconds"),
    ("train experiment=quick denoiser.num_heads=5 out=fresh", "denoiser.hidden_dim: got 96"),
    ("train experiment=quick +denoiser.foo=1 out=fresh", "foo"),
]


@pytest.mark.parametrize(("typed", "said"), WRONG, ids=[typed for typed, _ in WRONG])
def test_wrong_input_is_one_clear_line(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moldiff: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert said in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"", "empty, expected the model's weights"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.safetensors", b"<html></html>", "a web page"),
        ("model.safetensors", b"\xff" * 100, "expected a safetensors file"),
        ("config.json", b"{", "damaged, expected JSON"),
        ("config.json", b'{"format_version": 999}', "got format_version 999"),
    ],
)
def test_damaged_model(name: str, content: bytes, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny" / name).write_bytes(content)
    assert sample() == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(folder.glob(".*")), "the unfinished file is taken away"


@pytest.mark.parametrize("content", [b"", b"EMPTY\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n"])
def test_files_without_molecules(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.sdf").write_bytes(content)
    code = main(["evaluate", "input=a.sdf"])
    out, err = capsys.readouterr()
    assert (code, "the file is empty" in err) == (2, True) if not content else (code, "unreadable" in out) == (0, True)
    assert "Traceback" not in err


def test_debug_shows_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "model=nope", "debug=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_unexpected_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(generator, "load", fail)
    assert sample() == 1
    expected = "moldiff: error: unexpected RuntimeError: first line (debug=true shows where)\n"
    assert capsys.readouterr().err == expected


def test_full_disk_or_forbidden_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "out/a.sdf")

    monkeypatch.setattr("moldiff.molecules.formats.writer.Writer.__init__", refuse)
    assert sample() == 2
    assert capsys.readouterr().err == "moldiff: error: out/a.sdf: Permission denied\n"


def test_writes_every_format_with_all_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample() == 0
    assert "written to" in capsys.readouterr().out
    assert len(moldiff.read("molecules.sdf").records) == 4
    for name in ("a.sdf.gz", "a.xyz", "a.csv"):
        assert sample(f"out={name}") == 0
    assert len(moldiff.read("a.sdf.gz").records) == 4
    assert gzip.decompress((folder / "a.sdf.gz").read_bytes()) == (folder / "molecules.sdf").read_bytes()
    assert len(moldiff.read("a.xyz").records) == 4
    assert len((folder / "a.csv").read_text().splitlines()) == 5
    assert {path.name for path in folder.iterdir()} == {"tiny", "molecules.sdf", "a.sdf.gz", "a.xyz", "a.csv"}


def test_record_says_how_to_draw_it_again(folder: Path) -> None:
    assert sample("seed=5", "n=3") == 0
    first = moldiff.read("molecules.sdf").records[2].mol
    assert first is not None
    assert (first.GetProp("model"), first.GetProp("seed"), first.GetProp("index")) == ("tiny", "5", "2")
    assert sample("seed=5", "n=3", "out=again.sdf") == 0
    assert (folder / "again.sdf").read_bytes() == (folder / "molecules.sdf").read_bytes()
    assert sample("seed=6", "n=3", "out=other.sdf") == 0
    assert (folder / "other.sdf").read_bytes() != (folder / "molecules.sdf").read_bytes()


def test_the_same_molecules_from_python() -> None:
    assert sample("decode=raw", "size=4..5") == 0
    drawn = moldiff.load("tiny").sample(4, steps=2, size=(4, 5), keep=(), decode="raw")
    read = [record.mol for record in moldiff.read("molecules.sdf").records]
    assert [mol.GetProp("_Name") for mol in read if mol] == [one.molecule.name for one in drawn]
    assert {one.molecule.num_heavy_atoms for one in drawn} <= {4, 5}


def test_sizes_outside_the_training_data_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("size=7") == 0
    assert "warning: size: got 7 heavy atoms, the model has learnt 4 to 6" in capsys.readouterr().err


def test_limit_of_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = sample("keep=valid", "n=500", "max_draws=6", "decode=raw")
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert "of 500 molecules kept; max_draws=6 reached" in err or "none of the 6 drawn molecules is valid" in err
    assert (folder / "molecules.sdf").exists() == (code == 1)


def test_nothing_kept_leaves_the_older_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "molecules.sdf").write_text("older")

    monkeypatch.setattr(SamplingRun, "_is_wanted", lambda *_: False)
    assert sample("keep=[valid,unique]", "max_draws=5") == 2
    assert "none of the 5 drawn molecules is valid and unique, so no file was written" in capsys.readouterr().err
    assert (folder / "molecules.sdf").read_text() == "older"
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("finished", [0, 2])
def test_ctrl_c_keeps_what_is_finished(
    finished: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "molecules.sdf").write_text("older")

    def interrupted(run: SamplingRun, _: object) -> bool:
        if run.kept == finished:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(SamplingRun, "_is_wanted", interrupted)
    assert sample() == 130
    assert "moldiff: interrupted" in capsys.readouterr().err
    if finished:
        assert len(moldiff.read("molecules.sdf").records) == finished
    else:
        assert (folder / "molecules.sdf").read_text() == "older"


def test_ctrl_c_anywhere_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, "load", interrupt)
    assert sample() == 130
    assert capsys.readouterr().err == "moldiff: interrupted\n"


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{shlex.quote(sys.executable)} -m moldiff.cli.main train --cfg | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "data:\n"
    assert "Traceback" not in done.stderr


def test_evaluate_prints_tables_and_writes_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample() == 0
    capsys.readouterr()
    assert main(["evaluate", "input=molecules.sdf", "reference=molecules.sdf", "out=report"]) == 0
    out = capsys.readouterr().out
    assert "P1" in out
    assert "P2" in out
    assert {path.name for path in (folder / "report").iterdir()} == {"report.json", "report.md", "molecules.csv"}


def test_cfg_prints_and_stops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "n=7", "--cfg"]) == 0
    assert "7" in capsys.readouterr().out
    assert not (folder / "molecules.sdf").exists()


def test_help_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], *([command, "--help"] for command in SCREENS)):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 80
    assert len(GENERAL.splitlines()) <= 24
    assert main([]) == 2
    assert "usage: moldiff COMMAND" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"moldiff {moldiff.__version__}\n"


def examples() -> list[Sequence[str]]:
    """Every command in the help texts, as words."""
    texts = [text.partition("examples:")[2] for text in (GENERAL, *SCREENS.values())]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [shlex.split(part) for line in lines for part in line.split("&&") if line]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_examples_of_the_help_compose(words: Sequence[str]) -> None:
    assert words[0] == "moldiff"
    assert compose_options(words[1], words[2:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_train_then_sample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["train", "experiment=quick", "out=run", "trainer.max_time=null", "trainer.accelerator=cpu"]
    small = ["trainer.max_steps=2", "batch_size=8", "trainer.num_validation=4", "denoiser.num_layers=1"]
    assert main([*quick, *small]) == 0
    assert "moldiff sample model=run" in capsys.readouterr().out
    assert main([*quick, *small]) == 2
    assert "out: run is not empty" in capsys.readouterr().err
    assert main(["sample", "model=run", "n=2", "steps=2", "keep=[]", "out=run.sdf"]) == 0
    assert len(moldiff.read("run.sdf").records) == 2


def test_paths_are_those_of_the_folder_it_was_started_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert main(["sample", "model=../tiny", "n=1", "steps=2", "keep=[]", "out=here.sdf"]) == 0
    assert (folder / "elsewhere" / "here.sdf").is_file()
    assert main(["evaluate", "input=here.sdf", "out=../report"]) == 0
    assert (folder / "report" / "report.json").is_file()


def test_as_a_program() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "moldiff.cli.main", "sample", "n=0"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moldiff: error: n: got 0, expected a whole number of at least 1\n"


@pytest.mark.slow
def test_prepare_a_few_molecules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if util.find_spec("qm9pack") is None:
        pytest.skip("qm9pack is not installed")
    assert main(["prepare", "data=qm9", "limit=50", "num_workers=1", "out=prepared/few"]) == 0
    assert "prepared set in prepared/few" in capsys.readouterr().out
    assert (folder / "prepared" / "few" / "meta.json").is_file()


@pytest.mark.parametrize("saved", [True, False])
def test_interrupted_training_says_how_to_go_on(
    saved: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: dict[str, Any]) -> None:
        Path(config["out"]).mkdir()
        if saved:
            (Path(config["out"]) / "state.safetensors").touch()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904 (as Lightning does)

    monkeypatch.setattr("moldiff.training.train.train", interrupted)
    assert main(["train", "experiment=quick", "out=run"]) == 130
    said = "out=run resume=true goes on with it" if saved else "nothing saved yet"
    assert capsys.readouterr().err == f"moldiff: interrupted; {said}\n"


def test_a_model_brings_its_own_number_of_network_calls(folder: Path) -> None:
    def steps(*arguments: str) -> list[str]:
        assert main(["sample", "model=own", "n=1", "keep=[]", "out=own.sdf", *arguments]) == 0
        lines = (folder / "own.sdf").read_text().splitlines()
        return [lines[number + 1] for number, line in enumerate(lines) if line.startswith(">") and "<steps>" in line]

    save_pretrained(folder / "own", small_model(), MODEL_CONFIG | {"steps": 3}, dtype=torch.float32)
    assert steps() == ["3"]
    assert steps("sampler.num_steps=2") == ["2"]
    assert steps("sampler.num_steps=2", "steps=4") == ["4"]
    sample = generator.load(folder / "own").sample(1, keep=())[0]
    assert sample.record()["steps"] == 3


def test_waiting_threads_leave_the_processor_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
