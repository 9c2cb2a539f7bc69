"""What a task is measured with, and what measures it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moldiff.diffusion.sampler import PowerSampler
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.validity import ValidityReport, judge
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import Generator
from moldiff.sampling.sample import Sample
from moldiff.tasks.task import TaskSpec

Columns = dict[str, list[MetricResult]]
"""Results by who made the molecules, or how."""

Row = dict[str, Any]
"""What was counted of one molecule, in JSON's types."""

_INDICES = 1_000
"""Indices of a run that every held-out molecule has to itself; draws beyond them come from the next one's numbers."""

_EVERY = 60.0
"""Seconds between two lines on how far it is."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure with.

    Attributes:
        generator: the model.
        molecules: held-out molecules to measure on.
        samples: drawn for each of them.
        seed: of the choice of parts and of the draws.
        sampler: how to step; None = the default.
    """

    generator: Generator
    molecules: Sequence[Molecule]
    samples: int
    seed: int = 0
    sampler: PowerSampler | None = None

    def first(self, place: int) -> int:
        """Index of the first molecule that is drawn for the held-out molecule at that place."""
        return place * _INDICES

    def draw(self, task: TaskSpec, *, first: int, samples: int = 1, max_draws: int | None = None) -> list[Sample]:
        """Molecules as they come, decoded."""
        run = self.generator.stream(
            samples, task=task, first=first, max_draws=max_draws, sampler=self.sampler, seed=self.seed, keep=()
        )
        found = list(run)
        if run.interrupted:
            raise KeyboardInterrupt
        return found

    def forms(self, sample: Sample) -> Mapping[str, tuple[Molecule, ValidityReport]]:
        """A molecule as the network says it and decoded, each with what validity says of it."""
        vocabulary = self.generator.checkpoint.model.vocabulary
        same = sample.argmax is sample.molecule
        raw = sample.verdict if same else judge(sample.argmax, vocabulary)
        return {"raw": (sample.argmax, raw), "decoded": (sample.molecule, sample.verdict)}


class Progress:
    """Tells on standard error how far a measurement is and about how long it still takes.

    Args:
        total: of what is counted.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._shown = time.monotonic()

    def show(self, done: int, *, what: str = "") -> None:
        """Tell, unless that was done a moment ago."""
        now = time.monotonic()
        first = self._shown == self._start
        if not 0 < done < self._total or (now - self._shown < _EVERY and not first):
            return
        self._shown = now
        left = (now - self._start) / done * (self._total - done)
        print(f"moldiff: {what}{done} of {self._total}, about {_duration(left)} left", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Measure(Protocol):
    """Measures a task molecule by molecule."""

    def rows(self, settings: Settings, places: range) -> list[Row]:
        """What is counted of the held-out molecules at these places, each by itself."""
        ...

    def columns(self, rows: Sequence[Row]) -> Columns:
        """The results of all molecules.

        Raises:
            MoldiffError: when nothing could be counted.
        """
        ...

    def details(self, rows: Sequence[Row]) -> list[Row]:
        """What is worth a look one by one."""
        ...
