"""Functions for worker processes; they import little, so that the workers start fast."""

import ctypes
import os
import time


def square(value: int) -> int:
    return value * value


def troubled_square(value: int) -> int:
    """The square, but 5 raises, 6 hangs in compiled code and 7 ends the process."""
    if value == 5:
        raise ValueError("not\nfive")
    if value == 6:
        ctypes.CDLL(None).sleep(100)
    if value == 7:
        os._exit(3)
    return value * value


def half_a_second(value: int) -> int:
    time.sleep(0.5)
    return value
