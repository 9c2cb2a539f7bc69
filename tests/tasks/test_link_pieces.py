"""`task=link` of pieces as SMILES: whole, linked at their open ends, in places of their own, as RDKit reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from scipy.spatial.distance import pdist

import moldiff
from moldiff.cli.main import main
from moldiff.errors import MoldiffError
from moldiff.sampling.verify import Finding
from moldiff.tasks import Link

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_weights]


def linked(tmp_path: Path, core: str, *options: str) -> list[Chem.Mol]:
    out = tmp_path / "out.sdf"
    arguments = ["sample", "task=link", f"core={core}", "steps=30", "workers=0", f"out={out}"]
    assert main([*arguments, *options]) == 0
    return list(Chem.SDMolSupplier(str(out), removeHs=False))


@pytest.mark.parametrize("core", ['"C1CC1*.*C(N)=O"', '["C1CC1*","*C(N)=O"]'])
def test_pieces_are_whole_and_linked_at_their_open_ends(tmp_path: Path, core: str) -> None:
    mols = linked(tmp_path, core, "new_atoms=1..2", "n=6")
    assert len(mols) == 6
    for mol in mols:
        assert mol.GetProp("attached") == "true"
        assert mol.GetProp("kept") == "0 1 2 3 4 5"
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()][:6]
        assert numbers == [6, 6, 6, 6, 7, 8]
        for i, j in [(0, 1), (1, 2), (0, 2), (3, 4), (3, 5)]:
            assert mol.GetBondBetweenAtoms(i, j) is not None
        for i in range(3):
            assert all(mol.GetBondBetweenAtoms(i, j) is None for j in (3, 4, 5))
        ends = [{n.GetIdx() for n in mol.GetAtomWithIdx(end).GetNeighbors() if n.GetAtomicNum() > 1} for end in (2, 3)]
        assert all(max(neighbours) >= 6 for neighbours in ends)
        assert [mol.GetAtomWithIdx(i).GetTotalNumHs(includeNeighbors=True) for i in range(6)] == [2, 2, 1, 0, 2, 0]
        assert pdist(mol.GetConformer().GetPositions()[: mol.GetNumHeavyAtoms()]).min() > 1.0
    first, second = (mol.GetConformer().GetPositions()[:6] for mol in mols[:2])
    assert np.abs(pdist(first) - pdist(second)).max() > 0.1  # each has a place of its own


def test_the_stereo_of_pieces_is_drawn(tmp_path: Path) -> None:
    mols = linked(tmp_path, '"C[C@H](O)[C@@H](F)C*.*C#N"', "new_atoms=1", "n=4", "keep=[valid]", "max_draws=60")
    wanted = Chem.MolFromSmiles("C[C@H](O)[C@@H](F)C")
    for mol in mols:
        Chem.AssignStereochemistryFrom3D(mol)
        assert mol.HasSubstructMatch(wanted, useChirality=True)


def test_it_is_verified(tmp_path: Path) -> None:
    linked(tmp_path, '"C1CC1*.*C(N)=O"', "new_atoms=1", "n=3", "relax=mmff94s")
    assert [one.finding for one in moldiff.verify(tmp_path / "out.sdf")] == [Finding.REPRODUCED] * 3


def test_pieces_with_and_without_coordinates_do_not_go_together(tmp_path: Path) -> None:
    placed = linked(tmp_path, '"C1CC1*.*C(N)=O"', "new_atoms=1", "n=1")[0]
    with pytest.raises(MoldiffError, match="core: got pieces with coordinates and without, expected all in 3D or all"):
        moldiff.load("qm9").sample(1, task=Link(core=[placed, "C*"]))
    with pytest.raises(MoldiffError, match="core: is in one piece, expected two or more to link"):
        moldiff.load("qm9").sample(1, task=Link(core="C1CC1*"))
