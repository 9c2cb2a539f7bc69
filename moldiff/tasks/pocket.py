"""Molecules in the pocket of a protein: where that is, and any task whose molecules are to lie there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from moldiff.diffusion.pocket import AtomKinds, PocketEnergy, PocketTarget
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.evaluation.docking import Vina, vina_types
from moldiff.evaluation.metrics.relaxation import energy_drop
from moldiff.molecules.convert import sanitized_copy, to_rdkit, with_positions
from moldiff.molecules.formats.record import Value
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.molecules.receptor import REACH, Receptor, Site, find_site, read_receptor
from moldiff.tasks.inputs import Source, given, names_file
from moldiff.tasks.refine import PocketGrid, kept_atoms, refined
from moldiff.tasks.task import Task, TaskOutcome, WrappedTask

CLASH = 0.75
"""Share of the sum of two radii below which atoms of molecule and protein clash, as in PoseBusters."""

CONTACT = 4.0
"""Distance (Å) between heavy atoms up to which a residue counts as a contact."""

_STRENGTH, _SEARCH = 0.5, 10
_AROUND_LIGAND, _AROUND_RESIDUES = 4.0, 6.0  # Å to which the free space of a pocket is followed from their atoms
_SHARES = 0.8, 1.1  # of the atoms that the pocket holds, the fewest and most that are drawn


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where molecules are to lie: in a pocket of a protein, in its frame, or without a `receptor` anywhere.

    One of `ligand`, `center` and `residues` says where; without any, atoms that a task keeps do.

    Args:
        receptor: the protein, a PDB or mmCIF file; hydrogens are not needed. Waters and ligands in it are left out.
        also: names of residues that stay, such as HEM; amino acids and metals do anyway.
        ligand: one or more molecules in the receptor's frame, such as the ligand that was in it.
        center: x, y, z (Å).
        residues: chain and number of residues around the pocket, such as A:85.
        strength: how strongly the energy bends molecules; 0 = it only places them, None = 0.5.
        search: rounds of the search for a better pose of what was drawn; 0 = it stays as drawn, None = 10.
    """

    receptor: str | Path | None = None
    also: Sequence[str] | None = None
    ligand: Source | Sequence[Source] | None = None
    center: Sequence[float] | None = None
    residues: Sequence[str] | None = None
    strength: float | None = None
    search: int | None = None

    def site(self, kept: np.ndarray | None = None) -> Site | None:
        """The pocket; None = there is no receptor. `kept` are places [P, 3] (Å) of atoms that stay."""
        named = [name for name in ("ligand", "center", "residues") if getattr(self, name) is not None]
        if self.receptor is None:
            if named or self.also:
                raise MoldiffError(
                    f"{(named or ['also'])[0]}: got one without a receptor, expected a PDB or mmCIF file"
                )
            return None
        if self.strength is not None and not 0 <= self.strength <= 100:
            raise MoldiffError(f"strength: got {self.strength}, expected a number from 0 to 100")
        if self.search is not None and not (isinstance(self.search, int) and 0 <= self.search <= 10_000):
            raise MoldiffError(f"search: got {self.search}, expected a whole number from 0 to 10000")
        receptor = read_receptor(self.receptor, also=self.also or ())
        if len(named) != 1 and (named or kept is None):
            got = " and ".join(named) or "none"
            raise MoldiffError(f"pocket: got {got} of ligand, center and residues, expected one of them")
        name = named[0] if named else "core"
        if name == "center":
            center = np.array(self.center, dtype=float) if _are_numbers(self.center) else np.zeros(0)
            if center.shape != (3,) or not np.isfinite(center).all():
                raise MoldiffError(f"center: got {self.center}, expected three numbers, such as [12.5,3.0,-4.1] (Å)")
            return find_site(receptor, name, center[None], REACH)
        if name == "residues":
            return find_site(receptor, name, self._residue_atoms(receptor), _AROUND_RESIDUES, are_atoms=True)
        if kept is None or name == "ligand":
            check_in_frame(name, self.ligand)
            kept = np.concatenate([one.molecule.pos for one in given(name, self.ligand)[0]])
        return find_site(receptor, name, kept, _AROUND_LIGAND)

    def placed(self, task: Task, site: Site | None, kept: np.ndarray | None = None) -> Task:
        """A task whose molecules are to lie in the pocket, if there is one."""
        if site is None:
            return task
        return PocketTask(
            task,
            site,
            _STRENGTH if self.strength is None else float(self.strength),
            None if kept is None else kept.mean(0),
            Vina.if_installed(site),
            _SEARCH if self.search is None else self.search,
        )

    def _residue_atoms(self, receptor: Receptor) -> np.ndarray:
        wanted = [self.residues] if isinstance(self.residues, str) else list(self.residues or ())
        found = {str(one) for one in receptor.residue}
        if unknown := [one for one in wanted if one not in found]:
            first, last = str(receptor.residue[0]), str(receptor.residue[-1])
            raise MoldiffError(f"residues: {receptor.name} has no {unknown[0]!r}, expected such as {first} to {last}")
        if not wanted:
            raise MoldiffError("residues: got none, expected chain and number of some, such as [A:85,A:113]")
        return receptor.pos[np.isin(receptor.residue, wanted)]


