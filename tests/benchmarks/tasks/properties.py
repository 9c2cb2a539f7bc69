"""How near molecules come to the properties that were asked for, by the protocol of Hoogeboom et al. 2022.

(arXiv:2203.17003, section 5.2.) The predictor has learnt from one half of the training molecules, the generator from
the other. Pairs of size and value are drawn from the generator's half, one molecule is drawn for each, whether it is
valid or not, and what the predictor says of it is compared with what was asked for. Beside it stand the predictor's own
error on held-out molecules (no generator can be seen to be better), a guess from the number of atoms alone, and values
that belong to other molecules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.conditioning import HALVES, Properties, half_of
from moldiff.diffusion.guidance import FEEDBACK, GuidedDiffusion
from moldiff.diffusion.property_predictor import PropertyPredictor
from moldiff.diffusion.sampler import PartialState, PowerSampler
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.sampling.generator import Generator
from moldiff.sampling.molecule_sampler import BestOfN
from moldiff.sampling.sample import Sample
from moldiff.tasks.task import SIZE, Task, with_target
from tests.benchmarks.tasks.settings import Columns, Row

SHOWN_UNITS: Mapping[str, tuple[str, float]] = {"Hartree": ("meV", 27_211.386_245_988)}
"""Units that the tables of the field use instead of the data's, and how many of them make one (CODATA 2018)."""

_AT_ONCE = 100
"""Molecules that are judged together."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What to measure with.

    Attributes:
        generator: the model.
        predictor: the judge.
        prepared: the set that both have learnt from.
        samples: molecules drawn for each property.
        properties: names; None = all that the model knows.
        guidance: scale, see `moldiff.diffusion.guidance.GuidedDiffusion`.
        steering: how much of what is lacking is made up for, see `moldiff.diffusion.guidance`.
        sampler: how to step; None = the default.
        seed: of the pairs and the draws.
        candidates: drawn for each molecule.
        chooser: name or folder of the predictor that chooses among them; None = the shipped one that suits.
    """

    generator: Generator
    predictor: PropertyPredictor
    prepared: MoleculeDataset
    samples: int
    properties: Sequence[str] | None = None
    guidance: float = 1.0
    steering: float = FEEDBACK
    sampler: PowerSampler | None = None
    seed: int = 0
    candidates: int = 1
    chooser: str | None = None

    def __post_init__(self) -> None:
        known = self.generator.checkpoint.model.properties
        known.checked(dict.fromkeys(self.properties or (), 0.0))
        if not known:
            raise MoldiffError(f"model: {self.generator.checkpoint.name} was trained without properties")
        for name in self.names:
            if name not in self.predictor.properties.names or name not in self.prepared.properties:
                raise MoldiffError(f"properties: neither predictor nor set may lack {name!r}")
        if self.predictor.training.get("half") not in HALVES:
            raise MoldiffError(f"predictor: {self.predictor.name} has learnt from all molecules, expected one half")
        if self.learnt_half == self.predictor.training["half"]:
            raise MoldiffError(
                f"model: it has learnt from half {self.learnt_half!r}, on which the predictor was trained"
            )
        if self.chosen_by is not None and self.chosen_by.training.get("half") != self.learnt_half:
            raise MoldiffError(f"chooser: {self.chosen_by.name} has not learnt from half {self.learnt_half!r}")

    @cached_property
    def chosen_by(self) -> PropertyPredictor | None:
        """What chooses among the candidates; None = there is one."""
        return None if self.candidates == 1 else self.generator.predictor(self.chooser)

    @property
    def names(self) -> Sequence[str]:
        known = self.generator.checkpoint.model.properties.names
        return self.properties or [name for name in known if name != SIZE]

    @property
    def learnt_half(self) -> str | None:
        """The half of the training molecules whose properties the generator has learnt; None = all."""
        return self.generator.learnt_half

    def others(self) -> np.ndarray:
        """The training molecules that the predictor has not seen."""
        other = HALVES[1 - HALVES.index(self.predictor.training["half"])]
        return half_of(self.prepared.split("train"), other)

    def values(self, name: str, indices: np.ndarray) -> np.ndarray:
        """The true values of a property, in the units of the data."""
        values: np.ndarray = self.prepared.values([name])[indices, 0].astype(np.float64)
        return values


