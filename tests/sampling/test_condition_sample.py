"""Training with properties, and sampling towards them: from the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG
from trainings import QUIET, SAMPLE, config, same_weights

from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.conditioning import Properties, half_of
from moldiff.diffusion.pretrained import build_model, load_pretrained, save_pretrained
from moldiff.diffusion.sampler import PartialState
from moldiff.diffusion.shipped import model_lines
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.batch import stack_starts
from moldiff.sampling.generator import Generator, load
from moldiff.tasks.task import with_target
from moldiff.training.train import train

pytestmark = QUIET

DROPOUT = {"_target_": "moldiff.diffusion.conditioning.PropertyDropout", "names": ["gap", "mu"]}
FAST = {"n": 6, "steps": 3, "keep": (), "decode": "raw", "workers": 0}


def properties_of(prepared: MoleculeDataset, indices: np.ndarray) -> Properties:
    columns = [list(prepared.properties).index(name) for name in ("gap", "mu")]
    units = {"gap": "Hartree", "mu": "D"}
    return Properties.of(units, prepared.flat["y"][indices][:, columns], np.diff(prepared.flat["atom_slices"])[indices])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that knows gap and mu."""
    prepared = MoleculeDataset.load(SAMPLE)
    torch.manual_seed(0)
    properties = properties_of(prepared, prepared.split("train"))
    model = build_model(MODEL_CONFIG, prepared.vocabulary, prepared.statistics, properties=properties)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path_factory.mktemp("models") / "told"
    save_pretrained(path, model, MODEL_CONFIG)
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return load(folder, device="cpu")


def test_training_is_told_and_keeps_what_it_knows(tmp_path: Path) -> None:
    train(config(tmp_path / "all", condition=None, half=None, trainer={"max_steps": 2}))
    train(config(tmp_path / "told", condition=DROPOUT, half="b", init=str(tmp_path / "all"), trainer={"max_steps": 4}))
    told = load_pretrained(tmp_path / "told")
    prepared = MoleculeDataset.load(SAMPLE)
    assert told.model.properties == properties_of(prepared, half_of(prepared.split("train"), "b"))
    assert told.config["training"]["half"] == "b"
    weights = told.model.denoiser.state_dict()
    assert float(weights["condition.out.weight"].abs().max()) > 0
    train(config(tmp_path / "more", condition=DROPOUT, half="b", init=str(tmp_path / "told"), trainer={"max_steps": 1}))
    assert load_pretrained(tmp_path / "more").model.properties.names == ("gap", "mu")


def test_training_without_properties_is_what_it_was(tmp_path: Path) -> None:
    short = {"max_steps": 2}
    train(config(tmp_path / "with_keys", condition=None, half=None, trainer=short))
    train(config(tmp_path / "without", trainer=short))
    assert same_weights(tmp_path / "with_keys", tmp_path / "without")
    assert "properties" not in json.loads((tmp_path / "without" / "config.json").read_text())


def test_what_the_set_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoldiffError, match=r"qm9-sample has no property 'gop' that varies, expected any of: mu, alpha"):
        train(config(tmp_path / "out", condition=DROPOUT | {"names": ["gop"]}))
    with pytest.raises(MoldiffError, match="half: got 'c', expected a or b"):
        train(config(tmp_path / "out", half="c"))


def test_records_hold_what_was_asked(generator: Generator) -> None:
    found = generator.sample(condition={"gap": 0.25, "mu": 99.0}, guidance=1.5, **FAST)
    assert len(found) == 6
    for sample in found:
        record = sample.record()
        assert (record["asked_gap"], record["asked_mu"]) == (0.25, 99.0)
        assert json.loads(str(record["task"])) == {
            "condition": {"gap": 0.25, "mu": 99.0},
            "guidance": 1.5,
            "feedback": 0.5,
        }
    gap, mu = generator.checkpoint.model.properties.entries
    assert list(found.notes)[:2] == [
        f"condition.gap=0.25; trained range {gap.low:.4g} to {gap.high:.4g} Hartree",
        f"warning: outside of what the model was trained on: condition.mu=99; trained range {mu.low:.4g} to "
        f"{mu.high:.4g} D",
    ]


def test_guidance_of_zero_is_no_condition(generator: Generator) -> None:
    def drawn(**options: object) -> list[np.ndarray]:
        return [sample.molecule.pos for sample in generator.sample(size=8, **FAST, **options)]  # type: ignore[arg-type]

    plain, zero = drawn(), drawn(condition={"gap": 0.25}, guidance=0.0)
    assert all(np.array_equal(one, other) for one, other in zip(plain, zero, strict=True))
    one, two = drawn(condition={"gap": 0.25}, guidance=1.0), drawn(condition={"gap": 0.35}, guidance=1.0)
    assert max(np.abs(a - b).max() for a, b in zip(plain, one, strict=True) if a.shape == b.shape) > 1e-4
    assert max(np.abs(a - b).max() for a, b in zip(one, two, strict=True) if a.shape == b.shape) > 1e-4


