"""The coordinates of a record as the 3D viewer takes them."""

from __future__ import annotations

import numpy as np
from rdkit import Chem, rdBase
from scipy.spatial.transform import Rotation

from moldiff.records import Record


def molblock(record: Record) -> str | None:
    """The record's MOL block, wedges of a drawing included; None when it has no coordinates or could not be parsed."""
    if record.mol is None or not record.mol.GetNumConformers():
        return None
    mol = Chem.Mol(record.mol)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > 999
        drawn = not is_solid(mol)
        try:
            return str(Chem.MolToMolBlock(mol, includeStereo=drawn, forceV3000=large))
        except Chem.KekulizeException:
            return str(Chem.MolToMolBlock(mol, includeStereo=drawn, kekulize=False, forceV3000=large))


def facing(record: Record) -> list[float] | None:
    """The quaternion (x, y, z, w) that turns the molecule's broadest side to the viewer; None = nothing in 3D."""
    if record.mol is None or not is_solid(record.mol):
        return None
    pos = record.mol.GetConformer().GetPositions()
    if len(pos) < 3 or not np.isfinite(pos).all():
        return [0.0, 0.0, 0.0, 1.0]
    axes = np.linalg.svd(pos - pos.mean(0), full_matrices=False)[2]
    axes[2] *= np.linalg.det(axes)  # a rotation, not a mirror
    return [round(float(number), 4) for number in Rotation.from_matrix(axes).as_quat()]


def is_solid(mol: Chem.Mol) -> bool:
    """Whether it has 3D coordinates."""
    return bool(mol.GetNumConformers()) and (mol.GetNumAtoms() == 1 or bool(mol.GetConformer().Is3D()))
