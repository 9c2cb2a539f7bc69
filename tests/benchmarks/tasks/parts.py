"""Grow, link and replace: a part of every held-out molecule is removed and drawn anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rdkit import Chem
from scipy.spatial.distance import pdist

from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.validity import ValidityReport
from moldiff.molecules import identity
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.tasks import Grow, Link, Replace
from moldiff.tasks.grow import is_attached
from moldiff.tasks.task import Admission, Task, TaskOutcome, TaskSpec
from tests.benchmarks.tasks.conformers import sanitized
from tests.benchmarks.tasks.settings import Columns, Row, Settings

_TOLERANCE = 1e-3  # Å that kept atoms may have moved
_MAX_REMOVED = 5
_TRIES = 100


@dataclass(frozen=True)
class Parts:
    """Kept atoms, attachment and validity of molecules of which a part is drawn anew.

    Attributes:
        kind: "grow", "link" or "replace".
    """

    kind: str

    def rows(self, settings: Settings, places: range) -> list[Row]:
        """Of every molecule the removed atoms, and of how many samples each definition holds, raw and decoded."""
        wholes = {place: settings.molecules[place] for place in places}
        removed = {
            place: self.chosen(whole, np.random.default_rng([settings.seed, place])) for place, whole in wholes.items()
        }
        able = [place for place in places if removed[place] is not None]
        tasks = {place: self._request(wholes[place], removed[place] or ()) for place in able}
        rows: dict[int, Row] = {place: {"removed": removed[place]} for place in places}
        for place in able:
            rows[place] |= {"samples": settings.samples, "raw": Counter(), "decoded": Counter()}
        if not able:
            return [rows[place] for place in places]
        series, first = Series(tasks=list(tasks.values())), settings.first(places.start)
        for sample in settings.draw(series, first=first, samples=settings.samples):
            place = able[sample.index % len(able)]
            ends = [int(number) for number in str(sample.task["attach"]).split()]
            for column, form in settings.forms(sample).items():
                rows[place][column] += self._found(*form, ends, wholes[place], removed[place] or ())
        return [rows[place] for place in places]

    def chosen(self, whole: Molecule, random: np.random.Generator) -> list[int] | None:
        """Heavy atoms to remove; None = there are none."""
        return choose_part(whole, self.kind, random)

    def _request(self, whole: Molecule, removed: Sequence[int]) -> TaskSpec:
        kept = [atom for atom in range(whole.num_heavy_atoms) if atom not in removed]
        if self.kind == "replace":
            return Replace(core=whole, remove=removed)
        return (Grow if self.kind == "grow" else Link)(core=whole, keep=kept, new_atoms=len(removed))

    def _found(
        self, molecule: Molecule, verdict: ValidityReport, ends: Sequence[int], whole: Molecule, removed: Sequence[int]
    ) -> Counter[str]:
        """Which definitions hold for a sample whose atoms `ends` were to gain bonds."""
        kept = np.setdiff1d(np.arange(whole.num_heavy_atoms), removed)
        valid, attached = verdict.problem is None, is_attached(molecule, len(kept), np.array(ends, dtype=int))
        both = valid and attached
        holds = {
            "kept_untouched": is_untouched(molecule, whole, kept),
            "attached": attached,
            "valid": valid,
            "attached_and_valid": both,
            "attached_valid_and_sound": both and Contacts().check(molecule) is None,
            "same_molecule": valid and verdict.canonical == identity.canonical_key(whole),
        }
        return Counter({name: int(held) for name, held in holds.items()})

    def columns(self, rows: Sequence[Row]) -> Columns:
        """Shares of all samples, raw and decoded.

        Raises:
            MoldiffError: when no molecule has a part that could be removed.
        """
        drawn = [row for row in rows if row["removed"] is not None]
        if not drawn:
            raise MoldiffError(f"{self.kind}: none of the {len(rows)} molecules has a part to remove")
        total = sum(row["samples"] for row in drawn)
        return {
            column: [
                MetricResult(f"{self.kind}_{name}", sum(row[column].get(name, 0) for row in drawn), total, definition)
                for name, definition in _DEFINITIONS.items()
            ]
            for column in ("raw", "decoded")
        }

    def details(self, rows: Sequence[Row]) -> list[Row]:
        """None."""
        return []


@dataclass(frozen=True, kw_only=True)
class Series:
    """n molecules of each of several tasks; molecule k belongs to task k modulo their number.

    Args:
        tasks: any that need not decide on several molecules together.
    """

    tasks: Sequence[TaskSpec]

    def prepare(self, vocabulary: Vocabulary, statistics: Statistics) -> SeriesTask:
        """The tasks for a model.

        Raises:
            MoldiffError: when one of them cannot be done.
        """
        return SeriesTask(tuple(task.prepare(vocabulary, statistics) for task in self.tasks))


@dataclass(frozen=True, eq=False)
class SeriesTask(Task):
    """Prepared tasks in turn.

    Attributes:
        tasks: the tasks.
    """

    tasks: tuple[Task, ...]

    def of(self, index: int) -> Task:
        """The task that molecule `index` is drawn for."""
        return self.tasks[index % len(self.tasks)]

    def count(self, n: int) -> int:
        """So many of each."""
        return n * len(self.tasks)

    def sizes(self) -> tuple[int, int]:
        low, high = zip(*(task.sizes() for task in self.tasks), strict=True)
        return min(low), max(high)

    def notes(self) -> Sequence[str]:
        """Those of all."""
        return [note for task in self.tasks for note in task.notes()]

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        return self.of(index).begin(index, generator)

    def totals(self, index: int) -> Sequence[SumConstraint]:
        return self.of(index).totals(index)

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        return self.of(index).finish(index, start, molecule)

    def admission(self, n: int) -> Admission | None:
        """As many of each."""
        return Admission(len(self.tasks), n // len(self.tasks))


def choose_part(molecule: Molecule, kind: str, random: np.random.Generator) -> list[int] | None:
    """Connected heavy atoms that can be removed by cutting single bonds outside aromatic rings; None = none found.

    `grow`: one bond is cut; `link`: two or more pieces of two or more atoms are left; `replace`: two or more bonds
    are cut and one piece is left, or one bond where no ring allows for more.
    """
    mol = sanitized(molecule)
    heavy = range(molecule.num_heavy_atoms)
    near = {atom: [n for n in _neighbours(mol, atom) if n in heavy] for atom in heavy}
    fallback = None
    for _ in range(_TRIES):
        most = min(_MAX_REMOVED, len(heavy) - 2)
        if most < 1:
            return None
        part = {int(random.integers(len(heavy)))}
        size = int(random.integers(1, most + 1))
        while len(part) < size:
            edge = sorted({n for atom in part for n in near[atom]} - part)
            part.add(edge[int(random.integers(len(edge)))])
        cut = [mol.GetBondBetweenAtoms(a, n) for a in part for n in near[a] if n not in part]
        if any(bond.GetBondType() != Chem.BondType.SINGLE for bond in cut):
            continue
        pieces = _pieces([atom for atom in heavy if atom not in part], near)
        if kind == "grow" and len(cut) == 1:
            return sorted(part)
        if kind == "link" and len(pieces) > 1 and min(map(len, pieces)) > 1:
            return sorted(part)
        if kind == "replace" and len(pieces) == 1:
            if len(cut) > 1:
                return sorted(part)
            fallback = fallback or sorted(part)
    return fallback


def _neighbours(mol: Chem.Mol, atom: int) -> list[int]:
    return [neighbour.GetIdx() for neighbour in mol.GetAtomWithIdx(atom).GetNeighbors()]


def _pieces(atoms: Sequence[int], near: dict[int, list[int]]) -> list[set[int]]:
    waiting, found = set(atoms), []
    while waiting:
        piece, edge = set(), {waiting.pop()}
        while edge:
            piece |= edge
            edge = {n for atom in edge for n in near[atom]} & waiting
            waiting -= edge
        found.append(piece)
    return found


_DEFINITIONS = {
    "kept_untouched": "Samples whose kept atoms come first with the same elements, charges, bonds (aromatic ones in "
    "either Kekulé form), positions and internal distances (0.001 Å) and hydrogens, over all.",
    "attached": "Samples in one piece with every cut bond made up for by one to a new atom, over all.",
    "valid": "Samples that are P2-valid, over all.",
    "attached_and_valid": "Samples that are both, over all.",
    "attached_valid_and_sound": "Samples that are both, without clashes and torn bonds, over all.",
    "same_molecule": "Samples that are the molecule that the part was removed from, stereo aside, over all.",
}


def is_untouched(molecule: Molecule, whole: Molecule, kept: np.ndarray) -> bool:
    """Whether the first atoms of a molecule are those `kept` of the whole, with nothing changed."""
    size = len(kept)
    same = (
        (molecule.atomic_number[:size] == whole.atomic_number[kept]).all()
        and (molecule.formal_charge[:size] == whole.formal_charge[kept]).all()
        and (molecule.num_hydrogens[:size] == whole.num_hydrogens[kept]).all()
        and np.abs(molecule.pos[:size] - whole.pos[kept]).max() < _TOLERANCE
        and np.abs(molecule.hydrogen_offset[:size] - whole.hydrogen_offset[kept]).max() < _TOLERANCE
    )
    moved = np.abs(pdist(molecule.pos[:size]) - pdist(whole.pos[kept])) if size > 1 else np.zeros(1)
    return bool(same and moved.max() < _TOLERANCE and _has_bonds(molecule, whole, kept))


def _has_bonds(molecule: Molecule, whole: Molecule, kept: np.ndarray) -> bool:
    """Whether the first atoms of a molecule have the bonds that those `kept` have in the whole."""
    aromatic = {bond.GetIdx() for bond in sanitized(whole).GetBonds() if bond.GetIsAromatic()}
    place = {int(atom): row for row, atom in enumerate(kept)}
    wanted, found = {}, {}
    for number, (i, j, order) in enumerate(whole.bonds.tolist()):  # the first bonds of the RDKit molecule
        if i in place and j in place:
            wanted[place[i], place[j]] = (1, 2) if number in aromatic else (order,)
    for i, j, order in molecule.bonds.tolist():
        if max(i, j) < len(kept):
            found[i, j] = order
    return found.keys() == wanted.keys() and all(found[ends] in orders for ends, orders in wanted.items())
