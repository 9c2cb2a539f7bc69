"""How far the distributions of a set of molecules lie from those of reference molecules.

A finite sample of the reference is not at 0: read the numbers beside those of one half of it against the other. The
Fréchet ChemNet Distance (Preuer et al. 2018, doi:10.1021/acs.jcim.8b00234) falls with the number of molecules, so that
two values compare only at equal numbers (the paper takes 5,000), and says little about molecules as small as QM9's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff.evaluation.metric import MetricOutput, MetricResult
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules.conformers import angle_atoms, angles, are_bent, lengths, torsion_atoms, torsions
from moldiff.molecules.descriptors import ring_systems
from moldiff.molecules.vocabulary import SYMBOLS
from moldiff.processes import OnProgress


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Distances of the P2-valid molecules' distributions from the reference's."""

    min_count: int = 50  # samples of a type that the reference must have for it to be compared
    torsion_bin: float = 5.0  # width of the bins of torsions (degrees)
    num_rings: int = 15  # ring sizes and systems, the reference's most frequent ones, whose shares are details

    name = "distribution"
    needs = ("coordinates", "bonds", "reference")

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        assert reference is not None
        found, known = features(molecules.mols()), features(reference.mols())
        results = [
            *self._by_type("bond_length", found, known, "Å"),
            *self._by_type("angle", found, known, "°"),
            *self._by_type("torsion", found, known, ""),
            *_by_class(found, known),
            *self._rings(found, known),
        ]
        options = asdict(self) | {"molecules": len(molecules.placed), "reference_molecules": len(reference.placed)}
        return MetricOutput(results, options=options)

    def _by_type(self, what: str, found: Features, known: Features, unit: str) -> list[MetricResult]:
        """The mean over types (mirror images of torsions are one), how much of the reference it covers, and each."""
        distance = wasserstein if unit else self._torsion_divergence
        measure = "Wasserstein-1 distance" if unit else "Jensen-Shannon divergence (base 2)"
        name, values = f"distribution_{what}", what.replace("_", " ") + "s"
        own, others = getattr(found, f"{what}s"), getattr(known, f"{what}s")
        types = [kind for kind in others if len(others[kind]) >= self.min_count and kind in own]
        types.sort(key=lambda kind: -len(others[kind]))
        each = []
        for kind in types:
            value, text = distance(own[kind], others[kind]), f"{measure} of {kind} {values}."
            each.append(MetricResult(f"{name}[{kind}]", value, 1, text, len(own[kind]), unit))
        counts = [len(others[kind]) for kind in types]
        total = float(sum(count * one.numerator for count, one in zip(counts, each, strict=True)))
        mean = f"{measure} of {values} to the reference, mean over types weighted by their number in the reference."
        covered = (
            f"The reference's {values} of types that are compared (at least {self.min_count} in the reference, one in "
            "the evaluated molecules), over all of the reference's."
        )
        compared = sum(one.counted or 0 for one in each)
        return [
            MetricResult(name, total, float(sum(counts)), mean, compared, unit),
            MetricResult(f"{name}_covered", sum(counts), sum(map(len, others.values())), covered),
            *each,
        ]

    def _rings(self, found: Features, known: Features) -> list[MetricResult]:
        """Which ring systems occur in the reference, and the shares of its most frequent ring sizes and systems."""
        among = int(np.isin(found.ring_systems, known.ring_systems).sum())
        text = "Ring systems (rings that share atoms are one) that the reference has, over all of P2-valid molecules."
        results = [MetricResult("distribution_ring_systems_known", among, len(found.ring_systems), text)]
        for name, text in (("ring_size", "Rings of {} atoms"), ("ring_system", "Ring systems {}")):
            own, others = (getattr(side, f"{name}s") for side in (found, known))
            kinds, counts = np.unique(others, return_counts=True)
            for kind in kinds[np.lexsort((kinds, -counts))[: self.num_rings]]:
                shown = f"{text.format(kind)}, over all {name.replace('_', ' ')}s of P2-valid molecules."
                results.append(MetricResult(f"distribution_{name}[{kind}]", int((own == kind).sum()), len(own), shown))
        return results

    def _torsion_divergence(self, found: np.ndarray, known: np.ndarray) -> float:
        edges = np.linspace(0, 180, round(180 / self.torsion_bin) + 1)
        return jensen_shannon(np.histogram(found, edges)[0], np.histogram(known, edges)[0])


