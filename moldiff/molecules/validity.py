"""Protocol P2 on one molecule: whether its explicit graph obeys valences, with the reason where it does not."""

from __future__ import annotations

import numpy as np
from rdkit import Chem

from moldiff.molecules.convert import sanitized_copy, to_rdkit
from moldiff.molecules.elements import SYMBOLS, VALENCES
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import Vocabulary


def check(molecule: Molecule, vocabulary: Vocabulary | None = None) -> InvalidMolecule | None:
    """Protocol P2 on the explicit graph: why the molecule is not valid; None = valid.

    Valid: coordinates are finite, every atom's sum of Kekulé orders (hydrogens included) is in the valence table,
    RDKit sanitises the graph and finds no radical, and all atoms hang together in one fragment.

    Args:
        molecule: the molecule to judge.
        vocabulary: brings valences, observed in the data, for (element, charge) pairs that the table lacks.
    """
    if molecule.num_heavy_atoms == 0:
        return InvalidMolecule(Status.UNREADABLE, "no heavy atom")
    finite = np.isfinite(molecule.pos).all(1) & np.isfinite(molecule.hydrogen_offset).all((1, 2))
    if not finite.all():
        return _at_atom(molecule, int((~finite).argmax()), Status.NON_FINITE, "coordinate not finite")
    problem = _valence_problem(molecule, vocabulary)
    if problem is not None:
        return problem
    sanitized = sanitized_copy(to_rdkit(molecule, stereo=False))
    if isinstance(sanitized, InvalidMolecule):
        return sanitized
    for atom in sanitized.GetAtoms():
        if atom.GetNumRadicalElectrons():
            return _at_atom(molecule, atom.GetIdx(), Status.RADICAL, "unpaired electron")
    fragments = len(Chem.GetMolFrags(sanitized))
    if fragments > 1:
        return InvalidMolecule(Status.DISCONNECTED, f"{fragments} fragments, expected one")
    return None


def is_stable(molecule: Molecule, vocabulary: Vocabulary | None = None) -> bool:
    """Whether every atom obeys the valence table on the explicit graph (P2 "molecule stability")."""
    return molecule.num_heavy_atoms > 0 and _valence_problem(molecule, vocabulary) is None


def allowed_sums(molecule: Molecule, vocabulary: Vocabulary | None = None) -> list[tuple[int, ...]]:
    """The sums of bond orders that every heavy atom [n] may have, hydrogens included; () where none is known."""
    extra = {} if vocabulary is None else vocabulary.extra_valences
    keys = zip(molecule.atomic_number.tolist(), molecule.formal_charge.tolist(), strict=True)
    return [VALENCES.get(key) or tuple(extra.get(key, ())) for key in keys]


def _valence_problem(molecule: Molecule, vocabulary: Vocabulary | None) -> InvalidMolecule | None:
    """The first atom with too many bonds, else the first with too few; None = all are fine."""
    short = None
    rows = zip(allowed_sums(molecule, vocabulary), molecule.bond_sums().tolist(), strict=True)
    for index, (allowed, total) in enumerate(rows):
        if total in allowed:
            continue
        charge = int(molecule.formal_charge[index])
        if not allowed:
            return _at_atom(molecule, index, Status.VALENCE, f"no valence known for charge {charge:+d}")
        at_charge = f" at charge {charge:+d}" if charge else ""
        reason = f"bond orders sum to {total}, expected {' or '.join(map(str, allowed))}{at_charge}"
        if total > max(allowed):
            return _at_atom(molecule, index, Status.VALENCE, reason)
        # Short of a valence that the atom could still reach: an open shell rather than too many bonds.
        short = short or _at_atom(molecule, index, Status.RADICAL, reason)
    return short


def _at_atom(molecule: Molecule, atom: int, status: Status, reason: str) -> InvalidMolecule:
    heavy = atom < molecule.num_heavy_atoms
    atomic_number = int(molecule.atomic_number[atom]) if heavy else 1
    symbol = SYMBOLS[atomic_number]
    return InvalidMolecule(status, f"atom {atom} ({symbol}): {reason}", atom)
