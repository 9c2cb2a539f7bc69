"""Similarity to the nearest known molecule, by hand and beside RDKit's own."""

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.metrics import diversity
from moldiff.evaluation.metrics.diversity import NearestNeighbours
from moldiff.evaluation.molecule_set import NO_COORDINATES, MoleculeSet

KNOWN = ["CCO", "c1ccccc1O", "CC(=O)N", "C1CC1", "OCC(O)CO", "CCOC", "N#CC", "CCCCCC"]


def of(*smiles: str | None) -> MoleculeSet:
    return MoleculeSet([], [], smiles, missing={"p1": NO_COORDINATES})


class Counted(MoleculeSet):
    """MoleculeSet of which only the SMILES matter."""

    def __len__(self) -> int:
        return len(self.smiles)


def counted(*smiles: str | None) -> MoleculeSet:
    return Counted([], [], smiles, missing={"p1": NO_COORDINATES})


def test_equal_and_unlike() -> None:
    found = NearestNeighbours()(counted("OCC", None, "C1CC1", "F"), of(*KNOWN))
    values = {result.name: (result.numerator, result.denominator) for result in found.results}
    assert values["neighbours_equal"] == (2, 3)
    assert values["neighbours_close"] == (2, 3)
    assert values["neighbours_similarity_mean"] == (2.0, 3)
    assert found.columns["neighbours_similarity"] == [1.0, None, 1.0, 0.0]
    assert found.options["reference_molecules"] == len(KNOWN)


def test_stereo_does_not_matter() -> None:
    found = NearestNeighbours()(counted("C[C@H](O)F"), of("C[C@@H](O)F"))
    assert found.columns["neighbours_similarity"] == [1.0]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_same_as_rdkit(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(diversity, "_BLOCK", block)
    asked = ["CCCO", "c1ccccc1N", "CC(=O)O", "CCN(C)C", "O"]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints, known = ([generator.GetFingerprint(Chem.MolFromSmiles(text)) for text in part] for part in (asked, KNOWN))
    expected = [max(DataStructs.BulkTanimotoSimilarity(one, known)) for one in prints]
    steps: list[tuple[int, int]] = []
    found = NearestNeighbours()(counted(*asked), of(*KNOWN), lambda done, total: steps.append((done, total)))
    np.testing.assert_allclose(found.columns["neighbours_similarity"], expected, rtol=1e-6)
    assert steps[-1] == (len(KNOWN), len(KNOWN))


def test_nothing_to_compare() -> None:
    for some, other in ((counted("C", None), of(None)), (counted(None), of("C")), (counted(), of())):
        found = NearestNeighbours()(some, other)
        assert all(result.value is None for result in found.results)
        assert found.columns["neighbours_similarity"] == [None] * len(some)


def test_from_evaluate() -> None:
    report = evaluate(["CCO", "CCN"], reference=["CCO", "CCC"], metrics="neighbours")
    assert report["neighbours_equal"].value == 0.5
    assert report.rows[0]["neighbours_similarity"] == 1
