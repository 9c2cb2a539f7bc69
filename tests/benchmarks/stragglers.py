"""How long a campaign takes on workers that are slow or get lost, by the number of its shards: a simulation.

`python tests/benchmarks/stragglers.py [--molecules 1000000] [--workers 64] [--rate 10]` prints a table of the time by
the clock over that of workers that are all alike, start at once and never fail. A shard is a job as `shards=K` makes
it: it takes a start, saves a block of 64 molecules at a time, and when its worker is lost, another goes on behind the
last block that was saved. A worker that ended a shard takes the next one that waits.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

BLOCK = 64
SHARDS_A_WORKER = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Cluster:
    """Workers and what befalls them; times in seconds."""

    workers: int
    rate: float  # molecules a second of a worker like most
    start: float = 10.0  # of a job: interpreter, weights, the scheduler's part
    spread: float = 0.15  # of the logarithm of a worker's rate
    slow_share: float = 0.03  # workers that share their machine with something else ...
    slow_factor: float = 3.0  # ... and take so many times as long
    lost_an_hour: float = 0.05  # how often a worker gets lost
    replaced: float = 120.0  # until another stands in for it

    def makespan(self, molecules: int, shards: int, generator: np.random.Generator) -> float:
        """Time by the clock until the last shard is done."""
        rates = self.rate * np.exp(generator.normal(0, self.spread, self.workers))
        rates[generator.random(self.workers) < self.slow_share] /= self.slow_factor
        waiting = [molecules * (k + 1) // shards - molecules * k // shards for k in range(shards)]
        free = [(0.0, worker) for worker in range(self.workers)]
        end = 0.0
        coming: list[tuple[float, int]] = []  # rests of shards whose worker was lost, and when that is known
        while waiting or coming:
            now, worker = heapq.heappop(free)
            if not waiting:
                known, rest = heapq.heappop(coming)
                now = max(now, known)
            elif coming and coming[0][0] <= now:
                rest = heapq.heappop(coming)[1]
            else:
                rest = waiting.pop()
            needed = self.start + rest / rates[worker]
            lost = generator.exponential(3600 / self.lost_an_hour) if self.lost_an_hour else np.inf
            if lost < needed:
                saved = int(max(0.0, lost - self.start) * rates[worker]) // BLOCK * BLOCK
                heapq.heappush(coming, (now + lost, rest - saved))
                heapq.heappush(free, (now + lost + self.replaced, worker))
                continue
            end = max(end, now + needed)
            heapq.heappush(free, (now + needed, worker))
        return end

    def over_ideal(self, molecules: int, shards: int, repeats: int) -> np.ndarray:
        """Times of repeats [R] over the time without any loss."""
        ideal = molecules / (self.rate * self.workers)
        return np.array([self.makespan(molecules, shards, np.random.default_rng(k)) for k in range(repeats)]) / ideal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rate", type=float, default=10.0, help="molecules a second of a worker")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    cluster = Cluster(options.workers, options.rate)
    table = Table(
        "shards a worker",
        "minutes a shard",
        "time / ideal, mean",
        "of 95 in 100",
        title=f"{options.molecules:,} molecules, {cluster.workers} workers",
    )
    for many in SHARDS_A_WORKER:
        shards = many * options.workers
        times = cluster.over_ideal(options.molecules, shards, options.repeats)
        minutes = options.molecules / shards / options.rate / 60
        table.add_row(str(many), f"{minutes:.1f}", f"{times.mean():.2f}", f"{np.quantile(times, 0.95):.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
