"""Columns of a text file as sequences that are decoded when asked, so that millions of lines need little memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

_PIECE = 2**24


class LineColumn(Sequence[str]):
    """One column of the tab-separated lines of a file; the last column takes what is left of the line.

    Args:
        data: the file's bytes.
        ends: where its lines end [M].
        column: 0 or 1.
    """

    def __init__(self, data: bytes | mmap.mmap, ends: np.ndarray, column: int) -> None:
        self._data, self._ends, self._column = data, ends, column

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) + 1 if index else 0
        line = self._data[start : int(self._ends[index])].rstrip(b"\r")
        return (
            line.split(b"\t", 1)[self._column].decode("utf-8", errors="replace")
            if b"\t" in line
            else (line.decode("utf-8", errors="replace") if self._column == 0 else "")
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list


def read_columns(path: Path, *, map_from: int) -> tuple[LineColumn, LineColumn]:
    """The two columns of a file; one of `map_from` bytes or more is mapped and read as it is needed.

    Raises:
        FileNotFoundError: when it is not there.
    """
    size = path.stat().st_size
    if size < max(1, map_from):
        data: bytes | mmap.mmap = path.read_bytes()
    else:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = [
        np.flatnonzero(np.frombuffer(data[start : start + _PIECE], dtype=np.uint8) == ord("\n")) + start
        for start in range(0, size, _PIECE)
    ]
    ends = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    if size and (not len(ends) or ends[-1] != size - 1):
        ends = np.append(ends, size)
    return LineColumn(data, ends, 0), LineColumn(data, ends, 1)
