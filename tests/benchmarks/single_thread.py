"""What is measured inside single-thread processes that work side by side, one on every core."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from moldiff.diffusion.batch import MolBatch, NoiseLevel
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import load_pretrained
from moldiff.sampling.batch import CPU_PAIRS
from moldiff.sampling.generator import load

REPEATS = 5
_barrier: Any = None


class SideBySide:
    """As many processes as there are cores; a job starts in all of them at the same moment."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(processes, _begin, (context.Barrier(processes),))

    def run(self, job: Callable[[], Any]) -> list[Any]:
        """What the job returns in each process."""
        return [result.get() for result in [self._pool.apply_async(_after_all, (job,)) for _ in range(self.processes)]]

    def close(self) -> None:
        self._pool.terminate()


@contextmanager
def side_by_side(processes: int) -> Iterator[SideBySide]:
    """Processes that end with the block."""
    pool = SideBySide(processes)
    try:
        yield pool
    finally:
        pool.close()


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    torch.set_num_threads(1)


def _after_all(job: Callable[[], Any]) -> Any:
    _barrier.wait()
    return job()


def seconds(run: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each repeat, after one that warms up."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def matrix_products(dtype: torch.dtype) -> float:
    """Arithmetic a second of large matrix products (FLOP/s), the median of five."""
    size = 2048
    a, b = torch.randn(2, size, size).to(dtype)
    return float(2 * size**3 / statistics.median(seconds(lambda: a @ b)))


def random_batch(model: MoleculeDiffusion, size: int, count: int) -> MolBatch:
    """Molecules of random classes and coordinates: the arithmetic does not depend on their chemistry."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(count, size, dtype=torch.bool)
    atoms = torch.randint(model.vocabulary.num_atom_classes, (count, size), generator=generator)
    bond = torch.randint(4, (count, size, size), generator=generator).triu(1)
    pos = torch.randn(count, size, 3, generator=generator)
    hydrogen = torch.randn(count, size, 4, 3, generator=generator)
    return MolBatch(pos, hydrogen, atoms, bond + bond.mT, mask)


@cache
def flop_a_call(model: str | Path, size: int) -> float:
    """Arithmetic of one network call for one molecule (FLOP), counted."""
    network = load_pretrained(model).model
    batch = random_batch(network, size, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.denoise(batch, NoiseLevel.uniform(torch.full((2,), 0.5), batch.node_mask))
    return float(counter.get_total_flops() / 2)


def network_call(size: int) -> float:
    """Seconds of one network call for one molecule in a batch as the sampler makes them, the median of five."""
    model = load_pretrained("qm9").model
    count = max(1, CPU_PAIRS // size**2)
    batch = random_batch(model, size, count)
    level = NoiseLevel.uniform(torch.full((count,), 0.5), batch.node_mask)
    with torch.no_grad():
        return float(statistics.median(seconds(partial(model.denoise, batch, level))) / count)


def sampling(count: int, size: int | None, decode: str) -> dict[str, Any]:
    """Molecules a second of five runs with the default steps, checks included, and the arithmetic of a molecule."""
    generator = load("qm9", device="cpu")
    drawn: list[Any] = []

    def run() -> None:
        drawn[:] = generator.sample(count, size=size, keep=(), decode=decode, workers=0)

    rates = [count / each for each in seconds(run)]
    steps = int(drawn[0].origin["steps"])
    work = steps * sum(flop_a_call("qm9", sample.molecule.num_heavy_atoms) for sample in drawn) / count
    return {"rates": rates, "steps": steps, "flop": work}


def largest_memory(size: int) -> float:
    """Peak memory (GB) of a fresh process that samples molecules of so many heavy atoms, decoding included."""
    import resource  # only Unix has it

    load("qm9", device="cpu").sample(2, size=size, steps=3, keep=(), workers=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / (1e9 if sys.platform == "darwin" else 1e6))
