"""Through how many files and rooms of the package a molecule goes, from noise to a record and from a file to a loss.

`python tests/benchmarks/walks.py` runs `moldiff sample n=2` and two steps of `moldiff train data.path=...` in this
process under Python's own profiler, and prints which functions ran: files, rooms (the folders and modules of
`moldiff/`), calls from one room into another as pairs of rooms, and what importing a part costs in a fresh process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.resources import files
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import moldiff
from moldiff.cli.main import main as command

PACKAGE = str(Path(moldiff.__file__).parent) + os.sep
IMPORTS = (
    "moldiff",
    "moldiff.molecules.formats.reader",
    "moldiff.evaluation.evaluate",
    "moldiff.sampling.generator",
)


def walk(run: Callable[[], Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """The files whose functions run in this process, and the pairs of rooms of which one calls the other."""
    seen, pairs = set[str](), set[tuple[str, str]]()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        name = frame.f_code.co_filename.removeprefix(PACKAGE)
        seen.add(name)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back  # a library calls what we gave it
        if caller is not None and (pair := (room(caller.f_code.co_filename.removeprefix(PACKAGE)), room(name))):
            pairs.add(pair)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen, {(one, other) for one, other in pairs if one != other}


def room(name: str) -> str:
    """The room of a file."""
    return name.partition(os.sep)[0].removesuffix(".py")


def cost(module: str) -> tuple[float, float]:
    """Seconds of the processor and MB that importing a module takes in a fresh process of Linux; the least of three."""
    script = (
        f"import os, {module}; used = os.times(); peak = open('/proc/self/status').read().partition('VmHWM:')[2]; "
        "print(used.user + used.system, int(peak.split()[0]) / 1024)"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in "123"]
    seconds, megabytes = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return min(seconds), min(megabytes)


def main() -> None:
    """Walk and print."""
    ligands = str(files("moldiff.example_data") / "ligands")
    with tempfile.TemporaryDirectory() as folder:
        sample = ["sample", "n=2", f"out={folder}/molecules.sdf", "workers=0", "steps=10"]
        train = ["train", f"data.path={ligands}", f"data.folder={folder}/set", f"out={folder}/run"]
        train += ["denoiser=small", "trainer.max_steps=2", "batch_size=2", "compile=false", "trainer.precision=32-true"]
        for name, words in (("noise to SDF record", sample), ("SDF file to loss", train)):
            with redirect_stdout(StringIO()):
                seen, pairs = walk(lambda words=words: command(words))
            rooms = {room(one) for one in seen}
            print(f"{name}: {len(seen)} files, {len(rooms)} rooms, {len(pairs)} pairs of rooms")
            print(f"  rooms: {', '.join(sorted(rooms))}")
            print(f"  calls: {', '.join(f'{one} > {other}' for one, other in sorted(pairs))}")
    for module in IMPORTS:
        seconds, megabytes = cost(module)
        print(f"import {module}: {seconds:.2f} s of the processor, {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
