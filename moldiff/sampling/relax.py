"""Delivered geometries taken to the next minimum of MMFF94s or GFN2-xTB: `moldiff sample relax=...`."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from moldiff.diffusion.sampler import PartialState
from moldiff.errors import first_line
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.evaluation.metrics.relaxation import Relaxed, input_of, relax, relax_by_force_field
from moldiff.evaluation.metrics.validity import all_atoms
from moldiff.molecules.convert import sanitized_copy, to_rdkit
from moldiff.molecules.formats.record import Value
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import InvalidMolecule, Molecule

LIMIT = 60.0
"""Seconds of processor time after which a molecule stays as it was drawn."""

_FORCE_FIELD_STEPS = 5000
_XTB_STEPS = 500
_XTB_TOLERANCE = 1e-3  # Hartree/Bohr, as in the evaluation

_CONTACTS = Contacts()


def kept_atoms(start: PartialState, molecule: Molecule) -> np.ndarray:
    """Indices of the atoms, hydrogens behind the heavy ones, whose coordinates its task gave: they stay."""
    size = molecule.num_heavy_atoms
    heavy, with_hydrogens = (level[0, :size].numpy() == 0 for level in (start.level.pos, start.level.hydrogen))
    return np.flatnonzero(np.concatenate([heavy, np.repeat(heavy & with_hydrogens, molecule.num_hydrogens)]))


def relaxed(molecule: Molecule, method: str, kept: np.ndarray) -> tuple[Molecule, dict[str, Value | None]]:
    """A valid molecule at a minimum, or as it was, and what its record says of it.

    It stays as it was where the method ("mmff94s" or "xtb") fails or takes too long, and where the minimum has another
    stereo or impossible distances; so do, in any case, the atoms `kept`. The fields are `relaxed` ("ok", or why it
    stayed), `energy_lost` (kcal/mol), `strain` (the same by heavy atom) and `relax_rmsd` (Å, all atoms, superposed).
    """
    try:
        found = _minimum(molecule, method, kept)
    except (RuntimeError, ValueError) as error:
        return molecule, {"relaxed": first_line(error)}
    placed = found.pos if len(kept) else _laid_on(found.pos, all_atoms(molecule)[1])
    pos, hydrogens = np.split(placed, [molecule.num_heavy_atoms])
    offset = molecule.hydrogen_offset.copy()
    offset[molecule.hydrogen_mask] = hydrogens - np.repeat(pos, molecule.num_hydrogens, axis=0)
    after = replace(molecule, pos=pos, hydrogen_offset=offset)
    if strict_key(after) != strict_key(molecule):
        return molecule, {"relaxed": "the minimum has another stereo"}
    if problem := _CONTACTS.check(after):
        return molecule, {"relaxed": problem.reason}
    return after, {
        "relaxed": "ok",
        "energy_lost": round(found.energy_drop, 3),
        "strain": round(found.energy_drop / len(pos), 4),
        "relax_rmsd": round(found.rmsd, 4),
    }


def _laid_on(pos: np.ndarray, before: np.ndarray) -> np.ndarray:
    """A geometry [a, 3] where it lies best on another one: a minimiser drifts, and rounding decides how far."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # atoms in a line may turn about it
        turn, _ = Rotation.align_vectors(before - before.mean(axis=0), pos - pos.mean(axis=0))
    return np.asarray(turn.apply(pos - pos.mean(axis=0)) + before.mean(axis=0))


def _minimum(molecule: Molecule, method: str, kept: np.ndarray) -> Relaxed:
    mol = sanitized_copy(to_rdkit(molecule, stereo=False))
    if isinstance(mol, InvalidMolecule):
        raise RuntimeError(mol.reason)
    if method == "mmff94s":
        return relax_by_force_field(mol, max_iterations=_FORCE_FIELD_STEPS, fixed=kept, limit=LIMIT)
    return relax(input_of(mol), gradient_tolerance=_XTB_TOLERANCE, max_iterations=_XTB_STEPS, fixed=kept, limit=LIMIT)
