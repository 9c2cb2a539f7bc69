"""Charges as in water: hydrogens are added and taken away by the rules of molscrub, `moldiff sample ph=7.4`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError, first_line
from moldiff.evaluation.metrics.contacts import Contacts
from moldiff.molecules.convert import BOND_ORDERS, sanitized_copy, to_rdkit, with_ideal_hydrogens
from moldiff.molecules.formats.record import Value
from moldiff.molecules.identity import strict_key
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.molecules.validity import check
from moldiff.molecules.vocabulary import MAX_HYDROGENS

_CONTACTS = Contacts()


def protonated(molecule: Molecule, ph: float) -> tuple[Molecule, dict[str, Value | None]]:
    """A valid molecule with the charges that most of it has in water of that pH, and what its record says of it.

    Heavy atoms stay where they are; where hydrogens come or go, those of the atom are put at ideal places. It stays as
    it was where the rules give no sound molecule. The fields are `drawn_SMILES` (before) and `protonated_by`, the
    library, or why the molecule stayed.
    """
    before: dict[str, Value | None] = {"drawn_SMILES": strict_key(molecule)}
    try:
        after = _in_state(molecule, ph)
        problem = check(after) or _CONTACTS.check(after)
    except (RuntimeError, ValueError) as error:
        return molecule, before | {"protonated_by": f"nothing: {first_line(error)}"}
    if problem is not None:
        return molecule, before | {"protonated_by": f"nothing: {problem.reason}"}
    return after, before | {"protonated_by": f"molscrub {metadata.version('molscrub')}"}


def _in_state(molecule: Molecule, ph: float) -> Molecule:
    mol = sanitized_copy(to_rdkit(molecule, stereo=False))
    if isinstance(mol, InvalidMolecule):
        raise MoldiffError(mol.reason)
    with rdBase.BlockLogs():
        Chem.RemoveStereochemistry(mol)  # a hydrogen that says how C=NH stands would stay an atom
        heavy = Chem.RemoveHs(mol)
        plain = Chem.MolFromSmiles(Chem.MolToSmiles(heavy))  # its hydrogens are implicit, as the rules expect
        for atom, row in zip(plain.GetAtoms(), heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"], strict=True):
            atom.SetIsotope(row + 1)  # the rules change the order of atoms, and keep this mark
        state = _rules()(plain, ph, ph)[0]
        Chem.SanitizeMol(state)
        Chem.Kekulize(state, clearAromaticFlags=True)
    atoms = list(state.GetAtoms())
    rows = np.array([atom.GetIsotope() - 1 for atom in atoms])
    charge, hydrogens = np.zeros_like(molecule.formal_charge), np.zeros_like(molecule.num_hydrogens)
    charge[rows], hydrogens[rows] = np.array([(one.GetFormalCharge(), one.GetTotalNumHs()) for one in atoms]).T
    changed = (charge != molecule.formal_charge) | (hydrogens != molecule.num_hydrogens)
    if not changed.any():
        return molecule
    if sorted(rows) != list(range(molecule.num_heavy_atoms)) or hydrogens.max() > MAX_HYDROGENS:
        raise MoldiffError(f"a state with other atoms, {Chem.MolToSmiles(state)}")
    ends = ((rows[one.GetBeginAtomIdx()], rows[one.GetEndAtomIdx()], one.GetBondType()) for one in state.GetBonds())
    bonds = np.array(sorted((min(i, j), max(i, j), BOND_ORDERS[kind]) for i, j, kind in ends)).reshape(-1, 3)
    after = replace(molecule, formal_charge=charge, num_hydrogens=hydrogens, bonds=bonds)
    return with_ideal_hydrogens(after, changed)


@cache
def _rules() -> Any:
    from molscrub.protonate import AcidBaseConjugator

    return AcidBaseConjugator.from_default_data_files()
