"""Whether a molecule is valid (protocol P2), with the reason where it is not, and what is odd about it.

An odd molecule is kept, flagged and counted, for it may be right all the same.
"""

from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import sanitized_copy, text_property, to_rdkit
from moldiff.molecules.identity import SMILES_NAMES, canonical_key, plain
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import BOND_RADII, SYMBOLS, VALENCES, Vocabulary

SHORT, LONG, TORN = 0.8, 1.21, 1.3
"""Times the usual length of a bond (`Bonds.usual`): a shorter or a longer one is odd, which is said of its record; one
beyond the last is torn, so that its molecule is not sound (`moldiff.evaluation.metrics.contacts`).

The longest C-C bond known has 1.204 times (docs/data.md). Of the 130,829 molecules of QM9 17 have a long bond and 2 a
torn one, of 26,365 drug-like ones with computed coordinates 10 and 6. RDKit's embedding of a nitrile oxide has 1.28.
"""


class Oddity(NamedTuple):
    """Something odd: what records are counted by, and what it is in this one."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def check(molecule: Molecule, vocabulary: Vocabulary | None = None) -> InvalidMolecule | None:
    """Protocol P2 on the explicit graph: why the molecule is not valid; None = valid.

    Valid: coordinates are finite, every atom's sum of Kekulé orders (hydrogens included) is in the valence table,
    RDKit sanitises the graph and finds no radical, and all atoms hang together in one fragment. The vocabulary brings
    valences, observed in the data, for (element, charge) pairs that the table lacks.
    """
    if molecule.num_heavy_atoms == 0:
        return InvalidMolecule(Status.UNREADABLE, "no heavy atom")
    finite = np.isfinite(molecule.pos).all(1) & np.isfinite(molecule.hydrogen_offset).all((1, 2))
    if not finite.all():
        return _at_atom(molecule, int((~finite).argmax()), Status.NON_FINITE, "coordinate not finite")
    if problem := _valence_problem(molecule, vocabulary):
        return problem
    sanitized = sanitized_copy(to_rdkit(molecule, stereo=False))
    if isinstance(sanitized, InvalidMolecule):
        return sanitized
    for atom in sanitized.GetAtoms():
        if atom.GetNumRadicalElectrons():
            return InvalidMolecule.at(atom.GetIdx(), atom.GetSymbol(), Status.RADICAL, "unpaired electron")
    count = len(Chem.GetMolFrags(sanitized))
    return InvalidMolecule(Status.DISCONNECTED, f"{count} fragments, expected one") if count > 1 else None


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
        # Short of a valence that it could still reach: an open shell rather than too many bonds.
        short = short or _at_atom(molecule, index, Status.RADICAL, reason)
    return short


def _at_atom(molecule: Molecule, atom: int, status: Status, reason: str) -> InvalidMolecule:
    return InvalidMolecule.at(atom, SYMBOLS[int(molecule.atomic_number[atom])], status, reason)


class Bonds(NamedTuple):
    """The bonds of a molecule, those to hydrogens behind the others."""

    atoms: np.ndarray  # pairs (i, j) [m, 2], heavy atoms first, then the hydrogens
    elements: np.ndarray  # atomic numbers [m, 2]
    lengths: np.ndarray  # (Å) [m]
    usual: np.ndarray  # sum of `elements.BOND_RADII` of the bond's order (Å) [m], NaN where one is not known


def all_bonds(molecule: Molecule, *, hydrogens: bool = True) -> Bonds:
    """The bonds of a molecule with their lengths; `hydrogens` says whether those have coordinates of their own."""
    i, j, orders = molecule.bonds.T
    used = molecule.hydrogen_mask & hydrogens
    heavy, _ = np.nonzero(used)
    vectors = np.concatenate([molecule.pos[i] - molecule.pos[j], molecule.hydrogen_offset[used]])
    first = np.concatenate([i, heavy])
    second = np.concatenate([j, molecule.num_heavy_atoms + np.arange(len(heavy))])
    atoms = np.stack([first, second], axis=1).astype(np.int64)
    elements = np.concatenate([molecule.atomic_number, np.ones_like(heavy)])[atoms]
    orders = np.concatenate([orders, np.ones_like(heavy)])
    usual = BOND_RADII[orders[:, None] - 1, np.minimum(elements, BOND_RADII.shape[1] - 1)].sum(axis=1)
    return Bonds(atoms, elements, np.sqrt((vectors**2).sum(-1)), usual)


def odd_bonds(molecule: Molecule, order: np.ndarray | None = None, *, hydrogens: bool = True) -> list[Oddity]:
    """Bonds far outside their usual length, one of every kind; `hydrogens` says whether those have coordinates.

    `order` is the number by which to name every atom [a]; None = heavy atoms first, then hydrogens.
    """
    atoms, elements, lengths, usual = all_bonds(molecule, hydrogens=hydrogens)
    found: dict[str, Oddity] = {}
    for bond in np.flatnonzero((lengths < SHORT * usual) | (lengths > LONG * usual)).tolist():
        pair = "-".join(SYMBOLS[number] for number in sorted(elements[bond].tolist(), key=lambda z: (z != 6, z == 1)))
        kind = f"{'long' if lengths[bond] > usual[bond] else 'short'} bond {pair}"
        first, second = sorted((atoms[bond] if order is None else order[atoms[bond]]).tolist())
        found.setdefault(kind, Oddity(kind, f"{lengths[bond]:.2f} Å between atoms {first} and {second}"))
    return list(found.values())


def odd_smiles(mol: Chem.Mol) -> list[Oddity]:
    """A data field with a SMILES of another graph than that of a sanitised molecule, stereo aside.

    Another tautomer is another graph; a molecule without bonds contradicts nothing.
    """
    if mol.GetNumAtoms() > 1 and not mol.GetNumBonds():
        return []
    texts = [text_property(mol, name).split() for name in mol.GetPropNames() if plain(name) in SMILES_NAMES]
    oddities = (_compared(mol, text) for text in dict.fromkeys(words[0] for words in texts if words))
    return [oddity for oddity in oddities if oddity is not None][:1]


def _compared(mol: Chem.Mol, text: str) -> Oddity | None:
    with rdBase.BlockLogs():
        said = Chem.MolFromSmiles(text)
    if said is None or said.GetNumAtoms() == 0:
        return Oddity("SMILES field that cannot be read", text[:80])
    # That two SMILES of graphs are equal shows in a third of the time that their keys take.
    one, other = (Chem.MolToSmiles(Chem.RemoveHs(m, sanitize=False), isomericSmiles=False) for m in (said, mol))
    try:
        same = one == other or canonical_key(said) == canonical_key(mol)
    except MoldiffError:
        return None
    return None if same else Oddity("SMILES field of another molecule", text[:80])
