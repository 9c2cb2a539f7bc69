"""How well a model does each task, on held-out molecules: `python -m tests.benchmarks.tasks grow --data prepared/qm9`.

- grow, link, replace: a part of every molecule is removed and drawn anew; counted raw and decoded.
- ligands: the same of a substituent of a ring of PDB ligands, those of the drug-like set.
- conformers: n of every molecule against its true geometry, beside RDKit's ETKDG.
- bonds: from the elements and coordinates of every molecule, beside RDKit's perception.
- properties: how near drawn molecules come to values that were asked for.
- tables: only write the tables of the documents anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.cli.options import EXIT_INTERRUPTED
from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.guidance import FEEDBACK
from moldiff.diffusion.pretrained import find_model
from moldiff.diffusion.property_predictor import load_predictor
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.report import markdown, versions, write_json
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import load
from tests.benchmarks.card.drawn import sampler_of
from tests.benchmarks.tasks.bonds import Graphs
from tests.benchmarks.tasks.conformers import Geometries
from tests.benchmarks.tasks.parts import Parts
from tests.benchmarks.tasks.properties import Protocol, Targets
from tests.benchmarks.tasks.settings import Columns, Measure, Progress, Row, Settings
from tests.benchmarks.tasks.substituents import Substituents, has_substituent
from tests.benchmarks.tasks.tables import errors, into_card, keep, refresh

_MEASURES: dict[str, tuple[Measure, int, int]] = {
    "grow": (Parts("grow"), 240, 5),
    "link": (Parts("link"), 280, 5),
    "replace": (Parts("replace"), 210, 5),
    "ligands": (Substituents(), 100, 1),
    "conformers": (Geometries(), 500, 10),
    "bonds": (Graphs(), 2000, 1),
}
"""What measures a task, on how many molecules, with how many samples of each.

