"""How far molecules lie from a minimum of GFN2-xTB or of the force field MMFF94s.

Every valid molecule is relaxed from its own coordinates; with GFN2-xTB (Bannwarth et al. 2019,
doi:10.1021/acs.jctc.8b01176) by L-BFGS, in the gas phase and in the closed-shell state of its total charge. A good
generator loses little energy and hardly moves. For a model trained on geometries of MMFF94s (Halgren 1999,
doi:10.1002/jcc.15) that is the level of theory of the training data: relaxed molecules of the data lose nearly nothing.
The quantities are those of Nikitin et al. 2025 (arXiv:2505.00169): energy drop, RMSD, and absolute changes of
bond lengths, angles and torsions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from moldiff.evaluation.metric import (
    MetricOutput,
    OnProgress,
    average,
    count_statuses,
    finished,
    median,
    require,
)
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.evaluation.result import MetricResult
from moldiff.molecules.conformers import (
    angle_atoms,
    angles,
    are_bent,
    lengths,
    torsion_atoms,
    torsion_change,
    torsions,
)
from moldiff.molecules.molecule import Status, status_of
from moldiff.processes import Failure, run_limited

BOHR = 0.529177210903  # Å, CODATA 2018
HARTREE = 627.5094740631  # kcal/mol, CODATA 2018
VARIANT = "MMFF94s"


class RelaxationInput(NamedTuple):
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
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        """Relax every valid molecule in 3D."""
        require("tblite")
        tasks = [input_of(mol) for mol in molecules.mols.values()]
        function = partial(relax, gradient_tolerance=self.gradient_tolerance, max_iterations=self.max_iterations)
        found = run_limited(function, tasks, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        options = asdict(self) | {"method": "GFN2-xTB", "tblite": metadata.version("tblite")}
        return _output(molecules, found, self.name, options)


@dataclass(frozen=True, kw_only=True)
class ForceFieldRelaxation:
    """Relaxation of the P2-valid molecules with RDKit's MMFF94s.

    Attributes:
        max_iterations: steps of RDKit's BFGS after which a molecule has failed.
        limit: seconds of processor time that a molecule may take.
        num_workers: processes; None = one per CPU.
    """

    max_iterations: int = 5000
    limit: float = 30.0
    num_workers: int | None = None

    name = "mmff"
    needs = ("coordinates", "bonds")
    package = None

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        """Relax every valid molecule in 3D."""
        mols = list(molecules.mols.values())
        function = partial(relax_by_force_field, max_iterations=self.max_iterations)
        found = run_limited(function, mols, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        options = asdict(self) | {"method": VARIANT, "rdkit": rdBase.rdkitVersion}
        return _output(molecules, found, self.name, options)


def _output(
    molecules: MoleculeSet, found: Sequence[Relaxed | Failure], name: str, options: Mapping[str, Any]
) -> MetricOutput:
    """What relaxing every valid molecule in 3D came to: counts, energies, shifts, and a column for each."""
    done, left = finished(name, found)
    entries = molecules.spread(dict(zip(molecules.mols, found, strict=True)))
    results = [*_results(done, name, options["method"]), *left]
    return MetricOutput(results, _columns(entries, name), {}, options, bool(left))


def input_of(mol: Chem.Mol) -> RelaxationInput:
    """What there is to relax of a molecule with one conformer."""
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    bonds = np.array([[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()], dtype=np.int64)
    charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    return RelaxationInput(numbers, mol.GetConformer().GetPositions(), bonds.reshape(-1, 2), charge)


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


def relax(task: RelaxationInput, *, gradient_tolerance: float, max_iterations: int) -> Relaxed:
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


def relax_by_force_field(mol: Chem.Mol, *, max_iterations: int) -> Relaxed:
    """Relax one sanitised molecule with explicit hydrogens and one conformer, in this process.

    Raises:
        RuntimeError: when the force field lacks parameters for it, or the relaxation does not converge.
    """
    mol, before = Chem.Mol(mol), input_of(mol)
    with rdBase.BlockLogs():
        field = _force_field(mol)
        if field is None:
            raise RuntimeError(f"{VARIANT} has no parameters for it")
        start = field.CalcEnergy()
        if field.Minimize(maxIts=max_iterations):
            raise RuntimeError(f"not relaxed after {max_iterations} steps")
        return compare(before, mol.GetConformer().GetPositions(), start - field.CalcEnergy())


def energy_drop(mol: Chem.Mol, *, max_iterations: int = 500) -> float | None:
    """Energy (kcal/mol) that a molecule loses in so many steps, in this process; None without parameters for it.

    Args:
        mol: explicit hydrogens and one conformer; need not be sanitised.
        max_iterations: few, so that no molecule takes long.
    """
    mol = Chem.Mol(mol)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
        field = _force_field(mol)
        if field is None:
            return None
        start: float = field.CalcEnergy()
        field.Minimize(maxIts=max_iterations)
        return start - float(field.CalcEnergy())


def _force_field(mol: Chem.Mol) -> Any | None:
    """The force field on the coordinates of a molecule; None without parameters for it."""
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=VARIANT)
    return None if properties is None else rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)


def compare(task: RelaxationInput, pos: np.ndarray, energy_drop: float, num_gradients: int = 0) -> Relaxed:
    """What changed from the coordinates of `task` to pos [a, 3] (Å)."""
    before, bonds, number = task.pos, task.bonds, len(task.atomic_number)
    bends, turns = angle_atoms(bonds, number), torsion_atoms(bonds, number)
    turns = turns[are_bent(before, turns) & are_bent(pos, turns)]
    return Relaxed(
        pos=pos,
        energy_drop=energy_drop,
        rmsd=superposed_rmsd(before, pos),
        bond_change=np.abs(lengths(pos, bonds) - lengths(before, bonds)),
        angle_change=np.abs(angles(pos, bends) - angles(before, bends)),
        torsion_change=torsion_change(torsions(before, turns), torsions(pos, turns)),
        num_gradients=num_gradients,
    )


def superposed_rmsd(first: np.ndarray, second: np.ndarray) -> float:
    """RMSD (Å) of [a, 3] and [a, 3] after the best rotation and translation (Kabsch 1976), without reflection."""
    first, second = first - first.mean(0), second - second.mean(0)
    u, _, v = np.linalg.svd(first.T @ second)
    u[:, -1] *= np.sign(np.linalg.det(u @ v))
    return float(np.sqrt(np.square(first @ (u @ v) - second).sum(1).mean()))
