"""Molecules drawn into the pockets of Wang et al. (JACS 2015) beside docking in equal time, known ligands and chance.

`pip download --no-deps --no-binary :all: openmmforcefields==0.15.1` gets the archive that holds the 8 proteins and 199
posed ligands (its metadata need not build: the file is all that is needed), and

    python -m tests.benchmarks.pocket openmmforcefields-0.15.1.tar.gz --samples 10 --targets tyk2 p38a --out pockets

draws, docks and scores. Each target is a JSON in `--out` that is not made again; tables of them come out at the end.
Docked are as many plain molecules of the same sizes, each by Vina with so many evaluations that drawing and docking
take together the processor time of drawing in the pocket; all scores are those of the next minimum of Vina.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator
from scipy.spatial.transform import Rotation

from moldiff.evaluation.docking import Vina
from moldiff.evaluation.metrics.relaxation import energy_drop
from moldiff.molecules.descriptors import DESCRIPTORS
from moldiff.sampling.generator import Generator, load
from moldiff.sampling.sample import Samples
from moldiff.tasks.grow import Pocket
from moldiff.tasks.pocket import PocketTask

TARGETS = ("bace", "cdk2", "jnk1", "mcl1", "p38a", "ptp1b", "thrombin", "tyk2")
METHODS = ("drawn", "docked", "placed", "known")
DOCKING_BOX = 22.5  # Å of an edge of the space that docking searches
_FIRST_EVALUATIONS, _FEWEST_EVALUATIONS = 20_000, 500


def unpacked(archive: str, target: str, folder: Path) -> tuple[Path, Path]:
    """The protein and the ligands of a target."""
    with tarfile.open(archive) as tar:
        names = [one for one in tar.getnames() if f"/perses_jacs_systems/{target}/" in one]
        protein, ligands = (
            next(one for one in names if one.endswith(end)) for end in ("_protein.pdb", ("_ligands.sdf", "shifted.sdf"))
        )
        for name, to in ((protein, "protein.pdb"), (ligands, "ligands.sdf")):
            content = tar.extractfile(name)
            assert content is not None
            (folder / to).write_bytes(content.read())
    return folder / "protein.pdb", folder / "ligands.sdf"


class Judge:
    """Scores molecules in one pocket."""

    def __init__(self, task: PocketTask, protein: Path) -> None:
        from posebusters import PoseBusters

        self._vina = Vina(task.site.receptor, task.site.center)
        self._vinardo = Vina(task.site.receptor, task.site.center, "vinardo")
        self._busters, self._protein = PoseBusters(config="dock", max_workers=0), protein

    def __call__(self, mols: Iterable[Chem.Mol], *, bust: bool) -> list[dict[str, Any]]:
        """What is measured of sanitised molecules with explicit hydrogens in the receptor's frame (Å)."""
        found, mols = [], list(mols)
        for mol in mols:
            vina, vinardo = self._vina(mol), self._vinardo(mol)
            bare = Chem.MolFromSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol)))
            try:
                strain = energy_drop(mol) / mol.GetNumHeavyAtoms()
            except RuntimeError:
                strain = None
            values = {name: DESCRIPTORS[name].of(bare) for name in ("qed", "sa")}
            scores = {
                "as_drawn": vina and vina.as_drawn,
                "vina": vina and vina.minimized,
                "vinardo": vinardo and vinardo.minimized,
            }
            found.append({"smiles": Chem.MolToSmiles(bare), "heavy": bare.GetNumAtoms(), "strain": strain, **values})
            found[-1] |= scores | (self._posebusters(mol) if bust else {"sound": None, "failed": []})
        return found

    def _posebusters(self, mol: Chem.Mol) -> dict[str, Any]:
        with rdBase.BlockLogs():
            row = self._busters.bust(mol, None, self._protein, full_report=False).iloc[0]
        failed = [str(name) for name, passes in row.items() if passes is not True and not bool(passes)]
        return {"sound": not failed, "failed": failed}


