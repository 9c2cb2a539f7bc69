"""Training of a property predictor on one half of the training molecules of a prepared set.

`python -m moldiff.training.predictor train --data prepared/qm9`: train a property predictor, or measure one.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch import Tensor
from torch.utils.data import DataLoader

from moldiff.data.dataset import PreparedSet
from moldiff.data.loader import DenseBatches, evaluation_batches
from moldiff.diffusion.batch import MolBatch
from moldiff.diffusion.compute import choose_device, has_fast_bfloat16
from moldiff.diffusion.conditioning import Properties, half_of
from moldiff.diffusion.model import in_units
from moldiff.diffusion.nn.contributions import class_counts
from moldiff.diffusion.nn.property_network import PropertyNetwork
from moldiff.diffusion.property_predictor import PropertyPredictor, load_predictor
from moldiff.errors import MoldiffError
from moldiff.training.callbacks import progress
from moldiff.training.datamodule import StepDataset, counted, learnt_properties
from moldiff.training.optim import MuonAdamW, TrapezoidSchedule

SIZES = {
    "hidden_dim": 128,
    "pair_dim": 32,
    "steerable_dim": 16,
    "num_layers": 4,
    "num_heads": 8,
    "num_probes": 8,
}
"""Arguments of the network: a million parameters."""

_MANY_STEPS = 10**9
_SETTLE = 5000
"""Training molecules at most on which the constants are settled."""

_VALIDATE = 2000
"""Molecules at most on which the errors are measured during the training."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train.

    Attributes:
        half: of the training molecules, "a" or "b"; None = all.
        properties: to be learnt; None = all that are stored with the set.
        minutes: how long; None = `steps` alone decides.
        steps: how many; None = `minutes` alone decides.
        batch_size: molecules a step.
        sizes: arguments of the network.
        muon_lr: learning rate of the block matrices.
        adamw_lr: learning rate of everything else.
        ema_decay: of the averaged weights.
        seed: of first weights and order.
        validate_every: steps.
        precision: Lightning's name for it; None = bfloat16 where the hardware has it.
        device: as torch names it, or "auto".
    """

    half: str | None = "a"
    properties: Sequence[str] | None = None
    minutes: float | None = 30.0
    steps: int | None = None
    batch_size: int = 128
    sizes: Mapping[str, int] = field(default_factory=lambda: dict(SIZES))
    muon_lr: float = 0.01
    adamw_lr: float = 1.5e-3
    ema_decay: float = 0.999
    seed: int = 0
    validate_every: int = 1000
    precision: str | None = None
    device: str = "auto"


class PredictorTraining(lightning.LightningModule):
    """Mean absolute error of normalised properties, with averaged weights.

    Args:
        predictor: its network is trained.
        plan: how.
        on_validated: called with the averaged network, the step and the errors on the validation molecules.
    """

    def __init__(
        self,
        predictor: PropertyPredictor,
        plan: Plan,
        on_validated: Callable[[PropertyNetwork, int, dict[str, float]], object],
    ) -> None:
        super().__init__()
        self.on_validated = on_validated
        self.network, self.plan, self.predictor = predictor.network, plan, predictor
        self.averaged = copy.deepcopy(predictor.network).requires_grad_(False)
        self.schedule = TrapezoidSchedule(warmup_steps=100, decay_share=0.8, final=0.0)
        self.since = time.monotonic()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        dtype = torch.bfloat16 if has_fast_bfloat16(self.device) else None
        optimizer = MuonAdamW(
            self.network.named_parameters(), muon_lr=self.plan.muon_lr, adamw_lr=self.plan.adamw_lr, dtype=dtype
        )
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
        return optimizer

    def training_step(self, batch: MolBatch) -> Tensor:
        factor = self.schedule(self.global_step, progress(self.trainer))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["full_lr"]
        assert batch.condition is not None
        target = self.predictor.properties.normalised(batch.condition)
        known = target.isfinite()
        error = self.network(in_units(batch, self.predictor.statistics)) - target.nan_to_num()
        loss: Tensor = error.abs()[known].mean()
        return loss

    def on_before_zero_grad(self, optimizer: Any) -> None:
        decay = min(self.plan.ema_decay, (self.global_step + 1) / (self.global_step + 10))
        with torch.no_grad():
            for averaged, current in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                averaged.lerp_(current, 1 - decay)

    def on_train_batch_end(self, outputs: Any, batch: MolBatch, batch_idx: int) -> None:
        step, every = self.global_step, self.plan.validate_every
        if step % every == 0:
            seconds = time.monotonic() - self.since
            pace = every * self.plan.batch_size / seconds
            print(f"step {step}  loss {float(outputs['loss']):.4f}  about {pace:.0f} molecules/s", flush=True)
            self.since = time.monotonic()

    def on_validation_start(self) -> None:
        self.errors = ErrorSums(self.predictor.properties)

    def validation_step(self, batch: MolBatch) -> None:
        self.errors.add(self.averaged_values(batch), batch)

    def on_validation_epoch_end(self) -> None:
        errors = self.errors.means()
        self.on_validated(self.averaged, self.global_step, errors)
        found = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
        print(f"step {self.global_step}  mean absolute errors: {found}", flush=True)
        self.since = time.monotonic()

    def averaged_values(self, batch: MolBatch) -> Tensor:
        """Properties [B, C] by the averaged weights, in the units of the data."""
        return self.predictor.properties.restored(self.averaged(in_units(batch, self.predictor.statistics)))


class ErrorSums:
    """Adds up absolute errors of properties.

    Args:
        properties: names and their order.
    """

    def __init__(self, properties: Properties) -> None:
        self._names = properties.names
        self.sums = torch.zeros(len(properties), dtype=torch.double)
        self.counts = torch.zeros(len(properties), dtype=torch.double)

    def add(self, values: Tensor, batch: MolBatch) -> None:
        """Compare predicted values [B, C] with the batch's own."""
        assert batch.condition is not None
        known = batch.condition.isfinite()
        self.sums += ((values - batch.condition.nan_to_num()).abs() * known).sum(0).double().cpu()
        self.counts += known.sum(0).cpu()

    def means(self) -> dict[str, float]:
        """The mean absolute error of every property, in the units of the data."""
        return dict(zip(self._names, (self.sums / self.counts.clamp(min=1)).tolist(), strict=True))


