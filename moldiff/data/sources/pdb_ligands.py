"""Ligands of the Protein Data Bank: the Chemical Component Dictionary that the package `biotite` carries.

Source: Westbrook et al. 2015, doi:10.1093/bioinformatics/btu789.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import stereo_of_coordinates
from moldiff.molecules.molecule import InvalidMolecule, Status

ELEMENTS = frozenset({"H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"})
MIN_HEAVY_ATOMS, MAX_HEAVY_ATOMS = 10, 30

_ORDERS = {"SING": Chem.BondType.SINGLE, "DOUB": Chem.BondType.DOUBLE, "TRIP": Chem.BondType.TRIPLE}
_IDEAL = tuple(f"pdbx_model_Cartn_{axis}_ideal" for axis in "xyz")


class Component(NamedTuple):
    """One entry of the dictionary.

    Attributes:
        name: its code.
        status: "REL" = released.
        kind: type of the entry, such as "NON-POLYMER".
        elements: symbols of its atoms.
        charges: their formal charges.
        pos: their ideal coordinates (Å), NaN where there are none [n, 3].
        bonds: ends and order, such as "DOUB", of every bond.
    """

    name: str
    status: str
    kind: str
    elements: tuple[str, ...]
    charges: tuple[int, ...]
    pos: np.ndarray
    bonds: tuple[tuple[int, int, str], ...]


class Dictionary:
    """The entries of the dictionary, in its order.

    Raises:
        MoldiffError: when the package `biotite` is not installed.
    """

    def __init__(self) -> None:
        if find_spec("biotite") is None:
            raise MoldiffError(
                'data=drugs needs the package biotite, which is not installed: pip install "moldiff[drugs]"'
            )
        from biotite.structure.info.ccd import get_ccd

        block = get_ccd()
        entries, atoms, bonds = (block[name] for name in ("chem_comp", "chem_comp_atom", "chem_comp_bond"))
        columns = [entries[name].as_array() for name in ("id", "pdbx_release_status", "type")]
        self._facts = {str(name): (str(status), str(kind)) for name, status, kind in zip(*columns, strict=True)}
        self._names = list(self._facts)
        self._atoms = _ranges(atoms["comp_id"].as_array())
        self._bonds = _ranges(bonds["comp_id"].as_array())
        self._symbols, self._labels = (atoms[name].as_array() for name in ("type_symbol", "atom_id"))
        self._charges = atoms["charge"].as_array(int, masked_value=0)
        self._pos = np.stack([atoms[name].as_array(float, masked_value=np.nan) for name in _IDEAL], axis=1)
        self._ends = [bonds[name].as_array() for name in ("atom_id_1", "atom_id_2", "value_order")]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Component:
        name = self._names[index]
        atoms, bonds = self._atoms.get(name, slice(0, 0)), self._bonds.get(name, slice(0, 0))
        place = {str(label): k for k, label in enumerate(self._labels[atoms].tolist())}
        ends = zip(*(column[bonds].tolist() for column in self._ends), strict=True)
        return Component(
            name,
            *self._facts[name],
            elements=tuple("H" if symbol == "D" else symbol.capitalize() for symbol in self._symbols[atoms].tolist()),
            charges=tuple(self._charges[atoms].tolist()),
            pos=self._pos[atoms],
            bonds=tuple((place[first], place[second], str(order)) for first, second, order in ends),
        )


def _ranges(names: np.ndarray) -> Mapping[str, slice]:
    """Where the rows of each name are; those of one name are together."""
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    ends = np.r_[starts[1:], len(names)]
    return {str(names[start]): slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)}


def smiles_of(component: Component) -> str | InvalidMolecule:
    """Isomeric SMILES of an entry that is a drug-like ligand, stereo read off its ideal coordinates; else why not."""
    reason = _unfit(component)
    if reason:
        return InvalidMolecule(Status.UNREADABLE, reason)
    mol = _drawn(component)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(mol)
            if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
                return InvalidMolecule(Status.RADICAL, "unpaired electron")
            fragments = len(Chem.GetMolFrags(mol))
            if fragments > 1:
                return InvalidMolecule(Status.DISCONNECTED, f"{fragments} fragments, expected one")
            stereo_of_coordinates(mol)
            return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    except Chem.MolSanitizeException as error:
        return InvalidMolecule(Status.UNSANITIZABLE, " ".join(str(error).split()))


def _unfit(component: Component) -> str:
    """Why an entry is not among the drug-like ligands, "" if it is."""
    heavy = sum(element != "H" for element in component.elements)
    charge = sum(component.charges)
    others = sorted(set(component.elements) - ELEMENTS)
    checks: tuple[tuple[Any, str], ...] = (
        (component.status != "REL", "not a released entry"),
        (component.kind.upper() != "NON-POLYMER", "part of a polymer"),
        (others, f"element {', '.join(others)}"),
        ("C" not in component.elements, "no carbon"),
        (heavy < MIN_HEAVY_ATOMS, f"fewer than {MIN_HEAVY_ATOMS} heavy atoms"),
        (heavy > MAX_HEAVY_ATOMS, f"more than {MAX_HEAVY_ATOMS} heavy atoms"),
        (charge, "charged"),
        (not np.isfinite(component.pos).all(), "no ideal coordinates"),
        (any(order not in _ORDERS for _, _, order in component.bonds), "bond of unknown order"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _drawn(component: Component) -> Chem.Mol:
    """The entry as it stands in the dictionary, not sanitised."""
    mol = Chem.RWMol()
    for element, charge in zip(component.elements, component.charges, strict=True):
        atom = Chem.Atom(element)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for first, second, order in component.bonds:
        mol.AddBond(first, second, _ORDERS[order])
    conformer = Chem.Conformer(len(component.elements))
    conformer.SetPositions(np.asarray(component.pos, dtype=np.float64))
    mol.AddConformer(conformer)
    return mol.GetMol()
