"""Trajectories from noise to molecule, packed small for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff.io import records
from moldiff.records import Record
from moldiff.trajectory import trajectory_path


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
