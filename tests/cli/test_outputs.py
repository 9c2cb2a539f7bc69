"""Files that commands write: never over something unasked, never half, by one run at a time, whatever their name."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import needs_weights
from rdkit import Chem
from test_io import water

from moldiff.cli.main import main
from moldiff.errors import MoldiffError
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.storage import locked, set_aside, temporary_of, write_atomically
from moldiff.molecules.formats.writer import Writer, finished_records
from moldiff.molecules.molecule import Molecule

ROOT = Path(__file__).parents[2]
FAST = ("n=2", "steps=3", "keep=[valid]", "workers=0", "device=cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def molecule(folder: Path) -> Molecule:
    Path("water.sdf").write_text(water)
    found = read("water.sdf").records[0].molecule()
    Path("water.sdf").unlink()
    assert isinstance(found, Molecule)
    return found


def seeds(path: str) -> list[str]:
    return [mol.GetProp("seed") for mol in Chem.SDMolSupplier(path)]


@needs_weights
def test_an_older_file_gets_a_number_unless_it_is_to_be_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [main(["sample", *FAST, f"seed={seed}"]) for seed in (1, 2, 3)] == [0, 0, 0]
    assert "molecules.sdf was there already and is now molecules.2.sdf" in capsys.readouterr().err
    assert main(["sample", *FAST, "seed=4", "overwrite=true"]) == 0
    assert {path.name: seeds(path.name) for path in folder.iterdir()} == {
        "molecules.1.sdf": ["1", "1"],
        "molecules.2.sdf": ["2", "2"],
        "molecules.sdf": ["4", "4"],
    }


@needs_weights
@pytest.mark.parametrize(
    "content", [b"my notes, no run of anything\n", water.replace("\n", "\r\n").encode(), water.encode()]
)
@pytest.mark.parametrize("name", ["a.sdf", "a.sdf.gz"])
def test_resume_leaves_a_file_that_is_no_unfinished_run_as_it_is(
    folder: Path, content: bytes, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = gzip.compress(content) if name.endswith(".gz") else content
    Path(name).write_bytes(content)
    assert main(["sample", *FAST, f"out={name}", "resume=true"]) == 2
    assert f"resume: {name}" in capsys.readouterr().err
    assert Path(name).read_bytes() == content
    assert os.listdir() == [name]


@needs_weights
def test_a_second_run_into_the_same_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(Path(".a.sdf.lock"), "taken"):
        for more in ((), ("resume=true",)):
            assert main(["sample", *FAST, "out=a.sdf", *more]) == 2
            assert "out: another run is writing to a.sdf; choose another name" in capsys.readouterr().err
        assert main(["sample", *FAST, "out=b.sdf"]) == 0
    assert main(["sample", *FAST, "out=a.sdf", "resume=true"]) == 0
    assert sorted(os.listdir()) == ["a.sdf", "b.sdf"]


def test_a_lock_is_held_against_other_processes_and_dies_with_its_own(folder: Path) -> None:
    code = "from moldiff.molecules.formats.storage import locked; from pathlib import Path; import time\n"
    code += "with locked(Path('x.lock'), 'taken'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(MoldiffError, match="taken"), locked(Path("x.lock"), "taken"):
            pass
        other.kill()
    with locked(Path("x.lock"), "taken"):
        pass
    assert os.listdir() == []


@needs_weights
def test_a_full_disk_names_the_file_and_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", *FAST, "n=12", "out=a.sdf"]
    assert main([*command, "out=whole.sdf"]) == 0
    whole = Path("whole.sdf").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    count = len(finished_records("a.sdf"))
    said = f"error: a.sdf: {os.strerror(errno.EFBIG)}; a.sdf holds {count} finished records"
    assert f"{said}, and the same command with resume=true goes on" in capsys.readouterr().err
    assert 0 < count < 12
    assert main([*command, "resume=true"]) == 0
    assert Path("a.sdf").read_bytes() == whole


@pytest.mark.parametrize("name", ["a.sdf", "a.csv", "a.sdf.gz"])
def test_a_full_disk_leaves_an_older_file_as_it_was(name: str, molecule: Molecule) -> None:
    Path(name).write_bytes(b"older")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught, Writer(name) as writer:
            writer.write(molecule)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == name
    assert Path(name).read_bytes() == b"older"
    assert os.listdir() == [name]


def test_what_killed_runs_left_is_removed_by_the_next_one_to_that_file(molecule: Molecule) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        pass
    for name in (f".a.sdf.{gone.pid}.part", f".b.sdf.{gone.pid}.part", f".a.sdf.{os.getppid()}.part"):
        Path(name).write_text("half")
    with Writer("a.sdf") as writer:
        writer.write(molecule)
    assert sorted(os.listdir()) == sorted([f".a.sdf.{os.getppid()}.part", f".b.sdf.{gone.pid}.part", "a.sdf"])


def test_reports_and_pages_are_written_whole_or_not_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.sdf").write_text(water)
    Path("a.html").write_text("older page")
    Path("report").mkdir()
    Path("report/report.json").write_text("older report")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        codes = main(["view", "input=a.sdf"]), main(["evaluate", "input=a.sdf", "out=report"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert codes == (2, 2)
    said = capsys.readouterr().err
    assert "a.html: File too large" in said
    assert "report/report.json: File too large" in said
    assert (Path("a.html").read_text(), Path("report/report.json").read_text()) == ("older page", "older report")
    assert sorted(path.name for path in folder.rglob("*")) == ["a.html", "a.sdf", "report", "report.json"]


@needs_weights
def test_markup_in_names_is_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x[").mkdir()
    out = "x[/y].sdf"
    assert main(["sample", *FAST, f"out='{out}'"]) == 0
    assert "x[/y].sdf" in capsys.readouterr().out
    assert main(["evaluate", f"input='{out}'", "out='x[/z]'"]) == 0
    assert main(["view", f"input='{out}'"]) == 0
    assert main(["prepare", f"data.path='{out}'", "num_workers=1"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 exist on Linux")
def test_names_that_are_not_utf8(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.sdf")
    Path(name).write_text(water)
    assert main(["evaluate", f"input='{name}'", "out=report"]) == 0
    assert json.loads(Path("report/report.json").read_text())["options"]["input"] == name
    assert main(["view", f"input='{name}'"]) == 0
    assert main(["prepare", f"data.path='{name}'", "out=set"]) == 0
    assert Path("set/meta.json").is_file()


@needs_weights
def test_a_file_of_molecules_whose_name_is_not_utf8_is_written(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9.sdf")
    assert main(["sample", *FAST, f"out='{name}'"]) == 0
    assert len(read(name).records) == 2
    assert main(["sample", *FAST, "task=bonds", f"input='{name}'", "out=bonds.sdf"]) == 0


def test_numbers_go_before_the_suffix(folder: Path) -> None:
    for name in ("a.sdf", "a.sdf.gz", "my.run.csv", "a.trajectory.sdf.gz", "none"):
        Path(name).touch()
        found = set_aside(Path(name))
        assert found is not None
    assert set_aside(Path("not there.sdf")) is None
    numbered = {"a.1.sdf", "a.1.sdf.gz", "my.run.1.csv", "a.1.trajectory.sdf.gz", "none.1"}
    assert numbered <= set(os.listdir())


def test_an_old_file_stands_until_the_new_one_is_whole(folder: Path) -> None:
    write_atomically(Path("a.txt"), b"one")
    assert temporary_of(Path("a.txt")).name == f".a.txt.{os.getpid()}.part"
    assert os.listdir() == ["a.txt"]


@needs_weights
@pytest.mark.parametrize("options", ["size=500", "task=grow core=CCO new_atoms=500"])
def test_s10_a_molecule_too_large_is_refused_with_the_limit(
    options: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *options.split(), "n=1"]) == 2
    assert "250" in capsys.readouterr().err
    assert os.listdir() == []


@needs_weights
def test_s10_a_molecule_that_memory_does_not_hold_is_refused_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moldiff.sampling.generator.free_memory", lambda device: 10**8)
    assert main(["sample", "size=200", "n=1"]) == 2
    said = capsys.readouterr().err
    assert "a molecule of 200 heavy atoms takes about 0.2 GB of memory, 0.1 GB are free" in said


_IN_THE_BACKGROUND = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import moldiff.sampling.molecule_sampler
from moldiff.cli.main import main
moldiff.sampling.molecule_sampler._MAX_BLOCK = 4
sys.exit(main(sys.argv[1:]))
"""
"""A command as a script starts it with `&`."""


