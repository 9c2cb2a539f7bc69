"""Whether the records of a file are what the models draw: each is drawn again from its own fields and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

import moldiff
import moldiff.tasks
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.relaxation import superposed_rmsd
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.formats.reader import records
from moldiff.molecules.formats.record import Record
from moldiff.molecules.identity import smiles
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.config import SamplingConfig
from moldiff.sampling.generator import Generator, load
from moldiff.sampling.sample import Sample
from moldiff.tasks.task import description

TOLERANCE = 0.01
"""Largest distance (Å) from where an atom was drawn that is taken for rounding."""

_PROVENANCE = ("model", "weights", "seed", "index", "steps", "decode", "sampler", "size")
_BLOCK = 200
"""Records that are drawn together at most."""


class Finding(StrEnum):
    """What a record is."""

    REPRODUCED = "reproduced"
    CHANGED = "changed"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verification:
    """What became of one record.

    Attributes:
        number: of the record, from 1.
        name: its title.
        finding: reproduced = drawn again, to rounding; changed = these settings draw something else; foreign = it does
            not say that moldiff drew it; unknown = it cannot be drawn again here.
        reason: what is different, or missing; "" = nothing.
        shift: farthest that an atom lies from where it is drawn (Å); None = not the same atoms, or not drawn.
    """

    number: int
    name: str
    finding: Finding
    reason: str = ""
    shift: float | None = None


def verify(
    path: str | Path, *, device: str = "auto", on_progress: Callable[[int, int], None] | None = None
) -> list[Verification]:
    """Draw every record of an SDF file again from its own fields: model, weights, seed, index and settings.

    What was relaxed by moldiff is relaxed again. Files that a task was given are read where they were, and have to be
    the same.

    Args:
        path: the file, or another with these data fields.
        device: "auto", "cpu", "cuda", ...
        on_progress: called with the number of records that are done, and of all.

    Raises:
        MoldiffError: for a file that cannot be read or holds no record.
    """
    found: dict[int, Verification] = {}
    waiting: dict[str, list[tuple[Record, Molecule]]] = {}
    for record in records(path):
        fields_of, molecule = _fields(record), _molecule(record)
        missing = [name for name in _PROVENANCE if not fields_of.get(name)]
        if missing or isinstance(molecule, str):
            reason = f"no field {missing[0]}" if missing else str(molecule)
            found[record.number] = Verification(record.number, record.name, Finding.FOREIGN, reason)
        else:
            waiting.setdefault(_settings(fields_of), []).append((record, molecule))
    if not found and not waiting:
        raise MoldiffError(f"{path}: no record found, expected at least one molecule")
    total = len(found) + sum(map(len, waiting.values()))
    generators = cache(lambda name: load(name, device=device))
    for settings, every in waiting.items():
        for start in range(0, len(every), _BLOCK):
            for one in _of_settings(json.loads(settings), every[start : start + _BLOCK], generators):
                found[one.number] = one
            if on_progress is not None:
                on_progress(len(found), total)
    return [found[number] for number in sorted(found)]


def _fields(record: Record) -> dict[str, str]:
    mol = record.mol
    return {} if mol is None else {name: mol.GetProp(name) for name in mol.GetPropNames()}


def _molecule(record: Record) -> Molecule | str:
    """The molecule of a record, or why it has none."""
    if record.problem is not None or record.mol is None:
        return record.problem.reason if record.problem else "no molecule"
    molecule = from_rdkit(record.mol)
    return molecule if isinstance(molecule, Molecule) else molecule.reason


def _settings(fields_of: Mapping[str, str]) -> str:
    """What records have in common that can be drawn together, as JSON."""
    names = (*_PROVENANCE, "task", "precision", "relax")
    return json.dumps({name: fields_of[name] for name in names if name in fields_of and name != "index"})


def _of_settings(
    settings: Mapping[str, str], every: Sequence[tuple[Record, Molecule]], generators: Callable[[str], Generator]
) -> list[Verification]:
    """Draw records that differ in nothing but their index again, and compare."""
    try:
        indices = [int(record.mol.GetProp("index")) for record, _ in every if record.mol is not None]
        drawn = _drawn(settings, indices, generators)
    except (MoldiffError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, MoldiffError) else f"settings that moldiff does not write: {error}"
        return [Verification(record.number, record.name, Finding.UNKNOWN, reason) for record, _ in every]
    return [_compared(record, molecule, one) for (record, molecule), one in zip(every, drawn, strict=True)]


def _drawn(settings: Mapping[str, str], indices: Sequence[int], generators: Callable[[str], Generator]) -> list[Sample]:
    """The molecules of these settings.

    Raises:
        MoldiffError: where they cannot be drawn here.
    """
    if "precision" in settings:
        raise MoldiffError(f"drawn in {settings['precision']}, in which a molecule depends on the others of its batch")
    generator = generators(settings["model"])
    if generator.checkpoint.weights_hash != settings["weights"]:
        raise MoldiffError(
            f"drawn with weights {settings['weights']}, this {settings['model']} is {generator.checkpoint.weights_hash}"
        )
    config = _config(settings)
    run = generator.stream(1, config=config)
    drawn = {one.index: one for one in run.molecules.draw(sorted(set(indices)))}
    return [drawn[index] for index in indices]


def _config(settings: Mapping[str, str]) -> SamplingConfig:
    asked = json.loads(settings.get("task", "{}"))
    if (like := asked.pop("like", None)) is not None and like.get("rounds"):
        raise MoldiffError("drawn from near others of its run (like.rounds), not from its own fields alone")
    known = {one.name for one in fields(SamplingConfig)} - {"task"}
    options = {name: asked.pop(name) for name in [*asked] if name in known}
    task = _task(asked) if "name" in asked else None
    chosen = options.get("candidates", 1) > 1
    return SamplingConfig(
        **{"filters": (), **options},
        seed=int(settings["seed"]),
        size=None if task is not None or chosen else int(settings["size"]),
        task=task,
        keep=(),
        sampler=PowerSampler(**json.loads(settings["sampler"])),
        decode=settings["decode"],
        relax=settings.get("relax", "none"),
        workers=0,
    )


def _task(asked: Mapping[str, Any]) -> Any:
    """The task of a record, of files that are the same as they were."""
    name = asked["name"]
    kinds = {kind.lower(): getattr(moldiff.tasks, kind) for kind in moldiff.tasks.__all__}
    if name not in kinds:
        raise MoldiffError(f"drawn for a task {name!r} that is not one of moldiff's own")
    options = {key: value for key, value in asked.items() if key != "name" and not key.endswith("_sha256")}
    task = kinds[name](**options)
    now = description(task)
    for key, value in asked.items():
        if key.endswith("_sha256") and now.get(key) != value:
            raise MoldiffError(f"drawn from {options[key.removesuffix('_sha256')]}, which is missing here, or another")
        if isinstance(value, str) and value.endswith(" from Python"):
            raise MoldiffError(f"drawn from {value}, which no field holds")
    return task


def _compared(record: Record, molecule: Molecule, drawn: Sample) -> Verification:
    """What a record is to the molecule that its fields draw."""
    expected = drawn.molecule

    def verdict(finding: Finding, reason: str = "", shift: float | None = None) -> Verification:
        version = _fields(record).get("version", "an earlier version")
        if reason and version != moldiff.__version__:
            reason += f" (written by {version}, this is {moldiff.__version__})"
        return Verification(record.number, record.name, finding, reason, shift)

    if _graph(molecule) != _graph(expected):
        return verdict(Finding.CHANGED, f"these settings draw {drawn.smiles or 'another molecule'}")
    first, second = _positions(molecule), _positions(expected)
    shift = float(np.linalg.norm(first - second, axis=1).max())
    if shift > TOLERANCE:
        inner = float(np.abs(pdist(first) - pdist(second)).max(initial=0.0))
        if max(inner, superposed_rmsd(first, second)) > TOLERANCE:
            return verdict(Finding.CHANGED, f"atoms moved by up to {shift:.2f} Å", shift)
        if "like" not in json.loads(_fields(record).get("task", "{}")):  # which moves molecules onto the reference
            return verdict(Finding.CHANGED, "moved or turned as a whole", shift)
        shift = inner
    if (said := _fields(record).get("SMILES")) != drawn.smiles:
        return verdict(Finding.CHANGED, f"SMILES {said}, drawn as {drawn.smiles}", shift)
    return verdict(Finding.REPRODUCED, "", shift)


def _graph(molecule: Molecule) -> tuple[Any, ...]:
    """Atoms, bonded pairs and SMILES: one Kekulé form is as good as another."""
    named = [getattr(molecule, name).tolist() for name in ("atomic_number", "formal_charge", "num_hydrogens")]
    try:
        return *named, molecule.bonds[:, :2].tolist(), smiles(molecule)
    except MoldiffError:  # invalid, of a run with keep=[]
        return *named, molecule.bonds.tolist()


def _positions(molecule: Molecule) -> np.ndarray:
    """All atoms [a, 3] (Å), the hydrogens of each heavy atom in an order that does not depend on their slots."""
    heavy = np.repeat(np.arange(len(molecule.pos)), molecule.num_hydrogens)
    slots = np.arange(molecule.hydrogen_offset.shape[1]) < molecule.num_hydrogens[:, None]
    return np.concatenate([molecule.pos, molecule.pos[heavy] + molecule.hydrogen_offset[slots]])


def document(path: str | Path, found: Sequence[Verification]) -> dict[str, Any]:
    """What was found, in JSON's types: the file, its hash, how many records are what, and each of them."""
    return {
        "moldiff": moldiff.__version__,
        "file": str(path),
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "counts": counts(found),
        "records": [asdict(one) for one in found],
    }


def counts(found: Sequence[Verification]) -> dict[str, int]:
    """How many records are what."""
    return {str(kind): sum(one.finding is kind for one in found) for kind in Finding}
