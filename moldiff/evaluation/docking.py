"""Scores of AutoDock Vina (Eberhardt et al. 2021, doi:10.1021/acs.jcim.1c00203) for molecules in a pocket."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from scipy.spatial import cKDTree

from moldiff.molecules.receptor import HALOGENS, OTHER_RADIUS, RADII, Receptor, Site

FUNCTIONS = ("vina", "vinardo")
"""Scoring functions of the package; the second: Quiroga and Villarreal 2016, doi:10.1371/journal.pone.0155183."""

_BOX = 30.0  # Å of an edge of the space in which a molecule has to lie
_SPACING = 0.375  # Å, Vina's own
_TYPES = {"N": "N", "O": "OA", "H": "HD"}  # of AutoDock, by element; others have that of the element

_NO_ACCEPTOR = "[$([#7X3v3]a),$([#7X3v3][#6X3v4]),$([#7;+])]"
"""Nitrogens whose electrons are taken, as meeko has them: of anilines and pyrroles, of amides, and with a charge."""


class VinaScore(NamedTuple):
    """Vina's scores (kcal/mol)."""

    as_drawn: float
    minimized: float  # at the next minimum of Vina, over where the molecule lies and its torsions


@dataclass(frozen=True, eq=False)
class Vina:
    """Scores molecules in a pocket by the packages vina and meeko."""

    receptor: Receptor
    center: np.ndarray  # [3] (Å)
    function: str = "vina"  # of `FUNCTIONS`
    box: float | None = None  # edge (Å) of the space in which a molecule has to lie; None = 30

    @classmethod
    def if_installed(cls, site: Site) -> Vina | None:
        """For a pocket; None where a package is missing."""
        if not all(find_spec(package) for package in ("vina", "meeko")):
            return None
        return cls(site.receptor, site.center)

    def __call__(self, mol: Chem.Mol) -> VinaScore | None:
        """Of a sanitised molecule with explicit hydrogens (Å); None where Vina has none, as outside of its box."""
        engine, pdbqt = self.tools
        try:
            with warnings.catch_warnings(), rdBase.BlockLogs():
                warnings.simplefilter("ignore")
                engine.set_ligand_from_string(pdbqt(mol))
                return VinaScore(float(engine.score()[0]), float(engine.optimize()[0]))
        except (RuntimeError, ValueError, TypeError, KeyError):
            return None

    def minimized(self, mols: Sequence[Chem.Mol]) -> list[float | None]:
        """The scores of molecules at their next minima."""
        return [score and score.minimized for score in map(self, mols)]

    @cached_property
    def tools(self) -> tuple[Any, Callable[[Chem.Mol], str]]:
        """Vina with its maps, which take some seconds, and what writes a molecule as it reads them."""
        from meeko import MoleculePreparation, PDBQTWriterLegacy
        from vina import Vina as Engine

        preparation, engine = MoleculePreparation(), Engine(sf_name=self.function, cpu=1, seed=1, verbosity=0)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "receptor.pdbqt")
            with open(path, "w", encoding="ascii") as file:
                file.write(receptor_pdbqt(self.receptor))
            engine.set_receptor(path)
        engine.compute_vina_maps(
            center=[float(x) for x in self.center], box_size=[self.box or _BOX] * 3, spacing=_SPACING
        )
        return engine, lambda mol: str(PDBQTWriterLegacy.write_string(preparation.prepare(mol)[0])[0])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tools"}


def receptor_pdbqt(receptor: Receptor) -> str:
    """A receptor as Vina reads it: a donor has a hydrogen, whose place matters no further than that it is bonded."""
    near = cKDTree(receptor.pos).query_ball_point(receptor.pos, 2.0)
    lines: list[str] = []

    def add(pos: np.ndarray, kind: str) -> None:
        x, y, z = pos
        number = (len(lines) + 1) % 100_000
        lines.append(f"ATOM  {number:5d}  X   UNK A   1    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00     0.000 {kind:<2}\n")

    for row, element in enumerate(receptor.element):
        pos, kind = receptor.pos[row], _TYPES.get(str(element), str(element))
        add(pos, "NA" if kind == "N" and receptor.acceptor[row] else kind)
        if receptor.donor[row] and element in ("N", "O"):
            away = pos - receptor.pos[near[row]].mean(0) + 1e-6
            add(pos + away / np.linalg.norm(away), "HD")
    return "".join(lines)


def vina_types(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Radius (Å), and whether hydrophobic, donor and acceptor, of the heavy atoms [n] of a sanitised molecule."""
    taken = {row for (row,) in mol.GetSubstructMatches(Chem.MolFromSmarts(_NO_ACCEPTOR))}
    heavy = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    symbols = np.array([atom.GetSymbol() for atom in heavy])
    around = [{other.GetSymbol() for other in atom.GetNeighbors()} for atom in heavy]
    bare = np.array([one <= {"C", "H"} for one in around])
    polar = np.isin(symbols, ("N", "O"))
    donor = polar & np.array(["H" in one for one in around])
    acceptor = polar & np.array([atom.GetIdx() not in taken for atom in heavy])
    radius = np.array([RADII.get(one, OTHER_RADIUS) for one in symbols])
    return radius, (symbols == "C") & bare | np.isin(symbols, HALOGENS), donor, acceptor
