"""Rows of an unfinished measurement, one line of JSON each, so that it can go on where it was ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moldiff.errors import MoldiffError
from tests.benchmarks.tasks.settings import Row

_EVERY = 60.0
"""Seconds between two lines on how far it is."""


class Journal:
    """Rows that are kept in a file until the measurement is finished.

    Args:
        path: of the file; made if needed.
        options: that the rows depend on, in JSON's types.

    Raises:
        MoldiffError: when the file holds rows of other options.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: list[Row] = []
        header = {"options": dict(options)}
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may have been cut off
            if whole and whole[0] != header:
                raise MoldiffError(
                    f"{path}: rows of a measurement with other options, expected the same, or no such file"
                )
            self.rows = whole[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(entry) for entry in (header, *self.rows)), encoding="utf-8")

    def add(self, rows: Sequence[Row]) -> None:
        """Keep further rows."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_line(row) for row in rows))
        self.rows += rows

    def close(self) -> None:
        """The measurement is finished, and its rows are no longer needed."""
        self.path.unlink()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


class Progress:
    """Tells on standard error how far a measurement is and about how long it still takes.

    Args:
        total: rows in all.
        done: rows that were there already.
    """

    def __init__(self, total: int, done: int) -> None:
        self._total, self._before = total, done
        self._start = self._shown = time.monotonic()
        if done:
            print(f"moldiff: going on behind {done} of {total}", file=sys.stderr)

    def show(self, done: int, *, what: str = "") -> None:
        """Tell, unless that was done a moment ago."""
        now = time.monotonic()
        first = self._shown == self._start
        if done >= self._total or done == self._before or (now - self._shown < _EVERY and not first):
            return
        self._shown = now
        left = (now - self._start) / (done - self._before) * (self._total - done)
        print(f"moldiff: {what}{done} of {self._total}, about {_duration(left)} left", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
