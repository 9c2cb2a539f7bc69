"""A function on a stream of items in worker processes, in order, with a hard time limit for each item.

RDKit can hang in compiled code, where no signal handler and no thread can stop it: a worker that oversteps the limit
is killed and replaced, and so is one that crashes. Only a few chunks are under way at a time, so that the stream may
be larger than memory.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16
_CHUNKS_AHEAD = 32
_START_SECONDS = 120.0
"""A worker may need this long for its imports, on top of the limit of its first item."""


@dataclass(frozen=True)
class Lost:
    """What stands for the result of an item whose worker was killed or died.

    Attributes:
        reason: one readable line.
        timed_out: whether it was the time limit.
    """

    reason: str
    timed_out: bool


def stream_limited(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int, limit: float
) -> Iterator[tuple[Item, Result | Lost]]:
    """Every item with its result, in order.

    Args:
        function: raises nothing; it and the items can be pickled.
        items: what to work off, read as it is needed.
        num_workers: processes; 0 = none, then all is done in this process and without a time limit.
        limit: seconds an item may take.
    """
    if num_workers == 0:
        for item in items:
            yield item, function(item)
        return
    pool = _Pool(function, num_workers, limit)
    try:
        yield from pool.run(_chunks(iter(items)))
    finally:
        pool.close()


@dataclass
class _Chunk:
    """Items that are sent to a worker together, and the results so far."""

    number: int
    items: list[Any]
    results: list[Any] = field(default_factory=list)

    @property
    def left(self) -> list[Any]:
        return self.items[len(self.results) :]


def _chunks(items: Iterator[Any]) -> Iterator[_Chunk]:
    number = 0
    while chunk := list(islice(items, _CHUNK)):
        yield _Chunk(number, chunk)
        number += 1


class _Worker:
    """One process and what it is at."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.chunk: _Chunk | None = None
        self.patience = _START_SECONDS
        self.since = time.monotonic()

    def send(self, chunk: _Chunk) -> None:
        self.chunk = chunk
        self.since = time.monotonic()
        self.connection.send(chunk.left)

    def receive(self) -> None:
        assert self.chunk is not None
        self.chunk.results.append(self.connection.recv())
        self.since, self.patience = time.monotonic(), 0.0

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Pool:
    """Workers, the chunks they are at, and the finished chunks whose turn has not come."""

    def __init__(self, function: Callable[[Any], Any], num_workers: int, limit: float) -> None:
        self._function, self._num_workers, self._limit = function, num_workers, limit
        self._workers: list[_Worker] = []
        self._finished: dict[int, _Chunk] = {}

    def run(self, chunks: Iterator[_Chunk]) -> Iterator[tuple[Any, Any]]:
        turn, more = 0, True
        while True:
            while more and self._under_way() < _CHUNKS_AHEAD and self._has_idle():
                chunk = next(chunks, None)
                more = chunk is not None
                if chunk is not None:
                    self._start(chunk)
            if not more and not self._under_way():
                return
            self._step()
            while turn in self._finished:
                done = self._finished.pop(turn)
                turn += 1
                yield from zip(done.items, done.results, strict=True)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _under_way(self) -> int:
        return len(self._finished) + sum(worker.chunk is not None for worker in self._workers)

    def _has_idle(self) -> bool:
        return len(self._workers) < self._num_workers or any(worker.chunk is None for worker in self._workers)

    def _start(self, chunk: _Chunk) -> None:
        idle = next((worker for worker in self._workers if worker.chunk is None), None)
        if idle is None:
            idle = _Worker(self._function)
            self._workers.append(idle)
        idle.send(chunk)

    def _step(self) -> None:
        """Take in what the workers have to say, and replace those that are late or gone."""
        busy = {worker.connection: worker for worker in self._workers if worker.chunk is not None}
        heard = wait(list(busy), timeout=0.2)
        for connection, worker in busy.items():
            assert worker.chunk is not None
            try:
                if connection in heard:
                    worker.receive()
                elif time.monotonic() - worker.since > self._limit + worker.patience:
                    self._replace(worker, Lost(f"not finished within {self._limit:g} s", timed_out=True))
                    continue
            except (EOFError, OSError):
                worker.process.join(5)
                reason = f"the process that worked on it ended with code {worker.process.exitcode}"
                self._replace(worker, Lost(reason, timed_out=False))
                continue
            if not worker.chunk.left:
                self._finished[worker.chunk.number] = worker.chunk
                worker.chunk = None

    def _replace(self, worker: _Worker, lost: Lost) -> None:
        chunk = worker.chunk
        assert chunk is not None
        worker.close()
        self._workers.remove(worker)
        chunk.results.append(lost)
        if chunk.left:
            self._start(chunk)
        else:
            self._finished[chunk.number] = chunk


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: read chunks of items and answer each item with its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends the workers
    while True:
        try:
            for item in connection.recv():
                connection.send(function(item))
        except (EOFError, OSError):
            return
