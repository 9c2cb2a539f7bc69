"""How fast molecules are evaluated, and in how much memory: `moldiff evaluate` of a file, and the call from Python.

`python tests/benchmarks/evaluation.py [--data FOLDER] [--number 10000] [--out benchmark.json]` prints one table and
writes JSON. Each figure is one run in a process of its own, start included; the aim is 10,000 molecules of QM9's size
through the default metrics in 60 seconds of two cores and 1.5 GB. `--data` is a prepared set whose test molecules
are taken, and with which they are compared; without it the 1,000 molecules of the package are repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from moldiff.data.dataset import MoleculeDataset
from moldiff.evaluation.report import versions
from moldiff.molecules.formats.writer import write

AIM_SECONDS, AIM_GB = 60.0, 1.5
"""For 10,000 molecules."""

_IN_MEMORY = (
    "import sys, moldiff; from itertools import cycle, islice; from moldiff.data.dataset import MoleculeDataset; "
    "data = MoleculeDataset.load(sys.argv[1]); "
    "places = islice(cycle(data.split(sys.argv[2]).tolist()), int(sys.argv[3])); "
    "moldiff.evaluate([data.molecule(place) for place in places])"
)


def run(*words: str) -> dict[str, float]:
    """Seconds by the clock, seconds of processor time and peak memory (GB) of Python with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit code {process.returncode}")
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / unit}


def evaluate_command(*options: str) -> dict[str, float]:
    return run("-m", "moldiff.cli.main", "evaluate", *options)


def processor() -> str:
    """The name of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(folder: Path, split: str, number: int) -> dict[str, Any]:
    """All figures for so many molecules of a part of a prepared set."""
    data = MoleculeDataset.load(folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    figures: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "cores": cores,
            "load": list(os.getloadavg()),
            "system": platform.system(),
        },
        "versions": versions(),
        "molecules": {
            "number": number,
            "source": f"{data.name}, {split}",
            "distinct": min(number, len(data.split(split))),
        },
        "aim": {"seconds": AIM_SECONDS, "peak_gb": AIM_GB},
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "molecules.sdf"
        write(path, (data.molecule(place) for place in islice(cycle(data.split(split).tolist()), number)))
        figures["runs"] = {
            "moldiff evaluate input=FILE.sdf": evaluate_command(f"input={path}"),
            "the same with reference=FOLDER": evaluate_command(f"input={path}", f"reference={folder.resolve()}"),
            "moldiff.evaluate(molecules)": run("-c", _IN_MEMORY, str(folder.resolve()), split, str(number)),
        }
    for figure in figures["runs"].values():
        figure["molecules_a_second"] = number / figure["seconds"]
    return figures


def show(figures: dict[str, Any]) -> None:
    machine, molecules = figures["machine"], figures["molecules"]
    table = Table("what", "seconds", "of processor", "molecules/s", "peak GB")
    table.title = f"{molecules['number']:,} molecules ({molecules['source']})"
    table.caption = f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]:.1f} at the start"
    for name, figure in figures["runs"].items():
        values = (f"{figure[key]:.1f}" for key in ("seconds", "cpu_seconds"))
        table.add_row(name, *values, f"{figure['molecules_a_second']:.0f}", f"{figure['peak_gb']:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a prepared set; by default the sample in the package")
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    sample = Path(str(files("moldiff.example_data") / "sample"))
    folder, split = (options.data, "test") if options.data else (sample, "train")
    figures = measure(folder, split, options.number)
    show(figures)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
