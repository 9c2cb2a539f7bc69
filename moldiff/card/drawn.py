"""The molecules that a card is about: drawn in processes, and decoded in both ways from the same network calls."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from moldiff.batch import Molecule
from moldiff.checkpoint import load_checkpoint
from moldiff.drawing import Beginning, MemoryBudget, NewMolecules, draw_within
from moldiff.errors import MoldiffError
from moldiff.pool import available_cpus
from moldiff.sampler import PowerSampler

SEED = 2024
_CHUNK = 250

Pair = tuple[list[Molecule], list[Molecule]]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Molecules of one run.

    Attributes:
        raw: the most probable classes as they are.
        decoded: the most probable molecules that obey valence rules, from the same network calls.
        seconds: by the clock, decoding included.
        processes: that shared the work.
    """

    raw: list[Molecule]
    decoded: list[Molecule]
    seconds: float
    processes: int


def draw(folder: str, sampler: PowerSampler, indices: Sequence[int]) -> Pair:
    """The molecules `indices` of the card's seed, in that order, raw and decoded."""
    model = load_checkpoint(folder).model
    task = NewMolecules(model.statistics.size_counts)
    beginnings = (Beginning.of(task, SEED, index) for index in indices)
    budget = MemoryBudget.of(next(model.parameters()).device)
    found: dict[int, tuple[Molecule, Molecule]] = {}
    for chunk, drawn in draw_within(budget, model, sampler, beginnings):
        pairs = zip(drawn.decode("raw")[0], drawn.decode("valence")[0], strict=True)
        found |= {one.index: pair for one, pair in zip(chunk, pairs, strict=True)}
    raw, decoded = zip(*(found[index] for index in indices), strict=True)
    return list(raw), list(decoded)


def draw_all(folder: Path, sampler: PowerSampler, number: int, *, num_workers: int | None = None) -> Drawn:
    """Molecules 0 to `number` - 1 of the card's seed.

    Args:
        folder: of the model.
        sampler: how to step.
        number: of molecules.
        num_workers: processes of one thread each; None = one per CPU, 1 = this one alone.
    """
    workers = num_workers or available_cpus()
    size = min(_CHUNK, -(-number // workers))
    chunks = [range(start, min(start + size, number)) for start in range(0, number, size)]
    parts: list[Pair] = []
    start = time.monotonic()
    with _mapped(partial(draw, str(folder), sampler), chunks, workers) as jobs:
        parts += track(jobs, f"drawing molecules, {sampler.num_steps} steps", total=len(chunks))
    seconds = time.monotonic() - start
    raw, decoded = ([molecule for part in parts for molecule in part[which]] for which in (0, 1))
    return Drawn(raw, decoded, seconds, workers)


@contextmanager
def _mapped(function: Any, chunks: Iterable[Sequence[int]], workers: int) -> Iterator[Iterator[Pair]]:
    """The results for all chunks, in order, from so many processes."""
    if workers == 1:
        yield map(function, chunks)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield pool.map(function, chunks)


def sampler_of(text: str, *, num_steps: int | None = None) -> PowerSampler:
    """The default sampler with settings such as "order=2,corrector=30"; "" or "default" = none.

    Raises:
        MoldiffError: for a setting that the sampler does not have, or a value that is no number.
    """
    sampler = PowerSampler()
    known = {field.name: type(getattr(sampler, field.name)) for field in fields(sampler)}
    settings: dict[str, Any] = {} if num_steps is None else {"num_steps": num_steps}
    for part in [] if text in ("", "default") else text.split(","):
        name, _, value = part.strip().removeprefix("sampler.").partition("=")
        if name not in known:
            raise MoldiffError(f"sampler: got {part!r}, expected NAME=NUMBER with any of {', '.join(known)}")
        try:
            settings[name] = int(value) if known[name] is int else float(value)
        except ValueError:
            raise MoldiffError(f"sampler.{name}: got {value!r}, expected a number") from None
    return replace(sampler, **settings)


def plural(processes: int) -> str:
    """How many processes, in words."""
    return "1 process" if processes == 1 else f"{processes} processes"


def label(sampler: PowerSampler) -> str:
    """The settings, other than the number of steps, that differ from the default's; "default" = none."""
    default = PowerSampler()
    names = [field.name for field in fields(sampler) if field.name != "num_steps"]
    texts = [f"{name}={getattr(sampler, name):g}" for name in names if getattr(sampler, name) != getattr(default, name)]
    return ", ".join(texts) or "default"
