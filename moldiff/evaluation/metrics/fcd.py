"""Fréchet ChemNet Distance (Preuer et al. 2018, doi:10.1021/acs.jcim.8b00234).

It falls with the number of molecules, so that two values compare only at equal numbers (the paper takes 5,000), and
says little about molecules as small as QM9's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.resources import files

import numpy as np
from rdkit import Chem

from moldiff.evaluation.metric import MetricOutput, MetricResult
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.processes import OnProgress

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
