"""`python -m moldiff.predictor train --data prepared/qm9`: train a property predictor, or measure one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moldiff.data.dataset import PreparedSet
from moldiff.errors import MoldiffError
from moldiff.predictor.predictor import load_predictor
from moldiff.predictor.training import SIZES, Plan, held_out_errors, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or measure, and print the errors; the exit code is 2 for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        prepared = PreparedSet.load(options.data)
        if options.command == "train":
            predictor = train(prepared, options.out, _plan(options))
            errors, split = predictor.errors, "test"
        else:
            predictor, split = load_predictor(options.model), options.split
            errors = held_out_errors(predictor, prepared, split)
    except MoldiffError as error:
        print(f"moldiff: error: {error}", file=sys.stderr)
        return 2
    print(f"mean absolute errors on {len(prepared.split(split))} {split} molecules of {prepared.name}:")
    for entry in predictor.properties.entries:
        print(f"  {entry.name:8} {errors[entry.name]:.5g} {entry.unit}")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        half=None if options.half == "all" else options.half,
        minutes=options.minutes or (None if options.steps else 30.0),
        steps=options.steps,
        batch_size=options.batch_size,
        sizes=SIZES | {"num_layers": options.layers, "hidden_dim": options.hidden},
        muon_lr=options.muon_lr,
        adamw_lr=options.adamw_lr,
        ema_decay=options.ema_decay,
        seed=options.seed,
        validate_every=options.validate_every,
        precision=options.precision,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moldiff.predictor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a predictor on a half of the training molecules")
    train.add_argument("--out", default="runs/predictor", type=Path, help="folder to make")
    train.add_argument("--half", default="a", help="a, b or all")
    train.add_argument("--minutes", type=float, help="default 30, or no limit with --steps")
    train.add_argument("--steps", type=int)
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--layers", type=int, default=SIZES["num_layers"])
    train.add_argument("--hidden", type=int, default=SIZES["hidden_dim"], help="features of an atom")
    train.add_argument("--muon-lr", type=float, default=0.01)
    train.add_argument("--adamw-lr", type=float, default=1.5e-3)
    train.add_argument("--ema-decay", type=float, default=0.999)
    train.add_argument("--validate-every", type=int, default=1000, help="steps")
    train.add_argument("--precision", help="Lightning's name; default: bf16-mixed where the hardware has it")
    train.add_argument("--seed", type=int, default=0)
    measure = commands.add_parser("measure", help="errors on held-out molecules")
    measure.add_argument("--model", default="qm9_predictor", help="name or folder")
    measure.add_argument("--split", default="test")
    for command in (train, measure):
        command.add_argument("--data", default="prepared/qm9", help="prepared set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