def _by_class(found: Features, known: Features) -> list[MetricResult]:
    """Divergences of what comes in classes."""
    texts = ("elements", "numbers of heavy atoms", "ring sizes", "ring systems (rings that share atoms are one)")
    results = []
    for name, text in zip(("elements", "sizes", "ring_sizes", "ring_systems"), texts, strict=True):
        first, second = getattr(found, name), getattr(known, name)
        counted = min(len(first), len(second))
        kinds, place = np.unique(np.concatenate([first, second]), return_inverse=True)
        sides = (np.bincount(part, minlength=len(kinds)) for part in np.split(place, [len(first)]))
        value = jensen_shannon(*sides) if counted else 0.0
        definition = f"Jensen-Shannon divergence (base 2) of {text} to the reference, over P2-valid molecules."
        results.append(MetricResult(f"distribution_{name}", value, 1 if counted else 0, definition, len(first)))
    return results


def wasserstein(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
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


_TYPES = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
_MARKS = " -=#:"
_ByType = Mapping[str, np.ndarray]
_TOGETHER = 10_000  # molecules whose geometry is worked out at once, in some 200 MB
_BASE = 128  # larger than any atomic number, so that types pack into one integer


@dataclass(frozen=True, eq=False)
class Features:
    """Samples of a set of molecules: geometry by type, and what comes in classes."""

    bond_lengths: _ByType  # (Å) by bond, such as "C=O" ("-" single, "=" double, "#" triple, ":" aromatic)
    angles: _ByType  # (degrees) by the three elements, such as "C-O-H"
    torsions: _ByType  # absolute (degrees, 0 to 180) by the four elements and the middle bond, such as "H-C=C-H"
    elements: np.ndarray  # atomic numbers
    sizes: np.ndarray  # numbers of heavy atoms
    ring_sizes: np.ndarray
    ring_systems: np.ndarray


def features(mols: Iterable[Chem.Mol]) -> Features:
    """Samples of sanitised molecules with hydrogens and one conformer."""
    left, parts = iter(mols), []
    while some := list(islice(left, _TOGETHER)):
        parts.append(_features(some))
    parts = parts or [_features([])]
    joined: dict[str, Any] = {}
    for name in (one.name for one in fields(Features)):
        values = [getattr(part, name) for part in parts]
        joined[name] = _joined(values) if isinstance(values[0], Mapping) else np.concatenate(values)
    return Features(**joined)


def _joined(parts: Sequence[_ByType]) -> _ByType:
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: np.concatenate([part[kind] for part in parts if kind in part]) for kind in kinds}


