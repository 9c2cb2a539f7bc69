"""How well a model does each task, on held-out molecules: `python -m moldiff.benchmark grow --data prepared/qm9`.

- grow, link, replace: a part of every molecule is removed and drawn anew; counted raw and decoded.
- conformers: n of every molecule against its true geometry, beside RDKit's ETKDG.
- bonds: from the elements and coordinates of every molecule, beside RDKit's perception.
- properties: how near drawn molecules come to values that were asked for, see `moldiff.conditional`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolAlign
from scipy.spatial.distance import pdist

from moldiff import chem
from moldiff.batch import Molecule
from moldiff.conditional import Protocol, measure_properties
from moldiff.data.dataset import PreparedSet
from moldiff.errors import MoldiffError
from moldiff.generate import MoleculeGenerator, load
from moldiff.metrics.contacts import Contacts
from moldiff.metrics.intake import Intake
from moldiff.metrics.perception import Perception
from moldiff.predictor import load_predictor
from moldiff.report import markdown, versions, write_json
from moldiff.results import MetricResult
from moldiff.samples import SampledMolecule
from moldiff.tasks import Bonds, Conformers, Grow, Link, Replace, Series
from moldiff.tasks.task import Request

THRESHOLD = 0.5
"""Å of RMSD below which a conformer counts as the true geometry (QM9)."""

_TOLERANCE = 1e-3  # Å that kept atoms may have moved
_MAX_REMOVED = 5
_TRIES = 100

Columns = dict[str, list[MetricResult]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure with.

    Attributes:
        generator: the model.
        molecules: held-out molecules to measure on.
        samples: drawn for each of them.
        steps: network calls a molecule; None = the sampler's own number.
        seed: of the choice of parts and of the draws.
    """

    generator: MoleculeGenerator
    molecules: Sequence[Molecule]
    samples: int
    steps: int | None
    seed: int


def measure_parts(kind: str, settings: Settings) -> Columns:
    """Kept atoms, attachment and validity of molecules of which a part is drawn anew."""
    random = np.random.default_rng(settings.seed)
    wholes, removed = [], []
    for whole in settings.molecules:
        part = choose_part(whole, kind, random)
        if part is not None:
            wholes.append(whole)
            removed.append(part)
    if not wholes:
        raise MoldiffError(f"{kind}: none of the {len(settings.molecules)} molecules has a part to remove")
    requests = [_request(kind, whole, part) for whole, part in zip(wholes, removed, strict=True)]
    columns = {}
    for rule in ("raw", "valence"):
        drawn = settings.generator.sample(
            settings.samples,
            task=Series(tasks=requests),
            keep=(),
            decode=rule,
            steps=settings.steps,
            seed=settings.seed,
        )
        pairs = [(sample, sample.index % len(wholes)) for sample in drawn]
        kept = [np.setdiff1d(np.arange(wholes[k].num_heavy_atoms), removed[k]) for k in range(len(wholes))]
        columns[{"raw": "raw", "valence": "decoded"}[rule]] = _part_results(kind, pairs, wholes, kept)
    return columns


def choose_part(molecule: Molecule, kind: str, random: np.random.Generator) -> list[int] | None:
    """Connected heavy atoms that can be removed by cutting single bonds outside aromatic rings; None = none found.

    `grow`: one bond is cut; `link`: two or more pieces of two or more atoms are left; `replace`: two or more bonds
    are cut and one piece is left, or one bond where no ring allows for more.
    """
    mol = chem.to_rdkit(molecule)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
    heavy = range(molecule.num_heavy_atoms)
    near = {atom: [n for n in _neighbours(mol, atom) if n in heavy] for atom in heavy}
    fallback = None
    for _ in range(_TRIES):
        most = min(_MAX_REMOVED, len(heavy) - 2)
        if most < 1:
            return None
        part = {int(random.integers(len(heavy)))}
        size = int(random.integers(1, most + 1))
        while len(part) < size:
            edge = sorted({n for atom in part for n in near[atom]} - part)
            part.add(edge[int(random.integers(len(edge)))])
        cut = [mol.GetBondBetweenAtoms(a, n) for a in part for n in near[a] if n not in part]
        if any(bond.GetBondType() != Chem.BondType.SINGLE for bond in cut):
            continue
        pieces = _pieces([atom for atom in heavy if atom not in part], near)
        if kind == "grow" and len(cut) == 1:
            return sorted(part)
        if kind == "link" and len(pieces) > 1 and min(map(len, pieces)) > 1:
            return sorted(part)
        if kind == "replace" and len(pieces) == 1:
            if len(cut) > 1:
                return sorted(part)
            fallback = fallback or sorted(part)
    return fallback


def _neighbours(mol: Chem.Mol, atom: int) -> list[int]:
    return [neighbour.GetIdx() for neighbour in mol.GetAtomWithIdx(atom).GetNeighbors()]


def _pieces(atoms: Sequence[int], near: dict[int, list[int]]) -> list[set[int]]:
    waiting, found = set(atoms), []
    while waiting:
        piece, edge = set(), {waiting.pop()}
        while edge:
            piece |= edge
            edge = {n for atom in edge for n in near[atom]} & waiting
            waiting -= edge
        found.append(piece)
    return found


