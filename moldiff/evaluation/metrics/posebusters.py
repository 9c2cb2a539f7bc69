"""The checks of PoseBusters (Buttenschoen et al. 2024, doi:10.1039/D3SC04185A) on molecules without a protein.

The ratio of the energy to that of generated conformers takes nearly all of the time, since those of a strained molecule
are sought long and often in vain. It is apart from the other checks, so that its time-out leaves them as they are.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from rdkit import Chem

from moldiff.evaluation.metric import MetricOutput, MetricResult, count_statuses, finished
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status, status_of
from moldiff.processes import Failure, OnProgress, run_limited, was_interrupted

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
    """PoseBusters, full configuration `mol`; the energy ratio and the other checks may take `limit` seconds each."""

    limit: float = 60.0
    num_workers: int | None = None
    skip_if_missing: bool = False

    name = "posebusters"
    needs = ("coordinates", "bonds")
    package = "posebusters"

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        problems = [
            entry if isinstance(entry, InvalidMolecule) else molecules.problem(place)
            for place, entry in enumerate(molecules.entries)
        ]
        usable = [entry for entry, problem in zip(molecules.entries, problems, strict=True) if problem is None]
        mols = [to_rdkit(entry, stereo=False) for entry in usable if isinstance(entry, Molecule)]
        tasks = [(mol, energy) for mol in mols for energy in (False, True)]
        report = None if on_progress is None else lambda done, total: on_progress(done // 2, total // 2)
        found = iter(run_limited(bust, tasks, limit=self.limit, num_workers=self.num_workers, on_progress=report))
        judged = [Checked({}, problem) if problem else _merged(next(found), next(found)) for problem in problems]
        options = asdict(self) | {"configuration": "mol", "posebusters": metadata.version("posebusters")}
        kept, left = finished("posebusters", judged, lambda one: was_interrupted(one.problem))
        columns = {f"posebusters_{key}": [getattr(one, key) for one in judged] for key in ("status", "reason")}
        for check in CHECKS:
            columns[f"posebusters_{check}"] = [one.verdicts.get(check) for one in judged]
        return MetricOutput([*_results(kept), *left], columns, {}, options, bool(left))


class Checked(NamedTuple):
    """Outcome by name of the check (None = it could not be made), and why some or all could not."""

    verdicts: dict[str, bool | None]
    problem: Failure | InvalidMolecule | None = None

    @property
    def status(self) -> Status:
        if isinstance(self.problem, InvalidMolecule):
            return self.problem.status
        if all(self.verdicts.get(check) for check in CHECKS):
            return Status.OK
        refuted = any(verdict is False for verdict in self.verdicts.values())
        return Status.FAILED if refuted or self.problem is None else status_of(self.problem)

    @property
    def reason(self) -> str:
        if isinstance(self.problem, InvalidMolecule):
            return self.problem.reason
        texts = []
        for what, verdict in (("failed", False), ("not made", None)):
            names = [check for check in CHECKS if self.verdicts.get(check) is verdict]
            texts += [f"{what}: {', '.join(names)}"] if names else []
        return "; ".join(texts + ([] if self.problem is None else [self.problem.reason]))


def _merged(cheap: dict[str, bool | None] | Failure, energy: dict[str, bool | None] | Failure) -> Checked:
    failures = [part for part in (cheap, energy) if isinstance(part, Failure)]
    verdicts = {name: verdict for part in (cheap, energy) if isinstance(part, dict) for name, verdict in part.items()}
    return Checked(verdicts, max(failures, key=was_interrupted, default=None))


def _results(outcomes: Sequence[Checked]) -> list[MetricResult]:
    total, statuses = len(outcomes), [outcome.status for outcome in outcomes]
    verdicts = {check: [outcome.verdicts.get(check) for outcome in outcomes] for check in CHECKS}
    complete = sum(None not in row for row in zip(*verdicts.values(), strict=True))
    valid = (
        "Molecules that pass every check of PoseBusters' configuration 'mol', energy ratio included, over all; a check "
        "that could not be made is not passed."
    )
    could = "Molecules of which every check could be made, over all."
    results = [
        MetricResult("posebusters_valid", statuses.count(Status.OK), total, valid),
        MetricResult("posebusters_complete", complete, total, could),
    ]
    for check, found in verdicts.items():
        definition = f"Molecules that pass PoseBusters' check '{check}', over all; not made is not passed."
        made = total - found.count(None)
        results.append(MetricResult(f"posebusters_{check}", found.count(True), total, definition, made))
    return [*results, *count_statuses("posebusters", statuses)]


def bust(task: tuple[Chem.Mol, bool]) -> dict[str, bool | None]:
    """PoseBusters' verdicts on a molecule that need not be sanitised, by name: of the energy ratio, or of the rest."""
    mol, energy = task
    row = _busters(energy=energy).bust(mol, full_report=False).iloc[0]
    blank = row.isna()
    return {check: None if blank[check] else bool(row[check]) for check in CHECKS if check in row}


@cache
def _busters(*, energy: bool) -> Any:
    """PoseBusters with the energy ratio of the configuration `mol`, or with all its other checks."""
    from posebusters import PoseBusters

    config = PoseBusters(config="mol").config
    modules = [one for one in config["modules"] if (one["function"] == "energy_ratio") is energy]
    modules = [one for one in modules if "chosen_binary_test_output" in one]  # one stands there twice
    if energy:
        modules[0]["parameters"]["num_threads"] = 1  # one worker per CPU is enough; the seed is fixed
    return PoseBusters(config={**config, "modules": modules}, max_workers=0)
