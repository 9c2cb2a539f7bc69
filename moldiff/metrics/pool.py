"""A function on many items in worker processes, with a hard time limit for each item.

Perception and quantum chemistry can hang in compiled code, where neither a signal handler nor a thread can stop
them. Here a worker that oversteps the limit is killed and replaced, and its item is a `Failure`. Workers are fresh
interpreters that are spoken to through pipes: they import what the function needs and not the caller's script, so
that this also works from notebooks and scripts without a `__main__` guard.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Any, TypeVar

from moldiff.results import Status

Item = TypeVar("Item")
Result = TypeVar("Result")

START_LIMIT = 120.0
"""Seconds that a worker may take to start and import."""

_CHUNK_SECONDS = 0.1  # work sent to a worker at once, so that fast items are not slowed down by the pipes
_MAX_CHUNK = 64
_GRACE = 5.0  # seconds after which an orphaned worker, whose caller was killed, ends by itself


class FailureKind(StrEnum):
    """Why there is no result."""

    TIME_OUT = "time-out"
    ERROR = "error"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Failure:
    """An item without a result.

    Attributes:
        kind: what happened.
        reason: one readable line.
    """

    kind: FailureKind
    reason: str


def status_of(failure: Failure, otherwise: Status = Status.FAILED) -> Status:
    """How a molecule ends whose item has no result."""
    ends = {FailureKind.TIME_OUT: Status.TIME_OUT, FailureKind.INTERRUPTED: Status.INTERRUPTED}
    return ends.get(failure.kind, otherwise)


def was_interrupted(outcomes: Sequence[Any]) -> bool:
    """Whether Ctrl-C left items of `run_limited` unfinished."""
    return any(isinstance(outcome, Failure) and outcome.kind is FailureKind.INTERRUPTED for outcome in outcomes)


OnProgress = Callable[[int, int], None]  # number of finished and of all items
_Answer = tuple["_Worker", int | None, Any]  # (who, place of the item, outcome); no place: started (True) or why gone


def run_limited(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    limit: float,
    num_workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[Result | Failure]:
    """Results of `function` for all items, in order; what failed is a `Failure`.

    Args:
        function: can be imported by name (or a `functools.partial` of such); it and the items can be pickled.
        items: what to work off.
        limit: seconds an item may take.
        num_workers: processes; None = one per CPU that may be used.
        on_progress: called after every item.

    Returns:
        One entry per item. After Ctrl-C, the entries that are not finished are failures of kind `INTERRUPTED`; the
        interruption is not raised again.

    Raises:
        RuntimeError: when workers cannot start, for example because the function cannot be imported.
    """
    pool = _Pool(pickle.dumps(function), items, limit, on_progress)
    try:
        pool.run(min(num_workers or available_cpus(), len(items)))
    except KeyboardInterrupt:
        pass  # what is finished is kept; the rest is marked below
    finally:
        pool.close()
    unfinished = Failure(FailureKind.INTERRUPTED, "interrupted before it was finished")
    return [pool.results.get(place, unfinished) for place in range(len(items))]


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The workers of one run, and who is busy with what."""

    def __init__(self, function: bytes, items: Sequence[Any], limit: float, on_progress: OnProgress | None) -> None:
        self._function = function
        self._items = items
        self._limit = limit
        self._on_progress = on_progress
        self._waiting = deque(range(len(items)))
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._workers: set[_Worker] = set()
        self._mean_seconds = 0.0
        self.results: dict[int, Any] = {}

    def run(self, num_workers: int) -> None:
        while len(self.results) < len(self._items):
            while self._waiting and len(self._workers) < num_workers:
                self._workers.add(_Worker(self._function, self._limit, self._answers))
            try:
                self._receive(*self._answers.get(timeout=self._patience()))
            except queue.Empty:
                self._kill_late()

    def close(self) -> None:
        while self._workers:
            self._workers.pop().kill()

    def _patience(self) -> float:
        """Seconds until the next limit is overstepped."""
        return max(0.0, min(worker.deadline for worker in self._workers) - time.monotonic())

    def _receive(self, worker: _Worker, place: int | None, outcome: Any) -> None:
        if worker not in self._workers:
            return  # the last words of one that was killed
        if place is None and outcome is not True:
            self._bury(worker, FailureKind.CRASHED, str(outcome))
            return
        if place is not None:
            seconds = worker.finish(place)
            self._mean_seconds += (0.1 if self._mean_seconds else 1.0) * (seconds - self._mean_seconds)
            self._record(place, outcome)
        if not worker.assigned:
            self._assign(worker)

    def _assign(self, worker: _Worker) -> None:
        fair = len(self._waiting) // (2 * len(self._workers)) + 1
        worth = int(_CHUNK_SECONDS / self._mean_seconds) if self._mean_seconds else 1
        places = [self._waiting.popleft() for _ in range(min(fair, max(1, worth), _MAX_CHUNK, len(self._waiting)))]
        if places:
            worker.assign([(place, self._items[place]) for place in places])
        else:
            self._workers.discard(worker)
            worker.kill()

    def _kill_late(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline <= now]:
            self._bury(worker, FailureKind.TIME_OUT, f"not finished within {self._limit:g} s")

    def _bury(self, worker: _Worker, kind: FailureKind, reason: str) -> None:
        """End a worker: the item it was at has failed, those behind it go back to the front."""
        self._workers.discard(worker)
        worker.kill()
        if not worker.started:
            raise RuntimeError(f"a worker process did not start: {reason}")
        self._waiting.extendleft(reversed(worker.assigned[1:]))
        if worker.assigned:
            self._record(worker.assigned[0], Failure(kind, reason))

    def _record(self, place: int, outcome: Any) -> None:
        self.results[place] = outcome
        if self._on_progress is not None:
            self._on_progress(len(self.results), len(self._items))


