"""Descriptors of drug-like molecules, each by its name: what filters ask for, models learn and reports compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import QED, Descriptors, rdMolDescriptors

_qed: Any = QED.qed
_weight: Any = Descriptors.MolWt  # type: ignore[attr-defined]  # untyped parts of RDKit


@dataclass(frozen=True)
class Descriptor:
    """A number that describes a molecule.

    Attributes:
        of: the number of a sanitised molecule with implicit hydrogens.
        meaning: with its source.
        unit: "" = none.
    """

    of: Callable[[Chem.Mol], float]
    meaning: str
    unit: str = ""


@cache
def _sa_scorer() -> Any:
    """RDKit's `sascorer`, which lies outside its package."""
    folder = str(Path(RDConfig.RDContribDir) / "SA_Score")
    sys.path.insert(0, folder)
    try:
        return import_module("sascorer")
    finally:
        sys.path.remove(folder)


DESCRIPTORS: Mapping[str, Descriptor] = {
    "heavy_atoms": Descriptor(lambda mol: mol.GetNumHeavyAtoms(), "atoms other than hydrogen"),
    "mw": Descriptor(lambda mol: _weight(mol), "average molecular weight in g/mol", "g/mol"),
    "logp": Descriptor(
        lambda mol: rdMolDescriptors.CalcCrippenDescriptors(mol)[0], "Crippen logP (Wildman and Crippen 1999)"
    ),
    "tpsa": Descriptor(rdMolDescriptors.CalcTPSA, "topological polar surface area in Å² (Ertl et al. 2000)", "Å²"),
    "qed": Descriptor(lambda mol: _qed(mol), "quantitative estimate of drug-likeness, 0 to 1 (Bickerton et al. 2012)"),
    "sa": Descriptor(
        lambda mol: _sa_scorer().calculateScore(mol),
        "synthetic accessibility, 1 easy to 10 (Ertl and Schuffenhauer 2009)",
    ),
    "rotatable_bonds": Descriptor(rdMolDescriptors.CalcNumRotatableBonds, "RDKit's rotatable bonds"),
    "rings": Descriptor(rdMolDescriptors.CalcNumRings, "rings of the smallest set"),
    "donors": Descriptor(rdMolDescriptors.CalcNumHBD, "RDKit's donors of hydrogen bonds"),
    "acceptors": Descriptor(rdMolDescriptors.CalcNumHBA, "RDKit's acceptors of hydrogen bonds"),
}
"""What costs little and a model can be steered by."""


def descriptors(mol: Chem.Mol) -> dict[str, float]:
    """All `DESCRIPTORS` of a sanitised molecule with implicit hydrogens.

    Example:
        >>> aspirin = descriptors(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
        >>> aspirin["heavy_atoms"], aspirin["donors"], round(aspirin["qed"], 2)
        (13.0, 1.0, 0.55)
    """
    with rdBase.BlockLogs():
        return {name: float(descriptor.of(mol)) for name, descriptor in DESCRIPTORS.items()}
