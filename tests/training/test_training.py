"""Training: a resumed run equals an uninterrupted one, folders are safe, tiny sets work, losses fall."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG, STATISTICS, VOCABULARY, random_batch, small_model
from own_files import subset
from trainings import QUIET, SAMPLE, config, rows, weights

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import NoiseLevel
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import build_model, load_pretrained, save_pretrained
from moldiff.diffusion.process.schedule import PowerTimes
from moldiff.errors import MoldiffError
from moldiff.molecules.vocabulary import AtomClass, Vocabulary
from moldiff.training.checkpoint import load_state
from moldiff.training.optim import MuonAdamW, TrapezoidSchedule, orthogonalize
from moldiff.training.train import load_matching_weights, train

pytestmark = QUIET


def test_log_and_model_folder_hold_what_is_promised(tmp_path: Path) -> None:
    out = train(config(tmp_path / "run"))
    columns = {name for row in rows(out) for name, value in row.items() if value}
    for name in ("pos", "hydrogen", "atom_type", "bond", "loss"):
        assert {f"train/{name}", f"valid/{name}"} <= columns
    assert {"valid/bound", "valid/bound_bond", "sample/p2_valid", "sample/p2_valid_unique"} <= columns
    config_file = json.loads((out / "config.json").read_text())
    assert [(part["steps"], part["batch_size"]) for part in config_file["history"]] == [(6, 8)]
    assert config_file["training"]["batch_size"] == 8
    assert (out / "novelty.safetensors").is_file()
    assert load_state(out / "state.safetensors")["global_step"] == 6


def test_a_used_folder_is_refused_and_a_missing_state_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("precious")
    with pytest.raises(MoldiffError, match="is not empty; choose another folder, or resume=true"):
        train(config(tmp_path / "run"))
    assert (tmp_path / "run" / "notes.txt").read_text() == "precious"
    with pytest.raises(MoldiffError, match="not found, expected the folder of an interrupted"):
        train(config(tmp_path / "other", resume=True))
    with pytest.raises(MoldiffError, match="no prepared set there"):
        train(config(tmp_path / "third", data={"folder": str(tmp_path / "nothing")}))
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("count", [1, 5])
def test_sets_smaller_than_a_batch_train(tmp_path: Path, count: int) -> None:
    prepared = MoleculeDataset.load(SAMPLE)
    few = {
        "train": prepared.split("train")[:count],
        "valid": prepared.split("valid")[:0],
        "test": prepared.split("test")[:0],
    }
    subset(prepared, few, tmp_path / "few", name="few")
    few_steps = {"max_steps": 2, "num_quality_samples": 0}
    settings = config(tmp_path / "run", data={"folder": str(tmp_path / "few")}, trainer=few_steps)
    whole = rows(train(settings))
    in_parts = few_steps | {"accumulate_grad_batches": 8}  # some of which have no molecule of their own
    changes = {"batch_size": 1, "trainer": settings["trainer"] | in_parts, "out": str(tmp_path / "parts")}
    parts = rows(train(settings | changes))
    assert len(parts) == len(whole) == 2
    for mine, theirs in zip(parts, whole, strict=True):
        assert float(mine["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-3)


def test_training_starts_from_given_weights_of_the_same_vocabulary(tmp_path: Path) -> None:
    train(config(tmp_path / "first", trainer={"max_steps": 2}))
    train(
        config(
            tmp_path / "second",
            init=str(tmp_path / "first"),
            trainer={"max_steps": 1},
            optimizer={"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.0},
        )
    )
    history = load_pretrained(tmp_path / "second").config["history"]
    assert [part["steps"] for part in history] == [2, 1]
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_init_keeps_the_weights_of_shared_classes_whatever_their_index(tmp_path: Path) -> None:
    start = small_model().float()
    save_pretrained(tmp_path / "start", start, MODEL_CONFIG)
    classes = (AtomClass(16, 0, 0), *reversed(VOCABULARY.atom_classes[1:]))  # sulfur is new, C without H is gone
    vocabulary = Vocabulary(classes, {})
    torch.manual_seed(1)
    model = build_model(MODEL_CONFIG, vocabulary, replace(STATISTICS, atom_marginal=(1 / 7,) * 7))
    fresh = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    line = load_matching_weights(model, load_pretrained(tmp_path / "start"), MODEL_CONFIG["denoiser"])
    assert line == (
        "init: start knows 6 of the 7 atom classes of the data; new, with fresh weights: S; not in the data, dropped: C"
    )
    old, new = start.denoiser.state_dict(), model.denoiser.state_dict()
    for name, axis in PairTransformer.class_axes.items():
        rows = {c: old[name].select(axis, k) for k, c in enumerate(VOCABULARY.atom_classes)}
        for k, atom_class in enumerate(classes):
            expected = rows.get(atom_class, fresh[name].select(axis, k))
            assert torch.equal(new[name].select(axis, k), expected), (name, atom_class)
    mask = "embedding.atom.weight"
    assert torch.equal(new[mask][7], old[mask][7])
    for name in old.keys() - PairTransformer.class_axes.keys():
        assert torch.equal(new[name], old[name])


def test_shared_classes_predict_as_before(tmp_path: Path) -> None:
    start = small_model().float()
    save_pretrained(tmp_path / "start", start, MODEL_CONFIG)
    order = [3, 1, 0, 2, 6, 5, 4]
    vocabulary = Vocabulary(tuple(VOCABULARY.atom_classes[k] for k in order), {})
    model = build_model(MODEL_CONFIG, vocabulary, STATISTICS)
    load_matching_weights(model, load_pretrained(tmp_path / "start"), MODEL_CONFIG["denoiser"])
    batch = random_batch([4, 5])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())
    level = NoiseLevel.uniform(torch.tensor([0.3, 0.7]), batch.node_mask)
    previous = start.denoise(batch, level)
    before = start.denoise(batch, level, previous)
    moved = torch.tensor(order).argsort()
    renamed = batch.replace(atom_type=moved[batch.atom_type] * batch.node_mask)
    previous = replace(previous, atom_type=previous.atom_type[..., order])
    after = model.denoise(renamed, level, previous)
    torch.testing.assert_close(after.pos, before.pos)
    mask = batch.node_mask
    torch.testing.assert_close(after.atom_type[mask], before.atom_type[mask][:, order])


def test_init_with_another_network_names_the_difference(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "start", small_model().float(), MODEL_CONFIG)
    wider = MODEL_CONFIG["denoiser"] | {"pair_dim": 16}
    difference = r"start has denoiser\.pair_dim=8, this training denoiser\.pair_dim=16"
    with pytest.raises(MoldiffError, match=difference) as caught:
        train(config(tmp_path / "run", init=str(tmp_path / "start"), denoiser=wider))
    assert "\n" not in str(caught.value)


def test_training_starts_from_a_model_of_other_molecules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(tmp_path / "other", small_model().float(), MODEL_CONFIG)
    train(
        config(
            tmp_path / "run",
            init=str(tmp_path / "other"),
            denoiser=MODEL_CONFIG["denoiser"],
            trainer={"max_steps": 1, "num_quality_samples": 0},
        )
    )
    assert "init: other knows 7 of the" in capsys.readouterr().out
    assert "O" in str(load_pretrained(tmp_path / "run").model.vocabulary)


def test_sets_mapped_from_disk_train_as_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(tmp_path / "memory"))
    monkeypatch.setattr("moldiff.data.dataset.MAP_FROM", 0)
    assert isinstance(MoleculeDataset.load(SAMPLE).flat["pos"], np.memmap)
    train(config(tmp_path / "disk"))
    first, second = weights(tmp_path / "memory"), weights(tmp_path / "disk")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_loss_falls_on_one_batch() -> None:
    model = small_model().float()
    batch = random_batch([5, 5, 4, 4])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())
    optimizer = MuonAdamW(model.denoiser.named_parameters(), muon_lr=0.02, adamw_lr=3e-3)
    totals = []
    for step in range(120):
        generator = torch.Generator().manual_seed(step)
        losses = model.losses(batch, PowerTimes(power=4.0), generator, self_condition=bool(step % 2))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-10:]) < 0.6 * sum(totals[:10])


def test_losses_and_bound_repeat_with_the_generator() -> None:
    model, batch = small_model(), random_batch([5, 4])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())
    model = model.float()
    one, other = (model.bound(batch, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.keys() == {"pos", "hydrogen", "atom_type", "bond"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(bool((value >= 0).all()) for value in one.values())


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for batch in (matrices, matrices.mT.contiguous()):
        values = torch.linalg.svdvals(orthogonalize(batch))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3


def test_adamw_part_agrees_with_torch() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Linear(4, 3)
    theirs = copy.deepcopy(ours)
    options = {"betas": (0.9, 0.98), "weight_decay": 0.01}
    mine = MuonAdamW(ours.named_parameters(), adamw_lr=0.01, **options)  # type: ignore[arg-type]
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, **options)  # type: ignore[arg-type]
    for step in range(5):
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for module, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            module(data).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_trapezoid_schedule_on_points_worked_out_by_hand() -> None:
    schedule = TrapezoidSchedule(warmup_steps=10, decay_share=0.5, final=0.1)
    assert schedule(0, 0.0) == pytest.approx(0.1)
    assert schedule(9, 0.2) == pytest.approx(1.0)
    assert schedule(100, 0.75) == pytest.approx(0.5)
    assert schedule(100, 1.0) == pytest.approx(0.1)


def test_trains_from_a_json_file_where_rdkit_and_hydra_cannot_be_imported(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", quality=None, trainer={"max_steps": 2, "validate_every": 1})
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('rdkit', 'hydra', 'omegaconf'):\n    sys.modules[name] = None\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "moldiff.training.train", str(tmp_path / "config.json")]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert load_pretrained(tmp_path / "run").config["history"][0]["steps"] == 2
