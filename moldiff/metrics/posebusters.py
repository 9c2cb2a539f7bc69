"""The checks of PoseBusters (Buttenschoen et al. 2024, doi:10.1039/D3SC04185A) on molecules without a protein.

The full configuration `mol` is used, the ratio of the molecule's energy to that of generated conformers included,
with one column per check. A check that could not be made (because the molecule does not sanitise, say) is blank and
never a pass. Every molecule is checked on its own, as drawn, so that one that breaks a check stops no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rdkit import Chem

from moldiff.metrics.pool import Failure, run_limited, status_of
from moldiff.results import InvalidMolecule, MetricResult, Status

if TYPE_CHECKING:  # worker processes import this module, and need no torch
    from moldiff.metrics.subjects import Measured, OnProgress, Subjects

CHECKS = (
    "mol_pred_loaded",
    "sanitization",
    "inchi_convertible",
    "all_atoms_connected",
    "no_radicals",
    "bond_lengths",
    "bond_angles",
    "internal_steric_clash",
    "aromatic_ring_flatness",
    "non-aromatic_ring_non-flatness",
    "double_bond_flatness",
    "internal_energy",
)
"""The checks of the configuration `mol`, in its order and under its names."""

Checked = dict[str, bool | None]
"""Outcome by name of the check; None = it could not be made."""


@dataclass(frozen=True, kw_only=True)
class PoseBustersChecks:
    """PoseBusters, full configuration `mol`.

    Attributes:
        limit: seconds a molecule may take.
        num_workers: processes; None = one per CPU.
        skip_if_missing: without the optional package, leave the metric out with a note.
    """

    limit: float = 60.0
    num_workers: int | None = None
    skip_if_missing: bool = False

    name = "posebusters"
    needs = ("coordinates", "bonds")
    package = "posebusters"

    def __call__(
        self, subjects: Subjects, reference: Subjects | None = None, on_progress: OnProgress | None = None
    ) -> Measured:
        """Check every molecule that could be read, broken ones included."""
        from moldiff.chem import to_rdkit
        from moldiff.metrics.subjects import Measured, require

        require("posebusters")
        outcomes: list[_Outcome | None] = [
            entry if isinstance(entry, InvalidMolecule) else subjects.problem(place)
            for place, entry in enumerate(subjects.entries)
        ]
        asked = [place for place, problem in enumerate(outcomes) if problem is None]
        mols = [to_rdkit(entry) for place in asked if not isinstance(entry := subjects.entries[place], InvalidMolecule)]
        found = run_limited(bust, mols, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        for place, outcome in zip(asked, found, strict=True):
            outcomes[place] = outcome
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options |= {"configuration": "mol", "posebusters": metadata.version("posebusters")}
        judged = [outcome for outcome in outcomes if outcome is not None]
        columns = _columns(judged)
        return Measured(_results(judged), columns, {}, options, Status.INTERRUPTED in columns["posebusters_status"])


_Outcome = Mapping[str, bool | None] | Failure | InvalidMolecule


def _status(outcome: _Outcome) -> Status:
    if isinstance(outcome, InvalidMolecule):
        return outcome.status
    if isinstance(outcome, Failure):
        return status_of(outcome)
    return Status.OK if all(outcome.get(check) for check in CHECKS) else Status.FAILED


def _reason(outcome: _Outcome) -> str:
    if isinstance(outcome, InvalidMolecule | Failure):
        return outcome.reason
    failed = [check for check in CHECKS if outcome.get(check) is False]
    blank = [check for check in CHECKS if outcome.get(check) is None]
    texts = [f"{what}: {', '.join(names)}" for what, names in (("failed", failed), ("not made", blank)) if names]
    return "; ".join(texts)


def _columns(outcomes: Sequence[_Outcome]) -> dict[str, Sequence[Any]]:
    columns: dict[str, Sequence[Any]] = {
        "posebusters_status": [_status(outcome) for outcome in outcomes],
        "posebusters_reason": [_reason(outcome) for outcome in outcomes],
    }
    for check in CHECKS:
        columns[f"posebusters_{check}"] = _verdicts(outcomes, check)
    return columns


def _verdicts(outcomes: Sequence[_Outcome], check: str) -> list[bool | None]:
    return [outcome.get(check) if isinstance(outcome, Mapping) else None for outcome in outcomes]


def _results(outcomes: Sequence[_Outcome]) -> list[MetricResult]:
    from moldiff.metrics.subjects import count_statuses

    total, statuses = len(outcomes), [_status(outcome) for outcome in outcomes]
    passed = sum(status is Status.OK for status in statuses)
    results = [MetricResult("posebusters_valid", passed, total, _VALID)]
    for check in CHECKS:
        verdicts = _verdicts(outcomes, check)
        counted = sum(verdict is not None for verdict in verdicts)
        definition = f"Molecules that pass PoseBusters' check '{check}', over all; not made is not passed."
        passes = sum(verdict is True for verdict in verdicts)
        results.append(MetricResult(f"posebusters_{check}", passes, total, definition, counted))
    return [*results, *count_statuses("posebusters", statuses, total)]


_VALID = (
    "Molecules that pass every check of PoseBusters' configuration 'mol', energy ratio included, over all; a check "
    "that could not be made is not passed."
)


def bust(mol: Chem.Mol) -> Checked:
    """PoseBusters' verdicts on one RDKit molecule, not necessarily sanitised, with one conformer."""
    row = _busters().bust(mol, full_report=False).iloc[0]
    return {str(check): _verdict(value) for check, value in row.items()}


def _verdict(value: Any) -> bool | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return bool(value)


@cache
def _busters() -> Any:
    from posebusters import PoseBusters

    return PoseBusters(config="mol", max_workers=0)
