"""How far molecules lie from a minimum of GFN2-xTB (Bannwarth et al. 2019, doi:10.1021/acs.jctc.8b01176).

Every valid molecule is relaxed by L-BFGS from its own coordinates, in the gas phase and in the closed-shell state of
its total charge. A good generator loses little energy and hardly moves. The quantities are those of Nikitin et al.
2025 (arXiv:2505.00169): energy drop, RMSD, and absolute changes of bond lengths, angles and torsions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moldiff.evaluation.result import MetricResult
from moldiff.molecules import internal_coordinates
from moldiff.molecules.molecule import Status, status_of
from moldiff.processes import Failure, run_limited, was_interrupted

if TYPE_CHECKING:  # worker processes import this module, and need no torch
    from rdkit import Chem

    from moldiff.evaluation.metric import Measured, OnProgress
    from moldiff.evaluation.molecule_set import Subjects

BOHR = 0.529177210903  # Å, CODATA 2018
HARTREE = 627.5094740631  # kcal/mol, CODATA 2018
_STRAIGHT = 5.0  # degrees from 0 or 180 within which a bond angle leaves a torsion undefined


class Task(NamedTuple):
    """One molecule to relax: atomic numbers [a], coordinates [a, 3] (Å), bonds (i, j) [m, 2], total charge (e)."""

    atomic_number: np.ndarray
    pos: np.ndarray
    bonds: np.ndarray
    charge: int


class Relaxed(NamedTuple):
    """One relaxed molecule; changes are absolute, one for each bond (Å), angle and torsion (degrees)."""

    pos: np.ndarray
    energy_drop: float
    rmsd: float
    bond_change: np.ndarray
    angle_change: np.ndarray
    torsion_change: np.ndarray
    num_gradients: int


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """Relaxation of the P2-valid molecules with GFN2-xTB.

    Attributes:
        gradient_tolerance: largest component of the gradient at a minimum (Hartree/Bohr); where the energy no longer
            falls, ten times that will do.
        max_iterations: steps of L-BFGS after which a molecule has failed.
        limit: seconds of processor time that a molecule may take.
        num_workers: processes; None = one per CPU.
        skip_if_missing: without the optional package, leave the metric out with a note.
    """

    gradient_tolerance: float = 1e-3
    max_iterations: int = 500
    limit: float = 120.0
    num_workers: int | None = None
    skip_if_missing: bool = False

    name = "xtb"
    needs = ("coordinates", "bonds")
    package = "tblite"

    def __call__(
        self, subjects: Subjects, reference: Subjects | None = None, on_progress: OnProgress | None = None
    ) -> Measured:
        """Relax every valid molecule in 3D."""
        from moldiff.evaluation.metric import require

        require("tblite")
        tasks = [task_of(mol) for mol in subjects.mols.values()]
        function = partial(relax, gradient_tolerance=self.gradient_tolerance, max_iterations=self.max_iterations)
        found = run_limited(function, tasks, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options |= {"method": "GFN2-xTB", "tblite": metadata.version("tblite")}
        return measured(subjects, found, name=self.name, method="GFN2-xTB", options=options)


def measured(
    subjects: Subjects, found: Sequence[Relaxed | Failure], *, name: str, method: str, options: Mapping[str, Any]
) -> Measured:
    """What relaxing every valid molecule in 3D came to: counts, energies, shifts, and a column for each.

    Args:
        subjects: all records.
        found: outcomes of the valid ones, in their order.
        name: of the metric, prefix of its results.
        method: what the definitions call it.
        options: settings and tool versions that decide the numbers.
    """
    from moldiff.evaluation.metric import Measured, unfinished

    by_place = dict(zip(subjects.mols, found, strict=True))
    entries = [by_place.get(place) for place in range(len(subjects))]
    finished = [entry for entry in found if not was_interrupted([entry])]
    left = unfinished(name, len(found) - len(finished), len(found))
    return Measured([*_results(finished, name, method), *left], _columns(entries, name), {}, options, bool(left))


def task_of(mol: Chem.Mol) -> Task:
    """What there is to relax of a molecule with one conformer."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    bonds = np.array([[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()], dtype=np.int64)
    charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    return Task(numbers, mol.GetConformer().GetPositions(), bonds.reshape(-1, 2), charge)


def _status(entry: Relaxed | Failure | None) -> Status | None:
    if entry is None:
        return None
    return status_of(entry) if isinstance(entry, Failure) else Status.OK