class _Worker:
    """One process, and the thread that speaks with it (only the main thread changes the attributes)."""

    def __init__(self, function: bytes, limit: float, answers: queue.SimpleQueue[_Answer]) -> None:
        self.assigned: list[int] = []
        self.started = False
        self.deadline = time.monotonic() + START_LIMIT
        self._limit = limit
        self._since = time.monotonic()
        self._chunks: queue.SimpleQueue[list[tuple[int, Any]] | None] = queue.SimpleQueue()
        paths = [os.path.abspath(path) for path in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from moldiff.metrics.pool import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        self._thread = threading.Thread(target=self._converse, args=(function, answers), daemon=True)
        self._thread.start()

    def assign(self, chunk: list[tuple[int, Any]]) -> None:
        self.started = True
        self.assigned = [place for place, _ in chunk]
        self._restart_clock()
        self._chunks.put(chunk)

    def finish(self, place: int) -> float:
        """Tick off an item; the seconds that it took."""
        self.assigned.remove(place)
        seconds = time.monotonic() - self._since
        self._restart_clock()
        return seconds

    def _restart_clock(self) -> None:
        self._since = time.monotonic()
        self.deadline = self._since + self._limit

    def kill(self) -> None:
        self._process.kill()
        self._chunks.put(None)
        self._thread.join()
        self._process.wait()

    def _converse(self, function: bytes, answers: queue.SimpleQueue[_Answer]) -> None:
        """Pass chunks on to the process and its answers back, until it is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError), self._process.stdin as to_worker, self._process.stdout as from_worker:
            try:
                _send(to_worker, (function, self._limit))
                answers.put((self, None, _receive(from_worker)))
                while (chunk := self._chunks.get()) is not None:
                    _send(to_worker, chunk)
                    for _ in chunk:
                        answers.put((self, *_receive(from_worker)))
            except (OSError, EOFError, pickle.UnpicklingError):
                answers.put((self, None, f"the process ended with code {self._process.wait()}"))
            except Exception as error:  # an item that cannot be pickled must not leave the main thread waiting
                answers.put((self, None, f"{type(error).__name__}: {error}"))
            finally:
                self._process.kill()  # closing a pipe that nobody empties would wait for ever


def _send(pipe: IO[bytes], value: Any) -> None:
    pickle.dump(value, pipe)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    return pickle.load(pipe)


def serve() -> None:
    """The life of a worker: read a function, then chunks of items, and answer each with its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends the workers
    from_caller = sys.stdin.buffer
    to_caller = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compiled code prints must not get into the answers
    try:
        function, limit = pickle.load(from_caller)
        function = pickle.loads(function)
    except Exception as error:
        _send(to_caller, f"{type(error).__name__}: {error}")
        return
    _send(to_caller, True)
    while True:
        try:
            chunk = pickle.load(from_caller)
        except EOFError:
            return
        for place, item in chunk:
            _set_alarm(limit + _GRACE)
            _send(to_caller, (place, _outcome(function, item)))
        _set_alarm(0)


def _set_alarm(seconds: float) -> None:
    """End this process after that time (0 = never), even in compiled code, in case the caller is gone."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _outcome(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        return Failure(FailureKind.ERROR, f"{type(error).__name__}: {' '.join(str(error).split())}")
