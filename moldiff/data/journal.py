"""Finished records of a source on disk, so that a preparation that was ended goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from moldiff.data.sources.source import SourceRecord
from moldiff.data.store import load_arrays, pack, save_arrays, unpack
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

_PART_RECORDS = 256
_TEXT = "text"


class Journal:
    """The first records of a source, in files of up to 256.

    A file gets its name when it is whole, so that whoever is ended while writing leaves none that is not.

    Args:
        folder: where the files are, in a folder of their own for each key; made when there is something to write.
        key: a digest of all that decides on the records.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._root, self._folder = folder, folder / key[:16]
        self._open: list[SourceRecord] = []
        self._parts = _whole_parts(self._folder)

    def __len__(self) -> int:
        return sum(count for count, _ in self._parts) + len(self._open)

    def __iter__(self) -> Iterator[SourceRecord]:
        """All records that are on disk."""
        for _, path in self._parts:
            yield from _read(path)

    def append(self, record: SourceRecord) -> None:
        """Add the next record; it is on disk with the 256th, or after `flush`."""
        self._open.append(record)
        if len(self._open) == _PART_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Put the records on disk that are not yet."""
        if not self._open:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        first, count = len(self) - len(self._open), len(self._open)
        path = self._folder / f"{first:010d}-{count:04d}.part"
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        _write(unfinished, self._open)
        os.replace(unfinished, path)
        self._parts.append((count, path))
        self._open = []

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._parts, self._open = [], []


def _whole_parts(folder: Path) -> list[tuple[int, Path]]:
    """Number of records and file of every part that follows on the one before.

    Two processes at the same records may have divided them in different ways, so that some parts overlap.
    """
    found: list[tuple[int, Path]] = []
    total = 0
    for path in sorted(folder.glob("*.part")):
        first, _, count = path.stem.partition("-")
        if int(first) == total:
            found.append((int(count), path))
            total += int(count)
    return found


def _write(path: Path, records: list[SourceRecord]) -> None:
    flat = pack([record.outcome for record in records if isinstance(record.outcome, Molecule)], [])
    text = json.dumps([_fields(record) for record in records]).encode()
    save_arrays(path, flat | {_TEXT: np.frombuffer(text, dtype=np.uint8)})


def _fields(record: SourceRecord) -> dict[str, Any]:
    """All of a record but its molecule's arrays."""
    fields = {"number": record.number, "name": record.name, "file": record.file, "keys": record.keys}
    fields |= {"notes": record.notes, "part": record.part}
    if isinstance(record.outcome, InvalidMolecule):
        problem = record.outcome
        return fields | {"problem": [problem.status.value, problem.reason, problem.atom]}
    return fields | {"title": record.outcome.name, "properties": dict(record.outcome.properties)}


def _read(path: Path) -> Iterator[SourceRecord]:
    try:
        flat = load_arrays(path, map_from=path.stat().st_size + 1)
        texts = json.loads(flat.pop(_TEXT).tobytes())
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise MoldiffError(f"{path}: damaged ({error}); delete {path.parent} to begin anew") from None
    index = 0
    for fields in texts:
        fields["keys"] = None if fields["keys"] is None else tuple(fields["keys"])
        fields["notes"] = tuple(fields["notes"])
        if problem := fields.pop("problem", None):
            status, reason, atom = problem
            yield SourceRecord(outcome=InvalidMolecule(Status(status), reason, atom), **fields)
            continue
        title, properties = fields.pop("title"), fields.pop("properties")
        yield SourceRecord(outcome=unpack(flat, index, properties=properties, name=title), **fields)
        index += 1