Of QM9's, 200 have a part that can be removed.
"""

_PROPERTY_SAMPLES = 10_000
"""Molecules drawn for each property."""

_AT_ONCE = 200
"""Samples that are drawn together."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.tasks", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("task", choices=[*_MEASURES, "properties", "tables"])
    parser.add_argument("--model", default="qm9", help="name or folder")
    parser.add_argument("--data", default="prepared/qm9", help="prepared set with held-out molecules")
    parser.add_argument("--split", default="test")
    parser.add_argument("--molecules", type=int, help="how many; default by task")
    parser.add_argument("--samples", type=int, help="of each; default by task")
    parser.add_argument("--steps", type=int, help="network calls a molecule")
    parser.add_argument("--sampler", default="", help="other settings, such as order=1,churn=0.3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="the numbers as JSON; default benchmark/TASK.json")
    parser.add_argument("--docs", type=Path, help="also a folder of documents, whose tables are written anew")
    properties = parser.add_argument_group("properties")
    properties.add_argument("--predictor", default="qm9_predictor", help="name or folder")
    properties.add_argument("--properties", help="such as gap,mu; default: all that the model knows")
    properties.add_argument("--card", action="store_true", help="also put the table into the model's card")
    properties.add_argument("--candidates", type=int, default=1, help="drawn for each molecule")
    properties.add_argument("--chooser", help="predictor that chooses among them; default: the shipped one that suits")
    properties.add_argument("--guidance", type=float, default=1.0, help="scale; 1 = as learnt")
    properties.add_argument("--steering", type=float, default=FEEDBACK, help="0 = none")
    return parser


def _held_out(folder: str, split: str, count: int, seed: int, suits: Callable[[Molecule], bool]) -> Iterator[Molecule]:
    prepared = MoleculeDataset.load(folder)
    places = np.random.default_rng(seed).permutation(prepared.split(split))
    yield from islice(filter(suits, (prepared.molecule(int(place)) for place in places)), count)


def _suits(measure: Measure) -> Callable[[Molecule], bool]:
    """Which held-out molecules a task is measured on."""
    return has_substituent if isinstance(measure, Substituents) else lambda molecule: True


def _measured(options: argparse.Namespace) -> tuple[Columns, dict[str, Any], list[Row]]:
    """The numbers of a task, what they were made with, and what is worth a look one by one."""
    generator = load(options.model, device=options.device)
    sampler = sampler_of(options.sampler, num_steps=options.steps)
    measure, molecules, samples = _MEASURES[options.task]
    count = options.molecules or molecules
    settings = Settings(
        generator=generator,
        molecules=list(_held_out(options.data, options.split, count, options.seed, _suits(measure))),
        samples=options.samples or samples,
        sampler=sampler,
        seed=options.seed,
    )
    made_with = {
        "model": generator.checkpoint.name,
        "weights": generator.checkpoint.weights_hash,
        "split": options.split,
        "molecules": len(settings.molecules),
        "samples": settings.samples,
        "seed": options.seed,
        **_plainly(sampler),
    }
    rows: list[Row] = []
    at_once, count = max(1, _AT_ONCE // settings.samples), len(settings.molecules)
    progress = Progress(count)
    for start in range(0, count, at_once):
        rows += measure.rows(settings, range(start, min(start + at_once, count)))
        progress.show(len(rows), what=f"{options.task}: ")
    return measure.columns(rows), made_with, measure.details(rows)


def _plainly(sampler: PowerSampler) -> dict[str, Any]:
    """The settings, the number of network calls under the name that users know."""
    settings = {name: value for name, value in asdict(sampler).items() if value is not None}
    return {"steps": settings.pop("num_steps"), **settings}


def _measured_properties(options: argparse.Namespace) -> tuple[Columns, dict[str, Any], list[Row]]:
    generator = load(options.model, device=options.device)
    sampler = sampler_of(options.sampler, num_steps=options.steps)
    protocol = Protocol(
        generator=generator,
        predictor=load_predictor(options.predictor),
        prepared=MoleculeDataset.load(options.data),
        samples=options.samples or _PROPERTY_SAMPLES,
        properties=options.properties.split(",") if options.properties else None,
        guidance=options.guidance,
        steering=options.steering,
        sampler=sampler,
        seed=options.seed,
        candidates=options.candidates,
        chooser=options.chooser,
    )
    if protocol.learnt_half is None:
        print(f"moldiff: {generator.checkpoint.name} has learnt from both halves", file=sys.stderr)
    made_with = {
        "model": generator.checkpoint.name,
        "weights": generator.checkpoint.weights_hash,
        "half": protocol.learnt_half or "both",
        "predictor": protocol.predictor.name,
        "samples": protocol.samples,
        "guidance": options.guidance,
        "steering": options.steering,
        "candidates": protocol.candidates,
        **({} if protocol.chosen_by is None else {"chooser": protocol.chosen_by.name}),
        "seed": options.seed,
        **_plainly(sampler),
    }
    targets, rows = Targets(protocol), list[Row]()
    progress = Progress(targets.total)
    for found in targets.rows():
        rows += found
        progress.show(len(rows), what=f"{found[0]['property']}: ")
    return targets.columns(rows), made_with, []


def _out(options: argparse.Namespace) -> Path:
    return Path(options.out or Path("benchmark") / f"{options.task}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a task and print its table; the exit code is 2 for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        if options.task != "tables":
            measured = _measured_properties if options.task == "properties" else _measured
            columns, made_with, details = measured(options)
            print(markdown(columns))
            if options.task == "properties":
                print(errors(columns))
            results = {column: [result.to_dict() for result in found] for column, found in columns.items()}
            document = {"options": made_with, "versions": versions(), "results": results, "details": details}
            write_json(_out(options), document)
            if options.docs is not None:
                keep(options.docs, "candidates" if options.candidates > 1 else options.task, document)
        if options.docs is not None or options.task == "tables":
            for path in refresh(options.docs or Path("docs")):
                print(f"moldiff: tables of {path} written", file=sys.stderr)
        if options.card:
            into_card(options.docs or Path("docs"), find_model(options.model) / "card.md")
    except MoldiffError as error:
        print(f"moldiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moldiff: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
