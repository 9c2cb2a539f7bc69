"""What is odd about a molecule that can be read: it is kept, flagged and counted, for it may be right all the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.elements import BOND_RADII, SYMBOLS
from moldiff.molecules.formats.record import SMILES_NAMES, plain
from moldiff.molecules.identity import canonical_key
from moldiff.molecules.molecule import Molecule

SHORT, LONG, TORN = 0.8, 1.21, 1.3
"""Times the usual length of a bond (`Bonds.usual`): a shorter or a longer one is odd, which is said of its record; one
beyond the last is torn, so that its molecule is not sound (`moldiff.evaluation.metrics.contacts`).

The longest C-C bond known of a neutral hydrocarbon has 1.204 times (1.806 Å, Ishigaki et al. 2018,
doi:10.1016/j.chempr.2018.01.011). Of the 130,829 molecules of QM9 17 have a long bond of any kind and 2 a torn one, of
26,365 drug-like ones with computed coordinates 10 and 6. Coordinates that are given may be cruder: of a nitrile oxide
RDKit's embedding alone has a C#N of 1.28 times.
"""

OTHER_SMILES = "SMILES field of another molecule"
UNREADABLE_SMILES = "SMILES field that cannot be read"


class Oddity(NamedTuple):
    """Something odd: what records are counted by, and what it is in this one."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Bonds(NamedTuple):
    """The bonds of a molecule, those to hydrogens behind the others.

    Attributes:
        atoms: pairs (i, j) [m, 2], heavy atoms first, then the hydrogens.
        elements: atomic numbers [m, 2].
        lengths: (Å) [m].
        usual: sum of the covalent radii of the bond's order (`elements.BOND_RADII`, Å) [m]; NaN where one is not known.
    """

    atoms: np.ndarray
    elements: np.ndarray
    lengths: np.ndarray
    usual: np.ndarray


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
    """Bonds far outside their usual length, one of every kind.

    Args:
        molecule: a molecule with coordinates (Å).
        order: the number by which to name every atom [a]; None = heavy atoms first, then hydrogens.
        hydrogens: whether those have coordinates of their own.
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
    """A data field with a SMILES of another graph than the molecule's, stereo aside; another tautomer is another one.

    Args:
        mol: a sanitised molecule with the data fields of its record; one without bonds contradicts nothing.
    """
    texts = [text for name in mol.GetPropNames() if plain(name) in SMILES_NAMES and (text := _first_word(mol, name))]
    if not texts or (mol.GetNumAtoms() > 1 and not mol.GetNumBonds()):
        return []
    return [oddity for text in dict.fromkeys(texts) if (oddity := _compared(mol, text)) is not None][:1]


def _first_word(mol: Chem.Mol, name: str) -> str:
    try:
        return next(iter(str(mol.GetProp(name)).split()), "")
    except UnicodeDecodeError:
        return ""


def _compared(mol: Chem.Mol, text: str) -> Oddity | None:
    with rdBase.BlockLogs():
        said = Chem.MolFromSmiles(text)
    if said is None or said.GetNumAtoms() == 0:
        return Oddity(UNREADABLE_SMILES, text[:80])
    try:
        same = _text(said) == _text(mol) or canonical_key(said) == canonical_key(mol)
    except MoldiffError:
        return None
    return None if same else Oddity(OTHER_SMILES, text[:80])


def _text(mol: Chem.Mol) -> str:
    """SMILES of the graph; that two are equal shows in a third of the time that their keys take."""
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol, sanitize=False), isomericSmiles=False))