def measured(generator: Generator, archive: str, target: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All methods on one target."""
    with tempfile.TemporaryDirectory() as name:
        protein, ligands = unpacked(archive, target, Path(name))
        spec = Pocket(receptor=str(protein), ligand=str(ligands), strength=arguments.strength)
        if arguments.sizes is not None:
            spec = replace(spec, new_atoms=arguments.sizes)
        model = generator.checkpoint.model
        task = spec.prepare(model.vocabulary, model.statistics)
        judge = Judge(task, protein)
        common = {"seed": arguments.seed, "steps": arguments.steps, "workers": 0}
        drawn, seconds = timed(generator, arguments.samples, task=spec, candidates=arguments.candidates, **common)
        plain, before = timed(generator, arguments.samples, size=task.sizes(), **common)
        docked, after = dock_all(task, plain.mols, seconds - before)
        sets = {"drawn": drawn.mols, "docked": docked, "placed": placed(task, plain.mols, arguments.seed)}
        known = [mol for mol in Chem.SDMolSupplier(str(ligands), removeHs=False) if mol is not None]
        every = {**sets, "known": known}
        found = {name: judge(mols, bust=name in ("drawn", "docked")) for name, mols in every.items()}
    spent = {"drawn": seconds, "docked": before + after, "placed": before}
    return {"target": target, "sizes": task.sizes(), "draws": drawn.drawn, "seconds": spent, "molecules": found}


def timed(generator: Generator, samples: int, **options: Any) -> tuple[Samples, float]:
    """Molecules, and the processor time (s) that they took."""
    run = generator.stream(samples, **options)
    task = run.molecules.task
    if isinstance(task, PocketTask) and task.vina is not None:
        _ = task.vina.tools  # maps, which docking needs as well
    start = time.process_time()
    kept = Samples(run, asked=samples, drawn=run.drawn, results=(), complete=run.complete)
    kept.drawn = run.drawn
    return kept, time.process_time() - start


def dock_all(task: PocketTask, mols: Sequence[Chem.Mol], budget: float) -> tuple[list[Chem.Mol], float]:
    """Molecules as Vina docks them within a processor time (s) in all, and the time that it took."""
    from meeko import PDBQTMolecule, RDKitMolCreate

    engine, pdbqt = Vina(task.site.receptor, task.site.center, box=DOCKING_BOX).tools
    found, evaluations, start = list[Chem.Mol](), _FIRST_EVALUATIONS, time.process_time()
    for number, mol in enumerate(mols):
        began = time.process_time()
        engine.set_ligand_from_string(pdbqt(mol))
        engine.dock(exhaustiveness=1, n_poses=1, max_evals=evaluations)
        now = time.process_time()
        pose = PDBQTMolecule(engine.poses(n_poses=1), skip_typing=True)
        found += [Chem.AddHs(one, addCoords=True) for one in RDKitMolCreate.from_pdbqt_mol(pose)]
        if left := len(mols) - number - 1:
            share = (budget - (now - start)) / left / max(now - began, 1e-3)
            evaluations = max(_FEWEST_EVALUATIONS, int(evaluations * min(4.0, max(0.25, share))))
    return found, time.process_time() - start


def placed(task: PocketTask, mols: Sequence[Chem.Mol], seed: int) -> list[Chem.Mol]:
    """Molecules at the middle of the pocket, turned at random."""
    turns = Rotation.random(len(mols), rng=np.random.default_rng(seed))
    found = []
    for mol, turn in zip(mols, turns, strict=True):
        copy, pos = Chem.Mol(mol), mol.GetConformer().GetPositions()
        copy.GetConformer().SetPositions(turn.apply(pos - pos.mean(0)) + task.site.center)
        found.append(copy)
    return found


def diversity(records: Sequence[Mapping[str, Any]]) -> float:
    """Mean distance of two molecules: 1 - Tanimoto similarity (Morgan, radius 2, 2,048 bits)."""
    maker = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [maker.GetFingerprint(Chem.MolFromSmiles(one["smiles"])) for one in records]
    pairs = [DataStructs.TanimotoSimilarity(a, b) for k, a in enumerate(prints) for b in prints[:k]]
    return 1 - float(np.mean(pairs)) if pairs else float("nan")


def summary(result: Mapping[str, Any], method: str) -> dict[str, float]:
    """Figures of a method on a target."""
    records = result["molecules"][method]

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if one[name] is None else one[name] for one in records], dtype=float)

    vina = np.where(np.isnan(column("vina")), 0.0, column("vina"))  # what lies outside of the box binds nowhere
    vinardo = np.where(np.isnan(column("vinardo")), 0.0, column("vinardo"))
    return {
        "n": len(records),
        "vina": float(np.median(vina)),
        "best 10 %": float(np.quantile(vina, 0.1)),
        "vinardo": float(np.median(vinardo)),
        "vinardo best": float(np.quantile(vinardo, 0.1)),
        "sound %": 100 * float(np.mean(column("sound"))),
        "strain": float(np.nanmedian(column("strain"))),
        "heavy": float(np.mean(column("heavy"))),
        "qed": float(np.mean(column("qed"))),
        "sa": float(np.mean(column("sa"))),
        "diversity": diversity(records),
        "s each": result["seconds"].get(method, float("nan")) / max(1, len(records)),
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """All targets and methods, a row each, and on how many targets drawing is ahead."""
    rows = [(one["target"], method, summary(one, method)) for one in results for method in METHODS]
    names = list(rows[0][2])
    lines = ["| target | | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    lines += [
        f"| {target} | {method} | " + " | ".join(f"{v:.4g}" for v in row.values()) + " |"
        for target, method, row in rows
    ]
    by = {(target, method): row for target, method, row in rows}
    for name in ("vina", "best 10 %", "vinardo", "vinardo best"):
        ahead = [
            one["target"] for one in results if by[one["target"], "drawn"][name] < by[one["target"], "docked"][name]
        ]
        lines.append(f"\ndrawn ahead of docked in {name}: {len(ahead)} of {len(results)}: {' '.join(ahead)}")
    reached = [
        one["target"]
        for one in results
        if by[one["target"], "drawn"]["best 10 %"] <= by[one["target"], "known"]["vina"]
    ]
    lines.append(
        f"\nbest 10 % of drawn reach the median of the known: {len(reached)} of {len(results)}: {' '.join(reached)}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--model", default="drugs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--strength", type=float, default=None)
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(".."))), default=None, help="20..28")
    parser.add_argument("--out", default="pockets")
    arguments = parser.parse_args()
    folder, generator = Path(arguments.out), load(arguments.model, device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("targets", "out", "archive")}
    settings["weights"] = generator.checkpoint.weights_hash
    for target in arguments.targets:
        path = folder / f"{target}.json"
        if not path.is_file():
            result = measured(generator, arguments.archive, target, arguments)
            path.write_text(json.dumps({"settings": settings, **result}, indent=1))
        print(f"{target}: {path}", flush=True)
    print(table([json.loads((folder / f"{one}.json").read_text()) for one in arguments.targets]))


if __name__ == "__main__":
    main()
