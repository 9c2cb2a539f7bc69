"""The molecules that a card is about: drawn in processes, and decoded in both ways from the same network calls.

What is drawn lies on disk in parts, so that a run that was ended goes on behind them.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import numpy as np
import torch

from moldiff.data.store import load_arrays, pack, save_arrays, unpack
from moldiff.diffusion.pretrained import load_checkpoint
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.result import MetricResult
from moldiff.molecules import validity
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.processes import available_cpus
from moldiff.sampling.batch import ATTEMPTS, LEVEL, Beginning, MemoryBudget, draw_within, joined, sampler_of_restart
from moldiff.tasks.task import NewMolecules

SEED = 2024
_CHUNK = 250
_FORMS = ("raw", "decoded")
_MOST = 2
"""Times the wanted number of molecules that are drawn at most."""

_NEVER = 2**62  # bytes from which on a part would be mapped instead of read

Pair = tuple[list[Molecule], list[Molecule]]

_Job = tuple[Path, range]
"""Where a part is or will be, and the indices of its molecules."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Molecules of one run.

    Attributes:
        raw: the most probable classes as they are.
        decoded: the most probable molecules that obey valence rules, from the same network calls and, of those in
            pieces, from restarts.
        seconds: of processor time a process, decoding included, so that other work on the machine does not count.
        processes: that shared the work.
    """

    raw: list[Molecule]
    decoded: list[Molecule]
    seconds: float
    processes: int

    @cached_property
    def problems(self) -> list[InvalidMolecule | None]:
        """Why each decoded molecule is not P2-valid, and so refused; None = it is."""
        return [validity.check(molecule) for molecule in self.decoded]


@dataclass(frozen=True, eq=False)
class Delivered:
    """The molecules that a user gets: decoded ones, of which those that are not valid are refused and drawn anew.

    Attributes:
        molecules: the valid ones, in the order of their indices.
        refused: how many others were drawn for them, by the reason.
    """

    molecules: list[Molecule]
    refused: Mapping[str, int]

    @classmethod
    def of(cls, drawn: Drawn, number: int) -> Delivered:
        """The first `number` of what was drawn."""
        molecules: list[Molecule] = []
        refused: Counter[str] = Counter()
        for molecule, problem in zip(drawn.decoded, drawn.problems, strict=True):
            if len(molecules) == number:
                break
            if problem is None:
                molecules.append(molecule)
            else:
                refused[str(problem.status)] += 1
        return cls(molecules, refused)

    def results(self) -> list[MetricResult]:
        """How many of all that were drawn are delivered, and why the others are not."""
        drawn = len(self.molecules) + sum(self.refused.values())
        over = "over all decoded molecules that were drawn for those delivered, the refused ones included"
        valid = MetricResult("p2_drawn_valid", len(self.molecules), drawn, f"P2-valid molecules, {over}.")
        return [valid] + [
            MetricResult(f"p2_drawn_status_{reason}", count, drawn, f"Molecules refused as {reason!r}, {over}.")
            for reason, count in sorted(self.refused.items())
        ]


def draw(folder: str, sampler: PowerSampler, indices: Sequence[int]) -> Pair:
    """The molecules `indices` of the card's seed, in that order, raw and decoded."""
    model = load_checkpoint(folder).model
    task = NewMolecules.like_training(model.statistics, model.vocabulary)
    beginnings = (Beginning.of(task, SEED, index) for index in indices)
    budget = MemoryBudget.of(next(model.parameters()).device)
    found: dict[int, tuple[Molecule, Molecule]] = {}
    for chunk, drawn in draw_within(budget, model, sampler, beginnings):
        restart = sampler_of_restart(sampler)
        ends = joined(chunk, drawn, partial(draw_within, budget, model, restart))
        pairs = zip([one.molecule for one in drawn.decode("raw")], [end.molecule for end in ends], strict=True)
        found |= {one.index: pair for one, pair in zip(chunk, pairs, strict=True)}
    raw, decoded = zip(*(found[index] for index in indices), strict=True)
    return list(raw), list(decoded)


def draw_delivered(
    folder: Path, sampler: PowerSampler, number: int, *, num_workers: int | None = None, parts: Path | None = None
) -> Drawn:
    """At least `number` molecules, and as many more as it takes until as many decoded ones are valid.

    Of a model that is too bad for that, twice `number`.
    """
    wanted = number
    while True:
        drawn = draw_all(folder, sampler, wanted, num_workers=num_workers, parts=parts)
        valid = sum(problem is None for problem in drawn.problems)
        if valid >= number or wanted >= _MOST * number:
            return drawn
        share = max(valid / wanted, 1 / _MOST)
        wanted = min(_MOST * number, wanted + int(1.2 * (number - valid) / share) + 5)