def test_a_molecule_does_not_depend_on_its_company(generator: Generator) -> None:
    options = FAST | {"condition": {"gap": 0.25}, "size": (7, 9)}
    many = generator.sample(**options)
    alone = generator.sample(**(options | {"n": 1, "first": 3}))
    np.testing.assert_allclose(alone[0].molecule.pos, many[3].molecule.pos, atol=1e-4)


def test_starts_with_and_without_targets_share_a_batch(generator: Generator) -> None:
    properties = generator.checkpoint.model.properties
    plain = PartialState.unknown(torch.ones(1, 4, dtype=torch.bool))
    told = with_target(PartialState.unknown(torch.ones(1, 6, dtype=torch.bool)), properties, {"mu": 2.0})
    assert stack_starts([plain, plain]).clean.condition is None
    rows = stack_starts([plain, told]).clean.condition
    torch.testing.assert_close(rows, torch.tensor([[torch.nan, torch.nan], [torch.nan, 2.0]]), equal_nan=True)


def test_sizes_are_those_of_molecules_near_the_target(generator: Generator) -> None:
    prepared = MoleculeDataset.load(SAMPLE)
    train_set = prepared.split("train")
    sizes = np.diff(prepared.flat["atom_slices"])[train_set]
    mu = prepared.flat["y"][train_set][:, list(prepared.properties).index("mu")]
    entry = generator.checkpoint.model.properties.entries[1]
    place = int((2.0 - entry.low) / (entry.high - entry.low) * 64)
    edges = entry.low + (entry.high - entry.low) / 64 * np.array([place, place + 1])
    near = {int(n) for n in sizes[(mu >= edges[0]) & (mu <= edges[1])]}
    drawn = generator.sample(condition={"mu": 2.0}, **(FAST | {"n": 30, "steps": 1}))
    assert {sample.molecule.num_heavy_atoms for sample in drawn} <= near


def test_the_command_line_draws_towards_values(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.sdf"
    basics = [f"model={folder}", f"out={out}", "n=3", "steps=2", "keep=[]", "workers=0", "size=7", "device=cpu"]
    assert main(["sample", *basics, "condition.gap=0.25"]) == 0
    assert "moldiff: condition.gap=0.25; trained range" in capsys.readouterr().err
    text = out.read_text()
    assert text.count(">  <asked_gap>") == 3
    assert main(["sample", *basics, "condition.gap=0.25", "resume=true"]) == 0
    assert main(["sample", *basics, "condition.gap=0.26", "resume=true"]) == 2
    assert "record 1 was drawn with task=" in capsys.readouterr().err
    refused = {
        "condition.gop=1": "condition: got 'gop', expected any of: gap (",
        "condition.gap=high": "condition.gap: got 'high', expected a number",
        "condition=3": "condition: got 3 (a whole number), expected a group of options",
        "guidance=-1 condition.gap=0.2": "guidance: got -1, expected a number from 0 to 20",
        "feedback=2 condition.gap=0.2": "feedback: got 2, expected a number from 0 to 1",
        "conditions.gap=1": "unknown option 'conditions.gap'",
    }
    for words, message in refused.items():
        assert main(["sample", *basics, *words.split()]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


class Judge:
    """Predicts the number of heavy atoms as gap; knows nothing of mu."""

    errors: ClassVar[dict[str, float]] = {"gap": 0.125}

    def predict(self, molecules: Sequence[Molecule]) -> list[dict[str, float]]:
        return [{"gap": float(molecule.num_heavy_atoms)} for molecule in molecules]


def test_what_was_asked_is_compared_with_what_is_predicted(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moldiff.sampling.generator.predictor_for", lambda properties, half: Judge())
    found = generator.sample(condition={"gap": 0.25, "mu": 2.0}, size=7, **FAST)
    record = found[0].record()
    assert (record["asked_gap"], record["predicted_gap"]) == (0.25, 7.0)
    assert "predicted_mu" not in record
    assert "predicted_gap is off by 0.125 Hartree on average for molecules of the data" in found.notes
    result = next(result for result in found.results if result.name == "task_mean_error_gap")
    assert (result.value, result.counted) == (6.75, 6)
    assert not any(result.name == "task_mean_error_mu" for result in found.results)


def test_a_model_without_properties_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sample", f"out={tmp_path / 'a.sdf'}", "condition.gap=0.2"]) == 2
    assert "condition.gap: the model was trained without properties" in capsys.readouterr().err


def test_the_list_of_models_says_what_they_are_drawn_towards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldiff.diffusion.shipped.available_models", lambda: [folder.name])
    monkeypatch.setattr("moldiff.diffusion.shipped.shipped_folder", lambda: folder.parent)
    (line,) = model_lines()
    assert "heavy atoms of C N O F; towards gap mu; " in line
    assert line.endswith("no card")


def test_options_of_training() -> None:
    options = compose_options("train", ["experiment=qm9_properties", "condition.alone=0.3", "half=a"])
    assert options["condition"]["alone"] == 0.3
    assert (options["half"], options["init"], options["trainer"]["max_steps"]) == ("a", "qm9", 8000)
    assert "condition" not in compose_options("train", [])
