"""How far molecules lie from a minimum of GFN2-xTB (Bannwarth et al. 2019, doi:10.1021/acs.jctc.8b01176) or MMFF94s.

With GFN2-xTB, in the gas phase and the closed-shell state of the total charge, by L-BFGS. The force field is that of
Halgren 1999 (doi:10.1002/jcc.15), the quantities are those of Nikitin et al. 2025 (arXiv:2505.00169).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from math import inf
from time import process_time
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from moldiff.evaluation.metric import MetricOutput, MetricResult, average, count_statuses, finished, median
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules import conformers
from moldiff.molecules.molecule import Status, status_of
from moldiff.processes import Failure, OnProgress, run_limited

BOHR = 0.529177210903  # Å, CODATA 2018
HARTREE = 627.5094740631  # kcal/mol, CODATA 2018
VARIANT = "MMFF94s"
_BLOCK = 500  # steps of a force field between two looks at the clock


class RelaxationInput(NamedTuple):
    """One molecule to relax."""

    atomic_number: np.ndarray  # [a]
    pos: np.ndarray  # [a, 3] (Å)
    bonds: np.ndarray  # (i, j) [m, 2]
    charge: int  # (e)


class Relaxed(NamedTuple):
    """Energy lost (kcal/mol), RMSD (Å), absolute changes of bonds (Å), angles and torsions (degrees); positions (Å)."""

    energy_drop: float
    rmsd: float
    bond_change: np.ndarray
    angle_change: np.ndarray
    torsion_change: np.ndarray
    pos: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """Relaxation of the P2-valid molecules with GFN2-xTB.

    At a minimum no component of the gradient is above `gradient_tolerance` (Hartree/Bohr); where the energy no longer
    falls, ten times that will do. A molecule fails after `max_iterations` of L-BFGS or `limit` seconds.
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
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        function = partial(relax, gradient_tolerance=self.gradient_tolerance, max_iterations=self.max_iterations)
        options = asdict(self) | {"method": "GFN2-xTB", "tblite": metadata.version("tblite")}
        return _output(self, molecules, function, [*map(input_of, molecules.mols())], options, on_progress)


@dataclass(frozen=True, kw_only=True)
class ForceFieldRelaxation:
    """Relaxation of the P2-valid molecules with RDKit's MMFF94s, its steps and its time (s) limited likewise."""

    max_iterations: int = 5000
    limit: float = 30.0
    num_workers: int | None = None

    name = "mmff"
    needs = ("coordinates", "bonds")

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        function = partial(relax_by_force_field, max_iterations=self.max_iterations)
        options = asdict(self) | {"method": VARIANT, "rdkit": rdBase.rdkitVersion}
        return _output(self, molecules, function, [*molecules.mols()], options, on_progress)


def _output(
    metric: Relaxation | ForceFieldRelaxation,
    molecules: MoleculeSet,
    function: Callable[[Any], Relaxed],
    tasks: Sequence[Any],
    options: Mapping[str, Any],
    on_progress: OnProgress | None,
) -> MetricOutput:
    """What relaxing every valid molecule in 3D comes to: counts, energies, shifts, and a column for each."""
    name = metric.name
    found = run_limited(function, tasks, limit=metric.limit, num_workers=metric.num_workers, on_progress=on_progress)
    kept, left = finished(name, found)
    entries = molecules.spread(dict(zip(molecules.placed, found, strict=True)))
    columns: dict[str, Sequence[Any]] = {f"{name}_status": [entry and _status(entry) for entry in entries]}
    columns[f"{name}_reason"] = [entry.reason if isinstance(entry, Failure) else "" for entry in entries]
    for key in Relaxed._fields[:5]:
        values = [getattr(entry, key) if isinstance(entry, Relaxed) else [] for entry in entries]
        columns[f"{name}_{key}"] = [float(np.mean(value)) if np.size(value) else None for value in values]
    return MetricOutput([*_results(kept, name, options["method"]), *left], columns, {}, options, bool(left))


def _status(entry: Relaxed | Failure) -> Status:
    return status_of(entry) if isinstance(entry, Failure) else Status.OK


