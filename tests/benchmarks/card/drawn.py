"""The molecules that a card is about: those of one run, as the network says them and decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from moldiff.diffusion.compute import FLOAT32
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.molecules import validity
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.processes import available_cpus
from moldiff.sampling.generator import load
from tests.benchmarks.tasks.settings import Progress

SEED = 2024
_MOST = 2
"""Times the wanted number of molecules that are drawn at most."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Molecules of one run.

    Attributes:
        raw: the most probable classes as they are.
        decoded: the most probable molecules that obey valence rules, from the same network calls and, of those in
            pieces, from restarts.
        problems: why each decoded molecule is not P2-valid, and so refused; None = it is.
        seconds: of processor time a process, decoding included, so that other work on the machine does not count.
        processes: that shared the work.
        confidence: in each decoded molecule.
    """

    raw: list[Molecule]
    decoded: list[Molecule]
    problems: list[InvalidMolecule | None]
    seconds: float
    processes: int
    confidence: Sequence[float] = ()


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


def draw(
    folder: Path, sampler: PowerSampler, number: int, *, valid: bool = False, num_workers: int | None = None
) -> Drawn:
    """Molecules 0 to `number` - 1 of the card's seed.

    Args:
        folder: of the model.
        sampler: how to step.
        number: of molecules.
        valid: draw on until as many decoded ones are valid, of a model that is too bad for that twice `number`.
        num_workers: processes of one thread each; None = one per CPU, 1 = this one alone.
    """
    processes = num_workers or available_cpus()
    run = load(folder, device="cpu").stream(
        _MOST * number if valid else number,
        seed=SEED,
        sampler=sampler,
        keep=(),
        workers=processes if processes > 1 else 0,
        arithmetic=FLOAT32,
    )
    raw, decoded, problems = list[Molecule](), list[Molecule](), list[InvalidMolecule | None]()
    confidence = list[float]()
    progress, num_valid, start = Progress(number), 0, _processor_seconds()
    with closing(iter(run)) as samples:
        for sample in samples:
            raw.append(sample.argmax)
            decoded.append(sample.molecule)
            confidence.append(sample.confidence)
            problems.append(validity.check(sample.molecule))
            num_valid += problems[-1] is None
            done = num_valid if valid else len(decoded)
            progress.show(done, what="drawn: ")
            if done == number:
                break
    if run.interrupted:
        raise KeyboardInterrupt
    seconds = (_processor_seconds() - start) / processes
    return Drawn(raw[:number], decoded, problems, seconds, processes, confidence)


def _processor_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


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
