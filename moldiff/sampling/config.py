"""What is asked of a run, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from moldiff.errors import MoldiffError
from moldiff.evaluation.result import KEEP

DECODE = ("valence", "raw")
"""`valence` = the most probable molecule that obeys valence rules; `raw` = the most probable class of each entry."""

MAX_MOLECULES = 100_000_000
"""Molecules of a run at most: indices are below 2**31, and a run may draw 20 times as many as are asked for."""


def default_max_draws(n: int) -> int:
    """After how many draws a run for n molecules gives up, unless told otherwise."""
    return 20 * n + 200


@dataclass(frozen=True, kw_only=True)
class Order:
    """How many molecules are wanted, and which.

    Attributes:
        n: molecules to keep.
        first: index of the first molecule.
        keep: what a kept molecule must be, any of `KEEP`.
        max_draws: give up after so many.
        workers: processes that share the work; None = as many as pay, 0 = none.
        tries_compiling: compile the network where the run is long and a trial found that to pay.
    """

    n: int
    first: int
    keep: frozenset[str]
    max_draws: int
    workers: int | None
    tries_compiling: bool = False

    def __post_init__(self) -> None:
        bounds = {
            "n": (self.n, 1, MAX_MOLECULES + 1),
            "first": (self.first, 0, 2**31 - self.max_draws if isinstance(self.max_draws, int) else 2**31),
            "max_draws": (self.max_draws, 1, 2**31),
            "workers": (0 if self.workers is None else self.workers, 0, 1024),
        }
        for name, bound in bounds.items():
            check_whole(name, *bound)
        if unknown := [item for item in sorted(self.keep) if item not in KEEP]:
            raise MoldiffError(f"keep: got {unknown[0]!r}, expected any of {', '.join(KEEP)}")


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number in [low, high)."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
        raise MoldiffError(f"{name}: got {value!r}, expected a whole number from {low} to {high - 1}")