def _features(mols: Sequence[Chem.Mol]) -> Features:
    element: list[int] = []
    bonds: list[tuple[int, int, int]] = []
    pos, sizes, ring_sizes, systems = [np.zeros((0, 3))], [], [], []
    for mol in mols:
        offset = len(element)
        element += [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        for bond in mol.GetBonds():
            bonds.append((offset + bond.GetBeginAtomIdx(), offset + bond.GetEndAtomIdx(), _TYPES[bond.GetBondType()]))
        pos.append(mol.GetConformer().GetPositions())
        sizes.append(mol.GetNumHeavyAtoms())
        ring_sizes += [len(ring) for ring in mol.GetRingInfo().AtomRings()]
        systems += ring_systems(mol)
    z, table = np.array(element, dtype=np.int64), np.array(bonds, dtype=np.int64).reshape(-1, 3)
    return Features(
        *_geometry(z, np.concatenate(pos), table[:, :2], table[:, 2]),
        elements=z,
        sizes=np.array(sizes, dtype=np.int64),
        ring_sizes=np.array(ring_sizes, dtype=np.int64),
        ring_systems=np.array(systems, dtype=np.str_),
    )


def _geometry(z: np.ndarray, pos: np.ndarray, bonds: np.ndarray, types: np.ndarray) -> tuple[_ByType, _ByType, _ByType]:
    """Bond lengths, angles and torsions of the atoms and bonds of all molecules behind one another."""
    bends, turns = angle_atoms(bonds, len(z)), torsion_atoms(bonds, len(z))
    turns = turns[are_bent(pos, turns)]
    outer = z[bends]
    outer[:, [0, 2]] = np.sort(outer[:, [0, 2]], axis=1)
    around = z[turns]
    backwards = (around[:, 1] > around[:, 2]) | ((around[:, 1] == around[:, 2]) & (around[:, 0] > around[:, 3]))
    around[backwards] = around[backwards, ::-1]
    known, middle = (pairs.min(axis=1) * len(z) + pairs.max(axis=1) for pairs in (bonds, turns[:, 1:3]))
    sort = np.argsort(known)
    twisted = np.ones((len(turns), 3), dtype=np.int64)
    twisted[:, 1] = types[sort[np.searchsorted(known[sort], middle)]]
    return (
        _by_type_of_chain(np.sort(z[bonds], axis=1), types[:, None], lengths(pos, bonds)),
        _by_type_of_chain(outer, np.ones((len(bends), 2), dtype=np.int64), angles(pos, bends)),
        _by_type_of_chain(around, twisted, np.abs(torsions(pos, turns))),
    )


def _by_type_of_chain(elements: np.ndarray, types: np.ndarray, values: np.ndarray) -> _ByType:
    """Values [k] of chains of atoms, by their elements [k, w] and the types of the bonds between them [k, w - 1]."""
    keys = np.column_stack([elements, types])
    packed = (keys * _BASE ** np.arange(keys.shape[1])).sum(axis=1)
    sort = np.argsort(packed, kind="stable")
    starts = np.unique(packed[sort], return_index=True)[1]
    groups = {}
    for start, part in zip(starts, np.split(values[sort], starts[1:]), strict=False):  # of nothing, there is one part
        first, *others = (SYMBOLS[number] for number in elements[sort[start]])
        marks = (_MARKS[kind] for kind in types[sort[start]])
        groups[first + "".join(mark + symbol for mark, symbol in zip(marks, others, strict=True))] = part
    return groups


_LENGTH = 350  # characters, the end mark included, to which ChemNet's input is padded
_FEW = 5000


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """Fréchet ChemNet Distance of the P2-valid molecules to the reference."""

    batch_size: int = 100
    skip_if_missing: bool = False

    name = "fcd"
    needs = ("bonds", "reference")
    package = "fcd"

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        assert reference is not None
        texts, known = _readable(molecules), _readable(reference)
        versions = {"fcd": metadata.version("fcd"), "molecules": len(texts), "reference_molecules": len(known)}
        value, least, note = 0.0, min(len(texts), len(known)), "fewer than two valid molecules on one of the sides"
        if least >= 2:
            together = self._activations([*texts, *known], on_progress)
            value = frechet_distance(together[: len(texts)], together[len(texts) :])
            note = f"taken over {len(texts)} and {len(known)} molecules; it is larger the fewer they are"
        definition = (
            "Fréchet ChemNet Distance of the P2-valid molecules to the P2-valid reference molecules, on canonical "
            "SMILES without stereo; those of 350 or more characters are left out."
        )
        result = MetricResult("fcd_distance", value, int(least >= 2), definition, len(texts))
        notes = {"fcd_distance": note} if least < _FEW else {}
        return MetricOutput([result], {}, notes, asdict(self) | versions)

    def _activations(self, texts: Sequence[str], on_progress: OnProgress | None) -> np.ndarray:
        """ChemNet's last hidden layer [k, 512]."""
        import torch
        from fcd import load_ref_model
        from fcd.utils import get_one_hot

        network, found = load_ref_model(str(files("fcd").joinpath("ChemNet_v0.13_pretrained.pt"))), []
        for start in range(0, len(texts), self.batch_size):
            encoded = np.stack([get_one_hot(text, _LENGTH) for text in texts[start : start + self.batch_size]])
            # Divided by the number of symbols and transposed, as in fcd.SmilesDataset and fcd.get_predictions.
            inputs = torch.from_numpy(encoded / encoded.shape[-1]).float().transpose(1, 2)
            with torch.no_grad():
                found.append(network(inputs).double().numpy())
            if on_progress is not None:
                on_progress(min(start + self.batch_size, len(texts)), len(texts))
        return np.concatenate(found)


def _readable(molecules: MoleculeSet) -> list[str]:
    """Canonical SMILES without stereo that fit the network."""
    mols = (Chem.MolFromSmiles(text) for text in molecules.smiles if text is not None)
    texts = [str(Chem.MolToSmiles(mol, isomericSmiles=False)) for mol in mols]
    return [text for text in texts if len(text) < _LENGTH]


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½) of the Gaussians fitted to samples [k, d] and [l, d], k and l at least 2.

    The trace of the root is taken from the eigenvalues of the symmetric C1^½ C2 C1^½, which cannot turn complex.
    """
    covariance = [np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (first, second)]
    values, vectors = np.linalg.eigh(covariance[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance[1] @ root), 0)).sum()
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    return float(shift + np.trace(covariance[0]) + np.trace(covariance[1]) - 2 * overlap)
