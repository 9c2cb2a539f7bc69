"""The mean of weights: what it is, what is kept of where it comes from, and what has no mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import small_model

from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import NOVELTY_FILE, load_pretrained, save_pretrained
from moldiff.diffusion.shipped import CONFIG_FILE
from moldiff.training import model_soup

SIZES = {"hidden_dim": 16, "pair_dim": 8, "steerable_dim": 8, "num_layers": 1, "num_heads": 2, "num_probes": 4}
HISTORY = [{"steps": 3, "batch_size": 2, "seconds": 1}]


def saved(folder: Path, value: float, **sizes: int) -> str:
    """A model in a folder whose weights all have one value."""
    whole = small_model()
    denoiser = {"_target_": "moldiff.diffusion.nn.pair_transformer.PairTransformer", **SIZES, **sizes}
    network = PairTransformer(num_atom_classes=whole.vocabulary.num_atom_classes, **{**SIZES, **sizes})
    model = MoleculeDiffusion(network, whole.process, whole.vocabulary, whole.statistics, whole.properties)
    with torch.no_grad():
        for weight in model.denoiser.parameters():
            weight.fill_(value)
    process = {"_target_": "moldiff.diffusion.process.joint.JointProcessConfig"}
    save_pretrained(folder, model, {"denoiser": denoiser, "process": process, "history": HISTORY})
    return str(folder)


def test_mean_of_weights(tmp_path: Path) -> None:
    models = [saved(tmp_path / name, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    (tmp_path / "a" / NOVELTY_FILE).write_bytes(b"keys")
    out = tmp_path / "mean"
    assert model_soup.main([*models, "--out", str(out), "--half"]) == 0
    mean = load_pretrained(out)
    assert all(bool((weight == 3).all()) for weight in mean.model.denoiser.parameters())
    hashes = [load_pretrained(name).weights_hash for name in models]
    assert mean.config["history"] == [{**HISTORY[0], "averaged_with": f"{hashes[1]}, {hashes[2]}"}]
    assert (out / NOVELTY_FILE).read_bytes() == b"keys"
    assert (out / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "a" / "model.safetensors").stat().st_size


def test_what_has_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, wide = saved(tmp_path / "a", 1.0), saved(tmp_path / "wide", 1.0, hidden_dim=32)
    old = saved(tmp_path / "old", 1.0)
    config = json.loads((tmp_path / "old" / CONFIG_FILE).read_text(encoding="utf-8"))
    del config["history"]
    (tmp_path / "old" / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    out = str(tmp_path / "mean")
    for arguments, message in [
        ([a], "models: got one, expected at least two"),
        ([a, wide], "models: a and wide differ in denoiser, expected the same"),
        ([old, a], "models: got old without a history of its training, expected one"),
        ([a, "nowhere"], "model: got 'nowhere'"),
        ([a, a, "--out", str(tmp_path)], "which exists, expected a new folder"),
    ]:
        words = arguments if "--out" in arguments else [*arguments, "--out", out]
        assert model_soup.main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