def _request(kind: str, whole: Molecule, removed: Sequence[int]) -> Request:
    kept = [atom for atom in range(whole.num_heavy_atoms) if atom not in removed]
    if kind == "replace":
        return Replace(core=whole, remove=removed)
    return (Grow if kind == "grow" else Link)(core=whole, keep=kept, new_atoms=len(removed))


def _part_results(
    kind: str,
    pairs: Sequence[tuple[SampledMolecule, int]],
    wholes: Sequence[Molecule],
    kept: Sequence[np.ndarray],
) -> list[MetricResult]:
    contacts = Contacts()
    counts = dict.fromkeys(_PART_DEFINITIONS, 0)
    for sample, k in pairs:
        valid, attached = sample.smiles is not None, bool(sample.task["attached"])
        sound = valid and attached and contacts.check(sample.molecule) is None
        counts["kept_untouched"] += _is_untouched(sample.molecule, wholes[k], kept[k])
        counts["attached"] += attached
        counts["valid"] += valid
        counts["attached_and_valid"] += valid and attached
        counts["attached_valid_and_sound"] += sound
        counts["same_molecule"] += valid and sample.verdict.canonical == chem.canonical_key(wholes[k])
    return [
        MetricResult(f"{kind}_{name}", int(count), len(pairs), _PART_DEFINITIONS[name])
        for name, count in counts.items()
    ]


_PART_DEFINITIONS = {
    "kept_untouched": "Samples whose kept atoms come first with the same elements, charges, bonds (aromatic ones in "
    "either Kekulé form), positions and internal distances (0.001 Å) and hydrogens, over all.",
    "attached": "Samples in one piece with every cut bond made up for by one to a new atom, over all.",
    "valid": "Samples that are P2-valid, over all.",
    "attached_and_valid": "Samples that are both, over all.",
    "attached_valid_and_sound": "Samples that are both, without clashes and torn bonds, over all.",
    "same_molecule": "Samples that are the molecule that the part was removed from, stereo aside, over all.",
}


def _is_untouched(molecule: Molecule, whole: Molecule, kept: np.ndarray) -> bool:
    size = len(kept)
    same = (
        (molecule.atomic_number[:size] == whole.atomic_number[kept]).all()
        and (molecule.formal_charge[:size] == whole.formal_charge[kept]).all()
        and (molecule.num_hydrogens[:size] == whole.num_hydrogens[kept]).all()
        and np.abs(molecule.pos[:size] - whole.pos[kept]).max() < _TOLERANCE
        and np.abs(molecule.hydrogen_offset[:size] - whole.hydrogen_offset[kept]).max() < _TOLERANCE
    )
    moved = np.abs(pdist(molecule.pos[:size]) - pdist(whole.pos[kept])) if size > 1 else np.zeros(1)
    return bool(same and moved.max() < _TOLERANCE and _has_bonds(molecule, whole, kept))


def _has_bonds(molecule: Molecule, whole: Molecule, kept: np.ndarray) -> bool:
    """Whether the first atoms of a molecule have the bonds that those `kept` have in the whole."""
    aromatic = {bond.GetIdx() for bond in _sanitized(whole).GetBonds() if bond.GetIsAromatic()}
    place = {int(atom): row for row, atom in enumerate(kept)}
    wanted, found = {}, {}
    for number, (i, j, order) in enumerate(whole.bonds.tolist()):  # the first bonds of the RDKit molecule
        if i in place and j in place:
            wanted[place[i], place[j]] = (1, 2) if number in aromatic else (order,)
    for i, j, order in molecule.bonds.tolist():
        if max(i, j) < len(kept):
            found[i, j] = order
    return found.keys() == wanted.keys() and all(found[ends] in orders for ends, orders in wanted.items())


def measure_conformers(settings: Settings) -> Columns:
    """RMSD of conformers from the true geometry: ours, ETKDG's, and those with MMFF94s."""
    wholes = settings.molecules
    drawn = settings.generator.sample(
        settings.samples,
        task=Conformers(input=wholes),
        steps=settings.steps,
        seed=settings.seed,
        max_draws=100 * settings.samples * len(wholes),
    )
    ours: list[list[float]] = [[] for _ in wholes]
    truths = [Chem.RemoveHs(_sanitized(whole)) for whole in wholes]
    for sample in drawn:
        k = sample.index % len(wholes)
        ours[k].append(_rmsd(Chem.RemoveHs(_sanitized(sample.molecule)), truths[k]))
    columns = {"moldiff": _conformer_results(ours)}
    for name, relax in (("ETKDGv3", False), ("ETKDGv3 + MMFF94s", True)):
        found = [_etkdg(whole, truth, settings, relax) for whole, truth in zip(wholes, truths, strict=True)]
        columns[name] = _conformer_results(found)
    return columns


def _sanitized(molecule: Molecule) -> Chem.Mol:
    mol = chem.to_rdkit(molecule)
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    return mol


def _rmsd(one: Chem.Mol, other: Chem.Mol) -> float:
    return float(rdMolAlign.GetBestRMS(Chem.Mol(one), Chem.Mol(other), maxMatches=1000))


