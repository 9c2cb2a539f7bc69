"""Worker processes with a hard limit for each item."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import workers

from moldiff.processes import Failure, FailureKind, Limits, run_limited, stream_limited

LATE = Failure(FailureKind.TIME_OUT, "not finished within 0.5 s")
GONE = Failure(FailureKind.CRASHED, "the process that worked on it ended with code 3")


def test_results_come_in_order_and_failures_are_values():
    seen: list[tuple[int, int]] = []
    found = run_limited(
        workers.troubled_square,
        [*range(8), *range(9, 40)],
        limit=0.5,
        num_workers=2,
        on_progress=lambda *step: seen.append(step),
    )
    squares = [k * k for k in range(40) if k != 8]
    assert [found[k] for k in range(39) if k not in (5, 6, 7)] == [squares[k] for k in range(39) if k not in (5, 6, 7)]
    assert found[5] == Failure(FailureKind.ERROR, "ValueError: not five")
    assert found[6] == LATE
    assert found[7] == GONE
    assert seen == [(k, 39) for k in range(1, 40)]


def test_one_that_hangs_among_many_costs_its_limit_alone():
    start = time.monotonic()
    found = run_limited(workers.troubled_square, [1] * 5000 + [6] + [2] * 5000, limit=1, num_workers=2)
    assert found[5000].kind is FailureKind.TIME_OUT
    assert found[:5000] == [1] * 5000
    assert found[5001:] == [4] * 5000
    assert time.monotonic() - start < 60


def test_waiting_costs_no_processor_time_but_has_an_end():
    start = time.monotonic()
    found = run_limited(workers.half_a_second, range(4), limit=0.2, num_workers=2)
    assert found == [0, 1, 2, 3]
    assert time.monotonic() - start > 1
    found = run_limited(workers.troubled_square, [1, 8, 2], limit=0.2, wall_limit=1.0, num_workers=1)
    assert found == [1, Failure(FailureKind.TIME_OUT, "not finished within 1 s by the clock"), 4]


def test_the_limit_by_the_clock_lies_far_above_the_other():
    assert Limits.of(10, None) == Limits(10, 160)
    assert Limits.of(10, 12) == Limits(10, 12)


def test_ctrl_c_keeps_what_is_finished():
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    found = run_limited(workers.half_a_second, range(8), limit=60, num_workers=2, on_progress=interrupt)
    finished = [entry for entry in found if not isinstance(entry, Failure)]
    assert len(finished) == 3
    assert {entry.kind for entry in found if isinstance(entry, Failure)} == {FailureKind.INTERRUPTED}


def test_no_items_and_partial_functions():
    assert run_limited(workers.square, [], limit=1) == []
    assert run_limited(partial(workers.square), [3], limit=10) == [9]
    assert list(stream_limited(workers.square, [], num_workers=2, limit=1)) == []


def test_functions_that_workers_cannot_import(monkeypatch):
    def only_here(value: int) -> int:
        return value

    only_here.__module__, only_here.__qualname__ = "workers", "only_here"
    monkeypatch.setattr(workers, "only_here", only_here, raising=False)
    with pytest.raises(RuntimeError, match="did not start: AttributeError"):
        run_limited(only_here, [1], limit=1)


def test_items_and_results_that_cannot_be_sent():
    found = run_limited(workers.square, [*[2] * 500, lambda: None, 3], limit=5, num_workers=1)
    assert found[:500] == [4] * 500
    assert found[500].kind is FailureKind.ERROR
    assert "pickle" in found[500].reason
    assert found[501] == 9
    found = run_limited(workers.function_as_result, range(9), limit=5, num_workers=2)
    assert isinstance(found[5], Failure)
    assert found[:5] + found[6:] == [0, 1, 2, 3, 4, 6, 7, 8]


def test_workers_leave_no_process_behind(monkeypatch):
    started: list[subprocess.Popen] = []

    class Watched(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    run_limited(workers.troubled_square, [6, 1, 1], limit=0.5, num_workers=2)
    stream = stream_limited(workers.square, range(10_000), num_workers=2, limit=5)
    next(stream)
    stream.close()
    assert len(started) >= 4
    assert all(process.returncode is not None for process in started)


def test_workers_of_a_killed_caller_end_at_their_limit(tmp_path):
    code = (
        "import sys, workers; from moldiff.processes import run_limited; "
        "run_limited(workers.pid_and_wait, [sys.argv[1]] * 2, limit=9, wall_limit=3, num_workers=2)"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(workers.__file__)}
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    caller.kill()
    caller.wait()
    while any(is_running(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_streams_keep_their_order_and_lose_only_the_item_at_fault():
    items = [1, 6, 2, 5, *range(10, 25), 7, 3]
    found = list(stream_limited(workers.troubled_square, iter(items), num_workers=2, limit=0.5))
    assert [item for item, _ in found] == items
    failures = {item: result for item, result in found if isinstance(result, Failure)}
    assert failures == {6: LATE, 7: GONE, 5: Failure(FailureKind.ERROR, "ValueError: not five")}
    assert all(result == item * item for item, result in found if item not in failures)


def test_streams_read_no_further_ahead_than_they_must():
    seen = []

    def items():
        for k in range(100_000):
            seen.append(k)
            yield k

    stream = stream_limited(workers.square, items(), num_workers=2, limit=10)
    for k in range(2000):
        assert next(stream) == (k, k * k)
    stream.close()
    assert len(seen) < 3000


def test_one_that_hangs_holds_no_more_back_than_is_read_ahead():
    items = [6, *[1] * 3000]
    found = list(stream_limited(workers.troubled_square, items, num_workers=2, limit=1))
    assert found[0][1].kind is FailureKind.TIME_OUT
    assert [result for _, result in found[1:]] == [1] * 3000


def test_without_processes_errors_are_raised():
    assert list(stream_limited(workers.square, [2], num_workers=0, limit=1)) == [(2, 4)]
    with pytest.raises(ValueError, match="five"):
        list(stream_limited(workers.troubled_square, [5], num_workers=0, limit=1))
