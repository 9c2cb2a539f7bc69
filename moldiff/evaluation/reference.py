"""ReferenceSet molecules: what novelty is decided on, and what distributions are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.evaluation.metrics.novelty import MAX_TEXTS, NoveltyIndex
from moldiff.evaluation.metrics.validity import judge
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.formats.reader import records
from moldiff.molecules.formats.record import Record
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.molecule import Molecule

Reference = str | Path | NoveltyIndex | Sequence[Molecule | str]

_MOLECULES_FILE = "molecules.safetensors"  # what tells a prepared folder from a model's


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """ReferenceSet molecules.

    Attributes:
        index: their keys; None = nothing is known.
        molecules: a sample of them to compare with; None = only their keys are known.
        source: what the sample is.
        trained_on: whether the index is of other molecules than the sample (training and test set).
    """

    index: NoveltyIndex | None
    molecules: MoleculeSet | None = None
    source: str | None = None
    trained_on: bool = False

    @classmethod
    def of(cls, reference: Reference | None, size: int, *, complete: bool = False) -> ReferenceSet:
        """Open what the user names as reference.

        Args:
            reference: None, an index, molecules or SMILES, a file of molecules, a prepared folder (novelty is decided
                on its training set, the sample is its test set), a model's folder or an index file (keys alone).
            size: molecules of the sample at most.
            complete: add hydrogens that structures of a file lack.

        Raises:
            MoldiffError: when a path cannot be read.
        """
        if reference is None or isinstance(reference, NoveltyIndex):
            return cls(reference)
        if not isinstance(reference, str | Path):
            entries = (_as_record(number, entry) for number, entry in enumerate(reference, start=1))
            return _of_records(entries, size, "molecules from Python")
        path = Path(reference)
        if path.is_dir() and (path / _MOLECULES_FILE).is_file():
            return _of_prepared(path, size)
        if path.is_dir() or path.suffix == ".safetensors":
            return cls(NoveltyIndex.load(path))
        return _of_records(map(Record.completed, records(path)) if complete else records(path), size, path.name)


def _as_record(number: int, entry: Molecule | str) -> Record | Molecule:
    return smiles_record(number, entry, "", {}) if isinstance(entry, str) else entry


def _of_records(found: Iterable[Record | Molecule], size: int, source: str) -> ReferenceSet:
    """Keys of all, and a random sample; one pass, so that a long file is never in memory."""
    sample = _Sample(size)
    index = NoveltyIndex.of(_key_source(entry) for entry in sample.watch(found))
    kept = sample.kept()
    return ReferenceSet(
        index, _with_smiles(MoleculeSet.of(kept)), f"{len(kept)} of {sample.seen} molecules of {source}"
    )


def _key_source(entry: Record | Molecule) -> Any:
    if isinstance(entry, Molecule):
        return entry
    return entry.problem if entry.problem is not None else entry.mol


def _of_prepared(path: Path, size: int) -> ReferenceSet:
    from moldiff.data.dataset import MoleculeDataset

    prepared = MoleculeDataset.load(path)
    places = prepared.split("test")
    chosen = np.random.default_rng(0).permutation(places)[:size]
    molecules = MoleculeSet.of([prepared.molecule(int(place)) for place in chosen])
    source = f"{len(chosen)} of {len(places)} test molecules of {prepared.name}"
    trained = prepared.split("train")
    texts = None if len(trained) > MAX_TEXTS else [prepared.smiles[int(place)] for place in trained]
    index = replace(NoveltyIndex.load(path), texts=texts)
    return ReferenceSet(index, _with_smiles(molecules), source, trained_on=True)


def _with_smiles(molecules: MoleculeSet) -> MoleculeSet:
    pairs = zip(molecules.entries, molecules.drawings, strict=True)
    return replace(molecules, smiles=[judge(entry, drawing=drawing).strict for entry, drawing in pairs])


class _Sample:
    """A uniform sample of a stream of unknown length, in random order (Vitter 1985, algorithm R)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = np.random.default_rng(0)
        self._kept: list[Record | Molecule] = []
        self.seen = 0

    def watch(self, stream: Iterable[Record | Molecule]) -> Iterator[Record | Molecule]:
        for entry in stream:
            self.seen += 1
            if len(self._kept) < self._size:
                self._kept.append(entry)
            elif (place := int(self._random.integers(self.seen))) < self._size:
                self._kept[place] = entry
            yield entry

    def kept(self) -> list[Record | Molecule]:
        return [self._kept[place] for place in self._random.permutation(len(self._kept))]
