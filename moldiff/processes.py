"""A function on many items in worker processes, with a hard limit for each item; signals; ranks of a training.

RDKit and quantum chemistry can hang in compiled code, where neither a signal handler nor a thread can stop them: a
worker that oversteps a limit ends and is replaced. Workers are fresh interpreters that import what the function needs
and not the caller's script, so that no `__main__` guard is needed.
"""

from __future__ import annotations

import faulthandler
import math
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
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from importlib import import_module
from itertools import count, islice
from typing import IO, Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

START_LIMIT = 600.0  # seconds by the clock that a worker may take to start and import
_CHUNK_SECONDS = 0.1  # work sent to a worker at once, so that fast items are not slowed down by the pipes
_MAX_CHUNK = 64
_READ_AHEAD = 512
_COUNTS_CPU = hasattr(signal, "ITIMER_PROF")  # where there is no such timer, the limit is one by the clock
_WATCHDOG_CODE = 1  # with which `faulthandler` ends a process


class FailureKind(StrEnum):
    """Why there is no result."""

    TIME_OUT = "time-out"
    ERROR = "error"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Failure:
    """An item without a result: what happened, and one readable line on it."""

    kind: FailureKind
    reason: str


def was_interrupted(outcome: Any) -> bool:
    """Whether Ctrl-C left an item of `run_limited` unfinished."""
    return isinstance(outcome, Failure) and outcome.kind is FailureKind.INTERRUPTED


class Limits(NamedTuple):
    """What an item may take: seconds of processor time, and by the clock."""

    cpu: float
    wall: float

    @classmethod
    def of(cls, limit: float, wall_limit: float | None) -> Limits:
        """Those for `limit` seconds of processor time; without a limit by the clock, one far above it."""
        if not _COUNTS_CPU:
            return cls(limit, limit)
        return cls(limit, 10 * limit + 60 if wall_limit is None else wall_limit)


