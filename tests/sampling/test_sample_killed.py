"""`moldiff sample` killed at random moments: the file is whole up to its last record, and goes on to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moldiff.molecules.formats.writer import finished_records

_SERVE = """
import os, sys
import torch
import moldiff.sampling.molecule_sampler
from moldiff.cli.main import main
from moldiff.sampling.generator import load

torch.set_num_threads(1)
# Molecules drawn before any is written, so that the file grows in many steps.
moldiff.sampling.molecule_sampler._MAX_BLOCK = 4
load("qm9")
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(main(line.split()))
    print(pid, flush=True)
    sys.stdin.readline()  # a child that nobody waits for keeps its number, so that the kill hits no other process
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""A process that has imported everything and forks a child for each command, so that a child starts at once."""


class Commands:
    """Runs of `moldiff sample`, of which one at a time is alive; what the last one said is in `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-W", "ignore", "-c", _SERVE, str(log)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def start(self, out: Path, n: int) -> int:
        """Begin or go on with a file; returns the process id."""
        assert self._process.stdin is not None
        options = f"model=qm9 n={n} steps=3 keep=[valid,unique] workers=0 device=cpu resume=true out={out}"
        print(f"sample {options}", file=self._process.stdin, flush=True)
        return int(self._read())

    def wait(self) -> int:
        """The exit status, negative = the signal that ended it."""
        assert self._process.stdin is not None
        print("wait", file=self._process.stdin, flush=True)
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    found = Commands(tmp_path_factory.mktemp("log") / "log.txt")
    yield found
    found.close()


def wait_for_growth(out: Path, size: float, limit: float) -> None:
    """Until the file has grown by so many bytes, or so many seconds have passed."""
    end = time.monotonic() + limit
    target = size + (out.stat().st_size if out.exists() else 0)
    while time.monotonic() < end and not (out.exists() and out.stat().st_size > target):
        time.sleep(0.002)


def kill_at_random(commands: Commands, folder: Path, suffix: str, *, n: int, kills: int, seed: int) -> None:
    """Kill a run again and again; whenever a file has become full, compare it and begin another."""
    whole, out = folder / f"whole{suffix}", folder / f"out{suffix}"
    start = time.monotonic()
    commands.start(whole, n)
    assert commands.wait() == 0
    longest = time.monotonic() - start
    content = whole.read_bytes()
    records = finished_records(whole).fields
    moments = random.Random(seed)
    found: set[int] = set()
    for kill in range(kills):
        pid = commands.start(out, n)
        if kill % 2:
            time.sleep(moments.uniform(0.0, 0.6 * longest))
        else:
            wait_for_growth(out, moments.uniform(0.0, 0.6) * len(content), longest)
        os.kill(pid, signal.SIGKILL)
        status = commands.wait()
        assert status in (0, -signal.SIGKILL), commands.log.read_text()
        finished = finished_records(out)
        assert finished.fields == records[: len(finished)]
        found.add(len(finished))
        if out.exists():
            assert content[: finished.size] == out.read_bytes()[: finished.size]
            # A record reaches the file in one piece; of a compressed file, a member does.
            assert suffix == ".sdf.gz" or finished.size == out.stat().st_size
        if status == 0:
            assert out.read_bytes() == content
            out.unlink()
    commands.start(out, n)
    assert commands.wait() == 0, commands.log.read_text()
    assert out.read_bytes() == content
    assert found - {0, len(records)}, "no kill came between two records"


def test_termination_is_an_interruption(commands: Commands, tmp_path: Path) -> None:
    out = tmp_path / "out.sdf"
    pid = commands.start(out, 400)
    wait_for_growth(out, 1, 60.0)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)  # as `timeout` does
    assert commands.wait() == 130
    assert 0 < len(finished_records(out)) < 400
    assert finished_records(out).size == out.stat().st_size
    assert f"{out} holds what was finished" in commands.log.read_text()


def test_killed_at_random_moments(commands: Commands, tmp_path: Path) -> None:
    kill_at_random(commands, tmp_path, ".sdf", n=12, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "n"), [(".sdf", 40), (".sdf.gz", 140)])
def test_killed_fifty_times(suffix: str, n: int, commands: Commands, tmp_path: Path) -> None:
    kill_at_random(commands, tmp_path, suffix, n=n, kills=50, seed=1)
