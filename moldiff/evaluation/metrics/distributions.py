"""How far the distributions of a set of molecules lie from those of reference molecules.

Bond lengths and angles are compared by the Wasserstein-1 distance, which has their unit; torsions (in bins of
`torsion_bin` degrees, mirror images folded), elements, sizes, ring sizes and ring systems by the Jensen-Shannon
divergence to base 2, which runs from 0 (equal) to 1 (disjoint). Types are weighted by how often the reference has
them. A finite sample of the reference itself is not at 0: read the numbers beside those of one half of the reference
against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from rdkit import Chem

from moldiff.evaluation.metric import MetricOutput, OnProgress
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.evaluation.result import MetricResult
from moldiff.molecules import conformers
from moldiff.molecules.descriptors import ring_systems
from moldiff.molecules.elements import SYMBOLS


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Distances of the P2-valid molecules' distributions from the reference's.

    Attributes:
        min_count: samples of a type that the reference must have for it to be compared.
        num_rings: ring sizes and ring systems, the reference's most frequent ones, whose shares are details.
        torsion_bin: width of the bins of torsions (degrees).
    """

    min_count: int = 50
    torsion_bin: float = 5.0
    num_rings: int = 15

    name = "distribution"
    needs = ("coordinates", "bonds", "reference")
    package = None

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        """Compare with the reference, which must be there."""
        assert reference is not None
        found, known = features(molecules.mols.values()), features(reference.mols.values())
        results = [
            *self._by_type("bond_length", found.bond_lengths, known.bond_lengths, wasserstein, "Å"),
            *self._by_type("angle", found.angles, known.angles, wasserstein, "°"),
            *self._by_type("torsion", found.torsions, known.torsions, self._torsion_divergence, ""),
            *_by_class(found, known),
            *self._rings(found, known),
        ]
        options = asdict(self) | {"molecules": len(molecules.mols), "reference_molecules": len(reference.mols)}
        return MetricOutput(results, options=options)

    def _by_type(
        self,
        what: str,
        found: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray],
        distance: Callable[[np.ndarray, np.ndarray], float],
        unit: str,
    ) -> list[MetricResult]:
        """The mean over types, weighted by the reference, then how much of the reference it covers, then each type."""
        measure = "Wasserstein-1 distance" if unit else "Jensen-Shannon divergence (base 2)"
        name, values = f"distribution_{what}", what.replace("_", " ") + "s"
        types = sorted(
            (kind for kind in known if len(known[kind]) >= self.min_count), key=lambda kind: -len(known[kind])
        )
        types = [kind for kind in types if kind in found]
        distances = {kind: distance(found[kind], known[kind]) for kind in types}
        weight = sum(len(known[kind]) for kind in types)
        each = [
            MetricResult(
                f"{name}[{kind}]", distances[kind], 1, f"{measure} of {kind} {values}.", len(found[kind]), unit
            )
            for kind in types
        ]
        total = float(sum(len(known[kind]) * distances[kind] for kind in types))
        counted = sum(len(found[kind]) for kind in types)
        definition = (
            f"{measure} of {values} to the reference, mean over types weighted by their number in the reference."
        )
        covered = (
            f"The reference's {values} of types that are compared (at least {self.min_count} in the reference, one in "
            "the evaluated molecules), over all of the reference's."
        )
        everything = sum(len(samples) for samples in known.values())
        return [
            MetricResult(name, total, float(weight), definition, counted, unit),
            MetricResult(f"{name}_covered", weight, everything, covered),
            *each,
        ]

    def _rings(self, found: Features, known: Features) -> list[MetricResult]:
        """Which ring systems occur in the reference, and the shares of its most frequent ring sizes and systems."""
        among = int(np.isin(found.ring_systems, known.ring_systems).sum())
        definition = (
            "Ring systems (rings that share atoms are one) that the reference has, over all of P2-valid molecules."
        )
        results = [MetricResult("distribution_ring_systems_known", among, len(found.ring_systems), definition)]
        for name, text in (("ring_size", "Rings of {} atoms"), ("ring_system", "Ring systems {}")):
            own, others = (getattr(side, f"{name}s") for side in (found, known))
            kinds, counts = np.unique(others, return_counts=True)
            for place in np.lexsort((kinds, -counts))[: self.num_rings]:
                shown = f"{text.format(kinds[place])}, over all {name.replace('_', ' ')}s of P2-valid molecules."
                number = int((own == kinds[place]).sum())
                results.append(MetricResult(f"distribution_{name}[{kinds[place]}]", number, len(own), shown))
        return results

    def _torsion_divergence(self, found: np.ndarray, known: np.ndarray) -> float:
        edges = np.linspace(0, 180, round(180 / self.torsion_bin) + 1)
        return jensen_shannon(np.histogram(found, edges)[0], np.histogram(known, edges)[0])


