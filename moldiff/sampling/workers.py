"""A run's molecules in blocks of indices, shared among processes: how large, how many, and what each draws."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch

from moldiff.diffusion.compute import can_compile, compile_blocks, in_float32, is_out_of_memory, seconds, verdict
from moldiff.processes import Failure, available_cpus, stream_limited
from moldiff.sampling.batch import denoise_batch, in_batches
from moldiff.sampling.molecule_sampler import MoleculeSampler
from moldiff.sampling.sample import Sample

_MAX_BLOCK, _BLOCK_PAIRS = 64, 12_000
"""Molecules of a block on a CPU at most, and pairs of atoms: some seconds of work, done in few batches."""

_MAX_GPU_BLOCK, _GPU_BLOCK_PAIRS = 1_000, 600_000
_MIN_TAIL = 8  # molecules of a block behind those that are needed at the least

_CALL_SECONDS = 1.4e-3
"""A network call for one molecule of 9 heavy atoms on one core of the machine the shipped model was trained on."""

_START_SECONDS = 5.0
"""What workers take to start."""

_TRIAL_SECONDS, _GPU_TRIAL_SECONDS = 3_600.0, 360_000.0
"""Seconds on one core from which on compiling, which takes some minutes, is tried."""

_TRIAL_STEPS = 3

_NO_LIMIT = 1e8
"""Seconds that a worker may spend on a block: three years."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexBlocks:
    """The blocks of a run.

    Attributes:
        first: index of the first molecule.
        needed: how many have to be drawn at the least.
        limit: how many may be drawn.
        length: molecules of a block; behind those that are needed blocks are shorter, as the run may end any time.
    """

    first: int
    needed: int
    limit: int
    length: int

    @classmethod
    def of(cls, molecules: MoleculeSampler, first: int, needed: int, limit: int) -> IndexBlocks:
        """Blocks of a length that suits the device and the size of the molecules."""
        gpu = molecules.device.type != "cpu"
        longest, pairs = (_MAX_GPU_BLOCK, _GPU_BLOCK_PAIRS) if gpu else (_MAX_BLOCK, _BLOCK_PAIRS)
        length = int(pairs / molecules.mean_pairs(first) / molecules.num_candidates)
        return cls(first, min(needed, limit), limit, max(1, min(longest, length)))

    def behind(self, index: int) -> Iterator[range]:
        """The blocks that are not wholly below `index`."""
        end, needed = self.first, self.first + self.needed
        tail = min(self.length, max(_MIN_TAIL, self.needed // 20))
        while end < self.first + self.limit:
            start = end
            stop = min(start + self.length, needed) if start < needed else start + tail
            end = min(stop, self.first + self.limit)
            if end > index:
                yield range(start, end)


def choose_workers(molecules: MoleculeSampler, first: int, needed: int) -> int:
    """How many worker processes to share the work among; 0 = none, all is done here.

    As many processes as torch may use threads, once they have started; on two cores that pays from about 150 molecules
    of QM9's size on, or 30 drug-like ones.
    """
    processes = min(available_cpus(), torch.get_num_threads())
    if molecules.device.type != "cpu" or processes < 2:
        return 0
    total = core_seconds(molecules, first, needed)
    return processes if _START_SECONDS + total / processes < total else 0


def core_seconds(molecules: MoleculeSampler, first: int, needed: int) -> float:
    """About how long the network calls of so many molecules take on one core."""
    # From 10 to 50 heavy atoms the cost grows with their number to the 1.6.
    seconds_a_call: float = _CALL_SECONDS * (molecules.mean_pairs(first) / 81) ** 0.8
    return needed * molecules.num_candidates * molecules.sampler.num_steps * seconds_a_call


@in_float32()
def with_trial(molecules: MoleculeSampler, first: int, needed: int, num_workers: int) -> MoleculeSampler:
    """The same with compiled blocks where the run is long and a trial on its first molecules found them to pay.

    Compiled or not, the molecules are the same up to the rounding of floating-point numbers.
    """
    device = molecules.device
    worth = _TRIAL_SECONDS if device.type == "cpu" else _GPU_TRIAL_SECONDS
    if core_seconds(molecules, first, needed) < worth or not can_compile(device):
        return molecules
    short = replace(molecules.sampler, num_steps=_TRIAL_STEPS)
    specs = (molecules.spec(first + k) for k in range(min(needed, _MAX_BLOCK)))
    batch = next(in_batches(specs, molecules.budget.pairs))
    plain, tried = molecules.arithmetic, replace(molecules.arithmetic, compiled=True)
    figures, length = {}, 0.0
    for arithmetic in (plain, tried):
        compile_blocks(molecules.model.denoiser, arithmetic.compiled, dynamic=True)
        run = partial(denoise_batch, molecules.model, short, batch, arithmetic=arithmetic)
        try:
            figures[arithmetic], length = seconds(run, device)
        except Exception as error:  # no memory, or a compiler that does not work
            if arithmetic == plain and not is_out_of_memory(error):
                raise
            figures[arithmetic] = float("inf")
    compile_blocks(molecules.model.denoiser, False, dynamic=True)
    batches = needed / len(batch) * molecules.sampler.num_steps / _TRIAL_STEPS / max(1, num_workers)
    # Workers compile once more, at the same time as each other.
    saved, cost = (figures[plain] - figures[tried]) * batches, length * (2 if num_workers else 1)
    chosen = tried if saved > cost else plain
    _log.info(verdict(chosen, figures))
    return replace(molecules, arithmetic=chosen)


def draw_blocks(
    molecules: MoleculeSampler,
    blocks: IndexBlocks,
    *,
    behind: int,
    num_workers: int = 0,
    on_fraction: Callable[[float], None] | None = None,
) -> Generator[list[Sample], None, None]:
    """The molecules of the blocks that are not wholly below index `behind`, block by block in order.

    A block whose worker ended is drawn again here, and so is everything if workers cannot start.

    Args:
        molecules: how to draw.
        blocks: which.
        behind: index of the first molecule that is wanted.
        num_workers: processes; 0 = none, all is done here.
        on_fraction: hears how many molecules of the block that is drawn here are done, in fractions.
    """
    if num_workers:
        outcomes = stream_limited(molecules.draw, blocks.behind(behind), num_workers=num_workers, limit=_NO_LIMIT)
        with closing(outcomes):
            while True:
                try:
                    block, outcome = next(outcomes)
                except StopIteration:
                    return
                except Exception as error:  # a model of a class that cannot be pickled, no memory for a process, ...
                    _log.warning("workers cannot be used, one process goes on alone: %s", _one_line(error))
                    break
                if isinstance(outcome, Failure):
                    _log.warning("molecules %d to %d are drawn again: %s", block[0], block[-1], outcome.reason)
                    outcome = molecules.draw(block)
                behind = block[-1] + 1
                yield outcome
    for block in blocks.behind(behind):
        yield molecules.draw(block, on_fraction)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
