"""Signals that mean something else for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


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