def _etkdg(whole: Molecule, truth: Chem.Mol, settings: Settings, relax: bool) -> list[float]:
    mol = _sanitized(whole)
    mol.RemoveAllConformers()
    options: Any = rdDistGeom.ETKDGv3()
    options.randomSeed = settings.seed + 1  # RDKit's seeds 0 and 1 are the same
    with rdBase.BlockLogs():
        numbers = list(rdDistGeom.EmbedMultipleConfs(mol, settings.samples, options))
        if relax and numbers and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, mmffVariant="MMFF94s", maxIters=500)
    bare = Chem.RemoveHs(mol)
    return [_rmsd(Chem.Mol(bare, confId=number), truth) for number in numbers]


def _conformer_results(found: Sequence[Sequence[float]]) -> list[MetricResult]:
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


def measure_bonds(settings: Settings) -> Columns:
    """Graphs found again from elements and coordinates: ours raw and decoded, and RDKit's."""
    wholes = settings.molecules
    truth = [chem.smiles(whole) for whole in wholes]
    columns = {}
    for rule, column in (("raw", "raw"), ("valence", "decoded")):
        drawn = settings.generator.sample(
            task=Bonds(input=wholes), keep=(), decode=rule, steps=settings.steps, seed=settings.seed
        )
        right = sum(s.smiles is not None and chem.smiles(s.molecule) == truth[s.index] for s in drawn)
        columns[column] = [_bond_result(right, len(wholes))]
    intake = Intake.of_molecules([replace(whole, properties={}) for whole in wholes])
    found = Perception(charge=None).perceive(intake.subjects([chem.strict_key(whole) for whole in wholes]))
    columns["RDKit"] = [_bond_result(sum(one.same_graph is True for one in found), len(wholes))]
    return columns


def _bond_result(right: int, total: int) -> MetricResult:
    return MetricResult(
        "bonds_same_graph", right, total, "Molecules whose graph is the true one, stereo aside, over all."
    )


def _held_out(folder: str, split: str, count: int, seed: int) -> Iterator[Molecule]:
    prepared = PreparedSet.load(folder)
    places = prepared.split(split)
    for place in np.random.default_rng(seed).permutation(places)[:count]:
        yield prepared.molecule(int(place))


_MEASURES: dict[str, tuple[Callable[[Settings], Columns], int, int]] = {
    "grow": (lambda settings: measure_parts("grow", settings), 200, 5),
    "link": (lambda settings: measure_parts("link", settings), 200, 5),
    "replace": (lambda settings: measure_parts("replace", settings), 200, 5),
    "conformers": (measure_conformers, 500, 10),
    "bonds": (measure_bonds, 2000, 1),
}
"""What measures a task, on how many molecules, with how many samples of each."""

_PROPERTY_SAMPLES = 10_000
"""Molecules drawn for each property."""


def _measured(options: argparse.Namespace) -> Columns:
    """The numbers of the task that is asked for."""
    generator = load(options.model, device=options.device)
    if options.task == "properties":
        protocol = Protocol(
            generator=generator,
            predictor=load_predictor(options.predictor),
            prepared=PreparedSet.load(options.data),
            samples=options.samples or _PROPERTY_SAMPLES,
            properties=options.properties.split(",") if options.properties else None,
            guidance=options.guidance,
            steps=options.steps,
            seed=options.seed,
        )
        if protocol.learnt_half is None:
            print(f"moldiff: {generator.checkpoint.name} has learnt from both halves", file=sys.stderr)
        return measure_properties(protocol)
    measure, molecules, samples = _MEASURES[options.task]
    return measure(
        Settings(
            generator=generator,
            molecules=list(_held_out(options.data, options.split, options.molecules or molecules, options.seed)),
            samples=options.samples or samples,
            steps=options.steps,
            seed=options.seed,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a task and print its table; the exit code is 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m moldiff.benchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=[*_MEASURES, "properties"])
    parser.add_argument("--model", default="qm9", help="name or folder")
    parser.add_argument("--data", default="prepared/qm9", help="prepared set with held-out molecules")
    parser.add_argument("--split", default="test")
    parser.add_argument("--molecules", type=int, help="how many; default by task")
    parser.add_argument("--samples", type=int, help="of each; default by task")
    parser.add_argument("--steps", type=int, help="network calls a molecule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    properties = parser.add_argument_group("properties")
    properties.add_argument("--predictor", default="qm9_predictor", help="name or folder")
    properties.add_argument("--properties", help="such as gap,mu; default: all that the model knows")
    properties.add_argument("--guidance", type=float, default=1.0, help="scale; 1 = as learnt")
    options = parser.parse_args(arguments)
    try:
        columns = _measured(options)
    except MoldiffError as error:
        print(f"moldiff: error: {error}", file=sys.stderr)
        return 2
    print(markdown(columns))
    if options.out is not None:
        results = {column: [result.to_dict() for result in found] for column, found in columns.items()}
        asked = {key: str(value) for key, value in vars(options).items() if value is not None}
        write_json(options.out, {"options": asked, "versions": versions(), "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