OnProgress = Callable[[int, int], None]  # number of finished and of all items


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

    The function can be imported by name (or is a `functools.partial` of such); it and the items can be pickled. An item
    may take `limit` seconds of processor time and `wall_limit` by the clock (None = ten times `limit` and a minute);
    there is a process for every CPU that may be used, or `num_workers`. After Ctrl-C, items that are not finished are
    failures of kind `INTERRUPTED`; it is not raised again.

    Raises:
        RuntimeError: when workers cannot start, for example because the function cannot be imported.
    """
    results: dict[int, Any] = {}
    with suppress(KeyboardInterrupt), closing(Pool(function, num_workers, Limits.of(limit, wall_limit))) as pool:
        for place, _, outcome in pool.run(items, in_order=False):
            results[place] = outcome
            if on_progress is not None:
                on_progress(len(results), len(items))
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

    As `run_limited`, but that items are read as they are needed, and that without processes (`num_workers` of 0) all
    is done in this one and without limits, and what the function raises is raised here.
    """
    if num_workers == 0:
        yield from ((item, function(item)) for item in items)
        return
    with closing(Pool(function, num_workers, Limits.of(limit, wall_limit))) as pool:
        for _, item, outcome in pool.run(items, in_order=True):
            yield item, outcome


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Workers until it is closed: threads that take what waits, each with a process that is replaced when it ends."""

    def __init__(self, function: Callable[[Any], Any], num_workers: int | None, limits: Limits) -> None:
        self._function, self._limits = pickle.dumps(function), limits
        self._num_workers, self._numbers = num_workers or available_cpus(), count()
        self._waiting: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()  # None = nothing more comes
        self._finished: queue.SimpleQueue[tuple[int | None, Any]] = queue.SimpleQueue()  # no place = not started
        self._threads: list[threading.Thread] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock, self._closed = threading.Lock(), False

    def run(self, items: Iterable[Any], *, in_order: bool) -> Generator[tuple[int, Any, Any], None, None]:
        """Place, item and outcome of every item, as they are finished or in order."""
        source, first = iter(items), next(self._numbers)  # what an interrupted run left has other numbers
        held, early = dict[int, Any](), dict[int, Any]()  # items not given back, and outcomes whose turn has not come
        turn = index = first
        while True:
            for item in islice(source, _READ_AHEAD - len(held)):
                held[index] = item
                try:
                    self._waiting.put((index, pickle.dumps(item)))
                except Exception as error:
                    self._finished.put((index, _failed(error)))
                index = next(self._numbers)
            if not held:
                return
            for _ in range(len(self._threads), min(self._num_workers, len(held))):
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()
            place, outcome = self._finished.get()
            if place is None:
                raise RuntimeError(f"a worker process did not start: {outcome.reason}")
            early[place] = outcome
            turn = turn if in_order else place
            while turn in early and turn in held:
                yield turn - first, held.pop(turn), early.pop(turn)
                turn += 1

    def close(self) -> None:
        """End the workers, whatever they are at."""
        with self._lock:
            self._closed = True
        for process in list(self._processes):
            process.kill()
        self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """What a thread does: give items to a process; the one at which a process ends has failed."""
        chunk: deque[tuple[int, bytes]] = deque()
        while self._refill(chunk) and (process := self._start()) is not None:
            started, seconds = False, math.inf  # that an item takes
            with suppress(OSError), process:  # closes its pipes and waits for its end
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    _send(process.stdin, (self._function, self._limits))
                    problem = pickle.load(process.stdout)
                    started = problem is None
                    while started and self._refill(chunk, seconds):
                        since, number = time.monotonic(), len(chunk)
                        _send(process.stdin, list(chunk))
                        while chunk:
                            self._finished.put((chunk[0][0], pickle.load(process.stdout)))
                            chunk.popleft()
                        seconds = (time.monotonic() - since) / number
                except (OSError, EOFError, pickle.UnpicklingError):
                    problem = self._end(process.wait())
                except Exception as error:  # a result that cannot be unpickled here
                    problem = _failed(error)
                finally:
                    process.kill()  # closing a pipe that nobody empties would wait for ever
            self._processes.discard(process)
            if not started:
                self._finished.put((None, problem))
                return
            if chunk:
                self._finished.put((chunk.popleft()[0], problem))

    def _refill(self, chunk: deque[tuple[int, bytes]], seconds: float = math.inf) -> bool:
        """Wait for items, some more of them if one takes few `seconds`; whether there are any."""
        most = min(_MAX_CHUNK, self._waiting.qsize() // (2 * self._num_workers) + 1, int(_CHUNK_SECONDS / seconds) or 1)
        with suppress(queue.Empty):
            while len(chunk) < most:
                task = self._waiting.get(block=not chunk)
                if task is None:
                    self._waiting.put(None)  # for the other threads
                    break
                chunk.append(task)
        return bool(chunk)

    def _start(self) -> subprocess.Popen[bytes] | None:
        """A new process; None = the pool is closed, or the system gives none."""
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        with self._lock:
            if self._closed:
                return None
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", "from moldiff.processes import serve; serve()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                )
            except OSError as error:
                self._finished.put((None, _failed(error)))
                return None
            self._processes.add(process)
        return process

    def _end(self, code: int) -> Failure:
        """What the exit code of a process means for the item that it was at."""
        if _COUNTS_CPU and code == -signal.SIGPROF:
            return Failure(FailureKind.TIME_OUT, f"not finished within {self._limits.cpu:g} s")
        if code == (-signal.SIGALRM if _COUNTS_CPU else _WATCHDOG_CODE):
            return Failure(FailureKind.TIME_OUT, f"not finished within {self._limits.wall:g} s by the clock")
        return Failure(FailureKind.CRASHED, f"the process that worked on it ended with code {code}")


def _send(pipe: IO[bytes], value: Any) -> None:
    pickle.dump(value, pipe)
    pipe.flush()


def serve() -> None:
    """The life of a worker: read a function, then chunks of items, and answer each with its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends the workers
    from_caller = sys.stdin.buffer
    to_caller = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compiled code prints must not get into the answers
    set_timers(0, START_LIMIT)
    try:
        function, limits = pickle.load(from_caller)
        function = pickle.loads(function)
    except Exception as error:
        _send(to_caller, _failed(error))
        return
    _send(to_caller, None)
    while True:
        set_timers(0, 0)
        try:
            chunk = pickle.load(from_caller)
        except EOFError:
            return
        for _, item in chunk:
            set_timers(*limits)
            try:
                outcome = function(pickle.loads(item))
            except Exception as error:
                outcome = _failed(error)
            _send(to_caller, outcome)


def set_timers(cpu: float, wall: float) -> None:
    """End this worker after so many seconds (0 = never): a signal's default action needs no interpreter or caller."""
    if _COUNTS_CPU:
        signal.setitimer(signal.ITIMER_PROF, cpu)
        signal.setitimer(signal.ITIMER_REAL, wall)
    elif wall:
        faulthandler.dump_traceback_later(wall, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def called(function: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """What a function returns of several items, as a list, or how it failed."""
    try:
        return list(function(items))
    except Exception as error:
        return _failed(error)


def call_named(name: str, folder: str, limit: float, items: list[Any]) -> Any:
    """What `module:function`, of a folder or installed, returns; this worker ends after `limit` seconds for each."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module, _, function = name.partition(":")
    home: Any = import_module(module)
    found = reduce(getattr, function.split("."), home)
    set_timers(0, limit * len(items))
    return called(found, items)


def _failed(error: Exception) -> Failure:
    return Failure(FailureKind.ERROR, f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def handled(names: Sequence[str], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let a function handle signals, such as SIGTERM; afterwards they do what they did before.

    Those that are ignored stay so: a script makes what it starts in the background ignore Ctrl-C. Outside the main
    thread, which alone may handle signals, nothing changes.
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


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """0 for the process that prints and writes, and for a training of one process."""
    values = (environment.get(name, "") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(value) for value in values if value.isdigit()), 0)


def started_together(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several processes were started at once from outside, by SLURM's `srun` or by `torchrun`."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE", "1")) > 1
    if not environment.get("SLURM_STEP_ID", "").isdigit() or environment.get("SLURM_JOB_NAME") in (
        "bash",
        "interactive",
    ):
        return False
    return int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) > 1
