"""Training by Lightning as a config says, from fresh weights or from those of a trained model."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch import Tensor

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.compute import choose_device, is_out_of_memory
from moldiff.diffusion.conditioning import Properties, bond_counts, half_of
from moldiff.diffusion.instantiate import instantiate
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import NOVELTY_FILE, PretrainedModel, build_model, load_pretrained, with_present_names
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import Vocabulary
from moldiff.processes import handled, rank
from moldiff.training.callbacks import ArithmeticTrial, ModelExport, ProgressLine, SampleQuality
from moldiff.training.checkpoint import STATE_FILE, StateFile, StateKeeper, check_options, claimed
from moldiff.training.module import STEP_BY_STEP, DiffusionTraining, TrainingData, counted, learnt_properties

_DEFAULT_LOGGER = {"csv": {"_target_": "moldiff.training.loggers.MetricsTable"}}
# names of precision that are an `Precision`; Lightning takes care of all others
_PRECISIONS = {"32-true": False, "32": False, "bf16-mixed": True}
_FEW = 1000  # below so many molecules a model of millions of parameters remembers each
_CONDITION = "condition."  # what the names of the weights for properties begin with
_FITTED = {"condition.slopes", "condition.unexplained"}  # fitted to the training molecules, so never taken over
Names = Sequence[str]


def train(config: Mapping[str, Any]) -> Path:
    """Train a model as a config says; the averaged model ends up in the folder `out`.

    Raises:
        MoldiffError: for data, a model to start from or a folder that cannot be used.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when state and model have been saved.
    """
    config = with_present_names(config)
    out, options = Path(config["out"]), config["trainer"]
    prepared = MoleculeDataset.load(config["data"]["folder"])
    with claimed(out, config) as state:
        facts = {"config": dict(config), "data": prepared.meta["sha256"]}
        if state is not None:
            check_options(state, config, facts["data"])
        indices = half_of(prepared.split("train"), config.get("half"))
        model = _fresh_model(config, prepared, indices)
        history: Sequence[Any] = ()
        if config["init"] is not None and state is None:
            start = load_pretrained(config["init"], to_sample=False)
            _say(load_matching_weights(model, start, config["denoiser"]))
            history = start.config.get("history", ())
        fit = getattr(model.denoiser, "fit_counts", None)  # what a network may know beforehand of properties
        if fit is not None and model.properties:
            fit(*counted(prepared, model.properties, indices, bond_counts))
        if (count := len(prepared.split("train"))) < _FEW:
            few = f"only {count} molecule{'s' if count != 1 else ''} to train on"
            why = "the model may learn them by heart; then uniqueness and novelty mean little"
            _say(f"moldiff: warning: {few}: {why}", sys.stderr)
        described = {key: config[key] for key in ("denoiser", "process")} | {"training": dict(config)}
        export = ModelExport(out, described, history=history, novelty=prepared.path / NOVELTY_FILE)
        every, minutes = options["validate_every"], options.get("save_minutes", 10.0)
        keeper = StateKeeper(out / STATE_FILE, export, every=every, minutes=minutes, facts=facts)
        module = DiffusionTraining(model, config)
        data = TrainingData(prepared, indices, config, model.properties.names)
        trainer = _trainer(config, model, export, keeper, step=0 if state is None else int(state["global_step"]))
        resumed = None if state is None else out / STATE_FILE
        del state  # it would hold the weights twice
        # SIGUSR1 is how SLURM gives notice; all end the training between two steps.
        with handled(("SIGINT", "SIGTERM", "SIGUSR1"), lambda *_: keeper.interrupt()), _memory_errors(config):
            trainer.fit(module, datamodule=data, ckpt_path=resumed)
    return out


def _say(line: str, file: TextIO | None = None) -> None:
    """Print by the first of several processes."""
    if rank() == 0:
        print(line, file=file, flush=True)


def _fresh_model(config: Mapping[str, Any], prepared: MoleculeDataset, indices: np.ndarray) -> MoleculeDiffusion:
    """With first weights, and the scales of its properties in the molecules it is trained on."""
    properties = Properties()
    if config.get("condition"):
        chosen = instantiate(config["condition"], None).chosen(prepared.learnable, prepared.name)
        properties = learnt_properties(prepared, chosen, indices)
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator
        torch.manual_seed(config["seed"])
        return build_model(config, prepared.vocabulary, prepared.statistics, properties=properties)


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


def _strategy(options: Mapping[str, Any], devices: int | str, model: MoleculeDiffusion) -> str:
    """Lightning's, which has to know where several processes share a step that leaves weights without a gradient."""
    name = str(options["strategy"])
    several = torch.cuda.device_count() > 1 if devices in ("auto", -1, "-1") else devices not in (1, "1")
    is_shared = name == "ddp" or (name == "auto" and (several or options.get("num_nodes", 1) > 1))
    uses_all = not model.properties and isinstance(model.denoiser, PairTransformer)
    return "ddp_find_unused_parameters_true" if is_shared and not uses_all else name


