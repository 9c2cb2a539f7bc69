"""Throughput as a share of what this machine's matrix products reach in the same run.

`python tests/benchmarks/throughput.py [--quick] [--out benchmark.json]` prints one table and writes JSON. Every figure
is the median of five; rates are for all cores, by as many single-thread processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from moldiff.batch import MolBatch, NoiseLevel
from moldiff.checkpoint import load_checkpoint
from moldiff.generate import load
from moldiff.hardware import can_compile, has_fast_bfloat16
from moldiff.model import MoleculeDiffusion
from moldiff.optimizer import MuonAdamW
from moldiff.process.time import PowerTimes
from moldiff.report import versions

CPU = torch.device("cpu")
BATCH = 128
REPEATS = 5


def median_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ceiling(dtype: torch.dtype) -> float:
    """Matrix products a second on one thread (FLOP/s)."""
    torch.set_num_threads(1)
    size = 2048
    a, b = torch.randn(2, size, size).to(dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b)


def random_batch(model: MoleculeDiffusion, size: int, count: int) -> MolBatch:
    """Molecules of random classes and coordinates: the arithmetic does not depend on their chemistry."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(count, size, dtype=torch.bool)
    atoms = torch.randint(model.vocabulary.num_atom_classes, (count, size), generator=generator)
    bond = torch.randint(4, (count, size, size), generator=generator).triu(1)
    pos = torch.randn(count, size, 3, generator=generator)
    hydrogen = torch.randn(count, size, 4, 3, generator=generator)
    return MolBatch(pos, hydrogen, atoms, bond + bond.mT, mask)


def flops_a_call(model: MoleculeDiffusion, size: int) -> float:
    """Arithmetic of one network call for one molecule (FLOP), counted."""
    batch = random_batch(model, size, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.denoise(batch, NoiseLevel.uniform(torch.full((2,), 0.5), batch.node_mask))
    return counter.get_total_flops() / 2


def training_rate(size: int, dtype: torch.dtype, compiled: bool) -> float:
    """Molecules a second on one thread: coupling, loss, gradient and optimizer."""
    torch.set_num_threads(1)
    model = load_checkpoint("qm9").model.train().requires_grad_(True)
    if compiled:
        for layer in model.denoiser.get_submodule("layers").children():
            layer.compile(dynamic=False)
    count = max(1, round(BATCH * (9 / size) ** 2))
    batch = random_batch(model, size, count)
    low = torch.bfloat16 if dtype == torch.bfloat16 else None
    optimizer = MuonAdamW(model.denoiser.named_parameters(), muon_lr=0.0, adamw_lr=0.0, dtype=low)
    generator, times = torch.Generator().manual_seed(0), PowerTimes()

    def step(self_condition: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model.losses(batch, times, generator, self_condition=self_condition)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    # Half of the steps feed the network its own estimate, as in training.
    return count / statistics.mean(median_seconds(partial(step, flag)) for flag in (False, True))


def sampling_rate(number: int) -> float:
    """Molecules a second on one thread, decoding and checks included, with the default steps."""
    torch.set_num_threads(1)
    generator = load("qm9", device="cpu")
    generator.sample(8, steps=2)
    return number / median_seconds(lambda: generator.sample(number, keep=()), repeats=1)


def call_seconds(sizes: list[int]) -> dict[int, float]:
    """Seconds of one network call for one molecule, by number of heavy atoms."""
    torch.set_num_threads(1)
    model = load_checkpoint("qm9").model
    seconds = {}
    for size in sizes:
        count = max(1, 10_000 // size**2)
        batch = random_batch(model, size, count)
        level = NoiseLevel.uniform(torch.full((count,), 0.5), batch.node_mask)
        with torch.no_grad():
            seconds[size] = median_seconds(partial(model.denoise, batch, level)) / count
    return seconds


def together(function: Callable[[], float], processes: int) -> float:
    """The sum of what `processes` of the same job reach side by side."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(job.get() for job in [pool.apply_async(function) for _ in range(processes)])


def start_up_seconds() -> float:
    """Seconds of `moldiff sample n=1` in a fresh process."""
    code = "import sys; from moldiff.cli import main; sys.exit(main(['sample', 'n=1']))"
    with tempfile.TemporaryDirectory() as folder:
        run = partial(subprocess.run, [sys.executable, "-c", code], check=True, capture_output=True, cwd=folder)
        return median_seconds(run, repeats=3)


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = load_checkpoint("qm9").model
    figures: dict[str, Any] = {"cores": cores, "machine": platform.machine(), "versions": versions()}
    dtypes = [torch.float32] + ([torch.bfloat16] if has_fast_bfloat16(CPU) else [])
    top = {str(dtype): together(partial(ceiling, dtype), cores) for dtype in dtypes}
    figures["ceiling_gflops"] = {name: value / 1e9 for name, value in top.items()}
    figures["mflop_a_call"] = {size: flops_a_call(model, size) / 1e6 for size in (9, 22)}
    figures["training"] = []
    for size in (9, 22):
        work = flops_a_call(model, size) * 3.5  # forward and backward, and a forward pass in half of the steps
        for dtype in dtypes:
            for compiled in [False] if quick or not can_compile(CPU) else [False, True]:
                rate = together(partial(training_rate, size, dtype, compiled), cores)
                row = {"heavy_atoms": size, "dtype": str(dtype), "compiled": compiled, "molecules_a_second": rate}
                figures["training"].append(row | {"share_of_ceiling": rate * work / top[str(dtype)]})
    number = 32 if quick else 256
    rate = together(partial(sampling_rate, number), cores)
    share = rate * 50 * flops_a_call(model, 9) / top["torch.float32"]
    figures["sampling"] = {"molecules_a_second": rate, "steps": 50, "share_of_ceiling": share}
    seconds = call_seconds([5, 10, 20, 35, 50] if quick else [5, 10, 20, 35, 50, 80, 120])
    fit = [(np.log(size), np.log(value)) for size, value in seconds.items() if 10 <= size <= 50]
    figures["call_seconds"] = seconds
    figures["cost_exponent_10_to_50"] = float(np.polyfit(*np.array(fit).T, 1)[0])
    figures["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    figures["start_up_seconds"] = start_up_seconds()
    return figures


def show(figures: dict[str, Any]) -> None:
    table = Table("what", "figure", "share of ceiling", title=f"{figures['machine']}, {figures['cores']} cores")
    for dtype, value in figures["ceiling_gflops"].items():
        table.add_row(f"matrix products, {dtype}", f"{value:.0f} GFLOP/s", "")
    for row in figures["training"]:
        name = f"training, {row['heavy_atoms']} heavy atoms, {row['dtype']}{', compiled' if row['compiled'] else ''}"
        table.add_row(name, f"{row['molecules_a_second']:.0f} molecules/s", f"{row['share_of_ceiling']:.0%}")
    sampling = figures["sampling"]
    rate = f"{sampling['molecules_a_second']:.1f} molecules/s"
    table.add_row(f"sampling, {sampling['steps']} steps", rate, f"{sampling['share_of_ceiling']:.0%}")
    table.add_row("cost exponent, 10 to 50 heavy atoms", f"{figures['cost_exponent_10_to_50']:.2f}", "")
    table.add_row("moldiff sample n=1", f"{figures['start_up_seconds']:.1f} s", "")
    table.add_row("peak memory", f"{figures['peak_memory_gb']:.2f} GB", "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    figures = measure(quick=options.quick)
    show(figures)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
