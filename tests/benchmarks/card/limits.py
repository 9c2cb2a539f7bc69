"""What a model cannot do, in plain words, with the figures of the data that it learnt from."""

from __future__ import annotations

import numpy as np
from rdkit import Chem, rdBase

from moldiff.data.dataset import MoleculeDataset
from moldiff.molecules.vocabulary import SYMBOLS

MACROCYCLE = 12
"""Atoms of a ring from which on it is called a macrocycle."""

_RINGS_OF = 5_000
"""Training molecules whose rings are looked at."""

_NONMETALS = frozenset({1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 33, 34, 35, 36, 52, 53, 54})


def limits(prepared: MoleculeDataset) -> list[str]:
    """One sentence or two for each thing that a model of a set cannot do."""
    return [
        "**Stereochemistry** cannot be asked for in new molecules: the network is blind to mirror images, and both "
        "enantiomers of a molecule are drawn equally often. Conformers of a given molecule do keep the stereochemistry "
        "that was given with it.",
        _charges(prepared),
        _elements(prepared),
        _sizes(prepared),
        _macrocycles(prepared),
        "**Salts, mixtures and radicals** are never drawn: a molecule is one piece without unpaired electrons.",
        f"**Geometries** are those of the data ({prepared.meta.get('geometry', 'not said')}), one conformer a molecule "
        "without surroundings: neither poses in a protein nor the most stable conformer.",
        "**Synthesis** is not considered: nothing asks whether a molecule can be made, bought or kept, and scores of "
        "synthetic accessibility are estimates from fragments. Nor is anything known of activity, toxicity or uptake.",
    ]


def _charges(prepared: MoleculeDataset) -> str:
    charges = prepared.flat["formal_charge"].astype(np.int64)
    starts = np.asarray(prepared.flat["atom_slices"][:-1])
    train = prepared.split("train")
    net = np.add.reduceat(charges, starts)[train]
    inner = np.add.reduceat(np.abs(charges), starts)[train] > 0
    zwitterions = f"{100 * inner.mean():.1f} % of the training molecules have charged atoms"
    if not net.any():
        return (
            "**Ions** were not learnt: every training molecule is neutral in all, as drawn in its formula and not as "
            f"it is in water at some pH ({zwitterions}). No charge or protonation state can be asked for."
        )
    return (
        f"**Charges** are drawn as often as they occur: {100 * (net != 0).mean():.1f} % of the training molecules are "
        f"ions, and {zwitterions}. No charge or protonation state can be asked for."
    )


def _elements(prepared: MoleculeDataset) -> str:
    numbers = sorted({1, *(atom.atomic_number for atom in prepared.vocabulary.atom_classes)})
    names = ", ".join(SYMBOLS[number] for number in numbers)
    others = "no others" if set(numbers) - _NONMETALS else "no metals and no others"
    return f"**Elements** are {names}, {others}."


def _sizes(prepared: MoleculeDataset) -> str:
    counts = prepared.statistics.size_counts
    low, high = min(counts), max(counts)
    return (
        f"**Sizes** are {low} to {high} heavy atoms. Others can be asked for by `size=`, but nothing like them was "
        "learnt, and they come out worse the farther they lie outside."
    )


def largest_ring(smiles: str) -> int:
    """Atoms of the largest ring of RDKit's symmetrised smallest set; 0 without rings, or for what cannot be read."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    return 0 if mol is None else max((len(ring) for ring in mol.GetRingInfo().AtomRings()), default=0)


def _macrocycles(prepared: MoleculeDataset) -> str:
    chosen = np.random.default_rng(0).permutation(prepared.split("train"))[:_RINGS_OF]
    largest = [largest_ring(prepared.smiles[int(place)]) for place in chosen]
    count = sum(size >= MACROCYCLE for size in largest)
    return (
        f"**Macrocycles** are not learnt: {count:,} of {len(largest):,} training molecules have a ring of "
        f"{MACROCYCLE} or more atoms, and the largest of their rings has {max(largest, default=0)}."
    )
