"""A command in shards, by any launcher, writes what it writes alone; parts that are lost are made again, others not."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import needs_weights

from moldiff.cli.main import main
from moldiff.cli.shards import Wanted
from moldiff.errors import MoldiffError

SAMPLE = ["sample", "size=3", "steps=2", "workers=0", "device=cpu", "precision=float32", "out=a.sdf", "summary=a.json"]
RUN = [*SAMPLE, "n=130", "keep=[]"]  # three blocks
FILTERED = [*SAMPLE, "steps=4", "n=16", "filters=[logp>0.3]", "max_draws=48"]  # which few pass


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def whole(command: list[str], *names: str) -> tuple[int, dict[str, bytes]]:
    """What a command writes alone, and its exit code; the files are taken away."""
    code = main(command)
    found = {name: Path(name).read_bytes() for name in names}
    for name in names:
        Path(name).unlink()
    return code, found


def parts() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path("a.shards").glob("*.gz")}


@needs_weights
@pytest.mark.parametrize(
    ("command", "launcher"),
    [
        (RUN, []),
        (RUN, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        (FILTERED, []),
        pytest.param(RUN, ["hydra/launcher=submitit_local"], marks=pytest.mark.slow),
        pytest.param(RUN, ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
    ],
)
def test_shards_write_what_one_run_writes(command: list[str], launcher: list[str], folder: Path) -> None:
    for text in launcher[:1]:
        pytest.importorskip(f"hydra_plugins.hydra_{text.partition('=')[2].partition('_')[0]}_launcher")
    expected = whole(command, "a.sdf", "a.json")
    # In a process of its own, as it is started: a launcher's workers stay with the process.
    started = [sys.executable, "-m", "moldiff.cli.main", *command, "shards=3", *launcher]
    assert subprocess.run(started, timeout=300).returncode == expected[0]
    assert {name: Path(name).read_bytes() for name in expected[1]} == expected[1]
    assert sorted(os.listdir()) == ["a.json", "a.sdf"]


@needs_weights
def test_parts_that_are_lost_or_foreign_are_named_and_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = whole(RUN, "a.sdf", "a.json")
    assert [main([*RUN, f"shards={part}/3"]) for part in (1, 2)] == [0, 0]
    assert main(["merge", "input=a.shards"]) == 2
    said = "input: a.shards lacks shards=3/3, expected all; the command goes on with each alone"
    assert capsys.readouterr().err.endswith(f"moldiff: error: {said}\n")
    first, second = sorted(Path("a.shards").glob("*.gz"))
    before = parts()
    first.unlink()
    assert main([*RUN, "shards=1/3"]) == main([*RUN, "shards=3/3"]) == 0
    assert parts()[second.name] == before[second.name]
    content = second.read_bytes()
    second.write_bytes(content[:100])
    assert main(["merge", "input=a.shards"]) == 2
    assert f"{second}: damaged" in capsys.readouterr().err
    other = json.loads(gzip.decompress(content))
    second.write_bytes(gzip.compress(json.dumps(other | {"samples": other["samples"][1:]}).encode()))
    assert main(["merge", "input=a.shards"]) == 2
    assert "other molecules than its name says" in capsys.readouterr().err
    other["origin"]["weights"] = "0123"
    second.write_bytes(gzip.compress(json.dumps(other).encode()))
    assert main(["merge", "input=a.shards"]) == 2
    assert f"{second} was drawn with weights=0123, expected" in capsys.readouterr().err
    assert not Path("a.sdf").exists()
    second.write_bytes(content)
    assert main(["merge", "input=a.shards"]) == 0
    assert {name: Path(name).read_bytes() for name in expected} == expected
    assert sorted(os.listdir()) == ["a.json", "a.sdf"]


@pytest.mark.slow
@needs_weights
def test_a_worker_killed_in_the_middle_is_replaced_by_the_same_command(folder: Path) -> None:
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [*RUN, "n=640"]
    _, expected = whole(command, "a.sdf")
    sharded = [*command, "shards=4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with subprocess.Popen([sys.executable, "-m", "moldiff.cli.main", *sharded], stderr=subprocess.PIPE) as process:
        while not parts():
            time.sleep(0.02)
            assert process.poll() is None
        workers = [one for one in psutil.Process(process.pid).children() if "popen_loky" in " ".join(one.cmdline())]
        os.kill(workers[0].pid, signal.SIGKILL)
        assert process.wait() == 1
        assert process.stderr is not None
        assert b"moldiff: error: unexpected TerminatedWorkerError" in process.stderr.read()
    before = parts()
    assert 0 < len(before) < 10
    (oldest, *_) = sorted(before)
    Path("a.shards", oldest).unlink()
    assert main([*sharded]) == 0
    assert Path("a.sdf").read_bytes() == expected["a.sdf"]


def test_shards_of_records_make_the_set_that_one_process_makes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{'C' * (1 + k % 5)}{'xx' if k % 7 == 0 else 'O'} m{k}" for k in range(300)]
    Path("mine.smi").write_text("\n".join(lines) + "\n")
    command = ["prepare", "data.path=mine.smi", "num_workers=1", "out=set"]
    assert main(command) == 0
    Path("set").rename("alone")
    assert [main([*command, f"shards={part}/2"]) for part in (1,)] == [0]
    assert main(["merge", "input=set.shards"]) == 2
    assert "set.shards lacks shards=2/2" in capsys.readouterr().err
    assert main([*command, "shards=2"]) == 0
    for path in Path("alone").iterdir():
        assert path.read_bytes() == Path("set", path.name).read_bytes(), path.name
    assert sorted(os.listdir()) == ["alone", "mine.smi", "set"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample shards=0", "shards: got 0, expected a number such as 8, or 3/8 for the third of eight"),
        ("sample shards=4/3", "shards: got '4/3', expected"),
        ("sample shards=2 -m seed=1,2", "shards: got 2 together with -m or hydra.job.chdir, expected it alone"),
        ("prepare data=qm9 shards=2", "shards: got 2 with data=qm9, expected data.path=FILE"),
        ("sample shards=2 like=CCO", "shards: molecules are ranked by likeness all together, expected no shards"),
        ("merge", "input: nothing given, expected a folder of shards, such as input=molecules.shards"),
        ("merge input=x", "input: x holds no shards.json, expected the folder of a command's shards"),
    ],
)
def test_what_cannot_be_split_says_so(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err
    assert os.listdir() == []


def test_shards_are_merged_where_they_were_started(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x").mkdir()
    record = {"command": "sample", "words": [], "shards": 2, "started in": "/elsewhere"}
    Path("x/shards.json").write_text(json.dumps(record))
    assert main(["merge", "input=x"]) == 2
    assert "input: the shards in x were started in /elsewhere, expected to be merged there" in capsys.readouterr().err


def test_what_shards_can_be() -> None:
    assert Wanted.of(8) == Wanted(8)
    assert Wanted.of("3/8") == Wanted(8, one=2)
    assert Wanted.of("5..7") == Wanted(part=range(5, 8))
    assert Wanted.of("merge/2") == Wanted(2, merge=True)
    for text in ("", "x", "1/0", "0/2", "7..5", "-1"):
        with pytest.raises(MoldiffError, match="expected a number such as 8"):
            Wanted.of(text)
