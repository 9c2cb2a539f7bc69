"""What a task is measured with, and what measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moldiff.diffusion.sampler import PowerSampler
from moldiff.evaluation.result import MetricResult
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import MoleculeGenerator
from moldiff.sampling.sample import SampledMolecule
from moldiff.tasks.task import Request

Columns = dict[str, list[MetricResult]]
"""Results by who made the molecules, or how."""

Row = dict[str, Any]
"""What was counted of one molecule, in JSON's types."""

_INDICES = 1_000
"""Indices of a run that every held-out molecule has to itself; draws beyond them come from the next one's numbers."""


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

    generator: MoleculeGenerator
    molecules: Sequence[Molecule]
    samples: int
    seed: int = 0
    sampler: PowerSampler | None = None

    def first(self, place: int) -> int:
        """Index of the first molecule that is drawn for the held-out molecule at that place."""
        return place * _INDICES

    def draw(
        self, task: Request, *, first: int, samples: int = 1, max_draws: int | None = None
    ) -> list[SampledMolecule]:
        """Molecules as they come, decoded."""
        return self._drawn(task, first, samples, max_draws, "valence")

    def raw(self, sample: SampledMolecule, task: Request) -> SampledMolecule:
        """The same molecule with the most probable class of every atom and pair.

        Only where decoding mended it, or a restart joined it, is it another one, and drawn again.

        Args:
            sample: a decoded molecule.
            task: what it was drawn for, without the others of its run.
        """
        is_another = sample.mended or sample.restarts > 0
        return self._drawn(task, sample.index, 1, 1, "raw")[0] if is_another else sample

    def _drawn(
        self, task: Request, first: int, samples: int, max_draws: int | None, decode: str
    ) -> list[SampledMolecule]:
        run = self.generator.run(
            samples,
            task=task,
            first=first,
            max_draws=max_draws,
            decode=decode,
            sampler=self.sampler,
            seed=self.seed,
            keep=(),
        )
        found = list(run)
        if run.interrupted:
            raise KeyboardInterrupt
        return found


class Measure(Protocol):
    """Measures a task molecule by molecule, so that an interrupted run can go on."""

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