_CLASSES = {
    "elements": "elements",
    "sizes": "numbers of heavy atoms",
    "ring_sizes": "ring sizes",
    "ring_systems": "ring systems (rings that share atoms are one)",
}


def _by_class(found: Features, known: Features) -> list[MetricResult]:
    """Divergences of what comes in classes."""
    results = []
    for name, text in _CLASSES.items():
        first, second = getattr(found, name), getattr(known, name)
        counted = min(len(first), len(second))
        kinds, place = np.unique(np.concatenate([first, second]), return_inverse=True)
        sides = (np.bincount(part, minlength=len(kinds)) for part in np.split(place, [len(first)]))
        value = jensen_shannon(*sides) if counted else 0.0
        definition = f"Jensen-Shannon divergence (base 2) of {text} to the reference, over P2-valid molecules."
        results.append(MetricResult(f"distribution_{name}", value, 1 if counted else 0, definition, len(first)))
    return results


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples [k] and [l], in their unit.

    >>> wasserstein(np.array([0.0, 1.0]), np.array([0.5, 1.5]))
    0.5
    """
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(first, second))


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence to base 2 of two histograms [k]; 0 = equal, 1 = disjoint.

    >>> jensen_shannon(np.array([1, 0]), np.array([0, 3])), jensen_shannon(np.array([2, 2]), np.array([1, 1]))
    (1.0, 0.0)
    """
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    return float(sum(0.5 * (part[part > 0] * np.log2(part[part > 0] / middle[part > 0])).sum() for part in (p, q)))


_MARKS = {1: "-", 2: "=", 3: "#", 4: ":"}
_TYPES = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
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
        ring_systems: of all ring systems, see `moldiff.molecules.descriptors`.
    """

    bond_lengths: Mapping[str, np.ndarray]
    angles: Mapping[str, np.ndarray]
    torsions: Mapping[str, np.ndarray]
    elements: np.ndarray
    sizes: np.ndarray
    ring_sizes: np.ndarray
    ring_systems: np.ndarray


class _Flat(NamedTuple):
    """The atoms and bonds of all molecules behind one another."""

    element: np.ndarray
    pos: np.ndarray
    bonds: np.ndarray
    order: np.ndarray


def features(mols: Iterable[Chem.Mol]) -> Features:
    """Samples of sanitised molecules with hydrogens and one conformer."""
    element: list[int] = []
    bonds: list[tuple[int, int, int]] = []
    pos, sizes, ring_sizes = [np.zeros((0, 3))], [], []
    systems: list[str] = []
    for mol in mols:
        offset = len(element)
        element += [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        bonds += [
            (offset + bond.GetBeginAtomIdx(), offset + bond.GetEndAtomIdx(), _TYPES[bond.GetBondType()])
            for bond in mol.GetBonds()
        ]
        pos.append(mol.GetConformer().GetPositions())
        sizes.append(mol.GetNumHeavyAtoms())
        ring_sizes += [len(ring) for ring in mol.GetRingInfo().AtomRings()]
        systems += ring_systems(mol)
    table = np.array(bonds, dtype=np.int64).reshape(-1, 3)
    flat = _Flat(np.array(element, dtype=np.int64), np.concatenate(pos), table[:, :2], table[:, 2])
    return Features(
        bond_lengths=_bond_lengths(flat),
        angles=_angles(flat),
        torsions=_torsions(flat),
        elements=flat.element,
        sizes=np.array(sizes),
        ring_sizes=np.array(ring_sizes, dtype=np.int64),
        ring_systems=np.array(systems, dtype=np.str_),
    )


def _bond_lengths(flat: _Flat) -> dict[str, np.ndarray]:
    z = np.sort(flat.element[flat.bonds], axis=1)
    groups = _grouped(np.column_stack([z, flat.order]), conformers.lengths(flat.pos, flat.bonds))
    return {_chain([i, j], [order]): values for (i, j, order), values in groups}


def _angles(flat: _Flat) -> dict[str, np.ndarray]:
    atoms = conformers.angle_atoms(flat.bonds, len(flat.element))
    z = flat.element[atoms]
    z[:, [0, 2]] = np.sort(z[:, [0, 2]], axis=1)
    groups = _grouped(z, conformers.angles(flat.pos, atoms))
    return {_chain([i, j, k], [1, 1]): values for (i, j, k), values in groups}


def _torsions(flat: _Flat) -> dict[str, np.ndarray]:
    atoms = conformers.torsion_atoms(flat.bonds, len(flat.element))
    atoms = atoms[conformers.are_bent(flat.pos, atoms)]
    z = flat.element[atoms]
    backwards = (z[:, 1] > z[:, 2]) | ((z[:, 1] == z[:, 2]) & (z[:, 0] > z[:, 3]))
    z[backwards] = z[backwards, ::-1]
    middle = _order_of(flat, atoms[:, 1:3])
    groups = _grouped(np.column_stack([z, middle]), np.abs(conformers.torsions(flat.pos, atoms)))
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
