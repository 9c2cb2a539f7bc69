"""Novelty by parent: whether a molecule is more than another charge state, salt or tautomer of a known one.

The parent of a molecule is what ChEMBL and RDKit's MolStandardize call so: its largest fragment, uncharged, as the
canonical tautomer. To find it takes some milliseconds, so it is asked only of molecules whose normalised key is novel,
and of those in the reference that could have the same: the same elements joined in the same way, with as many hydrogens
once charges are taken off, which neither a proton nor a double bond that moves can change.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache

from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from moldiff.molecules.convert import atoms

_MAX_TAUTOMERS = 200
_MAX_TRANSFORMS = 200
"""Limits of the search for the canonical tautomer; where it ends there, two tautomers may count as different."""

_ELEMENT = re.compile(r"Cl|Br|[BCNOPSFI]|[bcnops]|(?<=\[)[A-Z][a-z]?")

_WITHOUT_SIDES = str.maketrans("", "", "/\\")
"""Takes away the sides of double bonds, for which a SMILES may need an explicit hydrogen."""


def novel_parents(keys: Iterable[str], reference: Iterable[str]) -> set[str]:
    """Those of some SMILES whose parent no SMILES of the reference has.

    What RDKit cannot work with counts as novel.
    """
    wanted = {key: _invariant(key) for key in keys}
    invariants = {invariant for invariant in wanted.values() if invariant is not None}
    known: dict[tuple[tuple[int, ...], int], list[str]] = defaultdict(list)
    for text in _candidates(wanted, reference):
        if (invariant := _invariant(text)) in invariants and invariant is not None:
            known[invariant].append(text)
    return {
        key
        for key, invariant in wanted.items()
        if invariant not in known or (parent := _parent(key)) is None or parent not in map(_parent, known[invariant])
    }


def _candidates(keys: Iterable[str], reference: Iterable[str]) -> Iterator[str]:
    """Those of the reference that have a fragment with atoms joined as in one of the keys.

    Elements alone are compared first, for they show in the text.
    """
    texts = list(keys)
    compositions = {part for text in texts for part in _compositions(text)}
    skeletons = {found for text in texts for found in _skeletons(text)}
    for text in reference:
        if not compositions.isdisjoint(_compositions(text)) and not skeletons.isdisjoint(_skeletons(text)):
            yield text


def _compositions(text: str) -> set[str]:
    """The heavy atoms of every fragment of a SMILES, from its letters."""
    return {"".join(sorted(_ELEMENT.findall(part))).lower() for part in text.split(".")}


def _skeletons(text: str) -> set[tuple[int, ...]]:
    """The skeleton of every fragment of a SMILES."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(
            text.translate(_WITHOUT_SIDES), sanitize=False
        )  # a third of the time of reading it whole
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
        return mol if mol is None or "." not in text else _chooser().choose(mol)


def _invariant(text: str) -> tuple[tuple[int, ...], int] | None:
    """What molecules of the same parent have in common; None where RDKit cannot tell."""
    try:
        mol = _largest(text)
    except MemoryError:
        raise
    except Exception:  # RDKit raises of all kinds, and no molecule may take the others with it
        return None
    if mol is None:
        return None
    hydrogens = sum(atom.GetTotalNumHs() - atom.GetFormalCharge() for atom in atoms(mol))
    return tuple(sorted(_labels(mol))), hydrogens


@cache
def _parent(text: str) -> str | None:
    """The parent of a SMILES without stereo; None where RDKit finds none."""
    with rdBase.BlockLogs():
        try:
            mol = _largest(text)
            Chem.RemoveStereochemistry(mol)
            mol = _tautomers().Canonicalize(rdMolStandardize.Uncharger().uncharge(mol))
            return str(Chem.MolToSmiles(mol, isomericSmiles=False))
        except MemoryError:
            raise
        except Exception:  # as above
            return None


@cache
def _chooser() -> rdMolStandardize.LargestFragmentChooser:
    return rdMolStandardize.LargestFragmentChooser(preferOrganic=True)


@cache
def _tautomers() -> rdMolStandardize.TautomerEnumerator:
    enumerator = rdMolStandardize.TautomerEnumerator()
    enumerator.SetMaxTautomers(_MAX_TAUTOMERS)
    enumerator.SetMaxTransforms(_MAX_TRANSFORMS)
    enumerator.SetReassignStereo(False)
    return enumerator
