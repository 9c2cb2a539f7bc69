"""A run of which only the molecules that pass filters are kept, with columns on request.

Example:
    run = screened(load("qm9").run(20), filters=["pains", "sa<4.5"], columns=["known_drug"])
    for sample in run:
        print(sample.smiles, sample.task["sa"], sample.task["known_drug"])
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from moldiff import chem
from moldiff.batch import Molecule
from moldiff.drawing import Finished, Task, WrappedTask
from moldiff.errors import MoldiffError
from moldiff.metrics.columns import COLUMNS, Value, check_columns
from moldiff.metrics.filters import Filter, Profile, parse_filters
from moldiff.recipe import Recipe
from moldiff.results import MetricResult
from moldiff.run import Done, SamplingRun
from moldiff.sampler import Start
from moldiff.samples import SampledMolecule

_FAILED = "filters: "
"""How the reason begins for which a molecule is left out; the filters that it fails follow."""

_STATUS = f"task_status_{_FAILED}"


@dataclass(frozen=True, eq=False)
class FilteredTask(WrappedTask):
    """A task of whose molecules those that fail a filter are not what was asked for.

    Attributes:
        filters: what a molecule has to pass.
    """

    filters: tuple[Filter, ...]

    def finish(self, index: int, start: Start, molecule: Molecule) -> Finished:
        """That of the task, with the values that the filters decide on; those that it fails are its problem."""
        finished = self.task.finish(index, start, molecule)
        if finished.problem is not None:
            return finished
        failed, values = judge(finished.molecule, self.filters)
        problem = f"{_FAILED}{', '.join(failed)}" if failed else None
        return replace(finished, fields={**finished.fields, **values}, problem=problem)


def judge(molecule: Molecule, filters: Sequence[Filter]) -> tuple[list[str], dict[str, Value]]:
    """The filters that a molecule fails, and the values that they decided on; what has no SMILES fails all."""
    try:
        one = Profile(chem.smiles(molecule))
    except MoldiffError:
        return [str(each) for each in filters], {}
    outcomes = {str(each): each.judge(one) for each in filters}
    values = {name: value for _, found in outcomes.values() for name, value in found.items()}
    return [text for text, (passes, _) in outcomes.items() if not passes], values


@dataclass(eq=False)
class ScreenedRun(SamplingRun):
    """A run that counts what its filters leave out, and adds columns to what it keeps.

    Attributes:
        filters: what kept molecules pass.
        columns: names in `moldiff.metrics.columns.COLUMNS`.
    """

    filters: tuple[Filter, ...] = ()
    columns: tuple[str, ...] = ()
    _found: Counter[str] = field(default_factory=Counter)
    _drawn_before: int = 0

    def __iter__(self) -> Iterator[SampledMolecule]:
        """Draw as `SamplingRun` does."""
        samples = super().__iter__()
        try:
            for sample in samples:
                self._found["kept"] += 1
                yield self.with_columns(sample)
        finally:
            samples.close()  # type: ignore[attr-defined]  # it is a generator

    def with_columns(self, sample: SampledMolecule) -> SampledMolecule:
        """A kept molecule with its columns, which are counted."""
        if not self.columns:
            return sample
        values: dict[str, Value | None] = {}
        self._found["columns"] += 1
        for name in self.columns:
            values[name] = None if sample.smiles is None else COLUMNS[name][0](sample.smiles)
            self._found[name] += values[name] not in (None, False, "none")
        return replace(sample, task={**sample.task, **values})

    def another(self, task: Task, *, first: int) -> ScreenedRun:
        """A run of another task with the same settings, from index `first` on, that goes on with these counts."""
        order = replace(self.order, first=first)
        recipe = replace(self.recipe, task=FilteredTask(task, self.filters) if self.filters else task)
        return replace(self, recipe=recipe, order=order, done=Done(0, first), _shown=0.0, _drawn_before=self.drawn)

    def _progress(self, fraction: float) -> None:
        """As `SamplingRun` does, without the molecules of the runs before."""
        if self.on_progress is not None:
            share = (self.kept - self.done.kept + 1) / (self.drawn - self._drawn_before + 1)
            self._shown = max(self._shown, min(self.order.n, self.kept + fraction * share))
            self.on_progress(self._shown)

    def results(self) -> list[MetricResult]:
        """Numbers over all molecules drawn, those of each filter and column among them."""
        found = super().results()
        plain = [result for result in found if not result.name.startswith(_STATUS)]
        return plain + self._passes(found) + self._columns()

    def _passes(self, found: Sequence[MetricResult]) -> list[MetricResult]:
        """How many pass each filter, whatever the others say, and how many are left out by any."""
        failed = {
            tuple(result.name.removeprefix(_STATUS).split(", ")): int(result.numerator)
            for result in found
            if result.name.startswith(_STATUS)
        }
        total = self._found["kept"] + sum(failed.values())
        results = []
        for one in self.filters:
            missed = sum(count for names, count in failed.items() if str(one) in names)
            definition = f"Molecules that pass {one.definition}, over those that `keep` and the task let pass."
            results.append(MetricResult(f"task_passes_{one}", total - missed, total, definition))
        if failed:
            definition = "Molecules that fail any filter, over those that `keep` and the task let pass."
            results.append(MetricResult("task_status_filters", sum(failed.values()), total, definition))
        return results

    def _columns(self) -> list[MetricResult]:
        total = self._found["columns"]
        return [MetricResult(f"task_{name}", self._found[name], total, COLUMNS[name][2]) for name in self.columns]


def screened(run: SamplingRun, *, filters: Sequence[str] = (), columns: Sequence[str] = ()) -> ScreenedRun:
    """The same run, of which only molecules that pass these filters, and those it has already, are kept.

    Args:
        run: any run that has not begun.
        filters: each a word or a bound such as "sa<4.5", see `moldiff.metrics.filters`.
        columns: any of "purchasable", "known_drug", for the records of kept molecules.

    Raises:
        MoldiffError: for an unknown filter or column, or a package that a column needs and that is missing.
    """
    before = run if isinstance(run, ScreenedRun) else ScreenedRun(**_options(run))
    chosen = tuple(dict.fromkeys([*before.filters, *parse_filters(filters)]))
    recipe = run.recipe
    if chosen:
        task = recipe.task.task if isinstance(recipe.task, FilteredTask) else recipe.task
        recipe = replace(asking(recipe, filters=[str(one) for one in chosen]), task=FilteredTask(task, chosen))
    columns = tuple(dict.fromkeys([*before.columns, *check_columns(columns)]))
    return replace(before, recipe=recipe, filters=chosen, columns=columns)


def _options(run: SamplingRun) -> dict[str, Any]:
    return {one.name: getattr(run, one.name) for one in fields(run)}


def asking(recipe: Recipe, **more: Any) -> Recipe:
    """The recipe whose records say what else was asked for, in JSON's types."""
    return replace(recipe, asked=json.dumps({**json.loads(recipe.asked or "{}"), **more}))
