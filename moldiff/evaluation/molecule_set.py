"""Records and molecules as the protocols need them: graphs, elements and coordinates; and reference molecules.

Also all P1, P2, uniqueness and novelty numbers of a set of molecules in one pass, with one row per molecule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.evaluation.metrics.novelty import FILE_NAME, MAX_TEXTS, NoveltyIndex, parent_novelty
from moldiff.evaluation.metrics.validity import (
    Atoms,
    LookupCounts,
    ValidityCounts,
    ValidityReport,
    all_atoms,
    judge,
    look_up,
)
from moldiff.molecules.convert import atom_order, from_rdkit, set_positions, to_rdkit
from moldiff.molecules.formats.reader import records_at
from moldiff.molecules.formats.record import Record, guarded
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.formats.writer import Recorded
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import Vocabulary

NO_COORDINATES = "no record has 3D coordinates, so that no distance can be looked up"
NO_BONDS = "no record has bonds, only elements and coordinates"

Entry = Molecule | InvalidMolecule | Recorded | Chem.Mol | None
"""A molecule from Python: one of ours, one that was sampled, one of RDKit's, or one that could not be read."""


OnItem = Callable[["Record | Molecule | InvalidMolecule", Molecule | InvalidMolecule, ValidityReport], None]
"""Called with every item while it is at hand, its entry and what protocol P2 says of it."""


@dataclass(frozen=True, eq=False)
class MoleculeSet:
    """The records under evaluation, as every protocol and metric sees them; what was read of a file is not kept.

    Attributes:
        entries: the graphs as drawn, broken valences included so that their atoms count, or why there is none; of a
            record without coordinates these are placeholders.
        atoms: of every record in the order of the file, hydrogens included; None = no coordinates, as of a SMILES.
        smiles: isomeric ones of the records that are valid by protocol P2.
        verdicts: what protocol P2 says of every record.
        orders: the file's number of every atom [a] of an entry, whose heavy atoms come before its hydrogens; None for
            molecules of this package.
        missing: why protocol "p1" or "p2" does not suit such records.
    """

    entries: Sequence[Molecule | InvalidMolecule]
    atoms: Sequence[Atoms | None]
    smiles: Sequence[str | None] = ()
    verdicts: Sequence[ValidityReport] = ()
    orders: Sequence[np.ndarray | None] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        items: Iterable[Record | Entry],
        vocabulary: Vocabulary | None = None,
        on_item: OnItem | None = None,
    ) -> MoleculeSet:
        """Records of a file, or molecules from Python (see `known_item`), one at a time.

        The vocabulary brings valences, observed in the data, that the table of protocol P2 lacks.
        """
        seen: list[tuple[Any, Any, ValidityReport, Any]] = []
        problems: dict[int, InvalidMolecule | None] = {}  # of the records that have a molecule of RDKit
        ours = placed = several = bonded = False
        for place, item in enumerate(map(known_item, count(), items)):
            entry, atoms, drawing = _seen(item)
            verdict, order = judge(entry, vocabulary, drawing), None
            if isinstance(item, Record) and (mol := item.mol) is not None:
                problems[place], order = item.problem, atom_order(mol)
                placed, several = placed or is_placed(mol), several or mol.GetNumAtoms() > 1
                bonded = bonded or mol.GetNumBonds() > 0
            ours = ours or isinstance(item, Molecule)
            seen.append((entry, atoms, verdict, order))
            if on_item is not None:
                on_item(item, entry, verdict)
        entries, positions, verdicts, orders = map(list, zip(*seen, strict=True)) if seen else ([], [], [], [])
        missing = {}
        if problems and not ours and not placed:
            missing["p1"] = NO_COORDINATES
        if several and not ours and not bonded:
            missing["p2"] = NO_BONDS
            for place, problem in problems.items():
                entries[place] = problem or InvalidMolecule(Status.UNREADABLE, NO_BONDS)
                verdicts[place] = judge(entries[place])
        return cls(entries, positions, [verdict.strict for verdict in verdicts], verdicts, orders, missing)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, part: slice) -> MoleculeSet:
        names = ("entries", "atoms", "smiles", "verdicts", "orders")
        return replace(self, **{name: getattr(self, name)[part] for name in names})

    def spread(self, values: Mapping[int, Any]) -> list[Any]:
        """Values by place as a column: one per record, None where there is none."""
        return [values.get(place) for place in range(len(self))]

    @cached_property
    def valid(self) -> list[int]:
        """Places of the records that are valid by protocol P2."""
        return [place for place, text in enumerate(self.smiles) if text is not None]

    @cached_property
    def placed(self) -> list[int]:
        """Places of the valid records in 3D."""
        return [place for place in self.valid if self.atoms[place] is not None]

    def mols(self) -> Iterator[Chem.Mol]:
        """Sanitised RDKit molecules of the `placed` records, made one at a time; explicit hydrogens, one conformer."""
        for place in self.placed:
            entry = self.entries[place]
            assert isinstance(entry, Molecule)
            mol = to_rdkit(entry, stereo=False)
            with rdBase.BlockLogs():
                Chem.SanitizeMol(mol)
            yield mol

    def order(self, place: int) -> np.ndarray:
        """The file's number of every atom [a] of a record's graph, whose heavy atoms come before its hydrogens."""
        order, entry = self.orders[place] if self.orders else None, self.entries[place]
        return order if order is not None else np.arange(0 if isinstance(entry, InvalidMolecule) else entry.num_atoms)

    def problem(self, place: int) -> InvalidMolecule | None:
        """Why the coordinates of a record cannot be used; None = they can."""
        entry, atoms = self.entries[place], self.atoms[place]
        if atoms is None:
            return entry if isinstance(entry, InvalidMolecule) else InvalidMolecule(Status.UNREADABLE, "no coordinates")
        if not np.isfinite(atoms[1]).all():
            return InvalidMolecule(Status.NON_FINITE, "coordinate not finite")
        return None


