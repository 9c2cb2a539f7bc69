"""Whether the records of a file are what the models draw: each is drawn again from its own fields and compared."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import pdist

import moldiff
import moldiff.tasks
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.docking import FUNCTIONS
from moldiff.evaluation.metrics.relaxation import superposed_rmsd
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.formats.reader import file_of, records
from moldiff.molecules.formats.record import Record
from moldiff.molecules.identity import smiles
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.sampling.config import SamplingConfig
from moldiff.sampling.generator import Generator, load
from moldiff.sampling.sample import Sample
from moldiff.tasks.inputs import mol_of
from moldiff.tasks.task import description

TOLERANCE = 0.01
"""Largest distance (Å) from where an atom was drawn that is taken for rounding."""

_SETTINGS = ("model", "weights", "seed", "steps", "decode", "sampler")
_MOST_STEPS = 10_000  # a file may come from anyone
_BLOCK = 200
"""Records that are drawn together at most."""


class Finding(StrEnum):
    """What a record is."""

    REPRODUCED = "reproduced"  # drawn again, to rounding
    CHANGED = "changed"  # these settings draw something else
    FOREIGN = "foreign"  # it does not say that moldiff drew it
    UNKNOWN = "unknown"  # it cannot be drawn again here


@dataclass(frozen=True)
class Verification:
    """What became of one record."""

    number: int  # of the record, from 1
    name: str  # its title
    finding: Finding
    reason: str = ""  # what is different, or missing; "" = nothing
    shift: float | None = None  # farthest that an atom lies from where it is drawn (Å); None = it has other atoms


class _Claim(NamedTuple):
    """A record that says that moldiff drew it."""

    record: Record
    fields: Mapping[str, str]
    molecule: Molecule

    def found(self, finding: Finding, reason: str = "", shift: float | None = None) -> Verification:
        return Verification(self.record.number, self.record.name, finding, reason, shift)


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
    found: list[Verification] = []
    waiting: defaultdict[tuple[tuple[str, str], ...], list[_Claim]] = defaultdict(list)
    for record in records(path):
        try:
            claim = _claim(record)
        except MoldiffError as error:
            found.append(Verification(record.number, record.name, Finding.FOREIGN, str(error)))
        else:  # what differs in nothing but its index is drawn together
            names = (*_SETTINGS, "size", "task", "precision", "ph", "relax")
            waiting[tuple((name, claim.fields[name]) for name in names if name in claim.fields)].append(claim)
    total = len(found) + sum(map(len, waiting.values()))
    generators = cache(lambda name: load(name, device=device))
    for settings, claims in waiting.items():
        for start in range(0, len(claims), _BLOCK):
            found += _drawn_again(dict(settings), claims[start : start + _BLOCK], generators)
            if on_progress is not None:
                on_progress(len(found), total)
    return sorted(found, key=lambda one: one.number)


def _claim(record: Record) -> _Claim:
    """What a record says of itself; raises why that is nothing."""
    mol = record.mol
    fields = {} if mol is None else {name: mol.GetProp(name) for name in mol.GetPropNames()}
    for name in (*_SETTINGS, "index", "size"):
        if not fields.get(name):
            raise MoldiffError(f"no field {name}")
    molecule = from_rdkit(mol_of(record))
    if isinstance(molecule, InvalidMolecule):
        raise MoldiffError(molecule.reason)
    return _Claim(record, fields, molecule)


def _drawn_again(
    settings: Mapping[str, str], claims: Sequence[_Claim], generators: Callable[[str], Generator]
) -> list[Verification]:
    """Draw records that differ in nothing but their index again, and compare."""
    try:
        drawn = _drawn(settings, [int(one.fields["index"]) for one in claims], generators)
    except (MoldiffError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, MoldiffError) else f"settings that moldiff does not write: {error}"
        return [one.found(Finding.UNKNOWN, reason) for one in claims]
    return [_compared(*pair) for pair in zip(claims, drawn, strict=True)]


def _drawn(settings: Mapping[str, str], indices: Sequence[int], generators: Callable[[str], Generator]) -> list[Sample]:
    """The molecules of these settings; raises why they cannot be drawn here."""
    if "precision" in settings:
        raise MoldiffError(f"drawn in {settings['precision']}, in which a molecule depends on the others of its batch")
    generator, name = generators(settings["model"]), settings["model"]
    weights = generator.checkpoint.weights_hash
    if weights != settings["weights"]:
        raise MoldiffError(f"drawn with weights {settings['weights']}, this {name} is {weights}")
    run = generator.stream(1, config=_config(settings))
    drawn = {one.index: one for one in run.molecules.draw(sorted(set(indices)))}
    return [drawn[index] for index in indices]


def _config(settings: Mapping[str, str]) -> SamplingConfig:
    asked = json.loads(settings.get("task", "{}"))
    if (like := asked.pop("like", None)) is not None and like.get("rounds"):
        raise MoldiffError("drawn from near others of its run (like.rounds), not from its own fields alone")
    sampler = PowerSampler(**json.loads(settings["sampler"]))
    if sampler.num_steps > _MOST_STEPS:
        raise MoldiffError(f"drawn in {sampler.num_steps} network calls, expected {_MOST_STEPS} at most")
    known = {one.name for one in fields(SamplingConfig)} - {"task"}
    if asked.get("candidates", 1) == 1:
        asked.pop("score", None)  # which then decides nothing
    elif (score := asked.get("score", "vina")) not in FUNCTIONS:
        raise MoldiffError(f"chosen by score={score}, a function that is not called here")
    options = {name: asked.pop(name) for name in [*asked] if name in known}
    task = _task(asked) if "name" in asked else None
    if task is None and options.get("candidates", 1) == 1:
        options["size"] = int(settings["size"])
    return SamplingConfig(
        **{"filters": (), **options},
        seed=int(settings["seed"]),
        task=task,
        keep=(),
        sampler=sampler,
        decode=settings["decode"],
        ph=float(settings["ph"]) if "ph" in settings else None,
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


def _compared(claim: _Claim, drawn: Sample) -> Verification:
    """What a record is to the molecule that its fields draw."""
    shift: float | None = None

    def changed(reason: str) -> Verification:
        version = claim.fields.get("version", "an earlier version")
        if version != moldiff.__version__:
            reason += f" (written by {version}, this is {moldiff.__version__})"
        tool, here = claim.fields.get("protonated_by"), drawn.task.get("protonated_by")
        if tool != here:
            reason += f" (protonated by {tool}, here by {here})"
        return claim.found(Finding.CHANGED, reason, shift)

    if _graph(claim.molecule) != _graph(drawn.molecule):
        same = _skeleton(claim.molecule) == _skeleton(drawn.molecule)
        what = "other hydrogens, charges or orders of bonds; " if same else ""
        return changed(f"{what}these settings draw {drawn.smiles or 'another molecule'}")
    first, second = (all_atoms(one)[1] for one in (claim.molecule, drawn.molecule))
    shifts = np.linalg.norm(first - second, axis=1)
    shift, task = float(shifts.max()), json.loads(claim.fields.get("task", "{}"))
    if shift > TOLERANCE:
        if "receptor" in task and task.get("search") != 0 and np.median(shifts) > TOLERANCE:
            reason = f"another pose, {shift:.2f} Å away: the search in the pocket enlarges rounding, search=0 does not"
            return claim.found(Finding.UNKNOWN, reason, shift)
        inner = float(np.abs(pdist(first) - pdist(second)).max(initial=0.0))
        if max(inner, superposed_rmsd(first, second)) > TOLERANCE:
            return changed(f"atoms moved by up to {shift:.2f} Å")
        if "like" not in task:  # which moves molecules onto the reference
            return changed("moved or turned as a whole")
        shift = inner
    if (written := claim.fields.get("SMILES")) != drawn.smiles:
        return changed(f"SMILES {written}, drawn as {drawn.smiles}")
    return claim.found(Finding.REPRODUCED, "", shift)


def _skeleton(molecule: Molecule) -> tuple[list[int], list[list[int]]]:
    """Elements, and which atoms are bonded."""
    return molecule.atomic_number.tolist(), molecule.bonds[:, :2].tolist()


def _graph(molecule: Molecule) -> tuple[Any, ...]:
    """Atoms, bonded pairs and SMILES: one Kekulé form is as good as another."""
    named = [getattr(molecule, name).tolist() for name in ("atomic_number", "formal_charge", "num_hydrogens")]
    try:
        return *named, molecule.bonds[:, :2].tolist(), smiles(molecule)
    except MoldiffError:  # invalid, of a run with keep=[]
        return *named, molecule.bonds.tolist()


def document(path: str | Path, found: Sequence[Verification]) -> dict[str, Any]:
    """What was found, in JSON's types: the file, its hash, how many records are what, and each of them."""
    return {
        "moldiff": moldiff.__version__,
        "file": str(path),
        "sha256": hashlib.sha256(file_of(path).read_bytes()).hexdigest(),
        "counts": {str(kind): sum(one.finding is kind for one in found) for kind in Finding},
        "records": [asdict(one) for one in found],
    }
