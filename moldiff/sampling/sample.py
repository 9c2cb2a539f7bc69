"""What a sampling run gives: drawn molecules, what is known of them, their ways from noise, and counts over all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rdkit import Chem

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.druglike import COLUMNS
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.evaluation.metrics.validity import ValidityCounts, ValidityReport
from moldiff.molecules import convert
from moldiff.molecules.formats.record import Value
from moldiff.molecules.formats.writer import Recorded, Writer, write
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.sampling import notebook
from moldiff.sampling.filters import AnyFilter

_REPAIRS = {
    "repaired": "Molecules whose most probable classes broke a valence rule, so that others were taken, over all.",
    "restarts": "Molecules that came out in pieces and were drawn on from noise, over all drawn.",
    "replaced_hydrogens": "Molecules with a hydrogen off its bond, put at its ideal place, over all drawn.",
}
_MET = "Molecules that are what the task asked for, over those that `keep` lets pass."
_SHARES = {
    "attached": "Kept molecules in one piece in which every atom to attach to is bonded to a new one, over all kept.",
    "relaxed": "Kept molecules that lie at a minimum, over all kept; the record of each other says why it does not.",
}
_MEANS = {
    "similarity": "Mean Tanimoto similarity (Morgan, radius 2, 2,048 bits) of kept molecules to their input.",
    "energy_lost": "Mean energy (kcal/mol) that kept molecules lost on the way to the minimum.",
    "score": "Mean score of the kept molecules that have one, the lower the better.",
}
_ERROR = "Mean absolute difference of what was asked for and what the shipped predictor says of kept molecules."

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedMolecule:
    """A drawn molecule (Å) and what it took.

    `argmax` has the most probable class of each atom and pair at the first end of the way from noise; it is the same
    object where nothing was changed to make the molecule of it.
    """

    molecule: Molecule
    argmax: Molecule
    repaired: bool = False  # the most probable classes broke a valence rule, and decoding found others
    replaced_hydrogens: int = 0  # put at ideal places by decoding, for their bonds were too short or too long
    confidence: float = 1.0  # of the network in it, from 0 to 1, see `moldiff.diffusion.sampler`
    restarts: int = 0  # it came out in pieces, and was drawn on from so many, see `moldiff.sampling.batch`
    trajectory: tuple[Molecule, ...] | None = None  # frames from noise on, through all restarts; None = not kept

    def behind(self, earlier: DecodedMolecule) -> Self:
        """As it came out of a restart from an earlier one."""
        frames = None if self.trajectory is None else (earlier.trajectory or ()) + self.trajectory
        return replace(self, argmax=earlier.argmax, restarts=earlier.restarts + 1, trajectory=frames)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Sample(DecodedMolecule):
    """One drawn molecule with what is known of it; it lies in the frame of what its task was given.

    `task` is what its record says of the task it was drawn for, with the values that filters decided on; `origin` holds
    model, weights, seed, index and settings: all that is needed to draw it again.
    """

    index: int  # within the run
    verdict: ValidityReport  # on the molecule as it was drawn
    unsound: InvalidMolecule | None  # what is impossible about the distances of a valid molecule; None = nothing
    task: Mapping[str, Value | None] = field(default_factory=dict)
    refusal: str | None = None  # why it is not what the task asked for; None = it is
    failed_filters: tuple[str, ...] = ()
    unrelaxed: Molecule | None = None  # as it was drawn (Å), where it was relaxed
    novel: bool | None = None  # not among the training molecules; None = not valid, or the model has no list of them
    unique: bool | None = None  # its run has kept none with its structure before; None = not valid
    origin: Mapping[str, str | int | float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Sample {self.molecule.name or self.index}: {self.smiles or self.reason}, {self.status}>"

    def _repr_html_(self) -> str:
        lines = [repr(self)[1:-1], notebook.numbers(self)]
        return notebook.solid(self.molecule) + "".join(f"<div>{escape(line)}</div>" for line in lines)

    @cached_property
    def mol(self) -> Chem.Mol:
        """The RDKit molecule: explicit hydrogens, one conformer and its stereo; sanitised if it is valid."""
        mol = convert.to_rdkit(self.molecule)
        if self.verdict.problem is None:
            Chem.SanitizeMol(mol)
        return mol

    @property
    def problem(self) -> InvalidMolecule | None:
        """Why it is not valid, or not sound; None = it is both."""
        return self.verdict.problem or self.unsound

    @property
    def is_refused(self) -> bool:
        """Whether it is not what the task asked for, or fails a filter."""
        return self.refusal is not None or bool(self.failed_filters)

    @property
    def status(self) -> Status:
        return self.problem.status if self.problem else Status.OK

    @property
    def reason(self) -> str:
        """Why it is not valid, or not sound; empty if it is both."""
        return self.problem.reason if self.problem else ""

    @cached_property
    def smiles(self) -> str | None:
        """Isomeric SMILES, None if not valid."""
        return strict_key(self.molecule) if "protonated_by" in self.task else self.verdict.strict

    @property
    def seed(self) -> int:
        return int(self.origin["seed"])

    def record(self) -> dict[str, str | int | float | bool | None]:
        """The data fields of its SDF record."""
        return {
            "SMILES": self.smiles,
            "status": str(self.status),
            "reason": self.reason or None,
            "unique": self.unique,
            "novel": self.novel,
            "repaired": self.repaired,
            "replaced_hydrogens": self.replaced_hydrogens,
            "restarts": self.restarts,
            "confidence": round(self.confidence, 4),
            **self.task,
            **self.origin,
        }


class Samples(list[Sample]):
    """The molecules that were kept, in the order of their index or the likest first, and counts over all drawn.

    How many were `asked` for and `drawn`; `results` over all that were drawn, the rejected ones included; whether they
    are `complete`, which the limit of draws or an interruption prevents; `notes` on what the task was given.
    """

    def __init__(
        self,
        kept: Iterable[Sample],
        *,
        asked: int,
        drawn: int,
        results: Sequence[MetricResult],
        complete: bool,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(kept)
        self.asked, self.drawn, self.results, self.complete, self.notes = asked, drawn, results, complete, notes

    def __repr__(self) -> str:
        ended = "" if self.complete else ", ended early"
        return f"<Samples: {len(self)} of {self.asked} asked for, {self.drawn} drawn{ended}>"

    def _repr_html_(self) -> str:
        return f"<div>{escape(repr(self)[1:-1])}</div>{notebook.grid(self)}"

    @property
    def mols(self) -> list[Chem.Mol]:
        """The RDKit molecules."""
        return [sample.mol for sample in self]

    def to_sdf(self, path: str | Path) -> int:
        """Write them as `moldiff sample` does, to a file of any of its types; returns how many."""
        return write(path, self)

    def to_dataframe(self) -> DataFrame:
        """A row for each with the data fields of its record, and the RDKit molecule as `mol`.

        Raises:
            MoldiffError: without pandas.
        """
        try:
            from pandas import DataFrame
        except ImportError:
            raise MoldiffError('pandas is not installed; to install it: pip install "moldiff[notebook]"') from None
        return DataFrame([{"name": one.molecule.name, **one.record(), "mol": one.mol} for one in self])


def trajectory_path(path: str | Path) -> Path:
    """Where the frames of the molecules of a file are kept: "a.sdf" -> "a.trajectory.sdf.gz", beside it."""
    return beside(path, "trajectory.sdf.gz")


def beside(path: str | Path, ending: str) -> Path:
    """A file that belongs to a file of molecules: "a.sdf.gz" -> "a.ENDING"."""
    path = Path(path)
    name = path.name.removesuffix(".gz")
    return path.with_name(f"{name.rpartition('.')[0] or name}.{ending}")


def write_trajectories(path: str | Path, samples: Iterable[Recorded]) -> int:
    """Write the `trajectory` of samples, each followed by the molecule itself, to a file of molecules; how many frames.

    A record's title is the molecule's name, its data fields are `frame` (0 = noise) and `frames` (how many there are).
    Molecules without frames, or with a coordinate that is not finite, are left out.
    """
    with Writer(path) as writer:
        for sample in samples:
            write_frames(writer, sample)
    return writer.count


def write_frames(writer: Writer, sample: Recorded) -> None:
    """Write the frames of one molecule and the molecule itself, see `write_trajectories`."""
    frames = [*(getattr(sample, "trajectory", None) or ()), sample.molecule]
    if len(frames) == 1 or not all(frame.is_finite for frame in frames):
        return
    for number, frame in enumerate(frames):
        named = replace(frame, name=sample.molecule.name, properties={})
        writer.write(named, {"frame": number, "frames": len(frames)})


class RunCounts:
    """Counts the molecules of a run, rounds of refinement included."""

    def __init__(self) -> None:
        self.likeness: list[MetricResult] = []  # of the rounds, in their order
        self._validity = ValidityCounts()
        self._repaired: Counter[str] = Counter()
        self._unsound: Counter[str] = Counter()
        self._kept = 0
        self.missed: Counter[str] = Counter()  # why molecules are not what the task asked for
        self.failed: Counter[tuple[str, ...]] = Counter()  # the filters that they do not pass
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])

    @property
    def drawn(self) -> int:
        """Molecules drawn, the rejected ones included."""
        return self._validity.total

    def draw(self, sample: Sample) -> None:
        """Count a molecule that was drawn."""
        self._validity.add(sample.verdict)
        if sample.unsound is not None:
            self._unsound[str(sample.unsound.status)] += 1
        for name in _REPAIRS:
            self._repaired[name] += bool(getattr(sample, name))

    def keep(self, sample: Sample) -> None:
        """Count one that is kept, by what its record says of the task."""
        self._kept += 1
        task = {name: float(value) for name, value in sample.task.items() if isinstance(value, int | float)}
        values: dict[str, float] = {name: task[name] for name in ("attached", *_MEANS) if name in task}
        if "relaxed" in sample.task:
            values["relaxed"] = sample.task["relaxed"] == "ok"
        for name in task:
            asked = name.removeprefix("asked_")
            if name.startswith("asked_") and f"predicted_{asked}" in task:
                values[f"error_{asked}"] = abs(task[name] - task[f"predicted_{asked}"])
        self._add(values)

    def look_up(self, columns: Mapping[str, Value | None]) -> None:
        """Count what the columns of a delivered molecule say."""
        self._add({name: value not in (None, False, "none") for name, value in columns.items()})

    def _add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name][0] += value
            self._sums[name][1] += 1

    def results(
        self, novelty: NoveltyIndex | None, filters: Sequence[AnyFilter], columns: Sequence[str]
    ) -> list[MetricResult]:
        """The counts; those of what did not happen, or was not asked for, are left out."""
        found = self._validity.results(novelty)
        for name, definition in _REPAIRS.items():
            if self._repaired[name]:
                found.append(MetricResult(f"repair_{name}", self._repaired[name], self.drawn, definition))
        for status, count in sorted(self._unsound.items()):
            definition = f"Valid molecules refused as {status!r}, over all that were drawn."
            found.append(MetricResult(f"geometry_status_{status}", count, self.drawn, definition))
        found += [*self._of_task(filters), *self.likeness]
        for name in columns:
            number, total = map(int, self._sums[name])
            found.append(MetricResult(f"task_{name}", number, total, COLUMNS[name][2]))
        return found

    def _of_task(self, filters: Sequence[AnyFilter]) -> list[MetricResult]:
        """How many are what was asked for, their means, and how many pass each filter, whatever the others say."""
        found, failed = [], self.failed.total()
        fitting = self._kept + failed  # those that the task lets pass
        total = fitting + self.missed.total()
        if total > self._kept:
            found.append(MetricResult("task_met", self._kept, total, _MET))
        for reason, count in sorted(self.missed.items()):
            definition = f"Molecules left out because of '{reason}', over those that `keep` lets pass."
            found.append(MetricResult(f"task_status_{reason}", count, total, definition))
        for name, definition in _SHARES.items():
            if share := self._sums.get(name):
                found.append(MetricResult(f"task_{name}", int(share[0]), int(share[1]), definition))
        errors = (name for name in self._sums if name.startswith("error_"))
        for name, definition in (_MEANS | dict.fromkeys(errors, _ERROR)).items():
            if name in self._sums:
                value, number = self._sums[name]
                found.append(MetricResult(f"task_mean_{name}", value, float(number), definition, int(number)))
        for one in filters:
            missed = sum(count for names, count in self.failed.items() if str(one) in names)
            definition = f"Molecules that pass {one.definition}, over those that `keep` and the task let pass."
            found.append(MetricResult(f"task_passes_{one}", fitting - missed, fitting, definition))
        if failed:
            definition = "Molecules that fail any filter, over those that `keep` and the task let pass."
            found.append(MetricResult("task_status_filters", failed, fitting, definition))
        return found