def known_item(place: int, item: Record | Entry) -> Record | Molecule | InvalidMolecule:
    """A molecule from Python as a record, a molecule of this package, or why it is none of these.

    Raises:
        MoldiffError: for anything but such, RDKit's molecules, or None as RDKit's readers give it.
    """
    if isinstance(item, Record | Molecule | InvalidMolecule):
        return item
    if item is None:
        return InvalidMolecule(Status.UNREADABLE, "no molecule")
    if isinstance(item, Chem.Mol):
        return Record(place + 1, "", item)
    molecule = getattr(item, "molecule", None)
    if not isinstance(molecule, Molecule):
        raise MoldiffError(f"molecules: got {type(item).__name__} in place {place}, expected a molecule")
    return molecule


def is_placed(mol: Chem.Mol) -> bool:
    """Whether a molecule has 3D coordinates; the place of a single atom is always one."""
    return mol.GetNumConformers() > 0 and (mol.GetNumAtoms() == 1 or mol.GetConformer().Is3D())


def _seen(
    item: Record | Molecule | InvalidMolecule,
) -> tuple[Molecule | InvalidMolecule, Atoms | None, Chem.Mol | None]:
    """The entry of a record, its atoms, and its drawing if its stereo is in marks, for want of 3D coordinates."""
    if isinstance(item, Molecule):
        return item, all_atoms(item), None
    if isinstance(item, InvalidMolecule):
        return item, None, None
    mol, atoms, drawing = item.mol, None, None
    if mol is not None and is_placed(mol):
        elements = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
        if elements.all():  # a dummy atom is no element, so that there is nothing to look up
            atoms = elements, mol.GetConformer().GetPositions()
    elif mol is not None and item.problem is None:
        drawing = Chem.Mol(mol)
        for atom in drawing.GetAtoms():  # stereo does not depend on these
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
    return item.as_drawn() if mol is None or is_placed(mol) else guarded(_graph_of, mol), atoms, drawing