def fitting_sizes(site: Site, statistics: Statistics) -> tuple[int, int]:
    """The fewest and most heavy atoms that a pocket holds, within the sizes that a model has learnt."""
    trained = [size for size, count in statistics.size_counts.items() if count]
    low, high = (int(np.clip(round(share * site.num_atoms), min(trained), max(trained))) for share in _SHARES)
    return low, high


def _are_numbers(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, int | float) for value in values)


def check_in_frame(name: str, source: Source | Sequence[Source] | None) -> None:
    """Refuse SMILES where places have to mean something."""
    for one in source if isinstance(source, list | tuple) else [source]:
        if isinstance(one, str) and not names_file(one):
            raise MoldiffError(f"{name}: got {one[:80]!r}, expected a file of molecules in 3D in the receptor's frame")


@dataclass(frozen=True, eq=False)
class PocketTask(WrappedTask):
    """Any task, whose molecules are to lie in a pocket; those that clash with the protein are left out and counted."""

    site: Site
    strength: float
    origin: np.ndarray | None = None  # middle of what is kept [3] (Å), from which the task counts; None = nothing is
    vina: Vina | None = None  # scores what was drawn; None = it is not installed
    search: int = 0  # rounds of the search for a better pose

    def notes(self) -> Sequence[str]:
        site, (low, high) = self.site, self.task.sizes()
        where = " ".join(f"{value:.1f}" for value in site.center)
        size = f"{low} to {high} heavy atoms" if low < high else f"{low} heavy atoms"
        free = f"pocket: {site.volume:.0f} Å³ are free around {where} of {site.receptor.name}; {size}"
        scores = [] if self.vina else ['no score of Vina, which is not installed: pip install "moldiff[pocket]"']
        return [*site.receptor.notes, free, *self.task.notes(), *scores]

    def begin(self, index: int, generator: torch.Generator) -> PartialState:
        start = self.task.begin(index, generator)
        if self.origin is not None:
            rotation, shift = np.eye(3), self.origin - self.site.center
        else:
            turn = Rotation.from_quat(torch.randn(4, generator=generator, dtype=torch.double).numpy()).as_matrix()
            rotation, shift = self.site.axes @ turn, np.zeros(3)
        pose = (torch.from_numpy(value.astype(np.float32))[None] for value in (rotation, shift))
        return replace(start, pocket=PocketTarget(self._energy, self.strength, *pose))

    @cached_property
    def _grid(self) -> PocketGrid:
        return PocketGrid(self.site, self._energy)

    @cached_property
    def _energy(self) -> PocketEnergy:
        receptor = self.site.receptor
        kinds = AtomKinds.of_flags(receptor.radius, receptor.hydrophobic, receptor.donor, receptor.acceptor)
        return PocketEnergy(torch.from_numpy(receptor.pos - self.site.center), kinds)

    def finish(self, index: int, start: PartialState, molecule: Molecule) -> TaskOutcome:
        """The molecule in the receptor's frame, and how it lies there."""
        outcome = self.task.finish(index, start, molecule)
        problem = "stereo" if outcome.mirrored else outcome.problem  # a mirror image would lie elsewhere
        if self.origin is None:
            moved = replace(molecule, pos=molecule.pos + self.site.center)
            outcome = replace(outcome, molecule=moved, offset=self.site.center, mirrored=False)
        if self.search and not problem:
            outcome = replace(outcome, molecule=self._refined(index, start, outcome.molecule))
        fields = self.fit(outcome.molecule)
        problem = problem or ("clash" if fields.get("clashes") else None)
        return replace(outcome, fields={**outcome.fields, **fields}, problem=problem)

    def _refined(self, index: int, start: PartialState, molecule: Molecule) -> Molecule:
        """The molecule (Å) in its best pose; what is no molecule, or gets another stereo, stays as it is."""
        mol = sanitized_copy(to_rdkit(molecule, stereo=False))
        if isinstance(mol, InvalidMolecule) or molecule.pieces()[0] > 1:
            return molecule
        kept = np.isin(np.arange(molecule.num_atoms), kept_atoms(start, molecule))
        found = with_positions(molecule, refined(mol, self._grid, vina_types(mol), kept, self.search, index))
        return found if strict_key(found) == strict_key(molecule) else molecule  # a force field may invert a centre

    def fit(self, molecule: Molecule) -> dict[str, Value | None]:
        """How a molecule (Å) lies in the pocket: energies (kcal/mol), atoms that clash, residues that it touches."""
        receptor, mol = self.site.receptor, sanitized_copy(to_rdkit(molecule, stereo=False))
        distance = cdist(molecule.pos, receptor.pos)
        touched = receptor.residue[(distance <= CONTACT).any(0)]
        if isinstance(mol, InvalidMolecule):
            return {"contacts": " ".join(dict.fromkeys(map(str, touched)))}
        types, pos = vina_types(mol), torch.from_numpy(molecule.pos - self.site.center)
        clashes = distance < CLASH * (types[0][:, None] + receptor.radius)
        score = None if self.vina is None else self.vina(mol)
        try:
            strain = energy_drop(mol)
        except RuntimeError:  # the force field found no way down
            strain = None
        return {
            "pocket_energy": round(float(self._energy.pairs(AtomKinds.of_flags(*types)).energy(pos).sum()), 3),
            "vina_score": score and round(score.as_drawn, 3),
            "vina_minimized": score and round(score.minimized, 3),
            "clashes": int(clashes.any(1).sum()),
            "strain_mmff94s": strain and round(strain, 2),
            "contacts": " ".join(dict.fromkeys(map(str, touched))),
        }
