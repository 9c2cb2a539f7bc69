"""From a trained model to checked molecules: `load("qm9").sample(100)`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import torch
from rdkit import Chem

from moldiff import chem
from moldiff.batch import Molecule
from moldiff.checkpoint import NOVELTY_FILE, Checkpoint, available_models, load_checkpoint
from moldiff.drawing import Beginning, NewMolecules, Task, draw_chunk, in_chunks
from moldiff.errors import MoldiffError
from moldiff.hardware import choose_device
from moldiff.metrics.novelty import NoveltyIndex, novelty_results
from moldiff.metrics.validity import Verdict, judge, validity_results
from moldiff.results import MetricResult, Status
from moldiff.sampler import PowerSampler, SamplerState

KEEP = ("valid", "unique", "novel")
"""What a sample can be required to be; nothing required keeps all of them as they came."""

DECODE = ("valence", "raw")
"""`valence` = the most probable molecule that obeys valence rules; `raw` = the most probable class of each entry."""

_ROUND = 500
"""Molecules drawn before those that are finished are taken; an interruption loses at most so many."""

_Frames = tuple[Molecule, ...] | None

__all__ = ["MoleculeGenerator", "SampledMolecule", "Samples", "available_models", "load"]


def default_max_draws(n: int) -> int:
    """After how many draws a run for n molecules gives up, unless told otherwise."""
    return 20 * n + 200


@dataclass(frozen=True, eq=False)
class SampledMolecule:
    """One drawn molecule with what is known of it.

    Attributes:
        molecule: the molecule (Å).
        verdict: outcome of the validity check.
        novel: not among the training molecules; None = not valid, or the model has no list of them.
        unique: the first valid one of its run with its structure; None = not valid.
        mended: the most probable classes broke a valence rule, and decoding found others.
        origin: model, weights, seed, index and settings: all that is needed to draw it again.
        trajectory: frames from noise on (Å), see `moldiff.trajectory`; None = not kept.
    """

    molecule: Molecule
    verdict: Verdict
    novel: bool | None
    unique: bool | None
    mended: bool
    origin: Mapping[str, str | int | float]
    trajectory: tuple[Molecule, ...] | None = None

    @cached_property
    def mol(self) -> Chem.Mol:
        """The RDKit molecule with explicit hydrogens and one conformer; sanitised if it is valid."""
        mol = chem.to_rdkit(self.molecule)
        if self.verdict.problem is None:
            Chem.SanitizeMol(mol)
            Chem.AssignStereochemistryFrom3D(mol)
        return mol

    @property
    def status(self) -> Status:
        return self.verdict.status

    @property
    def reason(self) -> str:
        """Why it is not valid; empty if it is."""
        return self.verdict.problem.reason if self.verdict.problem else ""

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
    """

    kept: Sequence[SampledMolecule]
    asked: int
    drawn: int
    results: Sequence[MetricResult]
    complete: bool

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