def _trainer(
    config: Mapping[str, Any], model: MoleculeDiffusion, export: ModelExport, keeper: StateKeeper, *, step: int
) -> lightning.Trainer:
    options, out = config["trainer"], Path(config["out"])
    precision, parts, compiled = str(options["precision"]), options.get("accumulate_grad_batches", 1), config["compile"]
    on_cpu = choose_device("cpu" if options["accelerator"] == "cpu" else "auto").type == "cpu"
    # On a CPU two processes together beat one with twice the threads.
    devices = min(2, os.cpu_count() or 1) if on_cpu and options["devices"] == "auto" else options["devices"]
    trial = ArithmeticTrial(
        bfloat16=None if precision == "auto" else _PRECISIONS.get(precision, False),
        compiled=None if compiled == "auto" else bool(compiled),
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
        strategy=_strategy(options, devices, model),
        precision="32-true" if precision == "auto" or precision in _PRECISIONS else options["precision"],
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


def load_matching_weights(model: MoleculeDiffusion, start: PretrainedModel, denoiser_config: Mapping[str, Any]) -> str:
    """Give a fresh model the weights of a trained one; one line says which classes are known, new and left behind.

    What belongs to an atom class follows the class and not its index, new ones keep their fresh rows; what belongs to a
    property follows its name, new ones start at zero, as the same function. MoldiffError where networks differ in more.
    """
    theirs, ours = start.model.vocabulary, model.vocabulary
    axes: Mapping[str, int] = getattr(model.denoiser, "class_axes", {})
    if not axes and theirs.atom_classes != ours.atom_classes:
        name = type(model.denoiser).__name__
        raise MoldiffError(
            f"init: {start.name} knows the classes {theirs}; the data has {ours}, and {name} has no class_axes that "
            "say which weights belong to which class"
        )
    fresh, trained = model.denoiser.state_dict(), start.model.denoiser.state_dict()
    new, old = model.properties.names, start.model.properties.names
    trained = _for_properties(trained, fresh, getattr(model.denoiser, "property_axes", {}), new, old)
    if (odd := _odd_one(fresh, trained, axes)) is not None:
        raise MoldiffError(_difference(start, denoiser_config, odd))
    rows = {
        name: _with_rows(fresh[name], trained[name], axis, ours, theirs) for name, axis in axes.items() if name in fresh
    }
    model.denoiser.load_state_dict(trained | rows)
    return _summary(start.name, ours, theirs, new, old)


def _for_properties(
    trained: Mapping[str, Tensor], fresh: Mapping[str, Tensor], axes: Mapping[str, int], new: Names, old: Names
) -> dict[str, Tensor]:
    """The trained weights with what belongs to properties as the fresh model has them."""
    kept = {name: value for name, value in trained.items() if not name.startswith(_CONDITION)}
    own = {name: value for name, value in fresh.items() if name.startswith(_CONDITION)}
    if not set(new) & set(old):
        return kept | own
    for name in own.keys() & trained.keys() - _FITTED:
        own[name] = trained[name]
        if name in axes:
            parts = dict(zip(old, trained[name].chunk(len(old), axes[name]), strict=True))
            nothing = torch.zeros_like(parts[old[0]])
            own[name] = torch.cat([parts.get(entry, nothing) for entry in new], axes[name])
    return kept | own


def _odd_one(fresh: Mapping[str, Tensor], trained: Mapping[str, Tensor], axes: Mapping[str, int]) -> str | None:
    """Name of the first weight that only one of the networks has, or that has another shape but for atom classes."""
    ours, theirs = (
        {name: [size for axis, size in enumerate(value.shape) if axis != axes.get(name)] for name, value in one.items()}
        for one in (fresh, trained)
    )
    names = sorted(ours.keys() ^ theirs.keys()) or ours
    return next((name for name in names if ours.get(name) != theirs.get(name)), None)


def _difference(start: PretrainedModel, ours: Mapping[str, Any], odd: str) -> str:
    theirs: Mapping[str, Any] = start.config["denoiser"]
    what = f"differs from this training's network in {odd}"
    if differing := [key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)]:
        key = min(differing, key=lambda key: (key != "_target_", key))
        what = f"has denoiser.{key}={theirs.get(key)}, this training denoiser.{key}={ours.get(key)}"
    return f"init: {start.name} {what}; expected the same network"


def _with_rows(fresh: Tensor, trained: Tensor, axis: int, ours: Vocabulary, theirs: Vocabulary) -> Tensor:
    """The fresh weights with those of the shared classes put in; the mask comes last, but not in read-outs."""
    ends = (ours, fresh), (theirs, trained)
    wanted, known = ((*vocabulary.atom_classes, "mask")[: weights.shape[axis]] for vocabulary, weights in ends)
    pairs = [(new, known.index(atom_class)) for new, atom_class in enumerate(wanted) if atom_class in known]
    if not pairs:
        return fresh
    new, old = torch.tensor(pairs, device=fresh.device).T
    return fresh.index_copy(axis, new, trained.to(fresh).index_select(axis, old))


def _summary(name: str, ours: Vocabulary, theirs: Vocabulary, properties: Names, before: Names) -> str:
    def only(ones: Sequence[Any], others: Sequence[Any]) -> list[str]:
        return [str(one) for one in ones if one not in others]

    notes = {
        "new, with fresh weights": only(ours.atom_classes, theirs.atom_classes),
        "not in the data, dropped": only(theirs.atom_classes, ours.atom_classes),
        "properties, with fresh weights": only(properties, before),
        "properties dropped": only(before, properties),
    }
    known = ours.num_atom_classes - len(notes["new, with fresh weights"])
    line = f"init: {name} knows {known} of the {ours.num_atom_classes} atom classes of the data"
    return line + "".join(f"; {note}: {' '.join(names)}" for note, names in notes.items() if names)


if __name__ == "__main__":  # python -m moldiff.training.train CONFIG.json, for machines without Hydra
    print(train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
