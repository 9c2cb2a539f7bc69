"""What was written before modules moved still loads: models, states, and configs with names of that time."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODEL_CONFIG, small_model
from safetensors.torch import load_file, save_file

from moldiff.diffusion.instantiate import instantiate
from moldiff.diffusion.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    available_models,
    find_model,
    load_pretrained,
    save_pretrained,
    with_present_names,
)
from moldiff.errors import MoldiffError
from moldiff.training.checkpoint import check_options, load_state, save_state

PRESENT = {
    "moldiff.condition.PropertyDropout": "moldiff.diffusion.conditioning.PropertyDropout",
    "moldiff.data.drugs.Drugs": "moldiff.data.sources.drugs.Drugs",
    "moldiff.data.files.Files": "moldiff.data.sources.files.Files",
    "moldiff.data.qm9.QM9": "moldiff.data.sources.qm9.QM9",
    "moldiff.evaluation.metrics.fcd.FrechetDistance": "moldiff.evaluation.metrics.distributions.FrechetDistance",
    "moldiff.likeness.Likeness": "moldiff.sampling.config.Likeness",
    "moldiff.logs.MetricsTable": "moldiff.training.loggers.MetricsTable",
    "moldiff.logs.tensorboard": "moldiff.training.loggers.tensorboard",
    "moldiff.metrics.contacts.Contacts": "moldiff.evaluation.metrics.contacts.Contacts",
    "moldiff.metrics.distribution.Distribution": "moldiff.evaluation.metrics.distributions.Distribution",
    "moldiff.metrics.diversity.Diversity": "moldiff.evaluation.metrics.diversity.Diversity",
    "moldiff.metrics.druglike.DrugLikeness": "moldiff.evaluation.metrics.druglike.DrugLikeness",
    "moldiff.metrics.forcefield.ForceFieldRelaxation": "moldiff.evaluation.metrics.relaxation.ForceFieldRelaxation",
    "moldiff.metrics.frechet.FrechetDistance": "moldiff.evaluation.metrics.distributions.FrechetDistance",
    "moldiff.metrics.neighbours.NearestNeighbours": "moldiff.evaluation.metrics.diversity.NearestNeighbours",
    "moldiff.metrics.perception.Perception": "moldiff.evaluation.metrics.perception.Perception",
    "moldiff.metrics.posebusters.PoseBustersChecks": "moldiff.evaluation.metrics.posebusters.PoseBustersChecks",
    "moldiff.metrics.relaxation.Relaxation": "moldiff.evaluation.metrics.relaxation.Relaxation",
    "moldiff.nn.denoiser.PairTransformer": "moldiff.diffusion.nn.pair_transformer.PairTransformer",
    "moldiff.optimizer.MuonAdamW": "moldiff.training.optim.MuonAdamW",
    "moldiff.process.categorical.CategoricalProcess": "moldiff.diffusion.process.categorical.CategoricalProcess",
    "moldiff.process.categorical.absorbing_prior": "moldiff.diffusion.process.categorical.absorbing_prior",
    "moldiff.process.categorical.marginal_prior": "moldiff.diffusion.process.categorical.marginal_prior",
    "moldiff.process.categorical.uniform_prior": "moldiff.diffusion.process.categorical.uniform_prior",
    "moldiff.process.gaussian.GaussianProcess": "moldiff.diffusion.process.gaussian.GaussianProcess",
    "moldiff.process.joint.JointProcessConfig": "moldiff.diffusion.process.joint.JointProcessConfig",
    "moldiff.process.local.Distances": "moldiff.diffusion.process.geometry_loss.Distances",
    "moldiff.process.local.LocalFrames": "moldiff.diffusion.process.geometry_loss.LocalFrames",
    "moldiff.process.mixture.TaskMixture": "moldiff.diffusion.process.task_mixture.TaskMixture",
    "moldiff.process.schedule.CosineSchedule": "moldiff.diffusion.process.schedule.CosineSchedule",
    "moldiff.process.schedule.LinearSchedule": "moldiff.diffusion.process.schedule.LinearSchedule",
    "moldiff.process.time.PowerTimes": "moldiff.diffusion.process.schedule.PowerTimes",
    "moldiff.process.time.power_grid": "moldiff.diffusion.process.schedule.power_grid",
    "moldiff.sampler.PowerSampler": "moldiff.diffusion.sampler.PowerSampler",
    "moldiff.schedule.TrapezoidSchedule": "moldiff.training.optim.TrapezoidSchedule",
    "moldiff.scoring.sample_quality": "moldiff.training.quality.sample_quality",
}
BEFORE = {now: then for then, now in PRESENT.items()}


def with_former_names(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: BEFORE.get(value, value) if key == "_target_" else with_former_names(value)
            for key, value in config.items()
        }
    return [with_former_names(item) for item in config] if isinstance(config, list) else config


@pytest.mark.parametrize("name", PRESENT)
def test_every_former_name_is_found(name: str) -> None:
    module, _, symbol = PRESENT[name].rpartition(".")
    found = getattr(import_module(module), symbol)
    assert found.__module__ == module
    config = {"of": [{"_target_": name, "_partial_": True}]}
    assert instantiate(with_present_names(config), None)["of"][0].func is found


def test_a_model_with_former_names_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model()
    save_pretrained(tmp_path, model, MODEL_CONFIG | {"training": {"process": MODEL_CONFIG["process"]}})
    config = json.loads((tmp_path / CONFIG_FILE).read_text(encoding="utf-8"))
    old = with_former_names(config)
    assert old["denoiser"]["_target_"] == "moldiff.nn.denoiser.PairTransformer"
    assert old["training"]["process"]["_target_"] == "moldiff.process.joint.JointProcessConfig"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(old), encoding="utf-8")
    loaded = load_pretrained(tmp_path)
    assert loaded.config == config
    for name, weight in loaded.model.denoiser.state_dict().items():
        assert torch.equal(weight, model.denoiser.state_dict()[name])


@pytest.mark.parametrize("name", available_models())
def test_shipped_configs_have_present_names(name: str) -> None:
    stored = json.loads((find_model(name) / CONFIG_FILE).read_text(encoding="utf-8"))
    assert with_present_names(stored) == stored


def test_a_training_with_former_names_goes_on(tmp_path: Path) -> None:
    now = {"denoiser": {"_target_": "moldiff.diffusion.nn.pair_transformer.PairTransformer"}, "resume": True}
    save_state(tmp_path / "state", {"config": with_former_names(now), "data": "x", "step": torch.tensor(3)})
    state = load_state(tmp_path / "state")
    assert state["config"] == now
    check_options(state, now, "x")


def test_models_of_both_values_of_hydrogen_level_load(tmp_path: Path) -> None:
    """Without a level of their own hydrogens had no weights for it, which is the same function as with zeros."""
    torch.manual_seed(0)
    model, name = small_model(), "embedding.hydrogen_level.weight"
    model.denoiser.get_parameter(name).data.zero_()
    save_pretrained(tmp_path, model, MODEL_CONFIG | {"denoiser": {**MODEL_CONFIG["denoiser"], "hydrogen_level": False}})
    weights = load_file(tmp_path / WEIGHTS_FILE)
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / WEIGHTS_FILE)
    loaded = load_pretrained(tmp_path)
    assert loaded.config["denoiser"] == MODEL_CONFIG["denoiser"]
    for key, weight in loaded.model.denoiser.state_dict().items():
        assert torch.equal(weight, model.denoiser.state_dict()[key])


def test_what_learnt_with_matched_noise_is_trained_on_but_not_drawn_from(tmp_path: Path) -> None:
    """Options that are gone are dropped; of this one the molecules would be broken."""
    save_pretrained(tmp_path, small_model(), MODEL_CONFIG)
    path = tmp_path / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"process": config["process"] | {"coupling": False}}), encoding="utf-8")
    assert load_pretrained(tmp_path).config == config
    path.write_text(json.dumps(config | {"process": config["process"] | {"coupling": True}}), encoding="utf-8")
    with pytest.raises(MoldiffError, match=r"process\.coupling.*train it on: moldiff train init="):
        load_pretrained(tmp_path)
    assert load_pretrained(tmp_path, to_sample=False).config == config
