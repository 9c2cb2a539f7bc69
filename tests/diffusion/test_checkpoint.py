"""Models as folders: round trip, provenance and every way a file can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import STATISTICS, VOCABULARY

from moldiff.diffusion.instantiate import instantiate
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import WEIGHTS_FILE, build_model, find_model, load_pretrained, save_pretrained
from moldiff.diffusion.shipped import CONFIG_FILE
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import AtomClass, Vocabulary

CONFIG: dict[str, Any] = {
    "denoiser": {
        "_target_": "moldiff.diffusion.nn.pair_transformer.PairTransformer",
        "hidden_dim": 16,
        "pair_dim": 8,
        "steerable_dim": 8,
        "num_layers": 1,
        "num_heads": 2,
        "num_probes": 4,
    },
    "process": {
        "_target_": "moldiff.diffusion.process.joint.JointProcessConfig",
        "pos": {"_target_": "moldiff.diffusion.process.gaussian.GaussianProcess", "max_weight": 4.0},
        "atom_prior": {"_target_": "moldiff.diffusion.process.categorical.uniform_prior", "_partial_": True},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "mine", build_model(CONFIG, VOCABULARY, STATISTICS), CONFIG)
    return tmp_path / "mine"


def test_round_trip_keeps_weights_process_and_data_description(folder: Path) -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG, VOCABULARY, STATISTICS)
    loaded = load_pretrained(folder)
    for one, other in zip(model.denoiser.parameters(), loaded.model.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)
    assert loaded.model.vocabulary == VOCABULARY
    assert loaded.model.statistics == STATISTICS
    assert loaded.model.process.pos.max_weight == 4.0
    assert float(loaded.model.process.atom_type.prior[0]) == pytest.approx(1 / 7)
    assert loaded.name == "mine"
    assert len(loaded.weights_hash) == 12


def test_half_precision_is_stored_in_half_the_bytes_and_loads_as_float32(folder: Path, tmp_path: Path) -> None:
    model = load_pretrained(folder).model
    save_pretrained(tmp_path / "half", model, CONFIG, dtype=torch.float16)
    sizes = [(f / WEIGHTS_FILE).stat().st_size for f in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half = load_pretrained(tmp_path / "half").model
    assert next(half.denoiser.parameters()).dtype == torch.float32


def test_a_fresh_process_loads_it_without_unpickling(folder: Path) -> None:
    code = (
        "import pickle, moldiff.diffusion.nn.pair_transformer, moldiff.diffusion.process.joint\n"
        "from moldiff.diffusion.pretrained import load_pretrained\n"
        "def refuse(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        f"print(load_pretrained({str(folder)!r}).weights_hash)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == load_pretrained(folder).weights_hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\): empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\xff" * 64, "damaged|truncated"),
        (None, "truncated"),
    ],
)
def test_b52_files_that_are_no_weights_are_told_apart(folder: Path, content: bytes | None, message: str) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(MoldiffError, match=message) as caught:
        load_pretrained(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config |= changes
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def larger_vocabulary() -> dict[str, Any]:
    """The config of a model that knows sulfur and phosphorus, too."""
    classes = (*VOCABULARY.atom_classes, AtomClass(15, 0, 0), AtomClass(16, 0, 0))
    marginal = (1 / len(classes),) * len(classes)
    return {
        "vocabulary": Vocabulary(classes, {}).to_dict(),
        "statistics": replace(STATISTICS, atom_marginal=marginal).to_dict(),
    }


def test_b53_configs_that_do_not_fit_are_named(folder: Path) -> None:
    good = (folder / CONFIG_FILE).read_text()
    for changes, message in [
        ({"format_version": 999}, "got format_version 999, expected 1"),
        (larger_vocabulary(), r"made for 7 atom classes, but its config\.json lists 9"),
        ({"vocabulary": None}, "lacks vocabulary"),
        ({"denoiser": CONFIG["denoiser"] | {"pair_dim": 16}}, r"has shape \(.*\), expected \(.*\)"),
        ({"denoiser": CONFIG["denoiser"] | {"num_layers": 2}}, "lacks layers.1"),
        ({"denoiser": CONFIG["denoiser"] | {"hidden": 2}}, "unexpected keyword argument 'hidden'"),
        ({"denoiser": {"_target_": "os.system", "command": "true"}}, "got os.system, expected a name that starts"),
    ]:
        edit(folder, **changes)
        with pytest.raises(MoldiffError, match=message):
            load_pretrained(folder)
        (folder / CONFIG_FILE).write_text(good)
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(MoldiffError, match="expected JSON"):
        load_pretrained(folder)


def test_unknown_models_are_listed_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MoldiffError, match=r"got 'qm99'.*expected a trained model's folder or one of"):
        find_model("qm99")
    with pytest.raises(MoldiffError, match="a folder without config"):
        find_model(tmp_path)


def test_construct_follows_the_rules_of_hydra() -> None:
    assert instantiate({"a": [1, {"b": "text"}]}) == {"a": [1, {"b": "text"}]}
    partial = instantiate(
        {"_target_": "moldiff.diffusion.process.schedule.power_grid", "_partial_": True, "power": 1.0}
    )
    assert len(partial(5)) == 5
    assert (
        len(instantiate({"_target_": "moldiff.diffusion.process.schedule.power_grid", "power": 1.0}, num_steps=3)) == 3
    )
    for config, message in [
        ({"_target_": "moldiff.diffusion.process.schedule.nothing"}, "cannot be found"),
        ({"_target_": 3}, "expected a dotted name"),
        (
            {"_target_": "subprocess.run"},
            r"expected a name that starts with moldiff\.diffusion\.nn\. or moldiff\.diffusion\.process\.",
        ),
        (
            {"_target_": "moldiff.cli.main.main", "arguments": ["models"]},
            "got moldiff.cli.main.main, expected a name that starts",
        ),
        ({"_target_": "moldiff.diffusion.nn.pair_transformer.os.system"}, "cannot be found"),
        (
            {"_target_": "moldiff.diffusion.process.joint.dataclass"},
            "dataclass of dataclasses, expected one of moldiff",
        ),
    ]:
        with pytest.raises(MoldiffError, match=message):
            instantiate(config)


def test_a_network_of_ones_own_has_to_be_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(folder, denoiser=CONFIG["denoiser"] | {"_target_": "test_checkpoint.OwnNetwork"})
    with pytest.raises(MoldiffError, match=r"got test_checkpoint\.OwnNetwork.*MOLDIFF_ALLOW=test_checkpoint"):
        load_pretrained(folder)
    own = load_pretrained(folder, ["moldiff.", "test_checkpoint."]).model.denoiser
    assert type(own).__name__ == "OwnNetwork"
    monkeypatch.setenv("MOLDIFF_ALLOW", "other, test_checkpoint")
    assert type(load_pretrained(folder).model.denoiser).__name__ == "OwnNetwork"


class OwnNetwork(PairTransformer):
    """A network that is not the package's."""
