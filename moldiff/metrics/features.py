"""What molecules are made of, as samples by type: bond lengths, angles, torsions, elements, sizes and rings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from moldiff.metrics import internal
from moldiff.metrics.rings import ring_systems
from moldiff.vocabulary import SYMBOLS

_MARKS = {1: "-", 2: "=", 3: "#", 4: ":"}
_TYPES = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
_STRAIGHT = 5.0  # degrees from 0 or 180 within which a bond angle leaves a torsion undefined
_BASE = 128  # larger than any atomic number, so that types pack into one integer


@dataclass(frozen=True, eq=False)
class Features:
    """Samples of a set of molecules.

    Attributes:
        bond_lengths: (Å) by type, such as "C=O" ("-" single, "=" double, "#" triple, ":" aromatic).
        angles: (degrees) by the three elements, such as "C-O-H".
        torsions: absolute values (degrees, 0 to 180) by the four elements and the middle bond, such as "H-C=C-H".
        elements: atomic numbers of all atoms.
        sizes: heavy atoms of each molecule.
        ring_sizes: of all rings of RDKit's symmetrised smallest set.
        ring_systems: of all ring systems, see `moldiff.metrics.rings`.
    """

    bond_lengths: Mapping[str, np.ndarray]
    angles: Mapping[str, np.ndarray]
    torsions: Mapping[str, np.ndarray]
    elements: np.ndarray
    sizes: np.ndarray
    ring_sizes: np.ndarray
    ring_systems: np.ndarray


@dataclass(frozen=True, eq=False)
class _Flat:
    """The atoms and bonds of all molecules behind one another."""

    element: np.ndarray
    pos: np.ndarray
    bonds: np.ndarray
    order: np.ndarray
    sizes: np.ndarray
    ring_sizes: np.ndarray
    ring_systems: np.ndarray


def features(mols: Iterable[Chem.Mol]) -> Features:
    """Samples of sanitised molecules with hydrogens and one conformer."""
    flat = _flatten(mols)
    return Features(
        bond_lengths=_bond_lengths(flat),
        angles=_angles(flat),
        torsions=_torsions(flat),
        elements=flat.element,
        sizes=flat.sizes,
        ring_sizes=flat.ring_sizes,
        ring_systems=flat.ring_systems,
    )


def _flatten(mols: Iterable[Chem.Mol]) -> _Flat:
    element: list[int] = []
    bonds: list[tuple[int, int]] = []
    order: list[int] = []
    pos, sizes, ring_sizes = [np.zeros((0, 3))], [], []
    systems: list[str] = []
    for mol in mols:
        offset = len(element)
        element += [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        for bond in mol.GetBonds():
            bonds.append((offset + bond.GetBeginAtomIdx(), offset + bond.GetEndAtomIdx()))
            order.append(_TYPES[bond.GetBondType()])
        pos.append(mol.GetConformer().GetPositions())
        sizes.append(mol.GetNumHeavyAtoms())
        ring_sizes += [len(ring) for ring in mol.GetRingInfo().AtomRings()]
        systems += ring_systems(mol)
    arrays = np.array(element, dtype=np.int64), np.concatenate(pos), np.array(bonds, dtype=np.int64).reshape(-1, 2)
    return _Flat(
        *arrays,
        order=np.array(order, dtype=np.int64),
        sizes=np.array(sizes),
        ring_sizes=np.array(ring_sizes, dtype=np.int64),
        ring_systems=np.array(systems, dtype=np.str_),
    )


def _bond_lengths(flat: _Flat) -> dict[str, np.ndarray]:
    z = np.sort(flat.element[flat.bonds], axis=1)
    groups = _grouped(np.column_stack([z, flat.order]), internal.lengths(flat.pos, flat.bonds))
    return {_chain([i, j], [order]): values for (i, j, order), values in groups}


def _angles(flat: _Flat) -> dict[str, np.ndarray]:
    atoms = internal.angle_atoms(flat.bonds, len(flat.element))
    z = flat.element[atoms]
    z[:, [0, 2]] = np.sort(z[:, [0, 2]], axis=1)
    groups = _grouped(z, internal.angles(flat.pos, atoms))
    return {_chain([i, j, k], [1, 1]): values for (i, j, k), values in groups}


def _torsions(flat: _Flat) -> dict[str, np.ndarray]:
    atoms = internal.torsion_atoms(flat.bonds, len(flat.element))
    ends = np.stack([internal.angles(flat.pos, atoms[:, part]) for part in ([0, 1, 2], [1, 2, 3])])
    atoms = atoms[((ends > _STRAIGHT) & (ends < 180 - _STRAIGHT)).all(0)]
    z = flat.element[atoms]
    backwards = (z[:, 1] > z[:, 2]) | ((z[:, 1] == z[:, 2]) & (z[:, 0] > z[:, 3]))
    z[backwards] = z[backwards, ::-1]
    middle = _order_of(flat, atoms[:, 1:3])
    groups = _grouped(np.column_stack([z, middle]), np.abs(internal.torsions(flat.pos, atoms)))
    return {_chain([i, j, k, m], [1, order, 1]): values for (i, j, k, m, order), values in groups}


def _order_of(flat: _Flat, pairs: np.ndarray) -> np.ndarray:
    """Types of the bonds between pairs of atoms [k, 2]."""
    number = len(flat.element)
    known = flat.bonds.min(axis=1) * number + flat.bonds.max(axis=1) if len(flat.bonds) else np.zeros(0, dtype=np.int64)
    sort = np.argsort(known)
    wanted = pairs.min(axis=1) * number + pairs.max(axis=1) if len(pairs) else np.zeros(0, dtype=np.int64)
    return np.asarray(flat.order[sort[np.searchsorted(known[sort], wanted)]])


def _grouped(keys: np.ndarray, values: np.ndarray) -> list[tuple[list[int], np.ndarray]]:
    """Values [k] parted by their rows of `keys` [k, w]; a list of (row, values)."""
    if not len(values):
        return []
    packed = (keys * _BASE ** np.arange(keys.shape[1])).sum(axis=1)
    sort = np.argsort(packed, kind="stable")
    starts = np.flatnonzero(np.diff(packed[sort], prepend=-1))
    parts = np.split(values[sort], starts[1:])
    return [(keys[sort[start]].tolist(), part) for start, part in zip(starts, parts, strict=True)]


def _chain(elements: list[int], orders: list[int]) -> str:
    symbols = [SYMBOLS[z] for z in elements]
    return symbols[0] + "".join(_MARKS[order] + symbol for order, symbol in zip(orders, symbols[1:], strict=True))
