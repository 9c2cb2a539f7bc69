"""How far molecules lie from a minimum of the force field MMFF94s (Halgren 1999, doi:10.1002/jcc.15).

The same quantities as of GFN2-xTB in `moldiff.evaluation.metrics.relaxation`. For a model trained on geometries of this
force field it is the level of theory of the training data: relaxed molecules of the data lose nearly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from moldiff.evaluation.metrics.relaxation import Relaxed, compare, measured, task_of
from moldiff.processes import run_limited

if TYPE_CHECKING:  # worker processes import this module, and need no torch
    from moldiff.evaluation.metric import Measured, OnProgress
    from moldiff.evaluation.molecule_set import Subjects

VARIANT = "MMFF94s"


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
        self, subjects: Subjects, reference: Subjects | None = None, on_progress: OnProgress | None = None
    ) -> Measured:
        """Relax every valid molecule in 3D."""
        mols = list(subjects.mols.values())
        function = partial(relax, max_iterations=self.max_iterations)
        found = run_limited(function, mols, limit=self.limit, num_workers=self.num_workers, on_progress=on_progress)
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options |= {"method": VARIANT, "rdkit": rdBase.rdkitVersion}
        return measured(subjects, found, name=self.name, method=VARIANT, options=options)


def relax(mol: Chem.Mol, *, max_iterations: int) -> Relaxed:
    """Relax one sanitised molecule with explicit hydrogens and one conformer, in this process.

    Raises:
        RuntimeError: when the force field lacks parameters for it, or the relaxation does not converge.
    """
    with rdBase.BlockLogs():
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=VARIANT)
        if properties is None:
            raise RuntimeError(f"{VARIANT} has no parameters for it")
        task, relaxed = task_of(mol), Chem.Mol(mol)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(relaxed, properties)
        start = field.CalcEnergy()
        if field.Minimize(maxIts=max_iterations):
            raise RuntimeError(f"not relaxed after {max_iterations} steps")
        return compare(task, relaxed.GetConformer().GetPositions(), start - field.CalcEnergy())


def energy_drop(mol: Chem.Mol, *, max_iterations: int = 500) -> float | None:
    """Energy (kcal/mol) that a molecule loses in so many steps, in this process; None without parameters for it.

    Args:
        mol: explicit hydrogens and one conformer; need not be sanitised.
        max_iterations: few, so that no molecule takes long.
    """
    mol = Chem.Mol(mol)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol, mmffVariant=VARIANT)
        if properties is None:
            return None
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
        start: float = field.CalcEnergy()
        field.Minimize(maxIts=max_iterations)
        return start - float(field.CalcEnergy())