def input_of(mol: Chem.Mol) -> RelaxationInput:
    """What there is to relax of a molecule with one conformer."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    bonds = np.array([[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()], dtype=np.int64)
    charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    return RelaxationInput(numbers, mol.GetConformer().GetPositions(), bonds.reshape(-1, 2), charge)


def _results(found: Sequence[Relaxed | Failure], name: str, method: str) -> list[MetricResult]:
    done = [entry for entry in found if isinstance(entry, Relaxed)]
    drops, shifts = [entry.energy_drop for entry in done], [entry.rmsd for entry in done]
    bonds, angles, torsions = (np.concatenate([np.zeros(0), *(entry[k] for entry in done)]) for k in (2, 3, 4))
    over = f"over the P2-valid molecules that {method} relaxed"
    relaxed = f"P2-valid molecules that {method} relaxed to a minimum within the limits, over the P2-valid molecules."
    return [
        MetricResult(f"{name}_relaxed", len(done), len(found), relaxed),
        median(f"{name}_energy_drop_median", drops, f"Median energy lost by relaxing, {over}.", "kcal/mol"),
        average(f"{name}_energy_drop_mean", drops, f"Mean energy lost by relaxing, {over}.", "kcal/mol"),
        median(f"{name}_rmsd_median", shifts, f"Median RMSD of all atoms, superposed, before to after, {over}.", "Å"),
        average(f"{name}_rmsd_mean", shifts, f"Mean RMSD of all atoms, superposed, before to after, {over}.", "Å"),
        average(f"{name}_bond_change", bonds, f"Mean |Δ length| of all bonds {over}.", "Å"),
        average(f"{name}_angle_change", angles, f"Mean |Δ angle| of all bond angles {over}.", "°"),
        average(f"{name}_torsion_change", torsions, f"Mean |Δ torsion| of all proper torsions {over}.", "°"),
        *count_statuses(name, [_status(entry) for entry in found]),
    ]


def relax(
    task: RelaxationInput,
    *,
    gradient_tolerance: float = Relaxation.gradient_tolerance,
    max_iterations: int = Relaxation.max_iterations,
    fixed: Sequence[int] | np.ndarray = (),
    limit: float = inf,
) -> Relaxed:
    """Relax one molecule in this process, with a gradient (Hartree/Bohr) and limits (steps, s) as of `Relaxation`.

    The `fixed` atoms stay where they are.

    Raises:
        RuntimeError: when the electronic structure or the relaxation does not converge.
    """
    from scipy.optimize import minimize
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", task.atomic_number, task.pos / BOHR, charge=float(task.charge))
    calculator.set("verbosity", 0)
    last = calculator.singlepoint()
    start, end = float(last.get("energy")), process_time() + limit
    moving = np.delete(np.arange(len(task.pos)), fixed)
    pos = task.pos / BOHR

    def energy_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        if process_time() > end:
            raise RuntimeError(f"not relaxed in {limit:g} s")
        pos[moving] = flat.reshape(-1, 3)
        calculator.update(positions=pos)
        last = calculator.singlepoint(last)
        return float(last.get("energy")), np.array(last.get("gradient"))[moving].ravel()

    limits = {"maxiter": max_iterations, "maxfun": 2 * max_iterations}
    options = {**limits, "gtol": gradient_tolerance, "ftol": 1e-10, "maxcor": 20}
    found = minimize(energy_and_gradient, pos[moving].ravel(), jac=True, method="L-BFGS-B", options=options)
    pos[moving] = found.x.reshape(-1, 3)
    if np.abs(found.jac).max() > 10 * gradient_tolerance:
        raise RuntimeError(f"not relaxed after {found.nit} steps: largest gradient {np.abs(found.jac).max():.2g} Eh/a0")
    return compare(task, pos * BOHR, (start - float(found.fun)) * HARTREE)


def relax_by_force_field(
    mol: Chem.Mol,
    *,
    max_iterations: int = ForceFieldRelaxation.max_iterations,
    fixed: Sequence[int] | np.ndarray = (),
    limit: float = inf,
) -> Relaxed:
    """The same of one sanitised molecule with explicit hydrogens and one conformer, by BFGS with a force field.

    Raises:
        RuntimeError: when the force field lacks parameters for it, or the relaxation does not converge.
    """
    mol, before = Chem.Mol(mol), input_of(mol)
    drop, problem = _minimize(mol, max_iterations, fixed, limit) or (0.0, f"{VARIANT} has no parameters for it")
    if problem is not None:
        raise RuntimeError(problem)
    return compare(before, mol.GetConformer().GetPositions(), drop)


def energy_drop(mol: Chem.Mol, *, max_iterations: int = 500) -> float | None:
    """Energy (kcal/mol) that a molecule, not yet sanitised, loses in so many steps; None without parameters for it."""
    mol = Chem.Mol(mol)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
    found = _minimize(mol, max_iterations)
    return None if found is None else found[0]


def _minimize(
    mol: Chem.Mol, max_iterations: int, fixed: Sequence[int] | np.ndarray = (), limit: float = inf
) -> tuple[float, str | None] | None:
    """Move the atoms to a minimum: the energy lost, and why it was not reached; None = no parameters for it."""
    with rdBase.BlockLogs():
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=VARIANT)
        field = properties and rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
        if field is None:
            return None
        for atom in fixed:
            field.AddFixedPoint(int(atom))
        start, end, steps, problem = float(field.CalcEnergy()), process_time() + limit, 0, None
        block = max_iterations if limit == inf else _BLOCK
        while problem is None and field.Minimize(maxIts=block):
            steps += block
            if process_time() > end:
                problem = f"not relaxed in {limit:g} s"
            elif steps >= max_iterations:
                problem = f"not relaxed after {steps} steps"
        return start - float(field.CalcEnergy()), problem


def compare(task: RelaxationInput, pos: np.ndarray, energy_drop: float) -> Relaxed:
    """What changed from the coordinates of `task` to pos [a, 3] (Å)."""
    before, bonds, number = task.pos, task.bonds, len(task.atomic_number)
    bends, turns = conformers.angle_atoms(bonds, number), conformers.torsion_atoms(bonds, number)
    turns = turns[conformers.are_bent(before, turns) & conformers.are_bent(pos, turns)]
    return Relaxed(
        energy_drop,
        superposed_rmsd(before, pos),
        np.abs(conformers.lengths(pos, bonds) - conformers.lengths(before, bonds)),
        np.abs(conformers.angles(pos, bends) - conformers.angles(before, bends)),
        conformers.torsion_change(conformers.torsions(before, turns), conformers.torsions(pos, turns)),
        pos,
    )


def superposed_rmsd(first: np.ndarray, second: np.ndarray) -> float:
    """RMSD (Å) of [a, 3] and [a, 3] after the best rotation and translation (Kabsch 1976), without reflection."""
    first, second = first - first.mean(0), second - second.mean(0)
    u, _, v = np.linalg.svd(first.T @ second)
    u[:, -1] *= np.sign(np.linalg.det(u @ v))
    return float(np.sqrt(np.square(first @ (u @ v) - second).sum(1).mean()))
