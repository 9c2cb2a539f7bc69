"""Whether what is asked for lies within the sizes and charges that a model has learnt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from moldiff.diffusion.shipped import advice
from moldiff.diffusion.statistics import Statistics
from moldiff.molecules.vocabulary import AtomClass, Vocabulary
from moldiff.sampling.batch import Beginning
from moldiff.tasks.task import Task

_LOOKED_AT = 100
"""Molecules of a task that are looked at."""


def warnings(task: Task, sizes: tuple[int, int], vocabulary: Vocabulary, statistics: Statistics) -> Iterator[str]:
    """A line for the sizes and one for the charges that a model has not learnt; nothing where it has.

    Args:
        task: what is to be drawn.
        sizes: the smallest and largest number of heavy atoms that is asked for.
        vocabulary: classes of the model.
        statistics: what it has learnt from.
    """
    learnt = min(statistics.size_counts), max(statistics.size_counts)
    numbers = range(min(task.count(1), _LOOKED_AT))
    if sizes[0] < learnt[0] or sizes[1] > learnt[1]:
        other = advice(_known_atoms(task, numbers, vocabulary), sizes)
        asked = str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
        yield (
            f"warning: size: got {asked} heavy atoms, the model has learnt {learnt[0]} to {learnt[1]}, others may come "
            f"out badly{other}"
        )
    charges = {
        total.value
        for number in numbers
        for total in task.totals(number)
        if np.array_equal(total.weight, vocabulary.table[:, 1])
    }
    if statistics.charge is not None and (strange := sorted(charges - {statistics.charge})):
        shown = " and ".join(f"{charge:+d}" for charge in strange)
        only = "neutral molecules" if statistics.charge == 0 else f"a charge of {statistics.charge:+d}"
        yield f"warning: charge: got {shown}, the model has learnt {only} only, others may come out badly"


def _known_atoms(task: Task, numbers: Sequence[int], vocabulary: Vocabulary) -> list[Collection[AtomClass]]:
    """The classes that each atom may have of which a task says something, of its first molecules."""
    found: list[Collection[AtomClass]] = []
    for number in numbers:
        start = Beginning.of(task, 0, number).start
        known = start.level.atom[0] == 0
        found += [{vocabulary.atom_classes[index]} for index in start.clean.atom_type[0][known].tolist()]
        if start.allowed is not None:
            for allowed in start.allowed[0][~known].tolist():
                found.append({one for one, may in zip(vocabulary.atom_classes, allowed, strict=True) if may})
    return found
