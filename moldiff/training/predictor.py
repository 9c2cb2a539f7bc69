"""`python -m moldiff.training.predictor train --data prepared/qm9`: train a property predictor, or measure one."""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches, evaluation_batches
from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import choose_device, has_fast_bfloat16
from moldiff.diffusion.conditioning import class_counts, half_of
from moldiff.diffusion.model import in_units
from moldiff.diffusion.property_predictor import PropertyNetwork, PropertyPredictor, load_predictor
from moldiff.errors import MoldiffError
from moldiff.sampling.config import option
from moldiff.training.module import STEP_BY_STEP, AveragedTraining, StepBatches, counted, learnt_properties
from moldiff.training.optim import MuonAdamW, TrapezoidSchedule

# arguments of the network beside those that are options; with their defaults it has a million parameters
_SIZES = {"pair_dim": 32, "steerable_dim": 16, "num_heads": 8, "num_probes": 8}
_CONSTANTS = 5000  # training molecules at most on which the constants are fitted
_VALIDATE = 2000  # molecules at most on which the errors are measured during the training


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """How to train; every field is an option of the command line."""

    half: str = option("a", "which half of the training molecules: a, b or all")
    minutes: float | None = option(None, "how long; by default 30, or no limit where there are steps", kind=float)
    steps: int | None = option(None, "how many; by default minutes alone decide", kind=int)
    batch_size: int = option(128, "molecules a step")
    layers: int = option(4, "of the network")
    hidden: int = option(128, "features of an atom")
    muon_lr: float = option(0.01, "learning rate of the block matrices")
    adamw_lr: float = option(1.5e-3, "learning rate of everything else")
    ema_decay: float = option(0.999, "of the averaged weights")
    validate_every: int = option(1000, "steps")
    precision: str | None = option(None, "Lightning's name; by default bf16-mixed where the hardware has it")
    seed: int = option(0, "of first weights and order")


Validation = Callable[[PropertyNetwork, int], Mapping[str, float]]


class PredictorTraining(AveragedTraining):
    """Trains a predictor's network by mean absolute errors; `validate` gives those of the averaged one at a step."""

    model: PropertyNetwork
    averaged: PropertyNetwork

    def __init__(self, predictor: PropertyPredictor, config: PredictorConfig, validate: Validation) -> None:
        dtype = torch.bfloat16 if has_fast_bfloat16(choose_device("auto")) else None
        optimizer = partial(MuonAdamW, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr, dtype=dtype)
        schedule = TrapezoidSchedule(warmup_steps=100, decay_share=0.8, final=0.0)
        super().__init__(predictor.network, optimizer=optimizer, schedule=schedule, ema_decay=config.ema_decay)
        self.predictor, self.config, self.validate = predictor, config, validate
        self.since = time.monotonic()

    def training_step(self, batch: MolBatch) -> Tensor:
        assert batch.condition is not None
        target = self.predictor.properties.normalised(batch.condition)
        error = self.model(in_units(batch, self.predictor.statistics)) - target.nan_to_num()
        loss: Tensor = error.abs()[target.isfinite()].mean()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        step = self.global_step
        if step % self.config.validate_every:
            return
        pace = self.config.validate_every * self.config.batch_size / (time.monotonic() - self.since)
        print(f"step {step}  loss {float(outputs['loss']):.4f}  about {pace:.0f} molecules/s", flush=True)
        errors = self.validate(self.averaged, step)
        found = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
        print(f"step {step}  mean absolute errors: {found}", flush=True)
        self.since = time.monotonic()


def mean_errors(
    predictor: PropertyPredictor,
    prepared: MoleculeDataset,
    indices: np.ndarray,
    error: Callable[[Tensor, Tensor], Tensor] = lambda values, truth: (values - truth).abs(),
) -> dict[str, float]:
    """Mean of the errors [B, C] of every property over molecules whose value is known, in the units of the data."""
    names = predictor.properties.names
    sums, counts = torch.zeros(2, len(names), dtype=torch.double)
    for batch in evaluation_batches(prepared, indices, batch_size=256, properties=names):
        assert batch.condition is not None
        known = batch.condition.isfinite()
        sums += error(predictor.values(batch).cpu(), batch.condition).masked_fill(~known, 0.0).sum(0).double()
        counts += known.sum(0)
    return dict(zip(names, (sums / counts.clamp(min=1)).tolist(), strict=True))


