"""Novelty of valid molecules: the keys of known ones, and their parents.

By parent, a molecule is novel that is more than another charge state, salt or tautomer of a known one; the parent is
what ChEMBL and RDKit's MolStandardize call so: the largest fragment, uncharged, as the canonical tautomer.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize
from safetensors import SafetensorError
from safetensors.numpy import load_file

from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.molecules import identity
from moldiff.molecules.convert import atoms
from moldiff.molecules.formats.record import guarded
from moldiff.molecules.molecule import InvalidMolecule, Molecule

FILE_NAME = "novelty.safetensors"
MAX_TEXTS = 500_000  # molecules of a reference whose parents can be compared: memory, and a minute in the worst case


@dataclass(frozen=True, eq=False)
class NoveltyIndex:
    """Sorted 64-bit hashes [k] and [l] of the keys of known molecules (the training set)."""

    canonical: np.ndarray
    strict: np.ndarray
    num_skipped: int = 0  # entries that could not be read
    texts: Collection[str] | None = None  # SMILES of all, for parents; None = there are hashes alone, or too many

    @classmethod
    def of(cls, reference: Iterable[Molecule | InvalidMolecule | Chem.Mol | str]) -> Self:
        """Index molecules, RDKit molecules or SMILES; entries that cannot be read are skipped and counted."""
        canonical, strict, skipped = dict[int, str](), set(), 0
        for entry in reference:
            key = entry if isinstance(entry, InvalidMolecule) else guarded(identity.canonical_key, entry)
            strict_key = key if isinstance(key, InvalidMolecule) else guarded(identity.strict_key, entry)
            if isinstance(key, InvalidMolecule) or isinstance(strict_key, InvalidMolecule):
                skipped += 1
                continue
            canonical[identity.key_hash(key)] = key if len(canonical) < MAX_TEXTS else ""
            strict.add(identity.key_hash(strict_key))
        texts = None if len(canonical) > MAX_TEXTS else list(canonical.values())
        first, second = (np.array(sorted(hashes), dtype=np.int64) for hashes in (canonical, strict))
        return cls(first, second, skipped, texts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file that `moldiff prepare` writes, or that of its folder; a `MoldiffError` where it is none."""
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise MoldiffError(f"novelty reference {path}: no such file, expected one written by 'moldiff prepare'")
        try:
            arrays = load_file(path)
        except (SafetensorError, OSError) as error:
            raise MoldiffError(f"novelty reference {path}: cannot be read ({error})") from None
        for name in ("canonical", "strict"):
            array = arrays.get(name)
            if array is None or array.dtype != np.int64 or array.ndim != 1 or (array[1:] < array[:-1]).any():
                found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
                raise MoldiffError(f"novelty reference {path}: got {found} for {name!r}, expected sorted int64 [k]")
        return cls(arrays["canonical"], arrays["strict"])

    def __len__(self) -> int:
        return len(self.canonical)

    def contains(self, key: str, *, strict: bool = False) -> bool:
        """Whether a molecule with this `identity.canonical_key`, or `strict_key`, is known."""
        hashes, wanted = self.strict if strict else self.canonical, identity.key_hash(key)
        place = int(np.searchsorted(hashes, wanted))
        return place < len(hashes) and int(hashes[place]) == wanted


def parent_novelty(keys: Collection[str], index: NoveltyIndex | None) -> tuple[MetricResult, set[str]]:
    """How many distinct valid molecules are novel by parent (0/0 without SMILES of known ones), and their keys."""
    if not index or index.texts is None:
        return MetricResult("p2_novel_parent", 0, 0, _NOVEL_PARENT), set()
    novel = novel_parents((key for key in keys if not index.contains(key)), index.texts)
    return MetricResult("p2_novel_parent", len(novel), len(keys), _NOVEL_PARENT), novel


_NOVEL_PARENT = (
    "Distinct normalised keys of valid molecules whose parent (largest fragment, uncharged, canonical tautomer; "
    "RDKit's MolStandardize) the reference lacks, over the distinct valid ones."
)
_ELEMENT = re.compile(r"Cl|Br|[BCNOPSFI]|[bcnops]|(?<=\[)[A-Z][a-z]?")

_WITHOUT_SIDES = str.maketrans("", "", "/\\")  # of double bonds, for which a SMILES may need an explicit hydrogen


