"""Several tasks in one run, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moldiff.batch import Molecule
from moldiff.data.statistics import Statistics
from moldiff.decode import Total
from moldiff.drawing import Finished, Task
from moldiff.sampler import Start
from moldiff.tasks.task import Request
from moldiff.tasks.turns import Turns
from moldiff.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Series:
    """n molecules of each of several tasks; molecule k belongs to task k modulo their number.

    Args:
        tasks: any that need not decide on several molecules together.
    """

    tasks: Sequence[Request]

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> SeriesTask:
        """The tasks for a model.

        Raises:
            MoldiffError: when one of them cannot be done.
        """
        return SeriesTask(tuple(task.prepare(vocabulary, statistics) for task in self.tasks))


@dataclass(frozen=True, eq=False)
class SeriesTask:
    """Prepared tasks in turn.

    Attributes:
        tasks: the tasks.
    """

    tasks: tuple[Task, ...]

    def of(self, index: int) -> Task:
        """The task that molecule `index` is drawn for."""
        return self.tasks[index % len(self.tasks)]

    def count(self, n: int) -> int:
        """Molecules that make up the answer when n of each are asked for."""
        return n * len(self.tasks)

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        low, high = zip(*(task.sizes() for task in self.tasks), strict=True)
        return min(low), max(high)

    def notes(self) -> Sequence[str]:
        """Those of all."""
        return [note for task in self.tasks for note in task.notes()]

    def begin(self, index: int, generator: torch.Generator) -> Start:
        """That of the task whose turn it is."""
        return self.of(index).begin(index, generator)

    def totals(self, index: int) -> Sequence[Total]:
        """Those of the task whose turn it is."""
        return self.of(index).totals(index)

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """That of the task whose turn it is."""
        return self.of(index).finish(index, start, molecule)

    def admission(self, n: int) -> Turns:
        """As many of each."""
        return Turns(len(self.tasks), n // len(self.tasks))
