"""Several molecules in turn: so many answers for each of them."""

from __future__ import annotations

from moldiff.batch import Molecule


class Turns:
    """Takes molecules until there are n for each of several inputs; molecule k belongs to input k modulo their number.

    Args:
        inputs: how many there are.
        n: wanted of each.
    """

    def __init__(self, inputs: int, n: int) -> None:
        self._taken = [0] * inputs
        self._wanted = n

    def admit(self, index: int, molecule: Molecule) -> str | None:
        """Take a molecule in unless its input has all that are wanted."""
        place = index % len(self._taken)
        if self._taken[place] >= self._wanted:
            return "surplus"
        self._taken[place] += 1
        return None
