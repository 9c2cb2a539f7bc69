"""Properties of drug-like molecules that cost little and that a model can be steered by."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import QED, Descriptors, rdMolDescriptors

UNITS: Mapping[str, str] = {
    "heavy_atoms": "",
    "mw": "g/mol",
    "logp": "",
    "tpsa": "Å²",
    "qed": "",
    "sa": "",
    "rotatable_bonds": "",
    "rings": "",
    "donors": "",
    "acceptors": "",
}
"""Units of what `descriptors` gives."""

_qed: Any = QED.qed
_descriptors: Any = Descriptors  # untyped parts of RDKit


def descriptors(mol: Chem.Mol) -> dict[str, float]:
    """Descriptors of a sanitised molecule with implicit hydrogens.

    Heavy atoms, average molecular weight, Crippen logP (Wildman and Crippen 1999), topological polar surface area
    (Ertl et al. 2000), QED (Bickerton et al. 2012), synthetic accessibility from 1, easy, to 10 (Ertl and
    Schuffenhauer 2009), and RDKit's counts of rotatable bonds, rings, hydrogen bond donors and acceptors.

    Example:
        >>> aspirin = descriptors(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
        >>> aspirin["heavy_atoms"], aspirin["donors"], round(aspirin["qed"], 2)
        (13.0, 1.0, 0.55)
    """
    with rdBase.BlockLogs():
        values = (
            mol.GetNumHeavyAtoms(),
            _descriptors.MolWt(mol),
            rdMolDescriptors.CalcCrippenDescriptors(mol)[0],
            rdMolDescriptors.CalcTPSA(mol),
            _qed(mol),
            _sa_scorer().calculateScore(mol),
            rdMolDescriptors.CalcNumRotatableBonds(mol),
            rdMolDescriptors.CalcNumRings(mol),
            rdMolDescriptors.CalcNumHBD(mol),
            rdMolDescriptors.CalcNumHBA(mol),
        )
    return {name: float(value) for name, value in zip(UNITS, values, strict=True)}


@cache
def _sa_scorer() -> Any:
    """RDKit's `sascorer`, which lies outside its package."""
    folder = str(Path(RDConfig.RDContribDir) / "SA_Score")
    sys.path.insert(0, folder)
    try:
        return import_module("sascorer")
    finally:
        sys.path.remove(folder)
