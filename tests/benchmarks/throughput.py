"""Speed beside the ceiling that this machine's matrix products reach in the same run.

`python tests/benchmarks/throughput.py` takes about ten minutes on two idle cores, prints one table and writes JSON.
Every figure is the median of five; rates are for all cores, which are used by as many single-thread processes, and so
is the ceiling. `--only training memory` measures parts, `--compiled` adds trainings that torch.compile has compiled.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from single_thread import (
    REPEATS,
    SideBySide,
    flop_a_call,
    largest_memory,
    matrix_products,
    network_call,
    sampling,
    seconds,
    side_by_side,
)
from trainings_at_size import BATCH, mean_rate

from moldiff.data.prepare import prepare
from moldiff.data.sources.qm9 import NUM_RECORDS, QM9
from moldiff.diffusion.compute import has_fast_bfloat16
from moldiff.evaluation.report import versions
from moldiff.processes import available_cpus

QM9_SIZE, DRUG_SIZE = 9, 22
SIZES = (5, 10, 20, 35, 50, 80, 120)
FITTED = (10, 50)
MEMORY_SIZE = 120

PROTOTYPE_SHARE = 42 / 170
"""Of the ceiling, in training at QM9's size, by the prototype of this network (GFLOP/s on two cores, float32)."""

_DTYPES = {"float32": (torch.float32, "32-true"), "bfloat16": (torch.bfloat16, "bf16-mixed")}


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        what: was measured.
        value: the median.
        unit: of the value.
        gflops: arithmetic of the network a second, counted from its matrix products (GFLOP/s); None = does not apply.
        dtype: of the ceiling it is compared with.
        repeats: what the median is of.
        limit: what the value has to be, in words; "" = nothing.
    """

    what: str
    value: float
    unit: str
    gflops: float | None = None
    dtype: str = "float32"
    repeats: Sequence[float] = field(default_factory=list)
    limit: str = ""

    def share(self, ceiling: dict[str, float]) -> float | None:
        """Of the ceiling in the same run."""
        return None if self.gflops is None else self.gflops / ceiling[self.dtype]


@dataclass(frozen=True)
class Run:
    """Where and with what it is measured."""

    pool: SideBySide
    folder: Path
    dtypes: Sequence[str]
    compiled: bool

    @property
    def processes(self) -> int:
        return self.pool.processes


def ceilings(run: Run) -> list[Figure]:
    """Matrix products of all processes side by side."""
    found = []
    for name in run.dtypes:
        value = sum(run.pool.run(partial(matrix_products, _DTYPES[name][0]))) / 1e9
        found.append(Figure(f"matrix products, {name}", value, "GFLOP/s", value, name))
    return found


def training(run: Run) -> list[Figure]:
    """The command that users run, with exchange of gradients, optimizer, averaging and data."""
    found = []
    for size in (QM9_SIZE, DRUG_SIZE):
        for name in run.dtypes:
            for compiled in (False, True) if run.compiled else (False,):
                rate, repeats = mean_rate(
                    run.folder, size, processes=run.processes, precision=_DTYPES[name][1], compiled=compiled
                )
                # Forward and backward are three passes; half of the steps have one more, without a gradient.
                flop = 3.5 * flop_a_call(run.folder / f"trained{size}", size)
                what = f"training, {size} heavy atoms, {BATCH} a batch, {name}{', compiled' if compiled else ''}"
                found.append(Figure(what, rate, "molecules/s", rate * flop / 1e9, name, repeats))
    return found


def drawing(run: Run) -> list[Figure]:
    """Sampling with the default steps, checks included."""
    found = []
    for what, count, size, decode in (
        ("QM9's sizes, decoding", 48, None, "valence"),
        (f"{DRUG_SIZE} heavy atoms, raw", 12, DRUG_SIZE, "raw"),
    ):
        answers = run.pool.run(partial(sampling, count, size, decode))
        repeats = [sum(rates) for rates in zip(*(answer["rates"] for answer in answers), strict=True)]
        rate, flop = statistics.median(repeats), answers[0]["flop"]
        label = f"sampling, {what} and checks, {answers[0]['steps']} steps"
        found.append(Figure(label, rate, "molecules/s", rate * flop / 1e9, repeats=repeats))
    return found


def cost(run: Run) -> list[Figure]:
    """Network calls of all processes side by side, against the number of atoms."""
    found, logs = [], []
    for size in SIZES:
        each = run.pool.run(partial(network_call, size))
        mean = statistics.mean(each)
        gflops = run.processes * flop_a_call("qm9", size) / mean / 1e9
        found.append(Figure(f"network call, {size} heavy atoms", 1e3 * mean, "ms a molecule and core", gflops))
        if FITTED[0] <= size <= FITTED[1]:
            logs.append((np.log(size), np.log(mean)))
    exponent = float(np.polyfit(*np.array(logs).T, 1)[0])
    what = f"exponent of the cost, {FITTED[0]} to {FITTED[1]} heavy atoms"
    return [*found, Figure(what, exponent, "", limit="below 1.7")]


def memory(run: Run) -> list[Figure]:
    """Peak memory of a fresh process."""
    with side_by_side(1) as fresh:
        peak = fresh.run(partial(largest_memory, MEMORY_SIZE))[0]
    return [Figure(f"peak memory, sampling {MEMORY_SIZE} heavy atoms", peak, "GB", limit="below 4")]


def start_up(run: Run) -> list[Figure]:
    """Commands in fresh processes."""
    found = []
    for arguments, limit in ((["sample", "n=1"], "below 4"), (["--help"], "below 0.5")):
        command = [sys.executable, "-m", "moldiff.cli.main", *arguments]
        times = seconds(partial(subprocess.run, command, check=True, capture_output=True, cwd=run.folder))
        what = f"moldiff {' '.join(arguments)}"
        found.append(Figure(what, statistics.median(times), "s", repeats=times, limit=limit))
    return found


def preparation(run: Run) -> list[Figure]:
    """Records of QM9 a second, from the time of two parts of the set, so that starting up does not count."""
    small, large = 1000, 4000

    def part(limit: int) -> None:
        prepare(QM9(limit=limit, num_workers=run.processes), run.folder / "qm9", progress=False)

    short, long = (statistics.median(seconds(partial(part, limit))) for limit in (small, large))
    rate = (large - small) / (long - short)
    what = f"moldiff prepare data=qm9, records {small} to {large} of {NUM_RECORDS}"
    return [Figure(what, rate, "records/s")]


SECTIONS: dict[str, Callable[[Run], list[Figure]]] = {
    "training": training,
    "sampling": drawing,
    "cost": cost,
    "memory": memory,
    "start": start_up,
    "preparation": preparation,
}


def processor() -> str:
    """The processor's name where the system tells it, and the instructions that torch uses."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def show(figures: Sequence[Figure], ceiling: dict[str, float], title: str) -> None:
    table = Table("what", "figure", "share of ceiling", "has to be", title=title)
    for figure in figures:
        share = figure.share(ceiling)
        table.add_row(
            figure.what, f"{figure.value:.4g} {figure.unit}", "" if share is None else f"{share:.0%}", figure.limit
        )
    Console(width=120).print(table)


