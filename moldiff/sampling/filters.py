"""A run of which only the molecules that pass filters are kept, with columns on request.

Example:
    run = screened(load("qm9").run(20), filters=["pains", "sa<4.5"], columns=["known_drug"])
    for sample in run:
        print(sample.smiles, sample.task["sa"], sample.task["known_drug"])

Filters of medicinal chemists, each by one word: structural alerts, rules of thumb, and bounds such as `sa<4.5`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from moldiff.diffusion.sampler import Start
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.druglike import first_alert
from moldiff.evaluation.metrics.lookup import COLUMNS, check_columns
from moldiff.evaluation.result import MetricResult
from moldiff.molecules import identity
from moldiff.molecules.descriptors import DESCRIPTORS, Descriptor
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.molecule_sampler import Recipe
from moldiff.sampling.run import Done, SamplingRun
from moldiff.sampling.sample import SampledMolecule
from moldiff.tasks.task import Finished, Task, WrappedTask

Value = str | float | int | bool

_FORM = re.compile(r"\s*(\w+)\s*(?:(<=|>=|<|>)\s*(\S+?))?\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
}


class Profile:
    """What filters ask of one molecule, each value worked out once and only if it is asked for.

    Args:
        smiles: a valid molecule without stereo, so that its graph alone decides what passes (`sa` sees stereo marks).
    """

    def __init__(self, smiles: str) -> None:
        self.mol = Chem.MolFromSmiles(smiles)
        self._values: dict[str, float] = {}

    def value(self, quantity: str) -> float:
        """One of `QUANTITIES`."""
        if quantity not in self._values:
            with rdBase.BlockLogs():
                self._values[quantity] = QUANTITIES[quantity].of(self.mol)
        return self._values[quantity]

    def alert(self, catalogue: str) -> str | None:
        """The first alert of one of `CATALOGUES`; None = none."""
        return first_alert("UNSTABLE" if catalogue == "stable" else catalogue.upper(), self.mol)


QUANTITIES: Mapping[str, Descriptor] = {
    **{name: DESCRIPTORS[name] for name in ("qed", "sa", "logp", "tpsa", "mw")},  # what is asked for most comes first
    **DESCRIPTORS,
    "fsp3": Descriptor(rdMolDescriptors.CalcFractionCSP3, "share of sp3 among the carbons"),
    "nh_oh": Descriptor(rdMolDescriptors.CalcNumLipinskiHBD, "hydrogens on N and O, Lipinski's donors"),
    "n_o": Descriptor(rdMolDescriptors.CalcNumLipinskiHBA, "atoms of N and O, Lipinski's acceptors"),
}
"""What can be compared with a number."""

CATALOGUES: Mapping[str, str] = {
    "pains": "no alert of PAINS (Baell and Holloway 2010)",
    "nibr": "no alert that Novartis marks EXCLUDE (Schuffenhauer et al. 2020)",
    "brenk": "no alert of Brenk et al. (2008)",
    "stable": "no group that falls apart or that nobody makes (metrics/unstable.tsv)",
}
"""Lists of unwanted substructures."""


@dataclass(frozen=True)
class Rule:
    """Bounds that most good molecules keep.

    Attributes:
        bounds: the largest value of each quantity.
        forgiven: how many of them may be broken.
        definition: where it comes from.
    """

    bounds: Mapping[str, float]
    forgiven: int
    definition: str


RULES: Mapping[str, Rule] = {
    "lipinski": Rule(
        {"mw": 500, "logp": 5, "nh_oh": 5, "n_o": 10},
        1,
        "at most one of mw > 500, logp > 5, nh_oh > 5, n_o > 10 (Lipinski et al. 1997)",
    ),
    "veber": Rule({"rotatable_bonds": 10, "tpsa": 140}, 0, "rotatable_bonds <= 10, tpsa <= 140 (Veber et al. 2002)"),
    "ro3": Rule(
        {"mw": 300, "logp": 3, "donors": 3, "acceptors": 3, "rotatable_bonds": 3},
        0,
        "fragments: mw <= 300; logp, donors, acceptors, rotatable_bonds <= 3 (Congreve et al. 2003)",
    ),
}
"""Rules of thumb."""


@dataclass(frozen=True)
class Filter:
    """One filter.

    Attributes:
        name: a catalogue, a rule or a quantity.
        sign: of a comparison, "" for the others.
        bound: what the quantity is compared with.
    """

    name: str
    sign: str = ""
    bound: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}" if self.sign else self.name

    @property
    def definition(self) -> str:
        """What a molecule that passes has."""
        if self.name in CATALOGUES:
            return CATALOGUES[self.name]
        return RULES[self.name].definition if self.name in RULES else f"{self}: {QUANTITIES[self.name].meaning}"

    def judge(self, one: Profile) -> tuple[bool, dict[str, Value]]:
        """Whether a molecule passes, and the values that it was decided on."""
        if self.name in CATALOGUES:
            alert = one.alert(self.name)
            return alert is None, {self.name: alert or "none"}
        if self.name in RULES:
            rule = RULES[self.name]
            values = {name: one.value(name) for name in rule.bounds}
            return sum(values[name] > bound for name, bound in rule.bounds.items()) <= rule.forgiven, {**values}
        value = one.value(self.name)
        return _COMPARE[self.sign](value, self.bound), {self.name: value}


def parse_filters(texts: Sequence[str]) -> tuple[Filter, ...]:
    """Filters by their words; one that is named twice counts once.

    Example:
        >>> [str(one) for one in parse_filters(["PAINS", "sa < 4.50"])]
        ['pains', 'sa<4.5']

    Raises:
        MoldiffError: for a word that means nothing.
    """
    return tuple(dict.fromkeys(_parsed(text) for text in texts))


def _parsed(text: str) -> Filter:
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise MoldiffError(f"filters: got {text!r}, expected {_expected()}")
    name, sign, number = found[1].lower(), found[2] or "", found[3] or ""
    if name in QUANTITIES:
        if not _is_number(number):
            raise MoldiffError(f"filters: got {text!r}, expected a bound on {name}, such as {name}<4.5")
        return Filter(name, sign, float(number))
    words = [*CATALOGUES, *RULES]
    if name in words and not sign:
        return Filter(name)
    if name in words:
        raise MoldiffError(f"filters: got {text!r}, expected {name} alone, without a number")
    close = get_close_matches(name, [*words, *QUANTITIES], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise MoldiffError(f"filters: got {text!r}; {hint}expected {_expected()}")


def _expected() -> str:
    return f"any of {', '.join([*CATALOGUES, *RULES])}, or a bound such as sa<4.5 on {', '.join(QUANTITIES)}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None


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
        one = Profile(identity.smiles(molecule))
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
        columns: names in `moldiff.evaluation.metrics.lookup.COLUMNS`.
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
        filters: each a word or a bound such as "sa<4.5", see `moldiff.sampling.filters`.
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