def _graph_of(mol: Chem.Mol) -> Molecule | InvalidMolecule:
    """The molecule of a graph without 3D coordinates: hydrogens are made explicit, coordinates are placeholders."""
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    mol.UpdatePropertyCache(strict=False)
    mol = Chem.AddHs(mol)
    set_positions(mol, np.arange(3.0 * mol.GetNumAtoms()).reshape(-1, 3))
    return from_rdkit(mol)


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Reference molecules."""

    index: NoveltyIndex | None
    molecules: MoleculeSet | None = None  # a sample of them to compare with; None = only their keys are known
    source: str | None = None  # what the sample is
    trained_on: bool = False  # whether the index is of other molecules than the sample (training and test set)
    path: str | None = None  # where they are, if that is to be said
    beside: bool = True  # whether numbers of the sample itself are wanted

    @classmethod
    def of(cls, reference: Reference | None, size: int, *, complete: bool = False) -> ReferenceSet:
        """Open what the user names as reference, with a sample of some `size`; a `MoldiffError` for an unreadable path.

        That is None, an index, molecules or SMILES, a file, folder or pattern of files of molecules (to which hydrogens
        are added with `complete`), a prepared folder (novelty is decided on its training set, the sample is its test
        set), a model's folder or an index file (keys alone).
        """
        if isinstance(reference, ReferenceSet):
            return reference
        if reference is None or isinstance(reference, NoveltyIndex):
            return cls(reference)
        if not isinstance(reference, str | Path):
            items = enumerate(reference, start=1)
            entries = (smiles_record(k, item, "", {}) if isinstance(item, str) else item for k, item in items)
            return _of_records(entries, size, "molecules from Python")
        path = Path(reference)
        if (path / "molecules.safetensors").is_file():  # a prepared folder, and not a model's
            return _of_prepared(path, size)
        if path.suffix == ".safetensors" or any((path / name).is_file() for name in (FILE_NAME, "model.safetensors")):
            return cls(NoveltyIndex.load(path))
        found = records_at(path)
        return _of_records(map(Record.completed, found) if complete else found, size, path.name)


Reference = str | Path | NoveltyIndex | ReferenceSet | Sequence[Molecule | str]


def _of_records(found: Iterable[Record | Molecule], size: int, source: str) -> ReferenceSet:
    """Keys of all, and a random sample; one pass, so that a long file is never in memory."""
    sample: list[Record | Molecule] = []
    random, seen = np.random.default_rng(0), 0

    def keys() -> Iterator[Any]:
        """What keys are made of; meanwhile a uniform sample is drawn (Vitter 1985, algorithm R)."""
        nonlocal seen
        for seen, entry in enumerate(found, start=1):
            if len(sample) < size:
                sample.append(entry)
            elif (place := int(random.integers(seen))) < size:
                sample[place] = entry
            yield (entry.problem or entry.mol) if isinstance(entry, Record) else entry

    index = NoveltyIndex.of(keys())
    kept = MoleculeSet.of([sample[place] for place in random.permutation(len(sample))])
    return ReferenceSet(index, kept, f"{len(kept)} of {seen} molecules of {source}")


def _of_prepared(path: Path, size: int) -> ReferenceSet:
    from moldiff.data.dataset import MoleculeDataset

    prepared = MoleculeDataset.load(path)
    places, trained = prepared.split("test"), prepared.split("train").tolist()
    chosen = np.random.default_rng(0).permutation(places)[:size].tolist()
    molecules = MoleculeSet.of([*map(prepared.molecule, chosen)])
    source = f"{len(chosen)} of {len(places)} test molecules of {prepared.name}"
    texts = None if len(trained) > MAX_TEXTS else [prepared.smiles[place] for place in trained]
    return ReferenceSet(replace(NoveltyIndex.load(path), texts=texts), molecules, source, True)


NO_REFERENCE = "no reference molecules to compare with"
KEYS_ALONE = f"parents need the molecules of the reference, at most {MAX_TEXTS:,}; a model knows only their keys"
NOTHING_COUNTED = "the denominator is 0: no molecule to count over"


@dataclass(frozen=True, slots=True)
class MoleculeRow:
    """What is known of one record after scoring; None where a question does not apply."""

    number: int  # place in the list or file, from 1
    name: str
    status: Status  # outcome of the P2 check; "ok" = valid
    reason: str
    remarks: str | None = None  # what is odd about it all the same; None = nothing, or not looked for
    smiles: str | None = None  # isomeric SMILES of a valid molecule
    num_heavy_atoms: int | None = None
    num_atoms: int | None = None
    num_fragments: int | None = None  # pieces of the explicit graph
    p2_stable: bool | None = None
    unique: bool | None = None  # first valid molecule of the list with its normalised key
    novel: bool | None = None  # its normalised key is not in the reference
    novel_parent: bool | None = None  # nor is another charge state, salt or tautomer of it
    p1_stable: bool | None = None
    p1_smiles: str | None = None  # of the largest fragment of the looked-up graph, where RDKit sanitises it
    p1_fragments: int | None = None  # pieces of the looked-up graph


@dataclass(frozen=True)
class Scores:
    """The numbers of a list of molecules, a row for each, and why results have no value, by name."""

    results: list[MetricResult]
    rows: list[MoleculeRow]
    notes: Mapping[str, str]


def score(
    molecules: MoleculeSet | Sequence[Molecule | InvalidMolecule],
    novelty: NoveltyIndex | None = None,
    vocabulary: Vocabulary | None = None,
) -> Scores:
    """Score molecules by P1, P2, uniqueness and novelty.

    Args:
        molecules: what was read or sampled; `InvalidMolecule` = a record that could not be read, which counts.
        novelty: index of the known molecules; None = novelty has no value.
        vocabulary: brings valences, observed in the data, that the table of protocol P2 lacks; a `MoleculeSet` was
            made with it.
    """
    known = molecules if isinstance(molecules, MoleculeSet) else MoleculeSet.of(molecules, vocabulary)
    counts, lookup = ValidityCounts(), LookupCounts(len(known))
    for verdict in known.verdicts:
        counts.add(verdict)
    parents, novel = parent_novelty(counts.canonical, novelty)
    rows, seen = [], set[str | None]()
    records = zip(known.entries, known.verdicts, known.atoms, strict=True)
    for number, (molecule, verdict, atoms) in enumerate(records, start=1):
        graph = None if atoms is None else lookup.add(look_up(atoms))
        key, read = verdict.canonical, molecule if isinstance(molecule, Molecule) else None
        p1_smiles, p1_fragments = (graph and graph.largest_fragment) or (None, None)
        row = MoleculeRow(
            number=number,
            name="" if read is None else read.name,
            status=verdict.status,
            reason="" if verdict.problem is None else verdict.problem.reason,
            smiles=verdict.strict,
            num_heavy_atoms=None if read is None else read.num_heavy_atoms,
            num_atoms=None if read is None else verdict.num_atoms,
            num_fragments=None if read is None else verdict.num_fragments,
            p2_stable=None if read is None else verdict.stable,
            unique=None if key is None else key not in seen,
            novel=None if key is None or not novelty else not novelty.contains(key),
            novel_parent=None if key is None or not parents.denominator else key in novel,
            p1_stable=None if graph is None else graph.stable,
            p1_smiles=p1_smiles,
            p1_fragments=p1_fragments,
        )
        rows.append(row)
        seen.add(key)
    results = [*lookup.results(), *counts.results(novelty), parents]
    notes = {result.name: NOTHING_COUNTED for result in results if result.value is None}
    if not novelty:
        notes |= {name: NO_REFERENCE for name in notes if "novel" in name}
    elif novelty.texts is None:
        notes["p2_novel_parent"] = KEYS_ALONE
    return Scores(results, rows, notes)


def quality(molecules: Sequence[Molecule | InvalidMolecule], novelty: NoveltyIndex | None = None) -> dict[str, float]:
    """Values by name, as a training callback logs them; results without a value are left out."""
    results = score(molecules, novelty).results
    return {result.name: result.value for result in results if result.value is not None}
