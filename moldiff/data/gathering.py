"""Records as they come in, put on disk a thousand at a time so that a set may be larger than memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from moldiff.batch import Molecule
from moldiff.chem import key_hash
from moldiff.data.dataset import SPLITS
from moldiff.data.packed import FIELDS_BY_SLICES, Packed, blocks, pack
from moldiff.data.rejects import Rejects
from moldiff.data.source import SourceRecord, both_keys
from moldiff.data.spool import Spool
from moldiff.data.tally import Rejected
from moldiff.errors import MoldiffError
from moldiff.results import InvalidMolecule

_CHUNK = 1024
_Text = TypeVar("_Text")


class Gathering:
    """Kept and rejected records of a source.

    Attributes:
        flat: packed arrays of the molecules kept (`moldiff.data.packed`), there after `finish`.
        smiles: their isomeric SMILES.
        names: their titles.
        hashes: of their canonical and strict keys [M, 2].
        rejected: the other records, in the order of the source.

    Args:
        beside: temporary files are made next to this path.
    """

    def __init__(self, beside: Path) -> None:
        self.flat: Packed = {}
        self.smiles: Sequence[str] = []
        self.names: Sequence[str] = []
        self.hashes = np.zeros((0, 2), dtype=np.int64)
        self.rejected = Rejects(beside)
        self._beside = beside
        self._spool = Spool(beside)
        self._open: list[tuple[int, SourceRecord, Molecule]] = []
        self._count = 0
        # Texts that many records share are kept once, and by number with each record.
        self._files: dict[str, int] = {}
        self._notes: dict[tuple[str, ...], int] = {}
        self._properties: dict[str, int] = {}
        self._origins = np.zeros((0, 5), dtype=np.int64)

    def __len__(self) -> int:
        return self._count

    def add(self, place: int, record: SourceRecord) -> None:
        """Take in the record at `place` of the source."""
        if isinstance(record.outcome, InvalidMolecule):
            self.rejected.append(Rejected(place, record.number, record.name, record.outcome, record.file))
            return
        self._open.append((place, record, record.outcome))
        self._count += 1
        if len(self._open) == _CHUNK:
            self._spill()

    def _spill(self) -> None:
        """Put the open records on disk."""
        if not self._open:
            return
        molecules = [molecule for _, _, molecule in self._open]
        keys = [record.keys or both_keys(molecule) for _, record, molecule in self._open]
        first = self._count - len(self._open)
        flat = pack(molecules, [])
        self._spool.append(_rows(flat))
        known = [
            (first + k, _number(self._properties, name), value)
            for k, molecule in enumerate(molecules)
            for name, value in molecule.properties.items()
        ]
        self._spool.append(
            {
                "property_of": np.array([row[:2] for row in known], dtype=np.int64).reshape(-1, 2),
                "property": np.array([row[2] for row in known], dtype=np.float32),
                "hashes": np.array([[key_hash(key) for key in pair] for pair in keys], dtype=np.int64),
                "origins": np.array([self._origin(place, record) for place, record, _ in self._open], dtype=np.int64),
            }
        )
        titles = (molecule.name or record.name for _, record, molecule in self._open)
        lines = [f"{key}\t{' '.join(title.split())}" for (_, key), title in zip(keys, titles, strict=True)]
        self._spool.append_lines(lines)
        self._open = []

    def _origin(self, place: int, record: SourceRecord) -> tuple[int, int, int, int, int]:
        part = SPLITS.index(record.part) if record.part else -1
        return place, record.number, _number(self._files, record.file), _number(self._notes, record.notes), part

    def finish(self, properties: Mapping[str, str]) -> None:
        """All records are in; of their properties, those named become columns of `y`."""
        self._spill()
        if not self._count:
            return
        arrays = self._spool.arrays()
        y = np.full((self._count, len(properties)), np.nan, dtype=np.float32)
        columns = {name: column for column, name in enumerate(properties)}
        column = np.array([columns.get(name, -1) for name in self._properties], dtype=np.int64)
        if len(column):
            molecule, number = np.asarray(arrays["property_of"]).T
            wanted = column[number] >= 0
            y[molecule[wanted], column[number[wanted]]] = arrays["property"][wanted]
        self._show(arrays, y)

    def _show(self, arrays: Mapping[str, np.ndarray], y: np.ndarray) -> None:
        self.flat = _flat(arrays) | {"y": y}
        self.hashes, self._origins = np.asarray(arrays["hashes"]), np.asarray(arrays["origins"])
        self.smiles, self.names = self._spool.columns()

    def noted(self, note: str) -> np.ndarray:
        """Which molecules have a note [M] bool."""
        numbers = [number for notes, number in self._notes.items() if note in notes]
        return np.isin(self._origins[:, 3], numbers)

    def note_counts(self) -> dict[str, int]:
        """How many molecules have each note, the commonest first."""
        notes = list(self._notes)
        counts: Counter[str] = Counter()
        for number, count in zip(*np.unique(self._origins[:, 3], return_counts=True), strict=True):
            counts.update(dict.fromkeys(notes[number], int(count)))
        return dict(counts.most_common())

    def leave_out(self, problems: Mapping[int, InvalidMolecule]) -> None:
        """Reject molecules that were kept so far, by their index."""
        if not problems:
            return
        files = list(self._files)
        for index, problem in problems.items():
            place, number, file, _, _ = self._origins[index].tolist()
            self.rejected.append(Rejected(place, number, self.names[index], problem, files[file]))
        left = np.setdiff1d(np.arange(self._count), list(problems))
        spool = Spool(self._beside)
        for block in blocks(self.flat, left):
            spool.append(_rows(block))
        if len(left):
            spool.append({"hashes": self.hashes[left], "origins": self._origins[left]})
            spool.append_lines([f"{self.smiles[k]}\t{self.names[k]}" for k in left.tolist()])
        y = self.flat["y"][left]
        self._spool.remove()
        self._spool, self._count = spool, len(left)
        if len(left):
            self._show(spool.arrays(), y)

    def labelled_splits(self) -> dict[str, np.ndarray] | None:
        """Indices of every part where the records say to which they belong, else None.

        Raises:
            MoldiffError: when none says that it is for training.
        """
        labels = self._origins[:, 4]
        if (labels < 0).all():
            return None
        splits = {part: np.flatnonzero(labels == number) for number, part in enumerate(SPLITS)}
        if not len(splits["train"]):
            raise MoldiffError("split: no kept record says 'train', expected at least one to train on")
        return splits

    def close(self) -> None:
        """Delete the temporary files."""
        self._spool.remove()
        self.rejected.close()


def _number(known: dict[_Text, int], text: _Text) -> int:
    return known.setdefault(text, len(known))


def _rows(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Packed arrays in a form that grows by rows."""
    rows = {name: flat[name] for fields in FIELDS_BY_SLICES.values() for name in fields if name != "edge_index"}
    rows["edges"] = flat["edge_index"].T
    return rows | {name: np.diff(flat[name]) for name in FIELDS_BY_SLICES}


def _flat(rows: Mapping[str, np.ndarray]) -> Packed:
    """The inverse of `_rows`."""
    flat = {name: rows[name] for fields in FIELDS_BY_SLICES.values() for name in fields if name != "edge_index"}
    flat["edge_index"] = rows["edges"].T
    return flat | {name: np.concatenate([[0], np.cumsum(rows[name])]).astype(np.int64) for name in FIELDS_BY_SLICES}