@needs_weights
def test_a_command_in_the_background_ends_on_sigterm_with_everything_kept(folder: Path) -> None:
    words = ["sample", "n=5000", "steps=3", "workers=0", "device=cpu", "out=a.sdf"]
    with subprocess.Popen([sys.executable, "-c", _IN_THE_BACKGROUND, *words], stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 200
        while not Path("a.sdf").exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.terminate()
        try:
            said = process.communicate(timeout=200)[1].decode()
        finally:
            process.kill()
        assert process.returncode == 130
    assert "interrupted; a.sdf holds what was finished; the same command with resume=true goes on" in said
    count = len(list(Chem.SDMolSupplier("a.sdf")))
    assert 0 < count < 5000
    assert count == len(finished_records("a.sdf"))
    assert os.listdir() == ["a.sdf"]


def test_tests_of_interruptions_pass_where_ctrl_c_is_ignored() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "tests/molecules/test_io.py", "-k", "interrupt or neither"]
    ignoring = (
        "import signal, os, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", ignoring, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_an_ignored_signal_stays_ignored_and_takes_the_place_of_none() -> None:
    code = """
import signal
from moldiff.processes import handled, uninterrupted
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: print("ended"))
with uninterrupted():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
with handled(["SIGINT"], lambda *_: print("not ignored")):
    signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
