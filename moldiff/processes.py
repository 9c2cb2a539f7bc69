"""A function on many items in worker processes, with a hard limit for each item.

RDKit and quantum chemistry can hang in compiled code, where neither a signal handler nor a thread can stop them. Here
a worker that oversteps the limit ends and is replaced, and its item is a `Failure`. The limit counts the processor
time of the worker, so that a busy machine loses no item; a second limit by the clock, far above it, ends a worker that
waits for something that never comes.

Workers are fresh interpreters that are spoken to through pipes: they import what the function needs and not the
caller's script, so that this also works from notebooks and scripts without a `__main__` guard. Only so many items are
read ahead that the stream of them may be larger than memory.

Signals that mean something else for a while.

Which of several processes of a training this one is, as the environment of whoever started it says.

Needs no Lightning, which comes to the same answer later: the command line has to know before it loads anything heavy.
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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import IO, Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

START_LIMIT = 600.0
"""Seconds by the clock that a worker may take to start and import."""

_WALL_FACTOR, _WALL_EXTRA = 10.0, 60.0
"""The limit by the clock is the limit times the one plus the other (seconds)."""

_CHUNK_SECONDS = 0.1  # work sent to a worker at once, so that fast items are not slowed down by the pipes
_MAX_CHUNK = 64
_READ_AHEAD = 512
_GRACE = 5.0  # seconds after which an orphaned worker, whose caller was killed, ends by itself
_COUNTS_CPU = hasattr(signal, "ITIMER_PROF")  # where there is no such timer, the limit is one by the clock


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


def was_interrupted(outcomes: Sequence[Any]) -> bool:
    """Whether Ctrl-C left items of `run_limited` unfinished."""
    return any(isinstance(outcome, Failure) and outcome.kind is FailureKind.INTERRUPTED for outcome in outcomes)


class Limits(NamedTuple):
    """What an item may take.

    Attributes:
        cpu: seconds of processor time.
        wall: seconds by the clock.
    """

    cpu: float
    wall: float

    @classmethod
    def of(cls, limit: float, wall_limit: float | None) -> Limits:
        """The limits for `limit` seconds of processor time; without a limit by the clock, one far above it."""
        if not _COUNTS_CPU:
            return cls(limit, limit)
        return cls(limit, _WALL_FACTOR * limit + _WALL_EXTRA if wall_limit is None else wall_limit)


OnProgress = Callable[[int, int], None]  # number of finished and of all items
_Answer = tuple["_Worker", int | None, Any]  # (who, place of the item, outcome); no place: started (True) or why gone


def run_limited(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    limit: float,
    wall_limit: float | None = None,
    num_workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[Result | Failure]:
    """Results of `function` for all items, in order; what failed is a `Failure`.

    Args:
        function: can be imported by name (or a `functools.partial` of such); it and the items can be pickled.
        items: what to work off.
        limit: seconds of processor time that an item may take.
        wall_limit: seconds by the clock that an item may take; None = ten times `limit` and a minute.
        num_workers: processes; None = one per CPU that may be used.
        on_progress: called after every item.

    Returns:
        One entry per item. After Ctrl-C, the entries that are not finished are failures of kind `INTERRUPTED`; the
        interruption is not raised again.

    Raises:
        RuntimeError: when workers cannot start, for example because the function cannot be imported.
    """
    pool = _Pool(function, items, num_workers or available_cpus(), Limits.of(limit, wall_limit))
    results: dict[int, Any] = {}
    try:
        for place, _, outcome in pool.run():
            results[place] = outcome
            if on_progress is not None:
                on_progress(len(results), len(items))
    except KeyboardInterrupt:
        pass  # what is finished is kept; the rest is marked below
    finally:
        pool.close()
    unfinished = Failure(FailureKind.INTERRUPTED, "interrupted before it was finished")
    return [results.get(place, unfinished) for place in range(len(items))]


def stream_limited(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    limit: float,
    wall_limit: float | None = None,
) -> Generator[tuple[Item, Result | Failure], None, None]:
    """Every item with its result, in order, as they come.

    Args:
        function: as for `run_limited`.
        items: what to work off, read as it is needed.
        num_workers: processes; 0 = none, then all is done in this process and without limits, and what the function
            raises is raised here.
        limit: seconds of processor time that an item may take.
        wall_limit: seconds by the clock that an item may take; None = ten times `limit` and a minute.

    Raises:
        RuntimeError: when workers cannot start.
    """
    if num_workers == 0:
        for item in items:
            yield item, function(item)
        return
    pool = _Pool(function, items, num_workers, Limits.of(limit, wall_limit))
    early: dict[int, tuple[Item, Result | Failure]] = {}
    turn = 0
    try:
        for place, item, outcome in pool.run():
            early[place] = (item, outcome)
            while turn in early:
                yield early.pop(turn)
                turn += 1
            pool.num_held = len(early)
    finally:
        pool.close()


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The workers of one run, and who is busy with what.

    Attributes:
        num_held: finished items that the caller must keep for now, as their turn has not come; no more items are read
            while there are too many.
    """

    def __init__(self, function: Callable[[Any], Any], items: Iterable[Any], num_workers: int, limits: Limits) -> None:
        self.num_held = 0
        self._function = pickle.dumps(function)
        self._source = enumerate(items)
        self._num_workers = num_workers
        self._limits = limits
        self._open: dict[int, Any] = {}  # items that are read and not finished
        self._waiting: deque[int] = deque()  # places of those that no worker has
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._workers: set[_Worker] = set()
        self._mean_seconds = 0.0

    def run(self) -> Iterator[tuple[int, Any, Any]]:
        """Place, item and outcome of every item, in the order in which they are finished."""
        while True:
            self._read()
            if not self._open:
                return
            self._hand_out()
            try:
                finished = self._receive(*self._answers.get(timeout=self._patience()))
            except queue.Empty:
                finished = self._end_late()
            for place, outcome in finished:
                yield place, self._open.pop(place), outcome

    def close(self) -> None:
        while self._workers:
            self._workers.pop().kill()

    def _read(self) -> None:
        room = _READ_AHEAD - len(self._open) - self.num_held
        for place, item in islice(self._source, max(0, room)):
            self._open[place] = item
            self._waiting.append(place)

    def _hand_out(self) -> None:
        """Give waiting items to workers that have none, and start workers for what is left."""
        idle = [worker for worker in self._workers if worker.started and not worker.assigned]
        for worker in idle[: len(self._waiting)]:
            fair = len(self._waiting) // (2 * len(self._workers)) + 1
            worth = int(_CHUNK_SECONDS / self._mean_seconds) if self._mean_seconds else 1
            count = min(fair, max(1, worth), _MAX_CHUNK, len(self._waiting))
            places = [self._waiting.popleft() for _ in range(count)]
            worker.assign([(place, self._open[place]) for place in places])
        starting = sum(not worker.started for worker in self._workers)
        for _ in range(min(len(self._waiting) - starting, self._num_workers - len(self._workers))):
            self._workers.add(_Worker(self._function, self._limits, self._answers))

    def _patience(self) -> float:
        """Seconds until the next limit by the clock is overstepped."""
        return max(0.0, min(worker.deadline for worker in self._workers if worker.busy) - time.monotonic())

    def _receive(self, worker: _Worker, place: int | None, outcome: Any) -> list[tuple[int, Any]]:
        """Take in an answer; the items that are finished by it, with their outcomes."""
        if worker not in self._workers:
            return []  # the last words of one that was killed
        if isinstance(outcome, Failure) and place is None:
            return self._bury(worker, outcome)
        if place is None:
            worker.started = True
            return []
        seconds = worker.finish(place)
        self._mean_seconds += (0.1 if self._mean_seconds else 1.0) * (seconds - self._mean_seconds)
        return [(place, outcome)]

    def _end_late(self) -> list[tuple[int, Any]]:
        now = time.monotonic()
        late = [worker for worker in self._workers if worker.busy and worker.deadline <= now]
        failure = Failure(FailureKind.TIME_OUT, f"not finished within {self._limits.wall:g} s by the clock")
        return [finished for worker in late for finished in self._bury(worker, failure)]

    def _bury(self, worker: _Worker, failure: Failure) -> list[tuple[int, Any]]:
        """End a worker: the item it was at has failed, those behind it go back to the front."""
        self._workers.discard(worker)
        worker.kill()
        if not worker.started:
            raise RuntimeError(f"a worker process did not start: {failure.reason}")
        self._waiting.extendleft(reversed(worker.assigned[1:]))
        return [(place, failure) for place in worker.assigned[:1]]