def train(prepared: MoleculeDataset, out: Path, config: PredictorConfig) -> PropertyPredictor:
    """Train a predictor and write it to the folder `out`, which is new; MoldiffError for a set without properties."""
    if out.exists() and any(out.iterdir()):
        raise MoldiffError(f"out: {out} is not empty; choose another folder")
    half = None if config.half == "all" else config.half
    indices = half_of(prepared.split("train"), half)
    predictor = _fresh(prepared, indices, config)
    since = time.monotonic()

    def keep(network: PropertyNetwork, step: int, held_out: np.ndarray | None) -> PropertyPredictor:
        training = {
            "data": prepared.name,
            "data_sha256": prepared.meta["sha256"],
            "half": half,
            "molecules": len(indices),
            "steps": step,
            "batch_size": config.batch_size,
            "seconds": round(time.monotonic() - since),
            "seed": config.seed,
        }
        found = replace(predictor, training=training, network=network, name=out.name)
        errors = {} if held_out is None else mean_errors(found, prepared, held_out)
        found = replace(found, network=copy.deepcopy(network).cpu().eval(), errors=errors)
        found.save(out)
        return found

    valid = prepared.split("valid")[:_VALIDATE]
    module = PredictorTraining(predictor, config, lambda network, step: keep(network, step, valid).errors)
    how: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed}
    batches = BucketedBatches(prepared, indices, properties=predictor.properties.names, **how)
    trainer = _trainer(config, out)
    trainer.fit(module, StepBatches(batches))
    keep(module.averaged, trainer.global_step, None)
    stored = load_predictor(out)  # its weights have been rounded
    set_constants(stored, prepared, indices)
    return keep(stored.network, trainer.global_step, prepared.split("test"))


def set_constants(predictor: PropertyPredictor, prepared: MoleculeDataset, indices: np.ndarray) -> None:
    """Set the constant of every property so that the mean error on training molecules is zero, in place.

    What was learnt in bfloat16 makes up for its rounding: in float32 heat capacities came out 0.11 cal/(mol K) too low.
    """
    units, counts = predictor.properties.normalised, predictor.network.counts
    errors = mean_errors(predictor, prepared, indices[:_CONSTANTS], lambda values, truth: units(values) - units(truth))
    counts[-1] -= counts.new_tensor(list(errors.values()))


def _fresh(prepared: MoleculeDataset, indices: np.ndarray, config: PredictorConfig) -> PropertyPredictor:
    """A predictor with first weights, fitted to the counts of atoms and bonds."""
    names = list(prepared.properties)
    if not names:
        raise MoldiffError(f"predictor: {prepared.name} has no properties to be learnt, expected at least one")
    properties = learnt_properties(prepared, names, indices)
    sizes = _SIZES | {"num_layers": config.layers, "hidden_dim": config.hidden}
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
        torch.manual_seed(config.seed)
        classes = prepared.vocabulary.num_atom_classes
        network = PropertyNetwork(num_atom_classes=classes, num_properties=len(names), **sizes)
    network.fit_counts(*counted(prepared, properties, indices, class_counts))
    return PropertyPredictor(network, prepared.vocabulary, prepared.statistics, properties, sizes, {}, {})


def _trainer(config: PredictorConfig, out: Path) -> lightning.Trainer:
    device = choose_device("auto")
    precision: Any = config.precision or ("bf16-mixed" if has_fast_bfloat16(device) else "32-true")
    minutes = config.minutes or (None if config.steps else 30.0)
    limit = [] if minutes is None else [Timer({"seconds": round(60 * minutes)}, interval="step", verbose=False)]
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1,
        precision=precision,
        max_steps=config.steps or -1,
        callbacks=[*limit],
        logger=False,
        default_root_dir=out,
        **STEP_BY_STEP,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or measure, and print the errors; the exit code is 2 for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        prepared = MoleculeDataset.load(options.data)
        if options.command == "train":
            config = PredictorConfig(**{one.name: getattr(options, one.name) for one in fields(PredictorConfig)})
            predictor = train(prepared, options.out, config)
            errors, split = predictor.errors, "test"
        else:
            predictor, split = load_predictor(options.model), options.split
            errors = mean_errors(predictor, prepared, prepared.split(split))
    except MoldiffError as error:
        print(f"moldiff: error: {error}", file=sys.stderr)
        return 2
    print(f"mean absolute errors on {len(prepared.split(split))} {split} molecules of {prepared.name}:")
    for entry in predictor.properties.entries:
        print(f"  {entry.name:8} {errors[entry.name]:.5g} {entry.unit}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moldiff.training.predictor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a predictor on a half of the training molecules")
    train.add_argument("--out", default="runs/predictor", type=Path, help="folder to make")
    for one in fields(PredictorConfig):
        kind = one.metadata.get("kind") or (str if one.default is None else type(one.default))
        shown = "" if one.default is None else f" (default: {one.default})"
        name = f"--{one.name.replace('_', '-')}"
        train.add_argument(name, type=kind, default=one.default, help=one.metadata["help"] + shown)
    measure = commands.add_parser("measure", help="errors on held-out molecules")
    measure.add_argument("--model", default="qm9_predictor", help="name or folder")
    measure.add_argument("--split", default="test")
    for command in (train, measure):
        command.add_argument("--data", default="prepared/qm9", help="prepared set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
