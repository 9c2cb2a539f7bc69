"""Training by Lightning: a thin module around `MoleculeDiffusion`, and one function that runs it from a config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Timer

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.compute import choose_device, is_out_of_memory
from moldiff.diffusion.conditioning import Properties, PropertyDropout, half_of
from moldiff.diffusion.instantiate import instantiate
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.contributions import bond_counts
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import NOVELTY_FILE, build_model, load_pretrained, with_present_names
from moldiff.errors import MoldiffError
from moldiff.processes import handled, rank
from moldiff.training.autotune import ArithmeticTrial
from moldiff.training.callbacks import ModelExport, ProgressLine, SampleQuality
from moldiff.training.checkpoint import STATE_FILE, StateFile, StateKeeper, check_options, claimed
from moldiff.training.datamodule import TrainingData, counted, learnt_properties
from moldiff.training.finetune import load_matching_weights
from moldiff.training.module import STEP_BY_STEP, DiffusionTraining

_DEFAULT_LOGGER = {"csv": {"_target_": "moldiff.training.loggers.MetricsTable"}}
_PRECISIONS = {"32-true": False, "32": False, "bf16-mixed": True}
"""Names of precision that are an `Precision`; Lightning takes care of all others."""

_FEW = 1000
"""Below so many molecules a model of millions of parameters remembers each."""


def train(config: Mapping[str, Any]) -> Path:
    """Train a model as a config says; the averaged model ends up in the folder `out`.

    Raises:
        MoldiffError: for data, a model to start from or a folder that cannot be used.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when state and model have been saved.
    """
    config = with_present_names(config)
    out = Path(config["out"])
    prepared = MoleculeDataset.load(config["data"]["folder"])
    with claimed(out, config) as state:
        facts = {"config": dict(config), "data": prepared.meta["sha256"]}
        if state is not None:
            check_options(state, config, facts["data"])
        with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
            torch.manual_seed(config["seed"])
            properties = _properties(config, prepared)
            model = build_model(config, prepared.vocabulary, prepared.statistics, properties=properties)
        starts_elsewhere = config["init"] is not None and state is None
        history = _start_from(model, config) if starts_elsewhere else []
        _fit_counts(model, config, prepared)
        _warn_of_few(prepared)
        device = choose_device("cpu" if config["trainer"]["accelerator"] == "cpu" else "auto")
        module = _module(config, model)
        data = TrainingData(
            prepared,
            batch_size=config["batch_size"],
            seed=config["seed"],
            num_validation=config["trainer"]["num_validation"],
            half=config.get("half"),
            properties=properties.names,
        )
        described = {key: config[key] for key in ("denoiser", "process")} | {"training": dict(config)}
        export = ModelExport(out, described, history=history, novelty=prepared.path / NOVELTY_FILE)
        keeper = StateKeeper(
            out / STATE_FILE,
            export,
            every=config["trainer"]["validate_every"],
            minutes=config["trainer"].get("save_minutes", 10.0),
            facts=facts,
        )
        step = 0 if state is None else int(state["global_step"])
        trainer = _trainer(config, module, device, export=export, keeper=keeper, step=step)
        resumed = None if state is None else out / STATE_FILE
        del state  # it would hold the weights twice
        # SIGUSR1 is how SLURM gives notice; all end the training between two steps.
        with handled(("SIGINT", "SIGTERM", "SIGUSR1"), lambda *_: keeper.interrupt()), _memory_errors(config):
            trainer.fit(module, datamodule=data, ckpt_path=resumed)
    return out


@contextmanager
def _memory_errors(config: Mapping[str, Any]) -> Iterator[None]:
    """Say what to do where a batch does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size, parts = config["batch_size"], config["trainer"].get("accumulate_grad_batches", 1)
        if size == 1:
            raise MoldiffError("out of memory: not even one molecule at a time fits; a smaller denoiser may") from error
        raise MoldiffError(
            f"out of memory: {size} molecules at a time do not fit; resume=true batch_size={-(-size // 2)} "
            f"trainer.accumulate_grad_batches={2 * parts} goes on with the same training in smaller parts"
        ) from error


def _module(config: Mapping[str, Any], model: MoleculeDiffusion) -> DiffusionTraining:
    return DiffusionTraining(
        model,
        optimizer=instantiate(config["optimizer"], None),
        schedule=instantiate(config["schedule"], None),
        times=instantiate(config["times"], None),
        tasks=instantiate(config["tasks"], None) if config.get("tasks") else None,
        told=_dropout(config),
        field_weights=config["field_weights"],
        self_conditioning=config["self_conditioning"],
        ema_decay=config["ema_decay"],
        seed=config["seed"],
    )


