"""Outcomes as values: a molecule that fails has a reason, a number has a numerator and a denominator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

KEEP = ("valid", "sound", "unique", "novel")
"""What a sampled molecule can be required to be."""


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