@dataclass(eq=False)
class MoleculeGenerator:
    """A trained model that draws molecules.

    Attributes:
        checkpoint: the model and where it came from.
        device: where the network runs.
        novelty: index of the training molecules, if the model has one.
    """

    checkpoint: Checkpoint
    device: torch.device
    novelty: NoveltyIndex | None = field(default=None)

    def sample(
        self,
        n: int = 100,
        *,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        steps: int | None = None,
        sampler: PowerSampler | None = None,
        keep: Collection[str] = ("valid",),
        decode: str = "valence",
        first: int = 0,
        max_draws: int | None = None,
        trajectory: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> Samples:
        """Draw molecules until n are kept.

        Molecule k of a seed is the same whatever the batch, n or `first`.

        Args:
            n: molecules to keep.
            seed: of the run, 0 to 2**32 - 1.
            size: heavy atoms of every molecule, or the smallest and largest number; None = as in the training data.
            steps: network calls a molecule; None = the sampler's own number.
            sampler: how to step; None = the default.
            keep: what a kept molecule must be: any of valid, unique, novel; empty keeps all.
            decode: "valence" or "raw".
            first: index of the first molecule, so that several runs of one seed can share the work.
            max_draws: give up after so many; None = 20 n + 200.
            trajectory: keep the way from noise to every kept molecule, about 100 kB each.
            on_progress: called with the number of molecules finished so far, in fractions.

        Returns:
            The kept molecules and counts over all drawn ones. Ctrl-C returns what is finished.

        Raises:
            MoldiffError: for an impossible value.
        """
        sampler = sampler or PowerSampler()
        sampler = sampler if steps is None else replace(sampler, num_steps=steps)
        limit = default_max_draws(n) if max_draws is None else max_draws
        self._validate(n, seed, keep, decode, first, limit)
        task = NewMolecules(self._size_weights(size))
        run = _Run(self, sampler, seed, task, decode, frozenset(keep), trajectory)
        try:
            while len(run.kept) < n and run.drawn < limit:
                # The share that was kept so far says how many more draws are likely to be needed.
                share = max(0.05, (len(run.kept) + 1) / (run.drawn + 1))
                likely = round((n - len(run.kept)) / share) + 1 if run.drawn else n
                wanted = min(limit - run.drawn, likely, _ROUND)
                run.extend(range(first + run.drawn, first + run.drawn + wanted), n, likely, on_progress)
        except KeyboardInterrupt:
            pass  # what is finished is returned, and the caller can see that it is not complete
        results = [*validity_results(run.verdicts), *novelty_results(run.verdicts, self.novelty)]
        return Samples(run.kept, n, run.drawn, results, complete=len(run.kept) >= n)

    def _validate(self, n: int, seed: int, keep: Collection[str], decode: str, first: int, limit: int) -> None:
        bounds = {
            "n": (n, 1, 2**31),
            "seed": (seed, 0, 2**32),
            "first": (first, 0, 2**31),
            "max_draws": (limit, 1, 2**31),
        }
        for name, (value, low, high) in bounds.items():
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
                raise MoldiffError(f"{name}: got {value!r}, expected a whole number from {low} to {high - 1}")
        if unknown := [item for item in keep if item not in KEEP]:
            raise MoldiffError(f"keep: got {unknown[0]!r}, expected any of {', '.join(KEEP)}")
        if decode not in DECODE:
            raise MoldiffError(f"decode: got {decode!r}, expected {' or '.join(DECODE)}")
        if "novel" in keep and self.novelty is None:
            raise MoldiffError(
                f"keep: model {self.checkpoint.name} has no list of its training molecules to be novel against"
            )

    def _size_weights(self, size: int | tuple[int, int] | None) -> dict[int, int]:
        """Weight of every number of heavy atoms; sizes the training data lacks are all given the same weight."""
        counts = dict(sorted(self.checkpoint.model.statistics.size_counts.items()))
        if size is None:
            return counts
        low, high = (size, size) if isinstance(size, int) else size
        if not 1 <= low <= high <= 1000:
            raise MoldiffError(f"size: got {size}, expected heavy atoms as a number or a range, from 1 to 1000")
        inside = {number: count for number, count in counts.items() if low <= number <= high}
        return inside or dict.fromkeys(range(low, high + 1), 1)

    def trained_sizes(self) -> tuple[int, int]:
        """The smallest and largest number of heavy atoms in the training data."""
        sizes = self.checkpoint.model.statistics.size_counts
        return min(sizes), max(sizes)


@dataclass(eq=False)
class _Run:
    """The state of one call of `sample`."""

    generator: MoleculeGenerator
    sampler: PowerSampler
    seed: int
    task: Task
    decode: str
    keep: frozenset[str]
    trajectory: bool
    kept: list[SampledMolecule] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def drawn(self) -> int:
        return len(self.verdicts)

    def extend(self, indices: range, target: int, likely: int, on_progress: Callable[[float], None] | None) -> None:
        """Draw the molecules `indices`, of `likely` still to come, and take them in order until `target` are kept."""
        chunks = list(in_chunks(Beginning.of(self.task, self.seed, index) for index in indices))
        calls = 0

        def on_step(_: SamplerState) -> None:
            nonlocal calls
            calls += 1
            if on_progress is not None:
                share = calls / (len(chunks) * self.sampler.num_steps) * min(1.0, len(indices) / likely)
                on_progress(len(self.kept) + (target - len(self.kept)) * share)

        found: dict[int, tuple[Molecule, bool, _Frames]] = {}
        for chunk in chunks:
            found |= zip((one.index for one in chunk), self._draw(chunk, on_step), strict=True)
        for index in indices:
            if len(self.kept) >= target:
                break
            self._take(index, *found[index])

    def _draw(
        self, chunk: list[Beginning], on_step: Callable[[SamplerState], None]
    ) -> list[tuple[Molecule, bool, _Frames]]:
        model, num_frames = self.generator.checkpoint.model, self.sampler.num_steps if self.trajectory else 0
        drawn = draw_chunk(model, self.sampler, chunk, num_frames=num_frames, on_step=on_step)
        molecules, mended = drawn.decode(self.decode)
        frames: Sequence[_Frames] = [None] * len(chunk) if drawn.frames is None else drawn.frames
        return list(zip(molecules, mended, frames, strict=True))

    def _take(self, index: int, molecule: Molecule, mended: bool, frames: _Frames) -> None:
        """Judge one drawn molecule and keep it if it is what was asked for."""
        novelty, checkpoint = self.generator.novelty, self.generator.checkpoint
        verdict = judge(molecule, checkpoint.model.vocabulary)
        self.verdicts.append(verdict)
        key = verdict.canonical
        unique = None if key is None else key not in self.seen
        novel = None if key is None or novelty is None else not novelty.contains(key)
        if key is not None:
            self.seen.add(key)
        origin: dict[str, str | int | float] = {
            "model": checkpoint.name,
            "weights": checkpoint.weights_hash,
            "seed": self.seed,
            "index": index,
            "size": molecule.num_heavy_atoms,
            "steps": self.sampler.num_steps,
            "decode": self.decode,
            "sampler": json.dumps(asdict(self.sampler)),
        }
        named = replace(molecule, name=f"{checkpoint.name}-{self.seed}-{index}")
        sample = SampledMolecule(named, verdict, novel, unique, mended, origin, frames)
        has = {"valid": key is not None, "unique": bool(unique), "novel": bool(novel)}
        if all(has[item] for item in self.keep):
            self.kept.append(sample)


def load(model: str | Path = "qm9", *, device: str = "auto") -> MoleculeGenerator:
    """A generator of a shipped model by its name, or of a trained one by its folder.

    Args:
        model: name or folder.
        device: "auto", "cpu", "cuda", ...

    Raises:
        MoldiffError: for an unknown or damaged model, or a device this machine lacks.
    """
    checkpoint = load_checkpoint(model)
    chosen = choose_device(device)
    checkpoint.model.to(chosen)
    path = checkpoint.folder / NOVELTY_FILE
    return MoleculeGenerator(checkpoint, chosen, NoveltyIndex.load(path) if path.is_file() else None)