class Targets:
    """Mean absolute errors of every property: drawn, the predictor's own, from the number of atoms alone, at random.

    Args:
        protocol: what to measure with.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._random = np.random.default_rng(protocol.seed)
        others = protocol.others()
        self._judged = self._random.permutation(others)[: max(protocol.samples, 1000)]
        self.pairs = {name: self._random.choice(others, protocol.samples) for name in protocol.names}

    @property
    def total(self) -> int:
        """Molecules of all properties."""
        return self.protocol.samples * len(self.pairs)

    def rows(self) -> Iterator[list[Row]]:
        """What each molecule turns out to have, some at a time."""
        for name in self.pairs:
            yield from self._drawn(name)

    def _drawn(self, name: str) -> Iterator[list[Row]]:
        """One molecule for each pair of size and value, in their order."""
        protocol, pairs = self.protocol, self.pairs[name]
        generator = protocol.generator
        model = generator.checkpoint.model
        guided = replace(
            generator.checkpoint,
            model=GuidedDiffusion(model, scale=protocol.guidance, feedback=protocol.steering).eval(),
        )
        told = [each for each in (name, SIZE) if each in model.properties.names]  # a size has all atoms in it
        request = Pairs(
            heavy_atoms=np.diff(protocol.prepared.flat["atom_slices"])[pairs].tolist(),
            asked=[dict(zip(told, row, strict=True)) for row in protocol.prepared.values(told)[pairs].tolist()],
            properties=model.properties,
        )
        run = replace(generator, checkpoint=guided).stream(
            len(pairs),
            task=request,
            keep=(),
            sampler=protocol.sampler,
            seed=protocol.seed,
            max_draws=len(pairs),
        )
        if protocol.chosen_by is not None:
            choice = BestOfN(model.properties, protocol.chosen_by)
            run.molecules = replace(run.molecules, num_candidates=protocol.candidates, choice=choice)
        found: list[Sample] = []
        for sample in run:
            found.append(sample)
            if len(found) == _AT_ONCE:
                yield self._judgements(name, found)
                found = []
        if run.interrupted:
            raise KeyboardInterrupt
        if found:
            yield self._judgements(name, found)

    def _judgements(self, name: str, drawn: Sequence[Sample]) -> list[Row]:
        predicted = self.protocol.predictor.predict([sample.molecule for sample in drawn])
        return [
            {"property": name, "predicted": values.get(name), "valid": sample.smiles is not None}
            for values, sample in zip(predicted, drawn, strict=True)
        ]

    def columns(self, rows: Sequence[Row]) -> Columns:
        """The errors of all columns, in the units of the field's tables."""
        protocol = self.protocol
        columns: Columns = {name: [] for name in ("moldiff", "predictor on test", "number of atoms", "random")}
        held_out = _predicted(protocol, protocol.prepared.split("test"))
        judged = _predicted(protocol, self._judged)
        for name, pairs in self.pairs.items():
            own = [row for row in rows if row["property"] == name]
            asked = protocol.values(name, pairs)
            found = np.array([row["predicted"] for row in own], dtype=np.float64)
            columns["moldiff"] += [
                _error(protocol, name, found - asked),
                _share(f"{name}_judged", np.isfinite(found).sum(), len(own), _JUDGED),
                _share(f"{name}_valid", sum(row["valid"] for row in own), len(own), _VALID),
            ]
            columns["predictor on test"].append(_error(protocol, name, held_out[name][0] - held_out[name][1]))
            columns["number of atoms"].append(_error(protocol, name, _from_counts(protocol, name, pairs) - asked))
            prediction, truth = judged[name]
            columns["random"].append(_error(protocol, name, prediction - self._random.permutation(truth)))
        return columns


@dataclass(frozen=True, kw_only=True)
class Pairs(Task):
    """One molecule for each of several sizes, drawn towards values of properties.

    Args:
        heavy_atoms: of each.
        asked: of each, values by name in the units of the data.
        properties: those of the model.
    """

    heavy_atoms: Sequence[int]
    asked: Sequence[Mapping[str, float]]
    properties: Properties

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> Pairs:
        """Itself: it is a task already."""
        return self

    def sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms."""
        return min(self.heavy_atoms), max(self.heavy_atoms)

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        """Nothing but the size is known, and the value is asked for."""
        start = PartialState.unknown(torch.ones(1, self.heavy_atoms[index % len(self.heavy_atoms)], dtype=torch.bool))
        return with_target(start, self.properties, self.asked[index % len(self.asked)])


def _predicted(protocol: Protocol, indices: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predicted and true values of every property of molecules of the set."""
    found = protocol.predictor.predict([protocol.prepared.molecule(int(index)) for index in indices])
    return {name: (_column(found, name), protocol.values(name, indices)) for name in protocol.names}


def _column(found: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    """The values of one property; NaN where there is none."""
    return np.array([values.get(name, np.nan) for values in found], dtype=np.float64)


def _from_counts(protocol: Protocol, name: str, pairs: np.ndarray) -> np.ndarray:
    """The median among the predictor's training molecules with the same number of atoms, hydrogens included."""
    half = half_of(protocol.prepared.split("train"), protocol.predictor.training["half"])
    number = protocol.prepared.num_atoms
    values = protocol.values(name, half)
    overall = float(np.nanmedian(values))
    medians = {int(n): float(np.nanmedian(values[number[half] == n])) for n in np.unique(number[half])}
    return np.array([medians.get(int(n), overall) for n in number[pairs]])


def _error(protocol: Protocol, name: str, differences: np.ndarray) -> MetricResult:
    """The mean absolute one of those that are known, in the unit of the field's tables."""
    unit = protocol.prepared.properties[name]
    shown, factor = SHOWN_UNITS.get(unit, (unit, 1.0))
    known = np.abs(differences[np.isfinite(differences)]) * factor
    return MetricResult(f"{name}_mae", float(known.sum()), float(len(known)), _MAE, len(known), shown)


def _share(name: str, count: int | np.integer[Any], total: int, definition: str) -> MetricResult:
    return MetricResult(name, int(count), total, definition)


_MAE = (
    "Mean absolute difference of predicted and asked-for values, valid or not. 'predictor on test': of predicted and "
    "true values of held-out molecules; 'number of atoms': of asked-for values and the median of molecules with as "
    "many atoms; 'random': of predicted values and those of other molecules."
)
_JUDGED = "Drawn molecules whose atoms the predictor knows, over all."
_VALID = "Drawn molecules that are P2-valid, over all; the others are judged, too."
