"""Settings of the sampler, judged by what they do to molecules and not by validity alone.

`python tests/benchmarks/samplers.py --model qm9 --data prepared/qm9 --samples 2000 --steps 50 "" corrector=3` draws raw
molecules with each and prints, beside the same figures of as many test molecules: validity, radius of gyration,
hydrogens a heavy atom, groups, bonds to hydrogens off their lengths, energy lost by relaxing with MMFF94s, FCD.

The last column sums up by the rule that the defaults are chosen by: the mean, over all figures, of how far each is from
the test molecules', in units of what is just acceptable of it (`ACCEPTABLE`); below 1 is good, and the least is best.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem

from moldiff.molecules import identity, validity
from moldiff.molecules.molecule import Molecule

sys.path.append(str(Path(__file__).parents[2]))

from moldiff.data.dataset import MoleculeDataset
from moldiff.evaluation.evaluate import evaluate
from moldiff.evaluation.molecule_set import quality
from moldiff.molecules.convert import off_their_bonds
from moldiff.sampling.generator import load
from moldiff.training.quality import geometry
from tests.benchmarks.card.drawn import sampler_of

GROUPS = {
    name: Chem.MolFromSmarts(smarts)
    for name, smarts in {"aromatic": "a", "alkyne": "C#C", "nitrile": "C#N", "ring of 3": "[r3]"}.items()
}
ACCEPTABLE = {
    "valid": 0.7,
    "P1": 1.0,
    "radius_of_gyration": 0.01,
    "hydrogens": 0.005,
    "mmff94s_drop": 0.6,
    "off bonds": 0.1,
    "fcd": 0.45,
    **dict.fromkeys(GROUPS, 15.0),  # % of the test molecules' share
}
"""By how much a figure may differ from that of test molecules."""


def draw(folder: str, sampler: str, steps: int, seed: int, samples: int, workers: int) -> list[Molecule]:
    """Raw molecules of a run."""
    run = load(folder, device="cpu").stream(
        samples, seed=seed, sampler=sampler_of(sampler, num_steps=steps), keep=(), decode="raw", workers=workers
    )
    return [sample.molecule for sample in run]


def figures(molecules: Sequence[Molecule], reference: Sequence[Molecule]) -> dict[str, float]:
    """What is compared, shares in %."""
    valid = [molecule for molecule in molecules if validity.check(molecule) is None]
    mols = [Chem.MolFromSmiles(identity.smiles(molecule, stereo=False)) for molecule in valid]
    shares = {name: 100 * float(np.mean([mol.HasSubstructMatch(one) for mol in mols])) for name, one in GROUPS.items()}
    report = evaluate(valid, reference=list(reference), metrics=["fcd"])
    fcd = next(result.value for result in report.results if result.name == "fcd_distance")
    off = 100 * float(np.mean([bool(off_their_bonds(molecule).any()) for molecule in valid]))
    scores = quality(molecules)
    found = {"valid": 100 * scores["p2_valid"], "P1": 100 * scores["p1_molecule_stable"], **geometry(valid)}
    return {**found, **shares, "off bonds": off, "fcd": float(fcd or 0.0)}


def distance(found: Mapping[str, float], real: Mapping[str, float]) -> float:
    """How far from test molecules, see `ACCEPTABLE`."""
    parts = []
    for name, unit in ACCEPTABLE.items():
        unit = unit / 100 * real[name] if name in GROUPS else unit
        parts.append(abs(found[name] - real[name]) / unit)
    return float(np.mean(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samplers", nargs="+", help="settings such as corrector=3,settle=0.2; '' = the default")
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--data", default="prepared/qm9")
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    prepared = MoleculeDataset.load(args.data)
    test = np.random.default_rng(0).permutation(prepared.split("test"))[: 2 * args.samples]
    real, reference = ([prepared.molecule(int(k)) for k in part] for part in np.array_split(test, 2))
    known = figures(real, reference)
    print("  ".join(["sampler", *known, "distance"]))
    print("  ".join(["test molecules", *(f"{value:.4g}" for value in known.values())]), flush=True)
    for sampler in args.samplers:
        found = figures(draw(args.model, sampler, args.steps, args.seed, args.samples, args.workers), reference)
        row = [sampler or "default", *(f"{value:.4g}" for value in found.values()), f"{distance(found, known):.2f}"]
        print("  ".join(row), flush=True)


if __name__ == "__main__":
    main()
