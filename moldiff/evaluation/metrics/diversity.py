"""How alike molecules are: to one another, to known ones, and in shape to one that is laid over them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator, rdShapeAlign
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricOutput, MetricResult, average, median
from moldiff.evaluation.molecule_set import MoleculeSet
from moldiff.molecules import convert
from moldiff.molecules.molecule import InvalidMolecule, Molecule
from moldiff.processes import OnProgress

_scaffold: Any = MurckoScaffoldSmiles  # untyped, as is the next
_align: Any = rdShapeAlign.AlignMol


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Mean distance of Morgan fingerprints of a radius (bonds), and Murcko scaffolds, of the P2-valid molecules."""

    radius: int = 2
    num_bits: int = 2048
    max_molecules: int = 20_000  # whose pairs are compared; of more a random part, as pairs grow with the square

    name = "diversity"
    needs = ("bonds",)

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        valid = [text for text in molecules.smiles if text is not None]
        some = [*valid]
        if len(valid) > self.max_molecules:
            some = np.random.default_rng(0).permutation(valid)[: self.max_molecules].tolist()
        prints = [*_fingerprints(some, self.radius, self.num_bits)]
        pairs, rows = len(prints) * (len(prints) - 1) // 2, range(1, len(prints))
        similar = sum(float(np.sum(DataStructs.BulkTanimotoSimilarity(prints[k], prints[:k]))) for k in rows)
        cyclic = [scaffold for mol in _mols(valid) if (scaffold := str(_scaffold(mol=mol)))]
        kind = f"Morgan fingerprints (radius {self.radius}, {self.num_bits} bits)"
        definition = f"1 - Tanimoto similarity of {kind}, mean over all pairs of P2-valid molecules."
        if len(some) < len(valid):
            definition = definition.replace("all pairs of", f"all pairs of {len(some):,} random")
        scaffolds = "Distinct Murcko scaffolds of P2-valid molecules, over the P2-valid molecules with a ring."
        with_ring = "P2-valid molecules with a ring, over the P2-valid."
        results = [
            MetricResult("diversity_internal", pairs - similar, pairs, definition, len(some)),
            MetricResult("diversity_scaffolds", len(set(cyclic)), len(cyclic), scaffolds),
            MetricResult("diversity_cyclic", len(cyclic), len(valid), with_ring),
        ]
        return MetricOutput(results, options=asdict(self))


def _mols(smiles: Iterable[str | None]) -> Iterator[Chem.Mol]:
    return (Chem.MolFromSmiles(text) for text in smiles if text is not None)


def _fingerprints(smiles: Iterable[str | None], radius: int, num_bits: int) -> Iterator[Any]:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=num_bits)
    return map(generator.GetFingerprint, _mols(smiles))


