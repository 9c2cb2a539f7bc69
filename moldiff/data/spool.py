"""Arrays and lines that grow on disk while a source is read, so that a set may be larger than memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moldiff.data.lines import LineColumn, read_columns

LINES = "lines.txt"


class Spool:
    """Files in a temporary folder that rows are appended to.

    Args:
        beside: the folder is made next to this path, on the disk where the result will be, and only when there is
            something to write.
    """

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._folder: Path | None = None
        self._files: dict[str, BinaryIO] = {}
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows to the array of every name; type and shape of a row stay what they are at first."""
        for name, rows in arrays.items():
            self._forms.setdefault(name, (rows.dtype, rows.shape[1:]))
            self._file(name).write(np.ascontiguousarray(rows).tobytes())

    def append_lines(self, lines: Sequence[str]) -> None:
        """Add lines, of which none holds a line end."""
        self._file(LINES).write("".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace"))

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, mapped from their files."""
        found = {}
        for name, (dtype, row) in self._forms.items():
            file = self._file(name)
            file.flush()
            count = file.tell() // (dtype.itemsize * max(1, int(np.prod(row, dtype=np.int64))))
            shape = (count, *row)
            empty = 0 in shape
            found[name] = np.zeros(shape, dtype) if empty else np.memmap(file.name, dtype, "c", shape=shape)
        return found

    def columns(self) -> tuple[LineColumn, LineColumn]:
        """The two columns of all lines."""
        file = self._file(LINES)
        file.flush()
        return read_columns(Path(file.name), map_from=1)

    def _file(self, name: str) -> BinaryIO:
        if self._folder is None:
            self._beside.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self._beside.name}-spool-", dir=self._beside.parent))
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        return self._files[name]

    def remove(self) -> None:
        """Delete the files; arrays mapped from them can still be used."""
        for file in self._files.values():
            file.close()
        self._files = {}
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
