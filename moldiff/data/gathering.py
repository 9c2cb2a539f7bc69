"""Records as they come in, packed a thousand at a time so that large sets need little memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from moldiff.batch import Molecule
from moldiff.chem import key_hash
from moldiff.data.dataset import SPLITS, concatenate, pack, take
from moldiff.data.source import SourceRecord, both_keys
from moldiff.data.tally import Rejected
from moldiff.errors import MoldiffError
from moldiff.results import InvalidMolecule

_CHUNK = 1024
_Item = TypeVar("_Item")


class Gathering:
    """Kept and rejected records of a source.

    Attributes:
        flat: packed arrays of the molecules kept (`moldiff.data.dataset.pack`), there after `finish`.
        smiles: their isomeric SMILES.
        names: their titles.
        rejected: the other records.
    """

    def __init__(self) -> None:
        self.flat: dict[str, np.ndarray] = {}
        self.smiles: list[str] = []
        self.names: list[str] = []
        self.rejected: list[Rejected] = []
        self._hashes: list[tuple[int, int]] = []
        self._origins: list[tuple[int, int, str]] = []
        self._notes: list[tuple[str, ...]] = []
        self._parts: list[str] = []
        self._open: list[Molecule] = []
        self._packed: list[tuple[list[str], dict[str, np.ndarray]]] = []

    def __len__(self) -> int:
        return len(self.smiles)

    @property
    def hashes(self) -> np.ndarray:
        """Hashes of the canonical and the strict key of every molecule [M, 2]."""
        return np.array(self._hashes, dtype=np.int64).reshape(-1, 2)

    def add(self, place: int, record: SourceRecord) -> None:
        """Take in the record at `place` of the source."""
        if isinstance(record.outcome, InvalidMolecule):
            self.rejected.append(Rejected(place, record.number, record.name, record.outcome, record.file))
            return
        canonical, strict = record.keys or both_keys(record.outcome)
        self.smiles.append(strict)
        self.names.append(record.outcome.name or record.name)
        self._hashes.append((key_hash(canonical), key_hash(strict)))
        self._origins.append((place, record.number, record.file))
        self._notes.append(record.notes)
        self._parts.append(record.part)
        self._open.append(record.outcome)
        if len(self._open) == _CHUNK:
            self._pack()

    def _pack(self) -> None:
        names = list(dict.fromkeys(name for molecule in self._open for name in molecule.properties))
        self._packed.append((names, pack(self._open, names)))
        self._open = []

    def finish(self, properties: Mapping[str, str]) -> None:
        """Join what was packed; of the properties, those named become columns of `y`."""
        self._pack()
        for names, flat in self._packed:
            values = np.full((len(flat["y"]), len(properties)), np.nan, dtype=np.float32)
            for column, name in enumerate(properties):
                if name in names:
                    values[:, column] = flat["y"][:, names.index(name)]
            flat["y"] = values
        self.flat = concatenate([flat for _, flat in self._packed])
        self._packed = []

    def noted(self, note: str) -> np.ndarray:
        """Which molecules have a note [M] bool."""
        return np.array([note in notes for notes in self._notes], dtype=bool)

    def note_counts(self) -> dict[str, int]:
        """How many molecules have each note, the commonest first."""
        return dict(Counter(note for notes in self._notes for note in notes).most_common())

    def leave_out(self, problems: Mapping[int, InvalidMolecule]) -> None:
        """Reject molecules that were kept so far, by their index."""
        if not problems:
            return
        for index, problem in problems.items():
            place, number, file = self._origins[index]
            self.rejected.append(Rejected(place, number, self.names[index], problem, file))
        left = [index for index in range(len(self)) if index not in problems]
        self.flat = take(self.flat, np.array(left, dtype=np.int64))
        self.smiles, self.names = _pick(self.smiles, left), _pick(self.names, left)
        self._hashes, self._origins = _pick(self._hashes, left), _pick(self._origins, left)
        self._notes, self._parts = _pick(self._notes, left), _pick(self._parts, left)

    def labelled_splits(self) -> dict[str, np.ndarray] | None:
        """Indices of every part where the records say to which they belong, else None.

        Raises:
            MoldiffError: when none says that it is for training.
        """
        if not any(self._parts):
            return None
        labels = np.array(self._parts)
        splits = {part: np.flatnonzero(labels == part) for part in SPLITS}
        if not len(splits["train"]):
            raise MoldiffError("split: no kept record says 'train', expected at least one to train on")
        return splits


def _pick(items: Sequence[_Item], indices: Sequence[int]) -> list[_Item]:
    return [items[index] for index in indices]
