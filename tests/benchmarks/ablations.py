"""What moves quality per hour: trainings that differ in one thing, each as long on one core, scored alike.

`python tests/benchmarks/ablations.py --data prepared/qm9 --runs runs/ablations --docs docs [--what adamw]` trains
`--minutes` each from nothing, `--at-once` side by side, draws `--samples` molecules of seed 0 from each, and puts the
figures into `docs/benchmarks/ablations.json` and the table of `docs/experiments.md`. What is there already is not
trained again. The trainings called base differ in their seed alone: what they scatter is no effect.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from documents import add, fill, known
from evaluation import processor

from moldiff.diffusion.pretrained import load_pretrained
from moldiff.diffusion.sampler import PowerSampler
from moldiff.training.quality import sample_quality

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "base_0": (),
    "base_1": ("seed=1",),
    "base_2": ("seed=2",),
    "wide": ("denoiser.hidden_dim=256", "denoiser.num_layers=4"),
    "deep": ("denoiser.hidden_dim=144", "denoiser.num_layers=9"),
    "heads_4": ("denoiser.num_heads=4",),
    "heads_16": ("denoiser.num_heads=16",),
    "pairs_narrow": ("denoiser.pair_dim=24",),
    "pairs_wide": ("denoiser.pair_dim=96",),
    "adamw": ("optimizer=adamw", "optimizer.lr=0.002"),
    "adamw_half": ("optimizer=adamw", "optimizer.lr=0.001"),
    "muon_half": ("optimizer.muon_lr=0.0075", "optimizer.adamw_lr=0.00075"),
    "muon_half_1": ("optimizer.muon_lr=0.0075", "optimizer.adamw_lr=0.00075", "seed=1"),
    "muon_quarter": ("optimizer.muon_lr=0.00375", "optimizer.adamw_lr=0.000375"),
    "decay_short": ("schedule.decay_share=0.2",),
    "decay_whole": ("schedule.decay_share=1.0",),
    "times_even": ("times.power=1.0",),
    "times_late": ("times.power=2.0",),
    "cosine": ("process=joint_cosine",),
    "weight_near_data": ("process.pos.max_weight=200", "process.hydrogen.max_weight=200"),
    "weight_pos": ("field_weights.pos=2.0",),
    "weight_hydrogen": ("field_weights.hydrogen=0.5",),
    "weight_atom_type": ("field_weights.atom_type=0.6",),
    "weight_bond": ("field_weights.bond=1.0",),
    "distances": ("process.geometry={_target_: moldiff.diffusion.process.geometry_loss.Distances}",),
    "frames": ("process.geometry={_target_: moldiff.diffusion.process.geometry_loss.LocalFrames}",),
    "whole_only": ("tasks=null",),
    "ema_short": ("ema_decay=0.99",),
    "prior_uniform": ("prior=uniform",),
    "prior_absorbing": ("prior=absorbing",),
    "batch_64": ("batch_size=64",),
    "batch_256": ("batch_size=256",),
}
"""What differs from `moldiff train experiment=qm9`."""

SHOWN = {
    "p2_valid": "P2 valid raw",
    "p2_molecule_stable": "P2 molecule stable raw",
    "p1_molecule_stable": "P1 molecule stable raw",
    "decoded_p2_valid": "P2 valid decoded",
}


def train(name: str, folder: Path, args: argparse.Namespace) -> None:
    """By the command that users run; an interrupted training goes on."""
    time = str(timedelta(minutes=args.minutes)).split(".")[0].zfill(8)
    options = ["experiment=qm9", f"data.folder={args.data}", f"out={folder}", "resume=auto", "compile=false"]
    options += [f"trainer.precision={args.precision}", "trainer.devices=1"]
    options += ["trainer.max_steps=null", f"trainer.max_time=00:{time}", "trainer.num_quality_samples=0"]
    options += ["trainer.num_validation=200", "trainer.validate_every=100000"]
    command = [sys.executable, "-m", "moldiff.cli.main", "train", *options, *VARIANTS[name]]
    with (folder.parent / f"{name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(command, stderr=log, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score; the figures and what they are of."""
    torch.set_num_threads(1)
    train(name, folder, args)
    checkpoint = load_pretrained(folder)
    seen = sum(stretch["steps"] * stretch["batch_size"] for stretch in checkpoint.config["history"])
    sampler = PowerSampler(num_steps=args.steps)
    scores = sample_quality(checkpoint.model.eval(), num_samples=args.samples, sampler=sampler)
    facts = {name: getattr(args, name) for name in ("minutes", "precision", "samples", "steps")}
    return {"options": VARIANTS[name], **facts, "molecules": seen, "processor": processor(), **scores}


def table(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows in the order of the variants, the first of which is the head."""
    rows = [["change", "molecules seen", *(f"{title} (%)" for title in SHOWN.values())]]
    for name in (name for name in VARIANTS if name in found):
        one = found[name]
        options = ", ".join(f"`{option}`" for option in one["options"]) or "none"
        rows.append([options, f"{one['molecules']:,}", *(f"{100 * one[key]:.1f}" for key in SHOWN)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="prepared/qm9", help="the prepared set")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="where the trained models go")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="the folder of documents to write to")
    parser.add_argument("--what", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="which trainings")
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--precision", default="32-true", help="of each training; bf16-mixed where that is faster")
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=20, help="network calls a molecule")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, each on one core")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    store = args.docs / "benchmarks" / "ablations.json"
    before = known(store)
    names = [name for name in args.what if name not in before]
    with ProcessPoolExecutor(args.at_once, get_context("spawn")) as pool:
        runs = {pool.submit(measure, name, args.runs / name, args): name for name in names}
        for run in as_completed(runs):
            found = add(store, {runs[run]: run.result()})
            fill(args.docs / "experiments.md", {"ablations": table(found)})
            print(runs[run], {key: round(run.result()[key], 4) for key in SHOWN}, flush=True)


if __name__ == "__main__":
    main()
