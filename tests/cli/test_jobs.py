"""Several jobs of one command: which there are, where each writes, and what becomes of the others when one fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from models import MODEL_CONFIG, small_model
from test_train_command import TINY

from moldiff.cli import jobs
from moldiff.cli.compose import argument, compose_options, each_combination
from moldiff.cli.main import main
from moldiff.data.sources.files import name_of
from moldiff.diffusion.pretrained import save_pretrained


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of every job, none of which is run; that of seed 2 fails."""
    found: list[list[str]] = []

    def run(every: Sequence[Sequence[str]]) -> list[int]:
        found.extend(map(list, every))
        return [1 if "seed=2" in words else 0 for words in every]

    monkeypatch.setattr(jobs, "job_launcher", lambda *_: run)
    return found


@pytest.mark.parametrize(
    "typed",
    [
        ["seed=1,2", "n=3"],
        ["denoiser=small,pair_transformer", "seed=range(1,4)", "batch_size=8"],
        ["seed=choice(3,1)", "seed=sort(5,4)", "half=a,b"],
        ["keep=[valid],[valid,unique]", "size=7..9,3", "smiles='C#N',\"C=C\""],
        ["n=1", "+condition.gap=0.25,0.5"],
    ],
)
def test_the_jobs_and_their_order_are_those_of_hydra(typed: list[str]) -> None:
    parsed = OverridesParser.create().parse_overrides(typed)
    (expected,) = BasicSweeper.split_arguments(parsed, None)
    assert each_combination(typed) == expected


def test_a_pattern_of_choices() -> None:
    assert each_combination(["prior=glob(*, exclude=m*)"]) == [["prior=absorbing"], ["prior=uniform"]]


def test_values_arrive_as_they_were_typed() -> None:
    both = each_combination(["data.path=my file.sdf,b.sdf"])
    composed = [compose_options("prepare", texts)["data"] for texts in both]
    assert [data["path"] for data in composed] == ["my file.sdf", "b.sdf"]
    assert [data["name"] for data in composed] == [name_of("my file.sdf"), "b"]
    both = each_combination(["filters=[pains,sa<4.5]", "n=1,2"])
    assert [compose_options("sample", texts)["filters"] for texts in both] == 2 * [["pains", "sa<4.5"]]
    for text in ("a b.sdf", "a,b.sdf", "a=b", "true", "C#N", 'a"b'):
        assert compose_options("sample", [argument("out", text)])["out"] == text


@pytest.mark.parametrize(
    ("words", "outputs"),
    [
        (["sample", "n=1,2"], ["molecules/0.sdf", "molecules/1.sdf"]),
        (["sample", "n=1,2", "out=a.b.sdf.gz"], ["a.b/0.sdf.gz", "a.b/1.sdf.gz"]),
        (["sample", "out=a.sdf,b.xyz"], ["a/0.sdf", "b/1.xyz"]),
        (["evaluate", "input=a.sdf,b.sdf", "out=report"], ["report/0", "report/1"]),
        (["evaluate", "input=a.sdf,b.sdf", "out=report.json"], ["report/0.json", "report/1.json"]),
        (["view", "input=a.sdf,b.sdf"], ["a/0.html", "b/1.html"]),
        (["prepare", "data.path=a.sdf,b.sdf"], ["prepared/a/0", "prepared/b/1"]),
        (["train", "seed=1,3", "out=runs/v1.2"], ["runs/v1.2/0", "runs/v1.2/1"]),
        (["train", "experiment=quick,qm9"], ["runs/quick/0", "runs/qm9/1"]),
    ],
)
def test_every_job_has_an_output_of_its_own(words: list[str], outputs: list[str], started: list[list[str]]) -> None:
    assert main([words[0], "-m", *words[1:]]) == 0
    assert [compose_options(job[0], job[1:])["out"] for job in started] == outputs
    for place in {Path(output).parent for output in outputs}:
        recorded = json.loads((place / "multirun.json").read_text())["jobs"]
        for number, arguments in recorded.items():
            assert started[int(number)][1:] == arguments


def test_an_evaluation_that_only_prints_makes_no_folder(folder: Path, started: list[list[str]]) -> None:
    assert main(["evaluate", "-m", "input=a.sdf,b.sdf"]) == 0
    assert started == [["evaluate", "input=a.sdf"], ["evaluate", "input=b.sdf"]]
    assert list(folder.iterdir()) == []


def test_jobs_that_train_on_different_sets_do_not_share_a_folder(started: list[list[str]]) -> None:
    assert main(["train", "-m", "data.path=a.sdf", "data.hydrogens=add,none", "seed=1,3"]) == 0
    sets = [compose_options(job[0], job[1:])["data"]["folder"] for job in started]
    assert sets == [f"prepared/a-{number}" for number in range(4)]
    started.clear()
    assert main(["train", "-m", "data.path=a.sdf", "seed=1,3"]) == 0
    assert [compose_options(job[0], job[1:])["data"]["folder"] for job in started] == [None, None]


