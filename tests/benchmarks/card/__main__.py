"""The card of a model.

- `python -m tests.benchmarks.card write`: draws, evaluates and writes it.
- `python -m tests.benchmarks.card curve`: quality against steps.
- `python -m tests.benchmarks.card learning`: quality over molecules seen, from trainings and earlier cards.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.pretrained import NOVELTY_FILE, PretrainedModel, load_pretrained
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules.molecule import Molecule
from tests.benchmarks.card import learning
from tests.benchmarks.card.bound import bounds
from tests.benchmarks.card.columns import FIRST, METRICS, Background, Column, column
from tests.benchmarks.card.confidence import of_confidence
from tests.benchmarks.card.curve import measure_curve, table
from tests.benchmarks.card.document import TEXT_FILE, write_card, write_text
from tests.benchmarks.card.drawn import Delivered, draw, sampler_of
from tests.benchmarks.card.relaxed import of_relaxed


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands; 0 = well."""
    options = _parser().parse_args(arguments)
    try:
        checkpoint = load_pretrained(options.model)
        {"write": write, "curve": curve, "learning": learning_curve}[options.command](checkpoint, options)
    except MoldiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.card", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    card = commands.add_parser("write", help="draw, evaluate, and write card.json and card.md")
    card.add_argument("--data", required=True, help="the prepared set the model was trained on")
    card.add_argument("--samples", type=int, default=10_000)
    card.add_argument("--steps", type=int, default=None, help="network calls a molecule")
    card.add_argument("--sampler", default="default", help="settings such as order=2,corrector=30")
    card.add_argument("--first", nargs="*", default=[], metavar="METRIC=NUMBER", help=f"instead of {dict(FIRST)}")
    card.add_argument("--not-raw", nargs="*", default=[], metavar="METRIC", help="not taken of the raw molecules")
    card.add_argument("--bound", type=int, default=5_000, help="molecules of which the variational bound is taken")
    card.add_argument(
        "--relax", type=int, default=100, help="delivered molecules that are relaxed by MMFF94s; 0 = none"
    )
    card.add_argument(
        "--confidence", type=int, default=1_000, help="drawn molecules that confidence is calibrated on; 0 = none"
    )
    learn = commands.add_parser("learning", help="learning.json and learning.svg, of trainings and of earlier cards")
    learn.add_argument("--trainings", nargs="*", default=[], metavar="FOLDER", help="with config.json and log/")
    learn.add_argument("--cards", nargs="*", default=[], metavar="FILE", help="card.json of earlier weights")
    steps = commands.add_parser("curve", help="steps.json and steps.svg; goes on where it was ended")
    steps.add_argument("--steps", default="5,10,20,50,100", help="numbers of network calls, as 5,10,20")
    steps.add_argument("--samples", type=int, default=2_000)
    steps.add_argument("--sampler", nargs="*", default=["default"], help="one or more, each as default or order=2,...")
    for command in (card, learn, steps):
        command.add_argument("--model", default="qm9", help="a model of the package, or its folder")
    for command in (card, learn):
        command.add_argument("--machine", help="where it was trained, if the history does not say so")
    for command in (card, steps):
        command.add_argument("--workers", type=int, default=None, help="processes that draw; 1 = this one alone")
    return parser


def write(checkpoint: PretrainedModel, options: argparse.Namespace) -> None:
    """Draw the molecules, evaluate them beside real ones, and write the card."""
    prepared = MoleculeDataset.load(options.data)
    first = dict(FIRST) | _numbers(options.first)
    sampler = sampler_of(options.sampler, num_steps=options.steps)
    if unknown := [name for name in options.not_raw if name not in METRICS]:
        raise MoldiffError(f"not_raw: got {unknown[0]!r}, expected any of {', '.join(METRICS)}")
    number = options.samples
    drawn = draw(checkpoint.folder, sampler, number, valid=True, num_workers=options.workers)
    delivered = Delivered.of(drawn, number)
    start = time.monotonic()
    columns = evaluate_columns(checkpoint, prepared, drawn.raw, delivered, first, not_raw=options.not_raw)
    bound = bounds(checkpoint.model, prepared, options.bound)
    seconds = time.monotonic() - start
    first_ones = delivered.molecules[: options.relax]
    write_card(
        checkpoint,
        prepared,
        columns,
        bound,
        drawn=drawn,
        delivered=delivered,
        sampler=sampler,
        seconds=seconds,
        of_relaxed=of_relaxed(first_ones, drawn.seconds * drawn.processes / len(drawn.decoded)) if first_ones else [],
        of_confidence=of_confidence(drawn, options.confidence) if options.confidence else {},
        fcd=0 if "fcd" in columns["model, raw"].skipped else min(number, first["fcd"]),
        machine=options.machine,
    )
    print((checkpoint.folder / TEXT_FILE).read_text(encoding="utf-8"))


def evaluate_columns(
    checkpoint: PretrainedModel,
    prepared: MoleculeDataset,
    raw: Sequence[Molecule],
    delivered: Delivered,
    first: Mapping[str, int] = FIRST,
    metrics: Sequence[str] = METRICS,
    not_raw: Sequence[str] = (),
) -> dict[str, Column]:
    """All metrics of the raw and the delivered molecules, and of as many real test molecules.

    Those `not_raw` are left out for the raw ones.
    """
    number = len(raw)
    real = [prepared.molecule(int(index)) for index in prepared.split("test")[:number]]
    background = Background.of(prepared, NoveltyIndex.load(checkpoint.folder / NOVELTY_FILE), number)
    lists = {
        "model, raw": raw,
        "model, delivered": delivered.molecules,
        f"real test molecules ({len(real):,})": real,
    }
    columns, start = {}, time.monotonic()
    for title, molecules in lists.items():
        show = partial(_show, start, title)
        asked = [name for name in metrics if molecules is not raw or name not in not_raw]
        columns[title] = column(molecules, background, metrics=asked, first=first, on_metric=show)
    columns["model, delivered"].results[:0] = delivered.results()
    return columns


def _show(start: float, title: str, metric: str) -> None:
    minutes = (time.monotonic() - start) / 60
    print(f"moldiff: evaluating for {minutes:.0f} minutes; {title}: {metric}", file=sys.stderr)


def curve(checkpoint: PretrainedModel, options: argparse.Namespace) -> None:
    """Measure the points that are not there yet, and put them into the card."""
    steps = [_whole("steps", text) for text in options.steps.split(",")]
    samplers = [sampler_of(text, num_steps=number) for text in options.sampler for number in steps]
    points = measure_curve(checkpoint, samplers, options.samples, num_workers=options.workers)
    write_text(checkpoint)
    print(table(points))


def learning_curve(checkpoint: PretrainedModel, options: argparse.Namespace) -> None:
    """Add the points of trainings and cards, and put the curve into the card."""
    new = [
        point for folder in options.trainings for point in learning.points_of_training(Path(folder), options.machine)
    ]
    for file in options.cards:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
        new.append(learning.point_of_card(document, options.machine))
    points = learning.add_points(checkpoint.folder, new)
    write_text(checkpoint)
    print(learning.table(points))


def _numbers(texts: Sequence[str]) -> dict[str, int]:
    """Texts such as "xtb=50" by name."""
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        known = (*METRICS, "neighbours")
        if name not in known:
            raise MoldiffError(f"first: got {text!r}, expected METRIC=NUMBER with any of {', '.join(known)}")
        found[name] = _whole("first", number)
    return found


def _whole(name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise MoldiffError(f"{name}: got {text!r}, expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