_BLOCK = 10_000  # molecules of the reference at once, 20 MB of bits


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Tanimoto similarity of Morgan fingerprints of the P2-valid molecules to the nearest of the reference's.

    A generator that memorises draws molecules nearer to its training set than real ones outside of it are, so that the
    numbers are read beside those of held-out molecules. From the similarity `close` on, two molecules count as close.
    """

    radius: int = 2
    num_bits: int = 2048
    close: float = 0.7

    name = "neighbours"
    needs = ("bonds", "reference")

    def __call__(
        self, molecules: MoleculeSet, reference: MoleculeSet | None = None, on_progress: OnProgress | None = None
    ) -> MetricOutput:
        assert reference is not None
        prints, known = self._bits(molecules), self._bits(reference)
        found = self.similarities(prints, known, on_progress) if known else np.zeros(0)
        columns = {"neighbours_similarity": molecules.spread(dict(zip(molecules.valid, found.tolist(), strict=False)))}
        kind = f"Morgan fingerprints, radius {self.radius}, {self.num_bits} bits, no stereo"
        measure = f"Tanimoto similarity ({kind}) to the nearest reference molecule"
        near, same = int((found >= self.close).sum()), int((found >= 1).sum())
        over = "over the P2-valid molecules"
        results = [
            average("neighbours_similarity_mean", found, f"Mean {measure}, {over}."),
            median("neighbours_similarity_median", found, f"Median {measure}, {over}."),
            MetricResult("neighbours_close", near, len(found), f"{measure} of at least {self.close:g}, {over}."),
            MetricResult("neighbours_equal", same, len(found), f"{measure} of 1, the same fingerprint, {over}."),
        ]
        return MetricOutput(results, columns, {}, asdict(self) | {"reference_molecules": len(known)})

    def _bits(self, molecules: MoleculeSet) -> list[np.ndarray]:
        """Numbers of the bits that are set in the fingerprint of every valid molecule."""
        prints = _fingerprints(molecules.smiles, self.radius, self.num_bits)
        return [np.array(one.GetOnBits(), dtype=np.int64) for one in prints]

    def similarities(
        self, prints: Sequence[np.ndarray], known: Sequence[np.ndarray], on_progress: OnProgress | None = None
    ) -> np.ndarray:
        """The largest Tanimoto similarity [k] of fingerprints, given by the numbers of their bits, to known ones."""
        best = np.zeros(len(prints))
        for start in range(0, len(known), _BLOCK):
            block = known[start : start + _BLOCK]
            present = np.zeros((self.num_bits, len(block)), dtype=np.uint8)
            for column, bits in enumerate(block):
                present[bits, column] = 1
            sizes = np.array([len(bits) for bits in block], dtype=np.float32)
            for row, bits in enumerate(prints):
                shared = present[bits].sum(0, dtype=np.uint16)
                best[row] = max(best[row], float((shared / np.maximum(sizes + len(bits) - shared, 1)).max()))
            if on_progress is not None:
                on_progress(start + len(block), len(known))
        return best


@dataclass(frozen=True, eq=False)
class Overlay:
    """A molecule in the reference's frame (Å), and how much it overlaps with that, 0 to 1."""

    molecule: Molecule
    shape: float  # Tanimoto overlap of the volumes
    pharmacophore: float  # the same of donors, acceptors, charges, hydrophobic parts and rings
    score: float  # their mean with the reference's weights


@dataclass(frozen=True, eq=False)
class ShapeReference:
    """What molecules are compared with, by volumes of Gaussians (Grant, Gallardo and Pickup 1996) of heavy atoms."""

    mol: Chem.Mol  # sanitised, in 3D
    pharmacophore: float = 0.5  # its weight in the score, 0 to 1; the shape has the rest
    align: bool = True  # whether molecules are moved to where the score is best; else they are taken as they lie

    def __post_init__(self) -> None:
        if not 0 <= self.pharmacophore <= 1:
            raise MoldiffError(f"like.pharmacophore: got {self.pharmacophore}, expected a number from 0 to 1")
        if not self.align and not hasattr(rdShapeAlign, "ScoreMol"):
            raise MoldiffError(f"like.align: RDKit {rdBase.rdkitVersion} cannot score without moving, expected true")

    def overlay(self, molecule: Molecule) -> Overlay:
        """Lay a valid molecule over the reference; a `MoldiffError` for one that RDKit cannot sanitise."""
        mol = convert.to_rdkit(molecule, stereo=False)
        try:
            with rdBase.BlockLogs():
                Chem.SanitizeMol(mol)
        except Chem.MolSanitizeException as error:
            raise MoldiffError(f"like: molecule {molecule.name!r} cannot be compared: {error}") from error
        if self.align:
            shape, color = _align(self.mol, mol, -1, -1, True, 1 - self.pharmacophore)
            found = convert.from_rdkit(mol)
            if isinstance(found, InvalidMolecule):
                raise MoldiffError(f"like: molecule {molecule.name!r} cannot be aligned: {found.reason}")
            molecule = replace(molecule, pos=found.pos, hydrogen_offset=found.hydrogen_offset)
        else:
            score: Any = rdShapeAlign.ScoreMol
            settings: Any = rdShapeAlign.ShapeInputOptions()
            shape, color = score(self.mol, mol, settings, settings)
        if self.align and self.pharmacophore == 0:  # the alignment then leaves it out
            color = replace(self, align=False).overlay(molecule).pharmacophore
        total = (1 - self.pharmacophore) * shape + self.pharmacophore * color
        return Overlay(molecule, float(shape), float(color), float(total))
