"""Descriptors of drug-like molecules, each by its name: what filters ask for, models learn and reports compare.

Their ring systems, too.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import QED, Descriptors, rdMolDescriptors

_qed: Any = QED.qed  # untyped parts of RDKit
_weight: Any = Descriptors.MolWt  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Descriptor:
    """A number `of` a sanitised molecule with implicit hydrogens, its meaning with source, and unit ("" = none)."""

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
    "mw": Descriptor(_weight, "average molecular weight in g/mol", "g/mol"),
    "logp": Descriptor(
        lambda mol: rdMolDescriptors.CalcCrippenDescriptors(mol)[0], "Crippen logP (Wildman and Crippen 1999)"
    ),
    "tpsa": Descriptor(rdMolDescriptors.CalcTPSA, "topological polar surface area in Å² (Ertl et al. 2000)", "Å²"),
    "qed": Descriptor(_qed, "quantitative estimate of drug-likeness, 0 to 1 (Bickerton et al. 2012)"),
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

    >>> aspirin = descriptors(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    >>> aspirin["heavy_atoms"], aspirin["donors"], round(aspirin["qed"], 2)
    (13.0, 1.0, 0.55)
    """
    with rdBase.BlockLogs():
        return {name: float(descriptor.of(mol)) for name, descriptor in DESCRIPTORS.items()}


def ring_systems(mol: Chem.Mol) -> list[str]:
    """Canonical SMILES, without stereo, of every ring system of a sanitised molecule.

    Rings that share an atom (fused, bridged or spiro) are one system; atoms on it by a double bond belong to it, and
    hydrogens stand in for all else that is bonded to it.

    >>> ring_systems(Chem.MolFromSmiles("O=C1CCCCC1Cc1ccc2ccccc2c1"))
    ['O=C1CCCCC1', 'c1ccc2ccccc2c1']
    """
    systems: list[set[int]] = []
    for ring in map(set, mol.GetRingInfo().AtomRings()):
        joined = [system for system in systems if system & ring]
        systems = [system for system in systems if not system & ring] + [ring.union(*joined)]
    bare = Chem.Mol(mol)
    for atom in bare.GetAtoms():
        atom.SetNoImplicit(False)
        # SMILES has to say that something is bonded to a nitrogen like that of pyrrole.
        pyrrole = atom.GetIsAromatic() and atom.GetAtomicNum() == 7 and not atom.GetFormalCharge()
        in_ring = sum(bond.IsInRing() for bond in atom.GetBonds())
        atom.SetNumExplicitHs(int(pyrrole and atom.GetTotalDegree() == 3 and in_ring == 2))
    double = [
        {b.GetBeginAtomIdx(), b.GetEndAtomIdx()} for b in mol.GetBonds() if b.GetBondType() == Chem.BondType.DOUBLE
    ]
    whole = (system.union(*(ends for ends in double if ends & system)) for system in systems)
    return sorted(Chem.MolFragmentToSmiles(bare, sorted(system), isomericSmiles=False) for system in whole)
