"""The one exception whose message is meant for the user's eyes, others in a line, and numbers as users give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec


class MoldiffError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names what came and what was expected; the command line prints
    it without a stack trace and exits with code 2.
    """


def check_at_least(name: str, value: int | None, low: int) -> None:
    """Refuse a number below `low`; None is none and passes.

    Raises:
        MoldiffError: with the name, what came and what was expected.
    """
    if value is not None and value < low:
        raise MoldiffError(f"{name}: got {value}, expected a whole number of at least {low}")


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require(package: str, extra: str) -> None:
    """Raise a `MoldiffError` where an optional package, of that extra, is not installed."""
    if find_spec(package) is None:
        raise MoldiffError(f'{package} is not installed; to install it: pip install "moldiff[{extra}]"')


def as_range(value: int | str | Sequence[int]) -> tuple[int, int]:
    """The smallest and the largest number of 6, "6..10" or (6, 10); (0, 0) = it is none of these."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", value)
        return (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if isinstance(value, int):
        return (0, 0) if isinstance(value, bool) else (value, value)
    low, high = value if len(value) == 2 else (0, 0)
    return low, high
