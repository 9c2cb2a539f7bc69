"""Scores by which molecules are ranked, the lowest first: Vina's in a pocket, or those of a function of the user's own.

A function gets a list of sanitised RDKit molecules with explicit hydrogens and one conformer (Å, in the frame of the
task) and returns as many numbers; None or NaN = it has none. By its name `module:function` it is called in a process of
its own, which keeps what it has loaded, so that it may hang or crash; as an object it is called here, without a limit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from rdkit import Chem

from moldiff.errors import MoldiffError, require
from moldiff.evaluation.docking import FUNCTIONS, Vina
from moldiff.molecules.conformers import embed_conformer
from moldiff.processes import START_LIMIT, Failure, FailureKind, Limits, Pool, call_named, called
from moldiff.sampling.config import SamplingConfig
from moldiff.tasks.pocket import PocketTask
from moldiff.tasks.task import ConstrainedTask, Task

if TYPE_CHECKING:
    from moldiff.sampling.sample import Sample

_BATCH = 32  # molecules that a function gets at once at most


@dataclass(frozen=True, eq=False)
class Score:
    """Gives molecules `score` in their record, or `score_problem`, why they have none."""

    name: str
    limit: float  # seconds by the clock that a function called by its name may take for a molecule
    function: Callable[[list[Chem.Mol]], Any] | None = None  # called here; None = by its name, in another process
    folder: str = ""  # where its module is looked for, too
    sound: bool = True  # whether only sound molecules get one

    @classmethod
    def of(cls, config: SamplingConfig, task: Task) -> Score | None:
        """That of a run; raises `MoldiffError` for what is no function, or fails on ethanol."""
        got, limit, sound = config.score, config.score_limit, "sound" in config.keep
        if got is None:
            return None
        if callable(got):
            score = cls(f"{getattr(got, '__qualname__', type(got).__name__)} from Python", limit, got, sound=sound)
        elif got in FUNCTIONS:
            pocket = task.task if isinstance(task, ConstrainedTask) else task
            if not isinstance(pocket, PocketTask):
                raise MoldiffError(f"score: got {got} without a pocket, expected task=pocket, or module:function")
            for package in ("vina", "meeko"):
                require(package, "pocket")
            return cls(got, limit, Vina(pocket.site.receptor, pocket.site.center, got).minimized, sound=sound)
        elif all(part.isidentifier() for part in got.replace(":", ".", 1).split(".")) and ":" in got:
            score = cls(got, limit, folder=os.getcwd(), sound=sound)
        else:
            expected = f"{', '.join(FUNCTIONS)} or module:function, such as my_module:my_function"
            raise MoldiffError(f"score: got {got!r}, expected {expected}")
        ethanol, _ = embed_conformer(Chem.MolFromSmiles("CCO"), seed=0)
        assert isinstance(ethanol, Chem.Mol)
        ((_, problem),) = score._values([ethanol])
        if problem is not None and problem != _NONE:
            raise MoldiffError(f"score: {score.name} cannot score ethanol: {problem}")
        return score

    def scored(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with their scores; those that are not wanted anyway stay as they are."""
        problems = ((one.problem if self.sound else one.verdict.problem) for one in samples)
        wanted = (not problem and not one.is_refused for one, problem in zip(samples, problems, strict=True))
        places = [k for k, is_wanted in enumerate(wanted) if is_wanted]
        found = list(samples)
        for place, (value, problem) in zip(places, self._values([samples[k].mol for k in places]), strict=True):
            task = {**found[place].task, "score": value, "score_problem": problem}
            found[place] = replace(found[place], task=task)
        return found

    def close(self) -> None:
        """End the process, if there is one."""
        if "_pool" in vars(self):
            self._pool.close()

    def _values(self, mols: Sequence[Chem.Mol]) -> Iterator[tuple[float | None, str | None]]:
        """The score of each molecule, or why there is none."""
        batches = [list(mols[start : start + _BATCH]) for start in range(0, len(mols), _BATCH)]
        for batch, outcome in zip(batches, self._outcomes(batches), strict=True):
            if isinstance(outcome, Failure) and len(batch) > 1:  # which of them it was
                yield from (self._read(one, 1)[0] for one in self._outcomes([[mol] for mol in batch]))
            else:
                yield from self._read(outcome, len(batch))

    def _outcomes(self, batches: Sequence[list[Chem.Mol]]) -> list[Any]:
        if self.function is None:
            return [outcome for _, _, outcome in self._pool.run(batches, in_order=True)]
        return [called(self.function, batch) for batch in batches]

    def _read(self, outcome: Any, count: int) -> list[tuple[float | None, str | None]]:
        """What an answer says of each of so many molecules."""
        if isinstance(outcome, Failure):
            late = outcome.kind is FailureKind.TIME_OUT
            return [(None, f"not finished within {self.limit:g} s" if late else outcome.reason)] * count
        if len(outcome) != count:
            return [(None, f"it returned {len(outcome)} values for {count} molecules")] * count
        return [_number(value) for value in outcome]

    @cached_property
    def _pool(self) -> Pool:
        return Pool(partial(call_named, self.name, self.folder, self.limit), 1, Limits(0, START_LIMIT))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pool"}


_NONE = "it returned no number"


def _number(value: Any) -> tuple[float | None, str | None]:
    try:
        number = float("nan" if value is None else value)
    except (TypeError, ValueError):
        return None, f"it returned {str(value)[:60]!r}, expected a number"
    return (number, None) if isfinite(number) else (None, _NONE)