def novel_parents(keys: Iterable[str], reference: Iterable[str]) -> set[str]:
    """Those of some SMILES whose parent no SMILES of the reference has; what RDKit cannot work with counts as novel.

    A parent takes milliseconds, so that it is found only of those in the reference that could have the same: the same
    elements (which show in the text) joined in the same way, with as many hydrogens once charges are taken off, which
    neither a proton nor a double bond that moves can change.
    """
    wanted = {key: _invariant(key) for key in keys}
    invariants = set(wanted.values()) - {None}
    compositions = set[str]().union(*map(_compositions, wanted))
    skeletons = set[tuple[int, ...]]().union(*map(_skeletons, wanted))
    known: dict[Any, list[str]] = defaultdict(list)
    for text in reference:
        if (
            not compositions.isdisjoint(_compositions(text))
            and not skeletons.isdisjoint(_skeletons(text))
            and (invariant := _invariant(text)) in invariants
        ):
            known[invariant].append(text)
    return {
        key
        for key, invariant in wanted.items()
        if invariant not in known or (parent := _parent(key)) is None or parent not in map(_parent, known[invariant])
    }


def _compositions(text: str) -> set[str]:
    """The heavy atoms of every fragment of a SMILES, from its letters."""
    return {"".join(sorted(_ELEMENT.findall(part))).lower() for part in text.split(".")}


def _skeletons(text: str) -> set[tuple[int, ...]]:
    """The skeleton of every fragment of a SMILES."""
    with rdBase.BlockLogs():
        # Not sanitised, which takes a third of the time of reading it whole.
        mol = Chem.MolFromSmiles(text.translate(_WITHOUT_SIDES), sanitize=False)
        if mol is None:
            return set()
        mol = Chem.RemoveHs(mol, sanitize=False) if "[H]" in text else mol
    labels = _labels(mol)
    pieces = Chem.GetMolFrags(mol) if "." in text else [range(len(labels))]
    return {tuple(sorted(labels[atom] for atom in piece)) for piece in pieces}


def _labels(mol: Chem.Mol) -> list[int]:
    """A number for every atom by the elements up to two bonds away, whatever the orders of the bonds."""
    labels = [int(atom.GetAtomicNum()) for atom in atoms(mol)]
    bonds = [mol.GetBondWithIdx(number) for number in range(mol.GetNumBonds())]
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in bonds]
    for _ in range(2):
        mixed = [hash((label, 1)) for label in labels]
        sums = [0] * len(labels)
        for i, j in pairs:
            sums[i] += mixed[j]
            sums[j] += mixed[i]
        labels = [hash(pair) for pair in zip(labels, sums, strict=True)]
    return labels


def _largest(text: str) -> Chem.Mol | None:
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text.translate(_WITHOUT_SIDES))
        return mol if mol is None or "." not in text else _standardizers()[0].choose(mol)


def _invariant(text: str) -> tuple[tuple[int, ...], int] | None:
    """What molecules of the same parent have in common; None where RDKit cannot tell."""
    mol = guarded(_largest, text)
    if mol is None or isinstance(mol, InvalidMolecule):
        return None
    hydrogens = sum(atom.GetTotalNumHs() - atom.GetFormalCharge() for atom in atoms(mol))
    return tuple(sorted(_labels(mol))), hydrogens


@cache
def _parent(text: str) -> str | None:
    """The parent of a SMILES without stereo; None where RDKit finds none."""
    with rdBase.BlockLogs():
        found = guarded(_standardized, text)
    return None if isinstance(found, InvalidMolecule) else found


def _standardized(text: str) -> str:
    mol = _largest(text)
    Chem.RemoveStereochemistry(mol)
    mol = _standardizers()[1].Canonicalize(rdMolStandardize.Uncharger().uncharge(mol))
    return str(Chem.MolToSmiles(mol, isomericSmiles=False))


@cache
def _standardizers() -> tuple[rdMolStandardize.LargestFragmentChooser, rdMolStandardize.TautomerEnumerator]:
    """What finds parents; where the search for the canonical tautomer ends early, two may count as different."""
    enumerator = rdMolStandardize.TautomerEnumerator()
    enumerator.SetMaxTautomers(200)
    enumerator.SetMaxTransforms(200)
    enumerator.SetReassignStereo(False)
    return rdMolStandardize.LargestFragmentChooser(preferOrganic=True), enumerator
