"""What a sampling run gives: drawn molecules with what is known of them, and counts over all that were drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from rdkit import Chem

from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.validity import ValidityReport
from moldiff.molecules import convert
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.tasks.task import Value


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedMolecule:
    """A drawn molecule and what it took.

    Attributes:
        molecule: the molecule (Å).
        argmax: the most probable class of each atom and pair at the first end of the way from noise (Å); the same
            object where nothing was changed to make the molecule of it.
        repaired: the most probable classes broke a valence rule, and decoding found others.
        replaced_hydrogens: hydrogens that decoding put at ideal places, for their bonds were too short or too long.
        restarts: it came out in pieces, and was drawn on from so many, see `moldiff.sampling.batch`.
        trajectory: frames from noise on, through all restarts (Å), see `moldiff.sampling.trajectory`; None = not kept.
    """

    molecule: Molecule
    argmax: Molecule
    repaired: bool = False
    replaced_hydrogens: int = 0
    restarts: int = 0
    trajectory: tuple[Molecule, ...] | None = None

    def behind(self, earlier: DecodedMolecule) -> Self:
        """As it came out of a restart from an earlier one."""
        frames = None if self.trajectory is None else (earlier.trajectory or ()) + self.trajectory
        return replace(self, argmax=earlier.argmax, restarts=earlier.restarts + 1, trajectory=frames)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample(DecodedMolecule):
    """One drawn molecule with what is known of it; it lies in the frame of what its task was given.

    Attributes:
        index: its number within the run.
        verdict: outcome of the validity check.
        unsound: what is impossible about the distances of a valid molecule; None = nothing.
        task: what its record says of the task it was drawn for, and the values that filters decided on.
        refusal: why it is not what the task asked for; None = it is.
        failed_filters: those that it does not pass.
        novel: not among the training molecules; None = not valid, or the model has no list of them.
        unique: the first valid one of its run with its structure; None = not valid.
        origin: model, weights, seed, index and settings: all that is needed to draw it again.
    """

    index: int
    verdict: ValidityReport
    unsound: InvalidMolecule | None
    task: Mapping[str, Value | None] = field(default_factory=dict)
    refusal: str | None = None
    failed_filters: tuple[str, ...] = ()
    novel: bool | None = None
    unique: bool | None = None
    origin: Mapping[str, str | int | float] = field(default_factory=dict)

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
    def status(self) -> Status:
        return self.problem.status if self.problem else Status.OK

    @property
    def reason(self) -> str:
        """Why it is not valid, or not sound; empty if it is both."""
        return self.problem.reason if self.problem else ""

    @property
    def smiles(self) -> str | None:
        """Isomeric SMILES, None if not valid."""
        return self.verdict.strict

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
            **self.task,
            **self.origin,
        }


class Samples(list[Sample]):
    """The molecules that were kept, in the order of their index or the likest first, and counts over all drawn.

    Attributes:
        asked: how many were asked for.
        drawn: how many were drawn.
        results: numbers over all that were drawn, the rejected ones included.
        complete: False when the limit of draws or an interruption ended the run early.
        notes: what the task made of what it was given, a line each.
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

    @property
    def mols(self) -> list[Chem.Mol]:
        """The RDKit molecules."""
        return [sample.mol for sample in self]