def held_out_errors(predictor: PropertyPredictor, prepared: PreparedSet, split: str = "test") -> dict[str, float]:
    """Mean absolute error of every property on a part of a prepared set, in the units of the data."""
    sums = ErrorSums(predictor.properties)
    names = predictor.properties.names
    for batch in evaluation_batches(prepared, prepared.split(split), batch_size=256, properties=names):
        sums.add(predictor.values(batch), batch)
    return sums.means()


def train(prepared: PreparedSet, out: Path, plan: Plan) -> PropertyPredictor:
    """Train a predictor and write it to the folder `out`.

    Raises:
        MoldiffError: for a set without properties, a half that does not exist, or a folder that is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise MoldiffError(f"out: {out} is not empty; choose another folder")
    indices = half_of(prepared.split("train"), plan.half)
    predictor = _fresh(prepared, indices, plan)
    since = time.monotonic()

    def keep(network: PropertyNetwork, step: int, errors: dict[str, float]) -> PropertyPredictor:
        described = _described(predictor, prepared, plan, num_molecules=len(indices), step=step, since=since)
        found = replace(described, network=copy.deepcopy(network).cpu().eval(), errors=errors, name=out.name)
        found.save(out)
        return found

    names = predictor.properties.names
    module = PredictorTraining(predictor, plan, keep)
    batches = DenseBatches(prepared, indices, batch_size=plan.batch_size, seed=plan.seed, properties=names)
    valid = evaluation_batches(prepared, prepared.split("valid")[:_VALIDATE], batch_size=256, properties=names)
    trainer = _trainer(plan, choose_device(plan.device), out)
    steps = range(trainer.max_steps if trainer.max_steps > 0 else _MANY_STEPS)
    trainer.fit(
        module,
        DataLoader(StepDataset(batches), batch_size=None, sampler=steps),
        DataLoader(valid, batch_size=None, shuffle=False),
    )
    keep(module.averaged, trainer.global_step, {})
    stored = load_predictor(out)  # its weights have been rounded
    settle(stored, prepared, indices)
    return keep(stored.network, trainer.global_step, held_out_errors(stored, prepared))


def settle(predictor: PropertyPredictor, prepared: PreparedSet, indices: np.ndarray) -> None:
    """Set the constant of every property so that the mean error on training molecules is zero, in place.

    What was learnt in bfloat16 makes up for its rounding: in float32 heat capacities came out 0.11 cal/(mol K) too low.
    """
    sums = torch.zeros(len(predictor.properties), dtype=torch.double)
    counts = torch.zeros_like(sums)
    names = predictor.properties.names
    for batch in evaluation_batches(prepared, indices[:_SETTLE], batch_size=256, properties=names):
        assert batch.condition is not None
        error = predictor.properties.normalised(predictor.values(batch)) - predictor.properties.normalised(
            batch.condition
        )
        sums += error.nan_to_num().sum(0)
        counts += error.isfinite().sum(0)
    predictor.network.counts[-1] -= (sums / counts.clamp(min=1)).to(predictor.network.counts)


def _described(
    predictor: PropertyPredictor, prepared: PreparedSet, plan: Plan, *, num_molecules: int, step: int, since: float
) -> PropertyPredictor:
    """The predictor with what its training was."""
    training = {
        "data": prepared.name,
        "data_sha256": prepared.meta["sha256"],
        "half": plan.half,
        "molecules": num_molecules,
        "steps": step,
        "batch_size": plan.batch_size,
        "seconds": round(time.monotonic() - since),
        "seed": plan.seed,
    }
    return replace(predictor, training=training)


def _fresh(prepared: PreparedSet, indices: np.ndarray, plan: Plan) -> PropertyPredictor:
    """A predictor with first weights, fitted to the counts of atoms and bonds."""
    names = list(plan.properties or prepared.properties)
    if not names:
        raise MoldiffError(f"predictor: {prepared.name} has no properties to be learnt, expected at least one")
    properties = learnt_properties(prepared, names, indices)
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
        torch.manual_seed(plan.seed)
        network = PropertyNetwork(
            num_atom_classes=prepared.vocabulary.num_atom_classes, num_properties=len(names), **plan.sizes
        )
    network.fit_counts(*counted(prepared, properties, indices, class_counts))
    return PropertyPredictor(
        network, prepared.vocabulary, prepared.statistics, properties, plan.sizes, training={}, errors={}
    )


def _trainer(plan: Plan, device: torch.device, out: Path) -> lightning.Trainer:
    precision: Any = plan.precision or ("bf16-mixed" if has_fast_bfloat16(device) else "32-true")
    timers: list[Callback] = (
        [] if plan.minutes is None else [Timer({"seconds": round(60 * plan.minutes)}, interval="step", verbose=False)]
    )
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1,
        precision=precision,
        max_steps=plan.steps or -1,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=timers,
        logger=False,
        val_check_interval=plan.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )


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
    parser = argparse.ArgumentParser(prog="python -m moldiff.training.predictor", description=__doc__)
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
