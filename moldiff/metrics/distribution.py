"""How far the distributions of a set of molecules lie from those of reference molecules.

Bond lengths and angles are compared by the Wasserstein-1 distance, which has their unit; torsions (in bins of
`torsion_bin` degrees, mirror images folded), elements, sizes, ring sizes and ring systems by the Jensen-Shannon
divergence to base 2, which runs from 0 (equal) to 1 (disjoint). Types are weighted by how often the reference has
them. A finite sample of the reference itself is not at 0: read the numbers beside those of one half of the reference
against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from moldiff.metrics.features import Features, features
from moldiff.metrics.subjects import Measured, OnProgress, Subjects
from moldiff.results import MetricResult


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
        self, subjects: Subjects, reference: Subjects | None = None, on_progress: OnProgress | None = None
    ) -> Measured:
        """Compare with the reference, which must be there."""
        assert reference is not None
        found, known = features(subjects.mols.values()), features(reference.mols.values())
        results = [
            *self._by_type("bond_length", found.bond_lengths, known.bond_lengths, wasserstein, "Å"),
            *self._by_type("angle", found.angles, known.angles, wasserstein, "°"),
            *self._by_type("torsion", found.torsions, known.torsions, self._torsion_divergence, ""),
            *_by_class(found, known),
            *self._rings(found, known),
        ]
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options |= {"molecules": len(subjects.mols), "reference_molecules": len(reference.mols)}
        return Measured(results, options=options)

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
