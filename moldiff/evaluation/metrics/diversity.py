"""How different the molecules of a set are from one another, and how near they come to known ones.

A generator that memorises draws molecules nearer to its training set than real ones outside of it are, so that the
numbers are read beside those of held-out molecules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

from moldiff.evaluation.metric import MetricOutput, OnProgress, average, median
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.evaluation.result import MetricResult

_scaffold: Any = MurckoScaffoldSmiles  # untyped


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Mean distance of fingerprints, and Murcko scaffolds, of the P2-valid molecules.

    Attributes:
        radius: of the Morgan fingerprint (bonds).
        num_bits: of the fingerprint.
    """

    radius: int = 2
    num_bits: int = 2048

    name = "diversity"
    needs = ("bonds",)
    package = None

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        """Compare all pairs of valid molecules."""
        mols = _valid(molecules)
        total, pairs = self._distances(mols)
        scaffolds = [str(_scaffold(mol=mol)) for mol in mols]
        cyclic = [scaffold for scaffold in scaffolds if scaffold]
        definition = (
            f"1 - Tanimoto similarity of Morgan fingerprints (radius {self.radius}, {self.num_bits} bits), mean over "
            "all pairs of P2-valid molecules."
        )
        results = [
            MetricResult("diversity_internal", total, pairs, definition, len(mols)),
            MetricResult("diversity_scaffolds", len(set(cyclic)), len(cyclic), _SCAFFOLDS),
            MetricResult(
                "diversity_cyclic", len(cyclic), len(mols), "P2-valid molecules with a ring, over the P2-valid."
            ),
        ]
        return MetricOutput(results, options=asdict(self))

    def _distances(self, mols: list[Chem.Mol]) -> tuple[float, int]:
        """Sum of 1 - similarity over all pairs, and their number."""
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=self.radius, fpSize=self.num_bits)
        prints = [generator.GetFingerprint(mol) for mol in mols]
        pairs = len(prints) * (len(prints) - 1) // 2
        similar = sum(
            float(np.sum(DataStructs.BulkTanimotoSimilarity(prints[k], prints[:k]))) for k in range(1, len(prints))
        )
        return pairs - similar, pairs


def _valid(molecules: MoleculeSet) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(text) for text in molecules.smiles if text is not None]


_SCAFFOLDS = "Distinct Murcko scaffolds of P2-valid molecules, over the P2-valid molecules with a ring."

_BLOCK = 10_000  # molecules of the reference at once, 20 MB of bits


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Tanimoto similarity of the P2-valid molecules to the nearest of the reference's.

    Attributes:
        radius: of the Morgan fingerprint (bonds), which knows no stereo.
        num_bits: of the fingerprint.
        close: similarity from which two molecules count as close.
    """

    radius: int = 2
    num_bits: int = 2048
    close: float = 0.7

    name = "neighbours"
    needs = ("bonds", "reference")
    package = None

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        """Find the nearest neighbour of every valid molecule in the reference, which must be there."""
        assert reference is not None
        prints, known = self._bits(molecules), self._bits(reference)
        found = self.similarities(prints, known, on_progress)
        values = molecules.spread(dict(zip(molecules.valid, found.tolist(), strict=True)) if known else {})
        options = asdict(self) | {"reference_molecules": len(known)}
        return MetricOutput(
            self._results(found if known else found[:0]), {"neighbours_similarity": values}, {}, options
        )

    def _bits(self, molecules: MoleculeSet) -> list[np.ndarray]:
        """Numbers of the bits that are set in the fingerprint of every valid molecule."""
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=self.radius, fpSize=self.num_bits)
        return [np.array(generator.GetFingerprint(mol).GetOnBits(), dtype=np.int64) for mol in _valid(molecules)]

    def similarities(
        self, prints: Sequence[np.ndarray], known: Sequence[np.ndarray], on_progress: OnProgress | None = None
    ) -> np.ndarray:
        """The largest Tanimoto similarity [k] of fingerprints, given by the numbers of their bits, to known ones."""
        best = np.zeros(len(prints))
        for finished, (present, sizes) in self._blocks(known):
            for row, bits in enumerate(prints):
                shared = present[bits].sum(0, dtype=np.uint16)
                best[row] = max(best[row], float((shared / np.maximum(sizes + len(bits) - shared, 1)).max()))
            if on_progress is not None:
                on_progress(finished, len(known))
        return best

    def _blocks(self, known: Sequence[np.ndarray]) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Which of the bits the molecules of a block have [num_bits, block], and how many [block], block by block."""
        for start in range(0, len(known), _BLOCK):
            block = known[start : start + _BLOCK]
            present = np.zeros((self.num_bits, len(block)), dtype=np.uint8)
            for column, bits in enumerate(block):
                present[bits, column] = 1
            yield start + len(block), (present, np.array([len(bits) for bits in block], dtype=np.float32))

    def _results(self, found: np.ndarray) -> list[MetricResult]:
        measure = (
            f"Tanimoto similarity (Morgan fingerprints, radius {self.radius}, {self.num_bits} bits, no stereo) to the "
            "nearest reference molecule"
        )
        near, same = int((found >= self.close).sum()), int((found >= 1).sum())
        over = "over the P2-valid molecules"
        return [
            average("neighbours_similarity_mean", found, f"Mean {measure}, {over}."),
            median("neighbours_similarity_median", found, f"Median {measure}, {over}."),
            MetricResult("neighbours_close", near, len(found), f"{measure} of at least {self.close:g}, {over}."),
            MetricResult("neighbours_equal", same, len(found), f"{measure} of 1, the same fingerprint, {over}."),
        ]