def _columns(entries: Sequence[Relaxed | Failure | None], name: str) -> dict[str, Sequence[Any]]:
    done = [entry if isinstance(entry, Relaxed) else None for entry in entries]
    return {
        f"{name}_status": [_status(entry) for entry in entries],
        f"{name}_reason": [entry.reason if isinstance(entry, Failure) else "" for entry in entries],
        f"{name}_energy_drop": [entry and entry.energy_drop for entry in done],
        f"{name}_rmsd": [entry and entry.rmsd for entry in done],
        f"{name}_bond_change": [entry and _mean(entry.bond_change) for entry in done],
        f"{name}_angle_change": [entry and _mean(entry.angle_change) for entry in done],
        f"{name}_torsion_change": [entry and _mean(entry.torsion_change) for entry in done],
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _results(found: Sequence[Relaxed | Failure], name: str, method: str) -> list[MetricResult]:
    from moldiff.evaluation.metric import average, count_statuses, median

    done = [entry for entry in found if isinstance(entry, Relaxed)]
    drops, shifts = [entry.energy_drop for entry in done], [entry.rmsd for entry in done]
    changes = [
        np.concatenate([getattr(entry, change) for entry in done] or [np.zeros(0)]) for change in Relaxed._fields[3:6]
    ]
    over = f"over the P2-valid molecules that {method} relaxed"
    relaxed = f"P2-valid molecules that {method} relaxed to a minimum within the limits, over the P2-valid molecules."
    return [
        MetricResult(f"{name}_relaxed", len(done), len(found), relaxed),
        median(f"{name}_energy_drop_median", drops, f"Median energy lost by relaxing, {over}.", "kcal/mol"),
        average(f"{name}_energy_drop_mean", drops, f"Mean energy lost by relaxing, {over}.", "kcal/mol"),
        median(f"{name}_rmsd_median", shifts, f"Median RMSD of all atoms, superposed, before to after, {over}.", "Å"),
        average(f"{name}_rmsd_mean", shifts, f"Mean RMSD of all atoms, superposed, before to after, {over}.", "Å"),
        average(f"{name}_bond_change", changes[0], f"Mean |Δ length| of all bonds {over}.", "Å"),
        average(f"{name}_angle_change", changes[1], f"Mean |Δ angle| of all bond angles {over}.", "°"),
        average(f"{name}_torsion_change", changes[2], f"Mean |Δ torsion| of all proper torsions {over}.", "°"),
        *count_statuses(name, [_status(entry) for entry in found], len(found)),
    ]


def relax(task: Task, *, gradient_tolerance: float, max_iterations: int) -> Relaxed:
    """Relax one molecule in this process.

    Raises:
        RuntimeError: when the electronic structure or the relaxation does not converge.
    """
    from scipy.optimize import minimize
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", task.atomic_number, task.pos / BOHR, charge=float(task.charge))
    calculator.set("verbosity", 0)
    last = calculator.singlepoint()
    start = float(last.get("energy"))

    def energy_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        calculator.update(positions=flat.reshape(-1, 3))
        last = calculator.singlepoint(last)
        return float(last.get("energy")), np.array(last.get("gradient")).ravel()

    options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "gtol": gradient_tolerance, "ftol": 1e-10}
    found = minimize(
        energy_and_gradient, task.pos.ravel() / BOHR, jac=True, method="L-BFGS-B", options={**options, "maxcor": 20}
    )
    if np.abs(found.jac).max() > 10 * gradient_tolerance:
        raise RuntimeError(f"not relaxed after {found.nit} steps: largest gradient {np.abs(found.jac).max():.2g} Eh/a0")
    return compare(task, found.x.reshape(-1, 3) * BOHR, (start - float(found.fun)) * HARTREE, int(found.nfev))


def compare(task: Task, pos: np.ndarray, energy_drop: float, num_gradients: int = 0) -> Relaxed:
    """What changed from the coordinates of `task` to pos [a, 3] (Å)."""
    number = len(task.atomic_number)
    angles, torsions = (
        internal_coordinates.angle_atoms(task.bonds, number),
        internal_coordinates.torsion_atoms(task.bonds, number),
    )
    ends = np.stack(
        [internal_coordinates.angles(x, torsions[:, part]) for x in (task.pos, pos) for part in ([0, 1, 2], [1, 2, 3])]
    )
    torsions = torsions[((ends > _STRAIGHT) & (ends < 180 - _STRAIGHT)).all(0)]
    return Relaxed(
        pos=pos,
        energy_drop=energy_drop,
        rmsd=superposed_rmsd(task.pos, pos),
        bond_change=np.abs(
            internal_coordinates.lengths(pos, task.bonds) - internal_coordinates.lengths(task.pos, task.bonds)
        ),
        angle_change=np.abs(internal_coordinates.angles(pos, angles) - internal_coordinates.angles(task.pos, angles)),
        torsion_change=internal_coordinates.torsion_change(
            internal_coordinates.torsions(task.pos, torsions), internal_coordinates.torsions(pos, torsions)
        ),
        num_gradients=num_gradients,
    )


def superposed_rmsd(first: np.ndarray, second: np.ndarray) -> float:
    """RMSD (Å) of [a, 3] and [a, 3] after the best rotation and translation (Kabsch 1976), without reflection."""
    first, second = first - first.mean(0), second - second.mean(0)
    u, _, v = np.linalg.svd(first.T @ second)
    u[:, -1] *= np.sign(np.linalg.det(u @ v))
    return float(np.sqrt(np.square(first @ (u @ v) - second).sum(1).mean()))
