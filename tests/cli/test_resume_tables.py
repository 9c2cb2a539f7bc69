"""Files that are written at the end: what is drawn outlives the run, however it ends, and can be gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from models import needs_weights

from moldiff.cli.main import main
from moldiff.sampling import molecule_sampler
from moldiff.sampling.drawn_blocks import DrawnBlocks
from moldiff.sampling.sample import Sample

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]
FAST = ("n=24", "steps=3", "keep=[valid,unique]", "filters=[sa<9]", "workers=0", "device=cpu", "quiet=true")
SLOW = """
import sys
import moldiff.sampling.molecule_sampler
from moldiff.cli.main import main

moldiff.sampling.molecule_sampler._MAX_BLOCK = 4  # so that blocks come in many steps
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(molecule_sampler, "_MAX_BLOCK", 4)
    return tmp_path


def run(*options: str) -> int:
    return main(["sample", *FAST, *options])


def end_early(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run until three blocks are drawn; then comes Ctrl-C."""
    save = DrawnBlocks.save

    def until_third(self: DrawnBlocks, block: range, samples: Sequence[Sample]) -> None:
        save(self, block, samples)
        if len(list(self.folder.iterdir())) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DrawnBlocks, "save", until_third)
        assert run(*options) == 130


def test_a_table_killed_in_a_process_of_its_own_goes_on_to_the_same_bytes(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    assert run("n=60", "out=whole.parquet") == 0
    drawn = Path("a.parquet.drawn")
    with subprocess.Popen([sys.executable, "-c", SLOW, "sample", *FAST, "n=60", "out=a.parquet"]) as process:
        end = time.monotonic() + 240
        while time.monotonic() < end and not (drawn.is_dir() and len(list(drawn.glob("*.gz"))) > 1):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not Path("a.parquet").exists()
    blocks = {path: path.stat().st_mtime_ns for path in drawn.glob("*.gz")}
    assert 1 < len(blocks) < 15
    assert run("n=60", "out=a.parquet", "resume=true") == 0
    assert Path("a.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert sorted(os.listdir()) == ["a.parquet", "whole.parquet"]


@pytest.mark.parametrize(
    ("name", "options"), [("csv", ()), ("csv.gz", ()), ("sdf", ("sort=confidence",)), ("sdf", ("like=CCO",))]
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    name: str, options: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"a.{name}"
    assert run(*options, f"out=whole.{name}") == 0
    end_early(monkeypatch, *options, f"out={out}")
    assert 0 < Path(out).stat().st_size < Path(f"whole.{name}").stat().st_size  # holds what was finished
    held = sorted((Path(f"{out}.drawn")).glob("*.gz"))
    times = [path.stat().st_mtime_ns for path in held]
    end = DrawnBlocks.save

    def other(self: DrawnBlocks, block: range, samples: Sequence[Sample]) -> None:
        assert not self.holds(block)  # what is there is not drawn again
        assert [path.stat().st_mtime_ns for path in held] == times
        end(self, block, samples)

    monkeypatch.setattr(DrawnBlocks, "save", other)
    assert run(*options, f"out={out}", "resume=true") == 0
    assert Path(out).read_bytes() == Path(f"whole.{name}").read_bytes()
    assert sorted(os.listdir()) == [out, f"whole.{name}"]


def test_nothing_of_others_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end_early(monkeypatch, "out=a.csv")
    first = Path("a.csv").read_bytes()
    assert run("out=a.csv", "resume=true", "seed=1") == 2
    assert "was drawn with seed=0, expected 1; without it, it is drawn anew" in capsys.readouterr().err
    assert Path("a.csv").read_bytes() == first
    Path("a.csv").write_text("smiles\nCCO\n")
    Path("a.csv.drawn/written").unlink()  # as if the run had been killed, and had never written this table
    assert run("out=a.csv", "resume=true") == 0
    assert Path("a.1.csv").read_text() == "smiles\nCCO\n"
    assert sorted(os.listdir()) == ["a.1.csv", "a.csv"]
    assert run("out=a.xyz", "resume=true") == 2
    assert "a.xyz: only .sdf, .sdf.gz, .csv, .parquet and .xlsx can be continued" in capsys.readouterr().err


def test_a_run_that_refuses_some_goes_on_to_the_same_bytes(folder: Path) -> None:
    """`unique` means kept: a molecule that was refused for its distances does not make a later one a repetition."""
    options = ("size=3", "keep=[valid,sound,unique]", "n=16", "max_draws=60")
    run(*options, "out=whole.sdf")
    whole = Path("whole.sdf").read_bytes()
    records = whole.split(b"$$$$\n")[:-1]
    assert len(records) > 3
    for count in (1, len(records) - 1):
        Path("a.sdf").write_bytes(b"".join(one + b"$$$$\n" for one in records[:count]))
        run(*options, "out=a.sdf", "resume=true")
        assert Path("a.sdf").read_bytes() == whole
