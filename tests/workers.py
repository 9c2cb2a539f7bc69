"""Functions for worker processes; they import little, so that the workers start fast."""

import ctypes
import os
import time


def square(value: int) -> int:
    return value * value


def troubled_square(value: int) -> int:
    """The square, but 5 raises, 6 is busy for ever in compiled code, 7 ends the process and 8 waits for ever."""
    if value == 5:
        raise ValueError("not\nfive")
    if value == 6:
        sum(range(10**15))
    if value == 7:
        os._exit(3)
    if value == 8:
        ctypes.CDLL(None).sleep(100)
    return value * value


def pid_and_wait(folder: str) -> None:
    """Name a file of a folder after this process, and wait for ever in compiled code."""
    open(os.path.join(folder, str(os.getpid())), "w").close()
    ctypes.CDLL(None).sleep(1000)


def function_as_result(value: int) -> object:
    """What no process can send."""
    return (lambda: value) if value == 5 else value


def half_a_second(value: int) -> int:
    time.sleep(0.5)
    return value
