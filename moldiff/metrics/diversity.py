"""How different the molecules of a set are from one another."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

from moldiff.metrics.subjects import Measured, OnProgress, Subjects
from moldiff.results import MetricResult

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
        self, subjects: Subjects, reference: Subjects | None = None, on_progress: OnProgress | None = None
    ) -> Measured:
        """Compare all pairs of valid molecules."""
        mols = [Chem.MolFromSmiles(text) for text in subjects.smiles if text is not None]
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
        return Measured(results, options={field.name: getattr(self, field.name) for field in fields(self)})

    def _distances(self, mols: list[Chem.Mol]) -> tuple[float, int]:
        """Sum of 1 - similarity over all pairs, and their number."""
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=self.radius, fpSize=self.num_bits)
        prints = [generator.GetFingerprint(mol) for mol in mols]
        pairs = len(prints) * (len(prints) - 1) // 2
        similar = sum(
            float(np.sum(DataStructs.BulkTanimotoSimilarity(prints[k], prints[:k]))) for k in range(1, len(prints))
        )
        return pairs - similar, pairs


_SCAFFOLDS = "Distinct Murcko scaffolds of P2-valid molecules, over the P2-valid molecules with a ring."