def draw_all(
    folder: Path, sampler: PowerSampler, number: int, *, num_workers: int | None = None, parts: Path | None = None
) -> Drawn:
    """Molecules 0 to `number` - 1 of the card's seed.

    Args:
        folder: of the model.
        sampler: how to step.
        number: of molecules.
        num_workers: processes of one thread each; None = one per CPU, 1 = this one alone.
        parts: folder of what an earlier run has drawn, and where this one puts what it draws; None = nothing is kept.
    """
    workers = num_workers or available_cpus()
    size = min(_CHUNK, -(-number // workers))
    with ExitStack() as stack:
        parts = Path(stack.enter_context(TemporaryDirectory())) if parts is None else parts
        parts.mkdir(parents=True, exist_ok=True)
        key = _key(folder, sampler)
        jobs = [
            (parts / f"{key}-{start}.safetensors", range(start, min(start + size, number)))
            for start in range(0, number, size)
        ]
        todo = [job for job in jobs if not _is_drawn(job)]
        began, left = time.monotonic(), sum(len(indices) for _, indices in todo)
        with _mapped(partial(_draw_part, str(folder), sampler), todo, workers) as counts:
            for done in accumulate(counts):
                _tell(number, left, done, time.monotonic() - began)
        found = [(load_arrays(path, map_from=_NEVER), len(indices)) for path, indices in jobs]
    raw, decoded = ([one for part, count in found for one in _molecules(part, form, count)] for form in _FORMS)
    # Every process draws one part at a time, so that this holds whenever they were drawn.
    seconds = sum(float(part["seconds"][0]) for part, _ in found) / workers
    return Drawn(raw, decoded, seconds, workers)


def _key(folder: Path, sampler: PowerSampler) -> str:
    """What tells the parts of one model and sampler from those of others."""
    checkpoint = load_checkpoint(folder)
    restart = sampler_of_restart(sampler)
    steps = [sorted(asdict(one).items()) for one in (sampler, restart)]
    settings = f"{checkpoint.weights_hash} {SEED} {steps} {LEVEL} {ATTEMPTS}"
    return hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()


def _is_drawn(job: _Job) -> bool:
    """Whether the part is there, or a longer one."""
    path, indices = job
    return path.is_file() and len(load_arrays(path, map_from=_NEVER)["raw.y"]) >= len(indices)


def _draw_part(folder: str, sampler: PowerSampler, job: _Job) -> int:
    """Draw one part and write it; returns how many molecules it has."""
    path, indices = job
    start = time.process_time()
    pair = draw(folder, sampler, indices)
    arrays = {
        f"{form}.{name}": values
        for form, molecules in zip(_FORMS, pair, strict=True)
        for name, values in pack(molecules, ()).items()
    }
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_arrays(unfinished, arrays | {"seconds": np.array([time.process_time() - start], dtype=np.float32)})
    unfinished.replace(path)
    return len(indices)


def _molecules(part: Mapping[str, np.ndarray], form: str, count: int) -> list[Molecule]:
    flat = {name.removeprefix(f"{form}."): values for name, values in part.items() if name.startswith(f"{form}.")}
    return [unpack(flat, place) for place in range(count)]


def _tell(number: int, left: int, done: int, seconds: float) -> None:
    """How far it is, and how long the rest takes, on standard error."""
    minutes = seconds / done * (left - done) / 60
    there = number - left + done
    print(f"moldiff: drawn {there:,} of {number:,} molecules, about {minutes:.0f} minutes to go", file=sys.stderr)


@contextmanager
def _mapped(function: Any, jobs: Sequence[Any], workers: int) -> Iterator[Iterator[int]]:
    """The results for all jobs, in order, from so many processes."""
    if workers == 1:
        yield map(function, jobs)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield pool.map(function, jobs)


def sampler_of(text: str, *, num_steps: int | None = None) -> PowerSampler:
    """The default sampler with settings such as "order=2,corrector=30"; "" or "default" = none.

    Raises:
        MoldiffError: for a setting that the sampler does not have, or a value that is no number.
    """
    sampler = PowerSampler()
    hints = get_type_hints(PowerSampler)
    known = {
        field.name: int if int in (hints[field.name], *get_args(hints[field.name])) else float
        for field in fields(sampler)
    }
    settings: dict[str, Any] = {} if num_steps is None else {"num_steps": num_steps}
    for part in [] if text in ("", "default") else text.split(","):
        name, _, value = part.strip().removeprefix("sampler.").partition("=")
        if name not in known:
            raise MoldiffError(f"sampler: got {part!r}, expected NAME=NUMBER with any of {', '.join(known)}")
        try:
            settings[name] = known[name](value)
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
