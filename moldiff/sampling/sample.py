"""What a sampling run gives: drawn molecules with what is known of them, and counts over all that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

from rdkit import Chem

from moldiff.evaluation.metrics.validity import Verdict
from moldiff.evaluation.result import MetricResult
from moldiff.molecules import convert
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.tasks.task import Value


@dataclass(frozen=True, eq=False)
class Drawn:
    """One drawn molecule.

    Attributes:
        index: its number within the run.
        molecule: the molecule (Å).
        mended: the most probable classes broke a valence rule, and decoding found others.
        replaced_hydrogens: hydrogens that decoding put at ideal places, see `DecodedMolecule`.
        restarts: it came out in pieces, and was drawn on from so many.
        verdict: outcome of the validity check.
        unsound: what is impossible about the distances of a valid molecule; None = nothing.
        fields: what its record says of the task.
        problem: why it is not what the task asked for; None = it is.
        frames: the way from noise (Å); None = not kept.
    """

    index: int
    molecule: Molecule
    mended: bool
    replaced_hydrogens: int
    restarts: int
    verdict: Verdict
    unsound: InvalidMolecule | None
    fields: Mapping[str, Value | None]
    problem: str | None
    frames: tuple[Molecule, ...] | None


@dataclass(frozen=True, eq=False)
class SampledMolecule:
    """One drawn molecule with what is known of it.

    Attributes:
        molecule: the molecule (Å).
        verdict: outcome of the validity check.
        unsound: what is impossible about the distances of a valid molecule; None = nothing.
        novel: not among the training molecules; None = not valid, or the model has no list of them.
        unique: the first valid one of its run with its structure; None = not valid.
        mended: the most probable classes broke a valence rule, and decoding found others.
        replaced_hydrogens: hydrogens that decoding put at ideal places, for their bonds were too short or too long.
        restarts: it came out in pieces, and was drawn on from so many, see `moldiff.sampling.batch`.
        origin: model, weights, seed, index and settings: all that is needed to draw it again.
        task: what its record says of the task it was drawn for.
        trajectory: frames from noise on (Å), see `moldiff.sampling.trajectory`; None = not kept.
    """

    molecule: Molecule
    verdict: Verdict
    unsound: InvalidMolecule | None
    novel: bool | None
    unique: bool | None
    mended: bool
    replaced_hydrogens: int
    restarts: int
    origin: Mapping[str, str | int | float]
    task: Mapping[str, Value | None] = field(default_factory=dict)
    trajectory: tuple[Molecule, ...] | None = None

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

    @property
    def index(self) -> int:
        return int(self.origin["index"])

    def record(self) -> dict[str, str | int | float | bool | None]:
        """The data fields of its SDF record."""
        return {
            "SMILES": self.smiles,
            "status": str(self.status),
            "reason": self.reason or None,
            "unique": self.unique,
            "novel": self.novel,
            "mended": self.mended,
            "replaced_hydrogens": self.replaced_hydrogens,
            "restarts": self.restarts,
            **self.task,
            **self.origin,
        }


@dataclass(frozen=True, eq=False)
class Samples(Sequence[SampledMolecule]):
    """The molecules that were kept, and the count of all that were drawn for them.

    Attributes:
        kept: the molecules in the order of their index.
        asked: how many were asked for.
        results: numbers over all that were drawn, the rejected ones included.
        drawn: how many were drawn.
        complete: False when the limit of draws or an interruption ended the run early.
        notes: what the task made of what it was given, a line each.
    """

    kept: Sequence[SampledMolecule]
    asked: int
    drawn: int
    results: Sequence[MetricResult]
    complete: bool
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> SampledMolecule: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SampledMolecule]: ...

    def __getitem__(self, index: int | slice) -> SampledMolecule | Sequence[SampledMolecule]:
        return self.kept[index]

    @property
    def mols(self) -> list[Chem.Mol]:
        """The RDKit molecules."""
        return [sample.mol for sample in self.kept]
