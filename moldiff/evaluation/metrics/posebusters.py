"""The checks of PoseBusters (Buttenschoen et al. 2024, doi:10.1039/D3SC04185A) on molecules without a protein.

The full configuration `mol` is used, the ratio of the molecule's energy to that of generated conformers included,
with one column per check. A check that could not be made (because the molecule does not sanitise, say) is blank and
never a pass. Every molecule is checked on its own, as drawn, so that one that breaks a check stops no other. The
energy ratio takes nearly all of the time, since conformers of a strained molecule are sought long and often in vain;
it is taken apart from the other checks, so that its time-out leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from rdkit import Chem

from moldiff.evaluation.metric import MetricOutput, OnProgress, count_statuses, require, unfinished
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.evaluation.result import MetricResult
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.molecule import InvalidMolecule, Status, status_of
from moldiff.processes import Failure, FailureKind, run_limited, was_interrupted

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


@dataclass(frozen=True, kw_only=True)
class PoseBustersChecks:
    """PoseBusters, full configuration `mol`.

    Attributes:
        limit: seconds of processor time that the energy ratio of a molecule may take, and so may the other checks
            together.
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
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        """Check every molecule that could be read, broken ones included."""
        require("posebusters")
        outcomes: list[_Outcome | None] = [
            entry if isinstance(entry, InvalidMolecule) else molecules.problem(place)
            for place, entry in enumerate(molecules.entries)
        ]
        asked = [place for place, problem in enumerate(outcomes) if problem is None]
        entries = [molecules.entries[place] for place in asked]
        mols = [to_rdkit(entry, stereo=False) for entry in entries if not isinstance(entry, InvalidMolecule)]
        tasks = [PoseInput(mol, energy) for mol in mols for energy in (False, True)]
        report = None if on_progress is None else lambda done, total: on_progress(done // 2, total // 2)
        found = run_limited(bust, tasks, limit=self.limit, num_workers=self.num_workers, on_progress=report)
        for place, cheap, energy in zip(asked, found[::2], found[1::2], strict=True):
            outcomes[place] = _merged(cheap, energy)
        options = asdict(self) | {"configuration": "mol", "posebusters": metadata.version("posebusters")}
        judged = [outcome for outcome in outcomes if outcome is not None]
        finished = [one for one in judged if not (isinstance(one, Checked) and was_interrupted([one.failure]))]
        left = unfinished("posebusters", len(judged) - len(finished), len(judged))
        return MetricOutput([*_results(finished), *left], _columns(judged), {}, options, bool(left))


class PoseInput(NamedTuple):
    """A molecule, not necessarily sanitised, with one conformer; and whether its energy ratio or the rest is asked."""

    mol: Chem.Mol
    energy: bool


class Checked(NamedTuple):
    """Outcome by name of the check (None = it could not be made), and which worker's failure left some blank."""

    verdicts: dict[str, bool | None]
    failure: Failure | None = None


_Outcome = Checked | InvalidMolecule


def _merged(cheap: dict[str, bool | None] | Failure, energy: dict[str, bool | None] | Failure) -> Checked:
    failures = [part for part in (cheap, energy) if isinstance(part, Failure)]
    failures.sort(key=lambda failure: failure.kind is not FailureKind.INTERRUPTED)
    verdicts = {name: verdict for part in (cheap, energy) if isinstance(part, dict) for name, verdict in part.items()}
    return Checked(verdicts, failures[0] if failures else None)


def _status(outcome: _Outcome) -> Status:
    if isinstance(outcome, InvalidMolecule):
        return outcome.status
    if all(outcome.verdicts.get(check) for check in CHECKS):
        return Status.OK
    refuted = any(verdict is False for verdict in outcome.verdicts.values())
    return Status.FAILED if refuted or outcome.failure is None else status_of(outcome.failure)


def _reason(outcome: _Outcome) -> str:
    if isinstance(outcome, InvalidMolecule):
        return outcome.reason
    failed = [check for check in CHECKS if outcome.verdicts.get(check) is False]
    blank = [check for check in CHECKS if outcome.verdicts.get(check) is None]
    texts = [f"{what}: {', '.join(names)}" for what, names in (("failed", failed), ("not made", blank)) if names]
    return "; ".join(texts + ([] if outcome.failure is None else [outcome.failure.reason]))


def _columns(outcomes: Sequence[_Outcome]) -> dict[str, Sequence[Any]]:
    columns: dict[str, Sequence[Any]] = {
        "posebusters_status": [_status(outcome) for outcome in outcomes],
        "posebusters_reason": [_reason(outcome) for outcome in outcomes],
    }
    for check in CHECKS:
        columns[f"posebusters_{check}"] = _verdicts(outcomes, check)
    return columns


def _verdicts(outcomes: Sequence[_Outcome], check: str) -> list[bool | None]:
    return [outcome.verdicts.get(check) if isinstance(outcome, Checked) else None for outcome in outcomes]


def _results(outcomes: Sequence[_Outcome]) -> list[MetricResult]:
    total, statuses = len(outcomes), [_status(outcome) for outcome in outcomes]
    passed = sum(status is Status.OK for status in statuses)
    complete = sum(
        isinstance(outcome, Checked) and all(outcome.verdicts.get(check) is not None for check in CHECKS)
        for outcome in outcomes
    )
    results = [
        MetricResult("posebusters_valid", passed, total, _VALID),
        MetricResult(
            "posebusters_complete", complete, total, "Molecules of which every check could be made, over all."
        ),
    ]
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


def bust(task: PoseInput) -> dict[str, bool | None]:
    """PoseBusters' verdicts on one molecule, by name of the check."""
    row = _busters(energy=task.energy).bust(task.mol, full_report=False).iloc[0]
    return {check: _verdict(row[check]) for check in CHECKS if check in row}


def _verdict(value: Any) -> bool | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return bool(value)


@cache
def _busters(*, energy: bool) -> Any:
    """PoseBusters with the energy ratio of the configuration `mol`, or with all its other checks."""
    from posebusters import PoseBusters

    config = PoseBusters(config="mol").config
    modules = [module for module in config["modules"] if (module["function"] == "energy_ratio") is energy]
    modules = [module for module in modules if "chosen_binary_test_output" in module]  # one stands there twice
    if energy:
        modules[0]["parameters"]["num_threads"] = 1  # one worker per CPU is enough; the seed is fixed
    return PoseBusters(config={**config, "modules": modules}, max_workers=0)