def beside_prototype(figures: Sequence[Figure], ceiling: dict[str, float]) -> list[Figure]:
    """How many times the prototype's arithmetic a second, each as a share of its machine's ceiling."""
    start = f"training, {QM9_SIZE} heavy atoms"
    shares = [f.share(ceiling) for f in figures if f.what.startswith(start) and f.dtype == "float32"]
    what = "training, molecules a second per MFLOP, beside the prototype's"
    return [Figure(what, max(s for s in shares if s) / PROTOTYPE_SHARE, "times", limit="1.4 or more")] if shares else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="PART")
    parser.add_argument("--compiled", action="store_true", help="also trainings that torch.compile has compiled")
    parser.add_argument("--processes", type=int, default=available_cpus(), help="default: one for every core")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    dtypes = list(_DTYPES) if has_fast_bfloat16(torch.device("cpu")) else ["float32"]
    with side_by_side(options.processes) as pool, tempfile.TemporaryDirectory() as folder:
        run = Run(pool, Path(folder), dtypes, options.compiled)
        figures = ceilings(run)
        for name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            figures += SECTIONS[name](run)
    ceiling = {figure.dtype: figure.value for figure in figures if figure.what.startswith("matrix products")}
    figures += beside_prototype(figures, ceiling)
    machine = {"processor": processor(), "processes": options.processes, "threads_a_process": 1, "repeats": REPEATS}
    show(figures, ceiling, f"{machine['processor']}, {options.processes} processes of one thread")
    rows = [asdict(figure) | {"share_of_ceiling": figure.share(ceiling)} for figure in figures]
    document = machine | {"versions": {**versions(), "torch": metadata.version("torch")}, "figures": rows}
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