def _dropout(config: Mapping[str, Any]) -> PropertyDropout | None:
    """How much of the properties the network is told; None = it takes none."""
    return instantiate(config["condition"], None) if config.get("condition") else None


def _properties(config: Mapping[str, Any], prepared: MoleculeDataset) -> Properties:
    """The properties that the network is told, with their scales in the training molecules."""
    dropout = _dropout(config)
    if dropout is None:
        return Properties()
    chosen = dropout.chosen(prepared.learnable, prepared.name)
    return learnt_properties(prepared, chosen, half_of(prepared.split("train"), config.get("half")))


def _fit_counts(model: MoleculeDiffusion, config: Mapping[str, Any], prepared: MoleculeDataset) -> None:
    """Fit what a network knows beforehand of properties to the training molecules, if it has such a thing."""
    fit = getattr(model.denoiser, "fit_counts", None)
    if fit is not None and model.properties:
        indices = half_of(prepared.split("train"), config.get("half"))
        fit(*counted(prepared, model.properties, indices, bond_counts))


def _start_from(model: MoleculeDiffusion, config: Mapping[str, Any]) -> list[Any]:
    """Take over the weights of a trained model; returns its history."""
    start = load_pretrained(config["init"], to_sample=False)
    line = load_matching_weights(model, start, config["denoiser"])
    if rank() == 0:
        print(line, flush=True)
    return list(start.config.get("history", []))


def _warn_of_few(prepared: MoleculeDataset) -> None:
    count = len(prepared.split("train"))
    if count < _FEW and rank() == 0:
        print(
            f"moldiff: warning: only {count} molecule{'s' if count != 1 else ''} to train on: the model may learn them "
            "by heart; then uniqueness and novelty mean little",
            file=sys.stderr,
        )


def _num_devices(devices: int | str, *, on_cpu: bool) -> int | str:
    """`auto` is every GPU; on a CPU two processes, which together beat one with twice the threads."""
    return min(2, os.cpu_count() or 1) if on_cpu and devices == "auto" else devices


def _strategy(options: Mapping[str, Any], devices: int | str, model: MoleculeDiffusion) -> str:
    """Lightning's, told where several processes share a step from which some weights may get no gradient."""
    several = torch.cuda.device_count() > 1 if devices in ("auto", -1, "-1") else devices not in (1, "1")
    several |= options.get("num_nodes", 1) > 1
    name = str(options["strategy"])
    if not model.properties and isinstance(model.denoiser, PairTransformer):
        return name
    return "ddp_find_unused_parameters_true" if name == "ddp" or (name == "auto" and several) else name


def _trainer(
    config: Mapping[str, Any],
    module: DiffusionTraining,
    device: torch.device,
    *,
    export: ModelExport,
    keeper: StateKeeper,
    step: int,
) -> lightning.Trainer:
    options, out = config["trainer"], Path(config["out"])
    precision, parts = options["precision"], options.get("accumulate_grad_batches", 1)
    devices = _num_devices(options["devices"], on_cpu=device.type == "cpu")
    bfloat16 = None if precision == "auto" else _PRECISIONS.get(str(precision), False)
    trial = ArithmeticTrial(
        bfloat16=bfloat16, compiled=None if config["compile"] == "auto" else bool(config["compile"])
    )
    callbacks: list[Callback] = [ProgressLine(options["log_every"]), export, trial]
    if options["num_quality_samples"] and config["quality"] is not None:
        score = instantiate(config["quality"], None, num_samples=options["num_quality_samples"])
        often = {"steps": options["validate_every"], "every": options["sample_every"]}
        callbacks.append(SampleQuality(score, export=export, **often, best_by=options.get("best_by")))
    if options["max_time"]:
        callbacks.append(Timer(options["max_time"], interval="step"))
    loggers = config.get("logger", _DEFAULT_LOGGER) or {}
    return lightning.Trainer(
        accelerator=options["accelerator"],
        devices=devices,
        num_nodes=options.get("num_nodes", 1),
        strategy=_strategy(options, devices, module.model),
        precision="32-true" if precision == "auto" or str(precision) in _PRECISIONS else precision,
        max_steps=options["max_steps"] or -1,
        callbacks=[*callbacks, keeper],  # last, for it saves what the others know
        plugins=[StateFile()],
        accumulate_grad_batches=parts,
        logger=[instantiate(logger, None, folder=out, step=step) for logger in loggers.values()],
        log_every_n_steps=options["log_every"],
        val_check_interval=options["validate_every"] * parts,
        use_distributed_sampler=False,
        default_root_dir=out,
        **STEP_BY_STEP,
    )


if __name__ == "__main__":  # python -m moldiff.training.train CONFIG.json, for machines without Hydra
    print(train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
