"""Outcomes as values: a molecule that fails has a reason, a number has a numerator and a denominator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # help is printed without it
    import numpy as np


class Status(StrEnum):
    """What the check of one molecule came to. `OK` is the only valid one."""

    OK = "ok"
    NON_FINITE = "non-finite"
    VALENCE = "valence"
    RADICAL = "radical"
    DISCONNECTED = "disconnected"
    CLASH = "clash"
    UNSANITIZABLE = "unsanitizable"
    UNREADABLE = "unreadable"
    EXPLODED = "exploded"
    PERCEPTION_FAILED = "perception failed"
    TIME_OUT = "time-out"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


KEEP = ("valid", "sound", "unique", "novel")
"""What a sampled molecule can be required to be."""


@dataclass(frozen=True)
class InvalidMolecule:
    """Why a molecule failed.

    Attributes:
        status: the kind of failure.
        reason: one readable line, e.g. "atom 3 (N): bond orders sum to 4, expected 3".
        atom: number of the atom at fault, if it is one atom; as in the reason, atoms count from 0.
    """

    status: Status
    reason: str
    atom: int | None = None

    def renumbered(self, order: Sequence[int] | np.ndarray) -> InvalidMolecule:
        """The same with another number for the atom at fault, in the reason too.

        Args:
            order: the number that each atom has elsewhere, such as in its file.
        """
        if self.atom is None or self.atom >= len(order):
            return self
        atom = int(order[self.atom])
        return replace(self, atom=atom, reason=re.sub(r"^atom \d+", f"atom {atom}", self.reason))


@dataclass(frozen=True)
class MetricResult:
    """One number with everything needed to read it.

    Attributes:
        name: short name, e.g. "p2_molecule_stable".
        numerator: count (or sum) above the line.
        denominator: count below the line.
        definition: one sentence that says what is counted and over what.
        counted: over how many items the number was taken, where the denominator does not say it (a median).
        unit: of the value, e.g. "kcal/mol"; "" = none.
    """

    name: str
    numerator: float
    denominator: float
    definition: str
    counted: int | None = None
    unit: str = ""

    @property
    def value(self) -> float | None:
        """The quotient of the two; None when the denominator is 0 (never NaN)."""
        return self.numerator / self.denominator if self.denominator else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready row."""
        return {
            "name": self.name,
            "value": self.value,
            "numerator": self.numerator,
            "denominator": self.denominator,
            "counted": self.counted,
            "unit": self.unit,
            "definition": self.definition,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """The result of which `to_dict` made the row."""
        return cls(**{key: value for key, value in row.items() if key != "value"})
