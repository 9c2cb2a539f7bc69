"""Histograms of a set of molecules as inline SVG, with the reference's drawn over them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rdkit import Chem

from moldiff.evaluation.metrics.novelty import FILE_NAME
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.formats.reader import records_at
from moldiff.molecules.vocabulary import SYMBOLS
from moldiff.view.depict import render

BIN = 0.02  # width of a bin of bond lengths (Å)
_LONGEST = 4.0  # Å; the last bin has all bonds from this length on, however far apart a torn molecule lies
_MAX_REFERENCE = 5000  # molecules of a reference that are looked at; of a prepared one evenly spread ones
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 380, 150, 8, 26, 8


@dataclass
class Distributions:
    """Counts over a set of molecules: by number of heavy atoms, heavy atoms by symbol, all bonds by bin of length."""

    sizes: Counter[int] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, mols: Iterable[Chem.Mol]) -> Distributions:
        """Count over molecules; lengths only where there are coordinates."""
        found = cls()
        for mol in mols:
            symbols = [atom.GetSymbol() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
            found.sizes[len(symbols)] += 1
            found.elements.update(symbols)
            if mol.GetNumBonds() and mol.GetNumConformers() and mol.GetConformer().Is3D():
                pos = mol.GetConformer().GetPositions()
                ends = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()])
                lengths = np.linalg.norm(pos[ends[:, 0]] - pos[ends[:, 1]], axis=1)
                finite = np.minimum(lengths[np.isfinite(lengths)], _LONGEST)
                found.lengths.update((finite / BIN).astype(int).tolist())
        return found


def reference_distributions(path: str | Path) -> Distributions:
    """Counts of a reference: files of molecules, a prepared folder, or a model's folder (sizes and elements alone)."""
    path = Path(path)
    if (path / "meta.json").is_file():
        from moldiff.data.dataset import MoleculeDataset

        prepared = MoleculeDataset.load(path)
        chosen = np.unique(np.linspace(0, len(prepared) - 1, _MAX_REFERENCE).astype(int)).tolist()
        return Distributions.of(to_rdkit(prepared.molecule(index), stereo=False) for index in chosen)
    if (path / "model.safetensors").is_file():
        from moldiff.diffusion.pretrained import load_pretrained

        model, share = load_pretrained(path).model, Counter[str]()
        for index, frequency in enumerate(model.statistics.atom_marginal):
            atomic_number = int(model.vocabulary.decode(np.array([index]))[0][0])
            share[SYMBOLS[atomic_number]] += round(frequency * 1_000_000)
        return Distributions(Counter(model.statistics.size_counts), share)
    if path.suffix == ".safetensors" or (path / FILE_NAME).is_file():  # an index of keys, which tells no distribution
        return Distributions()
    found = (record.mol for record in records_at(path) if record.problem is None)
    return Distributions.of(mol for mol in islice(found, _MAX_REFERENCE) if mol is not None)


def plots(found: Distributions, reference: Distributions | None) -> Markup:
    """The histograms as HTML figures; empty without molecules."""
    known = reference or Distributions()
    both = found.sizes + known.sizes
    width = math.ceil((max(both) - min(both) + 1) / 60) if both else 1  # sizes that share a bar, of at most 60 bars
    sizes, known_sizes = _binned(found.sizes, width), _binned(known.sizes, width)
    span = range(min(sizes + known_sizes, default=0), max(sizes + known_sizes, default=-width) + 1, width)
    elements = [symbol for symbol, _ in (found.elements + known.elements).most_common(12)]
    elements.sort(key=lambda symbol: -found.elements[symbol])
    low, high = _bulk(found.lengths + known.lengths)
    bins = {k: f"{k * BIN:.2f}" + (" or more" if k * BIN >= _LONGEST else "") for k in range(low, high + 1)}
    figures = [
        _figure("Heavy atoms", "molecules", {size: str(size) for size in span}, sizes, known_sizes),
        _figure("Elements", "heavy atoms", {symbol: symbol for symbol in elements}, found.elements, known.elements),
        _figure("Bond lengths (Å)", "bonds", bins, found.lengths, known.lengths),
    ]
    return Markup("").join(figures)


def _binned(sizes: Counter[int], width: int) -> Counter[int]:
    """Counts by the smallest size of each bin."""
    binned: Counter[int] = Counter()
    for size, count in sizes.items():
        binned[size - size % width] += count
    return binned


def _bulk(counts: Mapping[int, int]) -> tuple[int, int]:
    """The range of bins that holds all but the outermost thousandths."""
    if not counts:
        return 0, -1
    keys = sorted(counts)
    share = np.cumsum([counts[key] for key in keys]) / sum(counts.values())
    return keys[int((share > 0.001).argmax())], keys[int((share >= 0.999).argmax())]


def _figure(title: str, counted: str, labels: Mapping[Any, str], counts: Counter[Any], known: Counter[Any]) -> Markup:
    """A histogram of the keys that have labels, with the shares of known molecules as an outline."""
    shares, outline = ([side[key] / (side.total() or 1) for key in labels] for side in (counts, known))
    if not any(shares):
        return Markup("")
    top, step, height = max(*shares, *outline), (_WIDTH - 2 * _LEFT) / len(labels), _HEIGHT - _BOTTOM - _TOP
    bars = [
        {
            "label": label,
            "text": f"{label}: {share:.1%}" + (f", reference {other:.1%}" if any(outline) else ""),
            "x": _LEFT + k * step,
            "top": _TOP + height * (1 - share / top),
            "outline": _TOP + height * (1 - other / top),
        }
        for k, (label, share, other) in enumerate(zip(labels.values(), shares, outline, strict=True))
    ]
    return render(
        "histogram.html",
        title=title,
        counted=counted,
        commonest=f"{list(labels.values())[shares.index(max(shares))]}, {max(shares):.1%}",
        bars=bars,
        outlined=any(outline),
        step=step,
        gap=0 if len(labels) > 30 else min(4.0, step / 4),
        every=max(1, round(len(labels) * 34 / _WIDTH)) if len(labels) > 12 else 1,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        bottom=_TOP + height,
    )
