"""What is done to a record of a user's file before it becomes a molecule to train on.

Also which fragment of a salt or mixture is kept, and which coordinates cannot be those of a molecule in Å.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds, rdMolDescriptors
from scipy.spatial import cKDTree

from moldiff.errors import MoldiffError
from moldiff.molecules import conformers
from moldiff.molecules.convert import atom_order, atoms, closed_where_drawn, from_rdkit, has_hydrogen, one_line
from moldiff.molecules.formats.record import HYDROGENS_ADDED, Record, total_charge
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.validity import all_bonds, check, odd_bonds, odd_smiles
from moldiff.molecules.vocabulary import NUMBERS, SYMBOLS, VALENCES, AtomClass, Vocabulary, covalent_radii

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

_LARGEST = float(np.finfo(np.float32).max)  # properties are numbers of 32 bits; one that does not fit is not known
_MIN_DISTANCE = 0.6  # Å; closer atoms are taken for a mistake (H-H in H2 is 0.74, X-ray structures have O-H from 0.7)
_MAX_MEDIAN_BOND = 2.75  # Å; in organic molecules it is about 1.5, which in Bohr is 2.8; I-I has 2.7
_LONGEST_BOND = 2.0
"""Times the sum of the covalent radii. Of QM9, the NCI set, the drug-like set, approved drugs and 2,000 ligands of the
PDB none has a bond above 1.33, but for four ligands with a hydrogen at 4.7 to 8.1 times the sum."""

_FAR = 1_000.0  # Å; further from the origin, coordinates of 32 bits tell less than 0.0001 Å apart
_NON_METALS = frozenset({5, 6, 7, 8, 14, 15, 16})  # of which one heavy atom can be a molecule, no counter-ion
_FILE_INDEX = "_moldiff_file_index"


@dataclass(frozen=True, kw_only=True)
class CurationRules:
    """Rules by which records become molecules.

    RDKit's clean-up comes first (in `moldiff.molecules.formats.record`): a nitro group drawn with two double bonds
    becomes charge-separated. Charges stay as they are drawn, isotope labels are dropped.

    The elements named are taken as they are drawn although the valence table lacks them. Larger molecules than
    `max_heavy_atoms` are rejected. With `radicals` open shells are kept; decoding by valence rules never produces them.

    Args:
        hydrogens: `add` = missing ones are added with coordinates; a record in which a carbon carries an explicit
            hydrogen is taken as complete, and an atom drawn with hydrogens that lacks some is a radical. `keep` =
            nothing is added. `none` = hydrogens are counted in the atom classes but have no coordinates of their
            own. With `keep`, records that have no hydrogens are treated like with `none`.
        fragments: `largest` = `largest_fragment` is kept; `reject`.
        conformers: of records without 3D coordinates: `etkdg` = `moldiff.molecules.conformers` with `seed`; `reject`.

    Raises MoldiffError for a value that is not among the choices, or an unknown element.
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
            if str(symbol) not in NUMBERS:
                raise MoldiffError(f"elements: got {symbol!r}, expected symbols of elements")

    @property
    def _allowed(self) -> set[int]:
        """Atomic numbers of the elements that are taken as they are drawn."""
        return {NUMBERS[str(symbol)] for symbol in self.elements}

    def apply(self, record: Record) -> tuple[Molecule | InvalidMolecule, tuple[str, ...]]:
        """The molecule of a record, or why there is none; and what was done to it."""
        mol, notes = record.mol, list(record.remarks)
        if mol is None or record.problem is not None:
            # An element that no molecule may have, or a clash, explains broken valences.
            known = mol and (self._unknown_element(mol) or _clash_as_drawn(mol))
            return known or record.problem or InvalidMolecule(Status.UNREADABLE, "no molecule"), ()
        notes += [oddity.kind for oddity in odd_smiles(mol)]
        done: Any = _clash_as_drawn(mol) or mol
        for step in (self._in_one_piece, self._with_bonds, self._in_3d, self._molecule):
            if not isinstance(done, InvalidMolecule):
                done = step(done, notes)
        return done, tuple(notes)

    def _in_one_piece(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        count = len(Chem.GetMolFrags(mol))
        unbonded = count > 1 and mol.GetNumBonds() == 0 and mol.GetNumConformers() and has_hydrogen(mol)
        if count == 1 or unbonded:  # bonds are still to come
            return mol
        if self.fragments == "reject":
            return InvalidMolecule(Status.DISCONNECTED, f"{count} fragments, expected one")
        notes.append(LARGEST_FRAGMENT)
        return largest_fragment(mol)

    def _unknown_element(self, mol: Chem.Mol) -> InvalidMolecule | None:
        for atom in atoms(mol):
            number, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
            if number == 0:
                return InvalidMolecule.at(file_index(atom), "*", Status.UNREADABLE, "dummy atom")
            if (number, charge) not in VALENCES and number not in self._allowed:
                what = f"charge {charge:+d}" if charge and (number, 0) in VALENCES else "element"
                reason = f"{what} not in the valence table"
                return InvalidMolecule.at(file_index(atom), atom.GetSymbol(), Status.VALENCE, reason)
        return None

    def _with_bonds(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        if problem := self._unknown_element(mol):
            return problem
        if mol.GetNumAtoms() == 1 or mol.GetNumBonds():
            return mol
        notes.append(BONDS_PERCEIVED)
        perceived = Chem.Mol(mol)
        try:
            with rdBase.BlockLogs():
                rdDetermineBonds.DetermineBonds(perceived, charge=total_charge(mol))
                Chem.SanitizeMol(perceived)
        except (ValueError, RuntimeError) as error:
            return InvalidMolecule(Status.UNREADABLE, f"bond perception failed: {one_line(error)[:120]}")
        notes.extend(oddity.kind for oddity in odd_smiles(perceived))
        return self._in_one_piece(perceived, notes)

    def _in_3d(self, mol: Chem.Mol, notes: list[str]) -> Chem.Mol | InvalidMolecule:
        heavy = int(mol.GetNumHeavyAtoms())
        if heavy > self.max_heavy_atoms:
            return InvalidMolecule(Status.UNREADABLE, f"{heavy} heavy atoms, more than max_heavy_atoms")
        if mol.GetNumConformers() > 0:
            finite = np.isfinite(mol.GetConformer().GetPositions()).all(1)
            if not finite.all():
                atom = mol.GetAtomWithIdx(int((~finite).argmax()))
                where = file_index(atom), atom.GetSymbol()
                return InvalidMolecule.at(*where, Status.NON_FINITE, "coordinate not finite")
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
        complete = not any(atom.GetTotalNumHs() for atom in atoms(mol))
        if complete or (self.hydrogens == "keep" and has_hydrogen(mol)):
            return mol
        notes.append(HYDROGENS_ADDED if self.hydrogens == "add" else HYDROGENS_NOT_PLACED)
        return Chem.AddHs(mol, addCoords=True)

    def _molecule(self, mol: Chem.Mol, notes: list[str]) -> Molecule | InvalidMolecule:
        molecule = from_rdkit(mol)
        file_order = np.array([file_index(atom) for atom in atoms(mol)], dtype=np.int64)
        if isinstance(molecule, InvalidMolecule):
            return molecule.renumbered(file_order)
        if problem := check(molecule, self._own_valences(molecule)):
            if not (self.radicals and problem.status is Status.RADICAL):
                return problem.renumbered(file_order[atom_order(mol)])
            notes.append(RADICAL_KEPT)
        if self.hydrogens == "none" and HYDROGENS_NOT_PLACED not in notes:
            notes.append(HYDROGENS_NOT_PLACED)
        placed = HYDROGENS_NOT_PLACED not in notes
        if not placed:
            molecule = replace(molecule, hydrogen_offset=np.zeros_like(molecule.hydrogen_offset))
        if problem := clash(mol, hydrogens=placed) or impossible_bonds(molecule):
            return problem
        notes.extend(oddity.kind for oddity in odd_bonds(molecule, hydrogens=placed))
        centre = molecule.pos.mean(axis=0)
        if np.abs(centre).max() > _FAR:
            molecule = replace(molecule, pos=molecule.pos - centre)
            notes.append(MOVED)
        known = {name: value for name, value in molecule.properties.items() if abs(value) <= _LARGEST}
        charge = {"net_charge": float(molecule.formal_charge.sum())}
        return replace(molecule, properties=charge | known)

    def _own_valences(self, molecule: Molecule) -> Vocabulary | None:
        """Valences as drawn of the elements that are allowed to have any."""
        extra: dict[tuple[int, int], tuple[int, ...]] = {}
        columns = (molecule.atomic_number, molecule.formal_charge, molecule.bond_sums())
        for number, charge, total in np.stack(columns, axis=1).tolist() if self.elements else ():
            if number in self._allowed and (number, charge) not in VALENCES:
                extra[number, charge] = (*extra.get((number, charge), ()), total)
        return Vocabulary((AtomClass(6, 0, 4),), extra) if extra else None


def largest_fragment(mol: Chem.Mol) -> Chem.Mol:
    """The organic fragment with the most heavy atoms, sanitised, with the name and data fields of the whole.

    Organic is what has a carbon. Where nothing has, a lone halide or metal comes last, so that of ammonium chloride the
    ammonium is kept. Of several fragments, it is the one with the greatest mass, then the one whose SMILES comes first
    in the alphabet, then the one that comes first in the file. Charges stay as they are: an acetate is not made an
    acid.
    """
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetIntProp(_FILE_INDEX, atom.GetIdx())
    kept = min(Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False), key=_rank)
    for key in mol.GetPropNames(includePrivate=True, includeComputed=False):
        kept.SetProp(key, mol.GetProp(key))
    with rdBase.BlockLogs():
        Chem.SanitizeMol(kept)
    return Chem.Mol(kept)


def _rank(piece: Chem.Mol) -> tuple[bool, bool, int, float, str]:
    """Order of fragments: the one to keep comes first."""
    piece.UpdatePropertyCache(strict=False)
    elements, heavy = {atom.GetAtomicNum() for atom in atoms(piece)}, int(piece.GetNumHeavyAtoms())
    mass = round(float(rdMolDescriptors.CalcExactMolWt(piece)), 3)
    return 6 not in elements, heavy <= 1 and not elements & _NON_METALS, -heavy, -mass, str(Chem.MolToSmiles(piece))


def file_index(atom: Chem.Atom) -> int:
    """Index of an atom, from 0, in the record that its fragment was taken from."""
    return int(atom.GetIntProp(_FILE_INDEX) if atom.HasProp(_FILE_INDEX) else atom.GetIdx())


def _at_one_place(mol: Chem.Mol) -> bool:
    """Whether all atoms, of which there are several, have the same coordinates."""
    return mol.GetNumAtoms() > 1 and bool(np.ptp(mol.GetConformer().GetPositions(), axis=0).max() == 0)


def _clash_as_drawn(mol: Chem.Mol) -> InvalidMolecule | None:
    """A clash in the record as it stands: an atom on another one, of which none may be dropped in silence."""
    solid = mol.GetNumConformers() > 0 and mol.GetConformer().Is3D()
    return clash(mol) if solid and not _at_one_place(mol) else None


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
    bonds = all_bonds(molecule)
    heavy = bonds.lengths[: len(molecule.bonds)]
    if len(heavy) and (median := float(np.median(heavy))) > _MAX_MEDIAN_BOND:
        reason = f"half of the bonds are longer than {median:.2f} Å, expected coordinates in Å"
        return InvalidMolecule(Status.UNREADABLE, reason)
    longest = _LONGEST_BOND * covalent_radii(bonds.elements).sum(axis=1)
    if not (bonds.lengths > longest).any():
        return None
    worst = int((bonds.lengths / longest).argmax())
    pair = "-".join(SYMBOLS[number] for number in bonds.elements[worst].tolist())
    reason = f"a bond {pair} of {bonds.lengths[worst]:.2f} Å, expected at most {longest[worst]:.2f}"
    return InvalidMolecule(Status.UNREADABLE, reason)
