"""The rejected records of a source, kept on disk: also a source of which nothing is kept may be larger than memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from moldiff.data.spool import Spool
from moldiff.data.tally import Rejected
from moldiff.results import InvalidMolecule, Status

_CHUNK = 1024


class Rejects(Sequence[Rejected]):
    """Rejected records in the order in which they stand in their source, whatever the order in which they come.

    Args:
        beside: a temporary file is made next to this path.
    """

    def __init__(self, beside: Path) -> None:
        self._spool = Spool(beside)
        self._places = array("q")
        self._open: list[str] = []
        self._lines: Sequence[str] | None = None
        self._order = np.zeros(0, dtype=np.int64)

    def append(self, record: Rejected) -> None:
        """Take in a record."""
        problem = record.problem
        fields = (record.place, record.number, record.name, record.file, problem.status, problem.reason, problem.atom)
        self._open.append(json.dumps(fields))
        self._places.append(record.place)
        self._lines = None
        if len(self._open) == _CHUNK:
            self._spill()

    def _spill(self) -> None:
        self._spool.append_lines(self._open)
        self._open = []

    def _read(self) -> Sequence[str]:
        """The records as text, in the order in which they came."""
        if len(self._open) == len(self):  # too few for a file
            return self._open
        self._spill()
        return self._spool.columns()[0]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Rejected: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rejected]: ...

    def __getitem__(self, index: int | slice) -> Rejected | list[Rejected]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if self._lines is None:
            self._lines = self._read()
            self._order = np.argsort(np.frombuffer(self._places, dtype=np.int64), kind="stable")
        place, number, name, file, status, reason, atom = json.loads(self._lines[int(self._order[index])])
        return Rejected(place, number, name, InvalidMolecule(Status(status), reason, atom), file)

    def close(self) -> None:
        """Delete the file; the records can still be read if one has been read before."""
        self._spool.remove()
