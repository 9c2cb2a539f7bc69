"""What is done to a record of a user's file before it becomes a molecule to train on.

Coordinates that cannot be those of a molecule in Å.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from scipy.spatial import cKDTree

from moldiff.data.store import used_slots
from moldiff.errors import MoldiffError
from moldiff.molecules import conformers
from moldiff.molecules.convert import atom_order, atoms, from_rdkit
from moldiff.molecules.elements import VALENCES
from moldiff.molecules.formats.record import HYDROGENS_ADDED, Record, total_charge
from moldiff.molecules.fragments import file_index, file_order, largest_fragment
from moldiff.molecules.hydrogens import closed_where_drawn, has_hydrogen
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.oddities import odd_bonds, odd_smiles
from moldiff.molecules.validity import check
from moldiff.molecules.vocabulary import AtomClass, Vocabulary

CHOICES: Mapping[str, tuple[str, ...]] = {
    "hydrogens": ("add", "keep", "none"),
    "fragments": ("largest", "reject"),
    "conformers": ("etkdg", "reject"),
}

HYDROGENS_NOT_PLACED = "hydrogens counted, not placed"
LARGEST_FRAGMENT = "largest fragment kept"
BONDS_PERCEIVED = "bonds perceived from coordinates"
RADICAL_KEPT = "radical kept"
MOVED = "moved to the origin"

_LARGEST = float(np.finfo(np.float32).max)
"""Properties are kept as numbers of 32 bits; one that does not fit is not known."""


class Treated(NamedTuple):
    """What became of a record: the molecule or why there is none, and what was done to it."""

    outcome: Molecule | InvalidMolecule
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CurationRules:
    """Rules by which records become molecules.

    RDKit's clean-up comes first (in `moldiff.molecules.formats.record`): a nitro group drawn with two double bonds
    becomes charge-separated. Charges stay as they are drawn, isotope labels are dropped.

    Args:
        hydrogens: `add` = missing ones are added with coordinates; a record in which a carbon carries an explicit
            hydrogen is taken as complete, and an atom drawn with hydrogens that lacks some is a radical. `keep` =
            nothing is added. `none` = hydrogens are counted in the atom classes but have no coordinates of their
            own. With `keep`, records that have no hydrogens are treated like with `none`.
        fragments: `largest` = `moldiff.molecules.fragments.largest_fragment` is kept; `reject`.
        conformers: of records without 3D coordinates: `etkdg` = `moldiff.molecules.conformers`; `reject`.
        radicals: keep open shells; decoding by valence rules never produces them.
        elements: symbols of elements that are taken as they are drawn although the valence table lacks them.
        max_heavy_atoms: larger molecules are rejected.
        seed: of the conformers.

    Raises:
        MoldiffError: for a value that is not among the choices, or an unknown element.
    """

    hydrogens: str = "add"
    fragments: str = "largest"
    conformers: str = "etkdg"
    radicals: bool = False
    elements: Sequence[str] = ()
    max_heavy_atoms: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise MoldiffError(f"{name}: got {getattr(self, name)!r}, expected {' or '.join(choices)}")
        if not 0 <= self.seed < 2**31 - 1:
            raise MoldiffError(f"seed: got {self.seed}, expected a whole number from 0 to {2**31 - 2}")
        for symbol in self.elements:
            if _atomic_number(symbol) is None:
                raise MoldiffError(f"elements: got {symbol!r}, expected symbols of elements")

    def apply(self, record: Record) -> Treated:
        """The molecule of a record, or why there is none."""
        if record.mol is None or record.problem is not None:
            return Treated(self._known_problem(record))
        notes = [*record.remarks, *(oddity.kind for oddity in odd_smiles(record.mol))]
        steps = (self._apart, self._in_one_piece, self._of_known_elements, self._with_bonds, self._in_3d)
        mol = record.mol
        for step in steps:
            done = step(mol, notes)
            if isinstance(done, InvalidMolecule):
                return Treated(done, tuple(notes))
            mol = done
        return Treated(self._molecule(mol, notes), tuple(notes))

    def _known_problem(self, record: Record) -> InvalidMolecule:
        """Why a record cannot be read; an element that no molecule may have, or a clash, explains broken valences."""
        if record.mol is not None:
            for found in (self._of_known_elements(record.mol, []), self._apart(record.mol, [])):
                if isinstance(found, InvalidMolecule):
                    return found
        return record.problem or InvalidMolecule(Status.UNREADABLE, "no molecule")

    def _apart(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        """A clash shows in the record as it stands: an atom on another one, of which none may be dropped in silence."""
        placed = mol.GetNumConformers() > 0 and mol.GetConformer().Is3D() and not _at_one_place(mol)
        return (clash(mol) if placed else None) or mol

    def _in_one_piece(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        count = len(Chem.GetMolFrags(mol))
        unbonded = count > 1 and mol.GetNumBonds() == 0 and mol.GetNumConformers() and has_hydrogen(mol)
        if count == 1 or unbonded:  # bonds are still to come
            return mol
        if self.fragments == "reject":
            return InvalidMolecule(Status.DISCONNECTED, f"{count} fragments, expected one")
        notes.append(LARGEST_FRAGMENT)
        return largest_fragment(mol)

    def _of_known_elements(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        allowed = {_atomic_number(symbol) for symbol in self.elements}
        for atom in atoms(mol):
            number, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
            if (number, charge) in VALENCES or number in allowed:
                continue
            index = file_index(atom)
            if number == 0:
                return InvalidMolecule(Status.UNREADABLE, f"atom {index} (*): dummy atom", index)
            what = f"charge {charge:+d}" if charge and (number, 0) in VALENCES else "element"
            reason = f"atom {index} ({atom.GetSymbol()}): {what} not in the valence table"
            return InvalidMolecule(Status.VALENCE, reason, index)
        return mol

    def _with_bonds(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        if mol.GetNumAtoms() == 1 or mol.GetNumBonds():
            return mol
        notes.append(BONDS_PERCEIVED)
        perceived = Chem.Mol(mol)
        try:
            with rdBase.BlockLogs():
                rdDetermineBonds.DetermineBonds(perceived, charge=total_charge(mol))
                Chem.SanitizeMol(perceived)
        except (ValueError, RuntimeError) as error:
            reason = f"bond perception failed: {' '.join(str(error).split())[:120]}"
            return InvalidMolecule(Status.UNREADABLE, reason)
        notes.extend(oddity.kind for oddity in odd_smiles(perceived))
        return self._in_one_piece(perceived, notes)

    def _in_3d(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        heavy = int(mol.GetNumHeavyAtoms())
        if heavy > self.max_heavy_atoms:
            return InvalidMolecule(Status.UNREADABLE, f"{heavy} heavy atoms, more than max_heavy_atoms")
        drawn = mol.GetNumConformers() > 0
        if drawn:
            pos = mol.GetConformer().GetPositions()
            if not np.isfinite(pos).all():
                return not_finite(mol, pos)
            if _at_one_place(mol):
                return InvalidMolecule(Status.UNREADABLE, "no 3D coordinates, all atoms are at one place")
            mol = closed_where_drawn(mol)
            if mol.GetNumAtoms() == 1 or mol.GetConformer().Is3D():
                return self._with_hydrogens(mol, notes)
        if self.conformers == "reject":
            return InvalidMolecule(Status.UNREADABLE, "no 3D coordinates")
        if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()) and not self.radicals:
            return InvalidMolecule(Status.RADICAL, "unpaired electron")
        embedded, made = conformers.embed_conformer(mol, self.seed)
        notes.extend(made)
        return embedded

    def _with_hydrogens(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol:
        if not any(atom.GetTotalNumHs() for atom in atoms(mol)):
            return mol  # none is missing
        if self.hydrogens == "keep" and has_hydrogen(mol):
            return mol
        notes.append(HYDROGENS_ADDED if self.hydrogens == "add" else HYDROGENS_NOT_PLACED)
        return Chem.AddHs(mol, addCoords=True)

    def _molecule(self, mol: Chem.Mol, notes: list[str]) -> Molecule | InvalidMolecule:
        molecule = from_rdkit(mol)
        if isinstance(molecule, InvalidMolecule):
            return molecule.renumbered(file_order(mol))
        problem = check(molecule, self._own_valences(molecule))
        if problem is not None and not (self.radicals and problem.status is Status.RADICAL):
            return problem.renumbered(file_order(mol)[atom_order(mol)])
        if problem is not None:
            notes.append(RADICAL_KEPT)
        if self.hydrogens == "none" and HYDROGENS_NOT_PLACED not in notes:
            notes.append(HYDROGENS_NOT_PLACED)
        if HYDROGENS_NOT_PLACED in notes:
            molecule = replace(molecule, hydrogen_offset=np.zeros_like(molecule.hydrogen_offset))
        problem = clash(mol, hydrogens=HYDROGENS_NOT_PLACED not in notes) or impossible_bonds(molecule)
        if problem is not None:
            return problem
        placed = HYDROGENS_NOT_PLACED not in notes
        notes.extend(oddity.kind for oddity in odd_bonds(molecule, hydrogens=placed))
        moved = near_origin(molecule)
        if moved is not None:
            notes.append(MOVED)
        known = {name: value for name, value in molecule.properties.items() if abs(value) <= _LARGEST}
        charge = {"net_charge": float(molecule.formal_charge.sum())}
        return replace(moved or molecule, properties=charge | known)

    def _own_valences(self, molecule: Molecule) -> Vocabulary | None:
        """Valences as drawn of the elements that are allowed to have any."""
        if not self.elements:
            return None
        allowed = {_atomic_number(symbol) for symbol in self.elements}
        sums = molecule.bond_sums().tolist()
        extra: dict[tuple[int, int], tuple[int, ...]] = {}
        for number, charge, total in zip(
            molecule.atomic_number.tolist(), molecule.formal_charge.tolist(), sums, strict=True
        ):
            if number in allowed and (number, charge) not in VALENCES:
                extra[number, charge] = (*extra.get((number, charge), ()), total)
        return Vocabulary((AtomClass(6, 0, 4),), extra)


def _at_one_place(mol: Chem.Mol) -> bool:
    """Whether all atoms, of which there are several, have the same coordinates."""
    return mol.GetNumAtoms() > 1 and bool(np.ptp(mol.GetConformer().GetPositions(), axis=0).max() == 0)


def _atomic_number(symbol: Any) -> int | None:
    with rdBase.BlockLogs():
        try:
            return int(Chem.GetPeriodicTable().GetAtomicNumber(str(symbol)))
        except RuntimeError:
            return None


_MIN_DISTANCE = 0.6
"""Å; atoms closer than this are taken for a mistake (H-H in H2 is 0.74, X-ray structures have O-H from 0.7)."""

_MAX_MEDIAN_BOND = 2.75
"""Å; in organic molecules it is about 1.5, which in Bohr is 2.8; I-I has 2.7."""

_LONGEST_BOND = 2.0
"""Times the sum of the covalent radii. Of QM9, the NCI set, the drug-like set, approved drugs and 2,000 ligands of the
PDB none has a bond above 1.33, but for four ligands with a hydrogen at 4.7 to 8.1 times the sum."""

_FAR = 1_000.0
"""Å; coordinates are kept as numbers of 32 bits, which further from the origin tell less than 0.0001 Å apart."""


def not_finite(mol: Chem.Mol, pos: np.ndarray) -> InvalidMolecule:
    """The first atom of `mol` whose position in `pos` [n, 3] is not a number."""
    atom = mol.GetAtomWithIdx(int((~np.isfinite(pos).all(1)).argmax()))
    index = file_index(atom)
    reason = f"atom {index} ({atom.GetSymbol()}): coordinate not finite"
    return InvalidMolecule(Status.NON_FINITE, reason, index)


def clash(mol: Chem.Mol, *, hydrogens: bool = True) -> InvalidMolecule | None:
    """The two closest atoms of a molecule in 3D, if they are closer than any can be; `hydrogens` = they count, too."""
    found = [atom for atom in atoms(mol) if hydrogens or atom.GetAtomicNum() != 1]
    pos = mol.GetConformer().GetPositions()[[atom.GetIdx() for atom in found]]
    if len(pos) < 2 or not np.isfinite(pos).all():
        return None
    # The nearest of an atom is itself, unless another one is at the same place.
    distance, nearest = cKDTree(pos).query(pos, k=2)
    i = int(distance[:, 1].argmin())
    if (length := distance[i, 1]) >= _MIN_DISTANCE:
        return None
    j = int(nearest[i, 1] if nearest[i, 1] != i else nearest[i, 0])
    first, second = (f"{file_index(found[k])} ({found[k].GetSymbol()})" for k in sorted((i, j)))
    reason = f"atoms {first} and {second} are {length:.2f} Å apart, expected at least {_MIN_DISTANCE}"
    return InvalidMolecule(Status.CLASH, reason, file_index(found[min(i, j)]))


def impossible_bonds(molecule: Molecule) -> InvalidMolecule | None:
    """Bonds so long that the coordinates must be in other units, or one that is longer than any bond can be.

    Coordinates in units that make bonds too short clash. One torn bond, be it that of a hydrogen, would spoil the scale
    of a whole set.
    """
    i, j, _ = molecule.bonds.T
    atom, slot = np.nonzero(used_slots(molecule.num_hydrogens))
    vectors = np.concatenate([molecule.pos[i] - molecule.pos[j], molecule.hydrogen_offset[atom, slot]])
    lengths = np.sqrt((vectors**2).sum(-1))
    if len(i):
        median = float(np.sort(lengths[: len(i)])[[(len(i) - 1) // 2, len(i) // 2]].mean())
        if median > _MAX_MEDIAN_BOND:
            reason = f"half of the bonds are longer than {median:.2f} Å, expected coordinates in Å"
            return InvalidMolecule(Status.UNREADABLE, reason)
    first = molecule.atomic_number[np.concatenate([i, atom])]
    second = np.concatenate([molecule.atomic_number[j], np.ones_like(atom)])
    longest = _LONGEST_BOND * (_radii()[first] + _radii()[second])
    if not (lengths > longest).any():
        return None
    worst = int((lengths / longest).argmax())
    pair = "-".join(Chem.GetPeriodicTable().GetElementSymbol(int(ends[worst])) for ends in (first, second))
    reason = f"a bond {pair} of {lengths[worst]:.2f} Å, expected at most {longest[worst]:.2f}"
    return InvalidMolecule(Status.UNREADABLE, reason)


@cache
def _radii() -> np.ndarray:
    """Covalent radii by atomic number (Å)."""
    table = Chem.GetPeriodicTable()
    return np.array([0.0] + [table.GetRcovalent(number) for number in range(1, 119)])


def near_origin(molecule: Molecule) -> Molecule | None:
    """The molecule with its centre at the origin where it is too far from there to be kept exactly; else None."""
    centre = molecule.pos.mean(axis=0)
    if np.abs(centre).max() <= _FAR:
        return None
    return replace(molecule, pos=molecule.pos - centre)
