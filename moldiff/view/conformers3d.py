"""Trajectories from noise to molecule, packed small for the page.

The coordinates of a record as the 3D viewer takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from scipy.spatial.transform import Rotation

from moldiff.molecules.formats.reader import records
from moldiff.molecules.formats.record import Record
from moldiff.sampling.sample import trajectory_path


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


def films(path: str | Path, molecules: Sequence[Record]) -> dict[int, list[dict[str, Any]]]:
    """The films of the molecules that have one in the file of trajectories beside `path`, by index.

    They are found by name, so a file that was sorted or thinned out keeps its films.
    """
    beside = trajectory_path(path)
    if not beside.is_file():
        return {}
    wanted = {record.name: index for index, record in enumerate(molecules)}
    found: dict[int, list[dict[str, Any]]] = {}
    for record in records(beside):
        index = wanted.get(record.name)
        if index is None or record.mol is None or not record.mol.GetNumConformers():
            continue
        is_first = record.mol.HasProp("frame") and record.mol.GetProp("frame") == "0"
        if is_first:
            found[index] = []
        found.setdefault(index, []).append(_frame(record.mol))
    return {index: film for index, film in found.items() if _ends_in(film, molecules[index].mol)}


def _ends_in(film: Sequence[Mapping[str, Any]], mol: Chem.Mol | None) -> bool:
    """Whether a film leads to this molecule, and not to one of the same name that an earlier run has left behind."""
    if mol is None or not mol.GetNumConformers():
        return False
    last = _frame(mol)
    return last["e"] == film[-1]["e"] and np.allclose(last["x"], film[-1]["x"], atol=2)


def _frame(mol: Chem.Mol) -> dict[str, Any]:
    """Symbols `e`, coordinates `x` in hundredths of an Å, and bonds `b` as flat triples (i, j, order)."""
    pos = np.nan_to_num(mol.GetConformer().GetPositions() * 100).round().astype(int)
    bonds = [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), max(1, int(bond.GetBondTypeAsDouble())))
        for bond in mol.GetBonds()
    ]
    return {
        "e": " ".join(atom.GetSymbol() for atom in mol.GetAtoms()),
        "x": pos.ravel().tolist(),
        "b": [number for bond in bonds for number in bond],
    }