class _Worker:
    """One process, and the thread that speaks with it (only the main thread changes the attributes)."""

    def __init__(self, function: bytes, limits: Limits, answers: queue.SimpleQueue[_Answer]) -> None:
        self.assigned: list[int] = []
        self.started = False
        self.deadline = time.monotonic() + START_LIMIT
        self._limits = limits
        self._since = time.monotonic()
        self._chunks: queue.SimpleQueue[list[tuple[int, Any]] | None] = queue.SimpleQueue()
        paths = [os.path.abspath(path) for path in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from moldiff.processes import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        self._thread = threading.Thread(target=self._converse, args=(function, answers), daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self.assigned) or not self.started

    def assign(self, chunk: list[tuple[int, Any]]) -> None:
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
        self.deadline = self._since + self._limits.wall

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
                _send(to_worker, (function, self._limits))
                answers.put((self, None, _receive(from_worker)))
                while (chunk := self._chunks.get()) is not None:
                    _send(to_worker, chunk)
                    for _ in chunk:
                        answers.put((self, *_receive(from_worker)))
            except (OSError, EOFError, pickle.UnpicklingError):
                answers.put((self, None, self._end(self._process.wait())))
            except Exception as error:  # an item that cannot be pickled must not leave the main thread waiting
                answers.put((self, None, _failed(error)))
            finally:
                self._process.kill()  # closing a pipe that nobody empties would wait for ever

    def _end(self, code: int) -> Failure:
        """What the exit code of the process means for the item that it was at."""
        if _COUNTS_CPU and code == -signal.SIGPROF:
            return Failure(FailureKind.TIME_OUT, f"not finished within {self._limits.cpu:g} s")
        return Failure(FailureKind.CRASHED, f"the process that worked on it ended with code {code}")


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
        function, limits = pickle.load(from_caller)
        function = pickle.loads(function)
    except Exception as error:
        _send(to_caller, _failed(error))
        return
    _send(to_caller, True)
    while True:
        try:
            chunk = pickle.load(from_caller)
        except EOFError:
            return
        for place, item in chunk:
            _set_timers(limits.cpu, limits.wall + _GRACE)
            _send(to_caller, (place, _outcome(function, item)))
        _set_timers(0, 0)


def _set_timers(cpu: float, wall: float) -> None:
    """End this process after so many seconds (0 = never), even in compiled code.

    The signals are left to their default action, which needs no interpreter. The one by the clock is for a worker
    whose caller is gone.
    """
    if _COUNTS_CPU:
        signal.setitimer(signal.ITIMER_PROF, cpu)
        signal.setitimer(signal.ITIMER_REAL, wall)


def _outcome(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> Failure:
    return Failure(FailureKind.ERROR, f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def handled(names: Sequence[str], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let a function handle signals, such as SIGTERM; afterwards they do what they did before.

    Those that the system lacks are left out, and those that are ignored stay so: a script makes what it starts in the
    background ignore Ctrl-C. Outside the main thread, which alone may handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None = not set by Python


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM to the block's end: what it does is done whole."""
    came: list[int] = []
    try:
        with handled(("SIGINT", "SIGTERM"), lambda number, _: came.append(number)):
            yield
    finally:
        for number in came[:1]:  # the first ends the work; it may come twice
            signal.raise_signal(number)


_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """0 for the process that prints and writes, and for a training of one process."""
    return next((int(environment[name]) for name in _RANKS if environment.get(name, "").isdigit()), 0)


def started_together(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several processes were started at once from outside, by SLURM's `srun` or by `torchrun`."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE", "1")) > 1
    in_step = environment.get("SLURM_STEP_ID", "").isdigit() and environment.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )
    return in_step and int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) > 1
