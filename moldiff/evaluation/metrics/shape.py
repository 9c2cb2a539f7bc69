"""How alike two molecules are in shape and in what they offer to a protein: RDKit's overlay of Gaussian volumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rdkit import Chem, rdBase
from rdkit.Chem import rdShapeAlign

from moldiff.errors import MoldiffError
from moldiff.molecules import convert
from moldiff.molecules.molecule import InvalidMolecule, Molecule

_align: Any = rdShapeAlign.AlignMol  # untyped


@dataclass(frozen=True, eq=False)
class Overlay:
    """A molecule laid over a reference.

    Attributes:
        molecule: in the reference's frame (Å).
        shape: Tanimoto overlap of the volumes, 0 to 1.
        pharmacophore: the same of donors, acceptors, charges, hydrophobic parts and rings.
        score: their mean with the reference's weights.
    """

    molecule: Molecule
    shape: float
    pharmacophore: float
    score: float


@dataclass(frozen=True, eq=False)
class ShapeReference:
    """What molecules are compared with, by volumes of Gaussians (Grant, Gallardo and Pickup 1996) of heavy atoms.

    Attributes:
        mol: sanitised, in 3D.
        pharmacophore: weight of the pharmacophore in the score, 0 to 1; the shape has the rest.
        align: whether molecules are moved to where the score is best; else they are taken as they lie.
    """

    mol: Chem.Mol
    pharmacophore: float = 0.5
    align: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.pharmacophore <= 1:
            raise MoldiffError(f"like.pharmacophore: got {self.pharmacophore}, expected a number from 0 to 1")
        if not self.align and not hasattr(rdShapeAlign, "ScoreMol"):
            raise MoldiffError(f"like.align: RDKit {rdBase.rdkitVersion} cannot score without moving, expected true")

    def overlay(self, molecule: Molecule) -> Overlay:
        """Lay a valid molecule over the reference.

        Raises:
            MoldiffError: for a molecule that RDKit cannot sanitise.
        """
        mol = convert.to_rdkit(molecule, stereo=False)
        try:
            with rdBase.BlockLogs():
                Chem.SanitizeMol(mol)
        except Chem.MolSanitizeException as error:
            raise MoldiffError(f"like: molecule {molecule.name!r} cannot be compared: {error}") from error
        if self.align:
            shape, color = _align(self.mol, mol, -1, -1, True, 1 - self.pharmacophore)
        else:
            score: Any = rdShapeAlign.ScoreMol
            settings: Any = rdShapeAlign.ShapeInputOptions()
            shape, color = score(self.mol, mol, settings, settings)
        if self.align and self.pharmacophore == 0:  # the alignment then leaves it out
            color = replace(self, align=False).overlay(_moved(molecule, mol)).pharmacophore
        total = (1 - self.pharmacophore) * shape + self.pharmacophore * color
        return Overlay(_moved(molecule, mol) if self.align else molecule, float(shape), float(color), float(total))


def _moved(molecule: Molecule, mol: Chem.Mol) -> Molecule:
    """The molecule at the coordinates of `mol`, which was made of it."""
    found = convert.from_rdkit(mol)
    if isinstance(found, InvalidMolecule):
        raise MoldiffError(f"like: molecule {molecule.name!r} cannot be aligned: {found.reason}")
    return replace(molecule, pos=found.pos, hydrogen_offset=found.hydrogen_offset)
