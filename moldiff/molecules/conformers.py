"""3D coordinates for molecules that come without: ETKDGv3, then MMFF94s, with bounded attempts and a fixed seed."""

from __future__ import annotations

from typing import Any

from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from moldiff.molecules.molecule import InvalidMolecule, Status

ETKDG = "3D by ETKDGv3 and MMFF94s"
NO_FORCE_FIELD = "3D by ETKDGv3 alone (MMFF94s has no parameters)"
NOT_CONVERGED = "MMFF94s not converged"
GEOMETRY = "ETKDGv3, then MMFF94s"

_EMBED_ITERATIONS = 20
_MINIMIZE_ITERATIONS = 500


def embed_conformer(mol: Chem.Mol, seed: int) -> tuple[Chem.Mol | InvalidMolecule, tuple[str, ...]]:
    """The molecule with all hydrogens and one 3D conformer, and notes on how it was made.

    A second round from random coordinates is made where the first fails; there is no third. Minimised by MMFF94s
    where that has parameters for all atoms.

    Args:
        mol: sanitised and in one piece; its coordinates, if any, are left out of account.
        seed: of the embedding; with the same seed and version of RDKit, the same molecule gets the same coordinates.
    """
    mol = Chem.AddHs(mol)
    mol.RemoveAllConformers()
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    with rdBase.BlockLogs():
        if not any(_attempt(mol, seed, random) for random in (False, True)):
            return InvalidMolecule(Status.UNREADABLE, "embedding failed, so no 3D coordinates"), ()
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            return mol, (NO_FORCE_FIELD,)
        state = rdForceFieldHelpers.MMFFOptimizeMolecule(mol, mmffVariant="MMFF94s", maxIters=_MINIMIZE_ITERATIONS)
    return mol, (ETKDG, NOT_CONVERGED) if state else (ETKDG,)


def _attempt(mol: Chem.Mol, seed: int, random_coordinates: bool) -> bool:
    options: Any = rdDistGeom.ETKDGv3()
    options.randomSeed = seed + 1  # RDKit's seeds 0 and 1 are the same
    options.maxIterations = _EMBED_ITERATIONS
    options.useRandomCoords = random_coordinates
    try:
        return bool(rdDistGeom.EmbedMolecule(mol, options) >= 0)
    except (RuntimeError, ValueError):  # bounds that no coordinates can meet
        return False
