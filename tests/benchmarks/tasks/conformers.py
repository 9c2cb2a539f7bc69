"""Conformers: how near they come to the true geometry, beside RDKit's ETKDG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign

from moldiff.evaluation.metric import MetricResult
from moldiff.molecules import convert, identity
from moldiff.molecules.molecule import Molecule
from moldiff.tasks import Conformers
from tests.benchmarks.tasks.settings import Columns, Row, Settings

THRESHOLD = 0.5
"""Å of RMSD below which a conformer counts as the true geometry (QM9)."""

_MAX_ROUNDS = 20
"""Times that conformers are drawn of a molecule of which some had the wrong handedness."""

_OURS, _ETKDG, _RELAXED, _OFF = "moldiff", "ETKDGv3", "ETKDGv3 + MMFF94s", "hydrogens off"

_OFF_DEFINITION = "Conformers drawn with a hydrogen off its bond, which decoding put at its ideal place, over all."


class Geometries:
    """RMSD of n conformers of every molecule from its true geometry: ours, ETKDG's, and those with MMFF94s."""

    def rows(self, settings: Settings, places: range) -> list[Row]:
        """Of every molecule the RMSD (Å) of each conformer, and how many of ours had a hydrogen off its bond."""
        wholes = [settings.molecules[place] for place in places]
        truths = [Chem.RemoveHs(sanitized(whole)) for whole in wholes]
        rows: list[Row] = [{"molecule": identity.smiles(whole), _OURS: [], _OFF: 0} for whole in wholes]
        first = settings.first(places.start)
        for _ in range(_MAX_ROUNDS):
            short = [k for k, row in enumerate(rows) if len(row[_OURS]) < settings.samples]
            if not short:
                break
            task, draws = Conformers(input=[wholes[k] for k in short]), settings.samples * len(short)
            for sample in settings.draw(task, first=first, samples=settings.samples, max_draws=draws):
                k = short[int(sample.task["input_record"] or 0) - 1]
                if len(rows[k][_OURS]) < settings.samples:
                    rows[k][_OFF] += sample.replaced_hydrogens > 0
                    rows[k][_OURS].append(_rmsd(Chem.RemoveHs(sanitized(sample.molecule)), truths[k]))
            first += draws
        for whole, truth, row in zip(wholes, truths, rows, strict=True):
            row[_ETKDG] = embedded_rmsd(whole, truth, settings, relax=False)
            row[_RELAXED] = embedded_rmsd(whole, truth, settings, relax=True)
        return rows

    def columns(self, rows: Sequence[Row]) -> Columns:
        """Coverage and medians of each maker."""
        columns = {name: conformer_results([row[name] for row in rows]) for name in (_OURS, _ETKDG, _RELAXED)}
        off, total = sum(row[_OFF] for row in rows), sum(len(row[_OURS]) for row in rows)
        columns[_OURS].append(MetricResult("conformers_hydrogens_off", off, total, _OFF_DEFINITION))
        return columns

    def details(self, rows: Sequence[Row]) -> list[Row]:
        """The molecules of which ours has no conformer near the truth."""
        return [
            {"molecule": row["molecule"], **{name: min(row[name], default=None) for name in (_OURS, _ETKDG)}}
            for row in rows
            if not row[_OURS] or min(row[_OURS]) > THRESHOLD
        ]


def sanitized(molecule: Molecule) -> Chem.Mol:
    """The RDKit molecule, stereo as the coordinates have it."""
    mol = convert.to_rdkit(molecule)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
    return mol


def _rmsd(one: Chem.Mol, other: Chem.Mol) -> float:
    return float(rdMolAlign.GetBestRMS(Chem.Mol(one), Chem.Mol(other), maxMatches=1000))


def embedded_rmsd(whole: Molecule, truth: Chem.Mol, settings: Settings, *, relax: bool) -> list[float]:
    """RMSD (Å) of RDKit's conformers from the truth, those with MMFF94s if relaxed."""
    mol = sanitized(whole)
    mol.RemoveAllConformers()
    options: Any = rdDistGeom.ETKDGv3()
    options.randomSeed = settings.seed + 1  # RDKit's seeds 0 and 1 are the same
    with rdBase.BlockLogs():
        numbers = list(rdDistGeom.EmbedMultipleConfs(mol, settings.samples, options))
        if short := settings.samples - len(numbers):  # as ours are drawn until there are as many
            options.useRandomCoords, options.clearConfs = True, False
            numbers += rdDistGeom.EmbedMultipleConfs(mol, short, options)
        if relax and numbers and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, mmffVariant="MMFF94s", maxIters=500)
    bare = Chem.RemoveHs(mol)
    return [_rmsd(Chem.Mol(bare, confId=number), truth) for number in numbers]


def conformer_results(found: Sequence[Sequence[float]]) -> list[MetricResult]:
    """Of the RMSD of every conformer of every molecule (Å)."""
    best = [min(values) for values in found if values]
    every = [value for values in found for value in values]
    covered, near = sum(value <= THRESHOLD for value in best), sum(value <= THRESHOLD for value in every)
    definitions = (
        f"Molecules with a conformer within {THRESHOLD:g} Å (RMSD of heavy atoms) of the true geometry, over all.",
        "Median over molecules of the RMSD of their best conformer.",
        f"Conformers within {THRESHOLD:g} Å of the true geometry, over all.",
        "Median over all conformers of their RMSD.",
    )
    return [
        MetricResult("conformers_coverage", covered, len(found), definitions[0]),
        MetricResult("conformers_median_best_rmsd", _median(best), 1.0, definitions[1], len(best), "Å"),
        MetricResult("conformers_within_threshold", near, len(every), definitions[2]),
        MetricResult("conformers_median_rmsd", _median(every), 1.0, definitions[3], len(every), "Å"),
    ]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
