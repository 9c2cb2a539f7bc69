"""Parting of a set by scaffold, so that test molecules have ring systems that training never showed."""

from __future__ import annotations

from typing import Any

from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from moldiff.chem import key_hash

RULE = (
    "by Murcko scaffold (without stereo; a molecule without rings is its own): test where the 64-bit BLAKE2b number of "
    "'SEED SCAFFOLD', scaled to [0, 1), is below test_share, valid where below test_share + valid_share, else train"
)
"""How `part_of` decides; a molecule's part does not depend on the others."""

_scaffold: Any = MurckoScaffold.GetScaffoldForMol  # untyped part of RDKit


def scaffold(key: str) -> str:
    """SMILES of the Murcko scaffold (Bemis and Murcko 1996) of a canonical key; the key itself without rings.

    Example:
        >>> scaffold("CCOc1ccccc1"), scaffold("CCO")
        ('c1ccccc1', 'CCO')
    """
    with rdBase.BlockLogs():
        found = str(Chem.MolToSmiles(_scaffold(Chem.MolFromSmiles(key)), isomericSmiles=False))
    return found or key


def part_of(key: str, *, valid_share: float, test_share: float, seed: int) -> str:
    """The part, "train", "valid" or "test", of the molecule with a canonical key, by `RULE`."""
    share = (key_hash(f"{seed} {scaffold(key)}") + 2**63) / 2**64
    return "test" if share < test_share else "valid" if share < test_share + valid_share else "train"