def test_the_others_run_after_a_failure(started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "seed=1,2,3", "-m", "--config-dir", ".", "hydra.job.chdir=true"]) == 1
    assert [job[1] for job in started] == ["seed=1", "seed=2", "seed=3"]
    assert all(job[3:] == ["--config-dir=.", "hydra.job.chdir=true"] for job in started)
    out, err = capsys.readouterr()
    assert out == "3 jobs ended, outputs in molecules\n"
    assert err == "moldiff: error: 1 of 3 jobs failed: 1\n"


def test_nothing_is_written_among_other_things(
    folder: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "molecules").mkdir()
    assert main(["sample", "-m", "n=1,2"]) == 0
    assert main(["sample", "-m", "n=3"]) == 0
    (folder / "molecules" / "multirun.json").rename(folder / "molecules" / "mine.txt")
    started.clear()
    assert main(["sample", "-m", "n=1,2"]) == 2
    assert "out: molecules is there already" in capsys.readouterr().err
    assert not started


def test_options_of_all_jobs_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "-m", "seed=1,2", "--cfg"]) == 0
    shown = capsys.readouterr().out.split("---\n")
    assert ["seed: 1" in text and "seed: 2" not in text for text in shown] == [True, False]
    assert list(folder.iterdir()) == []


def test_a_job_is_the_command_run_alone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_pretrained(folder / "tiny", small_model(), MODEL_CONFIG, dtype=torch.float32)
    asked = ["sample", "model=tiny", "n=2", "steps=2", "keep=[]"]
    assert main([*asked, "-m", "seed=1,2", "device=cpu"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[-1] == "2 jobs ended, outputs in molecules"
    numbered = ["[0] model=tiny n=2 steps=2 'keep=[]' seed=1 device=cpu out=molecules/0.sdf"]
    assert [line for line in said if line.startswith("[0]")] == numbered
    assert main([*asked, "seed=2", "out=alone.sdf"]) == 0
    first, second = ((folder / "molecules" / f"{number}.sdf").read_bytes() for number in range(2))
    assert first != second == (folder / "alone.sdf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_an_interrupted_job_is_the_last(number: signal.Signals, whole_group: bool, folder: Path) -> None:
    """Ctrl-C and SLURM signal every process of the group, `kill` one."""
    (folder / "mine.smi").write_text("CCO\nCCN\nCCC\n")
    endless = [*TINY, "trainer.max_steps=1000000", "trainer.validate_every=1000000", "trainer.log_every=5"]
    command = [sys.executable, "-m", "moldiff.cli.main", "train", "-m", "data.path=mine.smi", "seed=1,2", "out=run"]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen([*command, *endless], stdout=file, stderr=file, start_new_session=True)
    while "step 10" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.wait() == 130
    said = log.read_text().splitlines()
    assert said[-2:] == [
        "moldiff: interrupted; out=run/0 resume=true goes on with it",
        "moldiff: interrupted; 0 of 2 jobs had ended",
    ]
    assert not (folder / "run" / "1").exists()


LAUNCHERS = [
    pytest.param("joblib", ["hydra.launcher.n_jobs=2"]),
    pytest.param("submitit_local", ["hydra.launcher.timeout_min=5"], marks=pytest.mark.slow),
    pytest.param("ray", ["+hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "more"), LAUNCHERS)
def test_the_launchers_of_hydra_run_the_jobs(
    name: str, more: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With settings of their own; the second job has nothing to read and fails, the others end."""
    pytest.importorskip(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
    pytest.importorskip(name.partition("_")[0])
    (folder / "a.smi").write_text("CCO\n")
    (folder / "c.smi").write_text("CCN\n")
    words = ["evaluate", "-m", f"hydra/launcher={name}", *more, "input=a.smi,b.smi,c.smi", "out=report"]
    # In a process of its own, as it is started: a launcher's workers stay with the process.
    assert subprocess.run([sys.executable, "-m", "moldiff.cli.main", *words], timeout=300).returncode == 2
    assert "moldiff: error: 1 of 3 jobs failed: 1" in capfd.readouterr().err.splitlines()
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("report/*/report.json")}
    assert {name: report["molecules"][0]["smiles"] for name, report in found.items()} == {"0": "CCO", "2": "CCN"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["-m", "hydra/launcher=condor"], "hydra/launcher: got condor, expected one of: basic"),
        (["-m", "hydra.launcher.n_jobs=2"], "n_jobs"),
        (["hydra/launcher=basic"], "hydra/launcher=basic: got a launcher for one job, expected -m or shards=K as well"),
        (["-m", "hydra.sweep.dir=x"], "hydra.sweep.dir: Hydra's own options are not for here"),
    ],
)
def test_a_launcher_that_is_not_there_is_refused_first(
    typed: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "n=1,2" if "-m" in typed else "n=1", *typed]) == 2
    assert said in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_launcher_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ConfigLoaderImpl, "get_group_options", lambda *_: ["basic"])
    assert main(["evaluate", "-m", "input=a.smi,b.smi", "hydra/launcher=submitit_slurm"]) == 2
    assert capsys.readouterr().err.endswith('submitit_slurm, to install it: pip install "moldiff[submitit]"\n')
