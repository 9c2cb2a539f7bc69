"""Property targets: scales, ranges, what training tells, guidance, and models with and without them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import (
    MODEL_CONFIG,
    STATISTICS,
    VOCABULARY,
    random_batch,
    random_level,
    random_prediction,
    small_denoiser,
    small_model,
    small_process,
)

from moldiff.diffusion.batch import Prediction
from moldiff.diffusion.conditioning import Properties, Property, PropertyDropout, half_of
from moldiff.diffusion.guidance import GuidedDiffusion
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import build_model, load_pretrained, save_pretrained
from moldiff.diffusion.process.schedule import PowerTimes
from moldiff.errors import MoldiffError
from moldiff.training.train import load_matching_weights

VALUES = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, np.nan], [4.0, 40.0], [5.0, 50.0]])
SIZES = np.array([4, 4, 5, 6, 6])
PROPERTIES = Properties.of({"gap": "eV", "mu": "D"}, VALUES, SIZES)
NAN = math.nan


def conditional_model(seed: int = 0) -> MoleculeDiffusion:
    denoiser = small_denoiser(seed, num_properties=2)
    return MoleculeDiffusion(denoiser, small_process(), VOCABULARY, STATISTICS, PROPERTIES).eval()


def told(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.double)


def test_scales_ignore_what_is_not_known() -> None:
    gap, mu = PROPERTIES.entries
    assert (gap.mean, gap.low, gap.high) == (3.0, 1.0, 5.0)
    assert (mu.mean, mu.low, mu.high) == (30.0, 10.0, 50.0)
    assert gap.std == pytest.approx(2**0.5)
    assert mu.std == pytest.approx(250**0.5)
    assert {size: sum(row) for size, row in mu.counts.items()} == {4: 2, 6: 2}
    normal = PROPERTIES.normalised(told((3 + 2**0.5, NAN)))
    torch.testing.assert_close(normal, told((1.0, NAN)), equal_nan=True)
    torch.testing.assert_close(PROPERTIES.restored(normal), told((3 + 2**0.5, NAN)), equal_nan=True)


def test_a_property_has_to_vary() -> None:
    with pytest.raises(MoldiffError, match="condition: gap has fewer than two different values"):
        Property.of("gap", "eV", np.array([1.0, 1.0, np.nan]), np.array([1, 2, 3]))


def test_description_survives_json() -> None:
    again = Properties.from_dict(json.loads(json.dumps(PROPERTIES.to_dict())))
    assert again == PROPERTIES
    with pytest.raises(MoldiffError, match="properties: missing or malformed entry"):
        Properties.from_dict([{"name": "gap"}])


def test_targets_by_name() -> None:
    asked = PROPERTIES.checked({"mu": 3})
    assert (asked, type(asked["mu"])) == ({"mu": 3.0}, float)
    torch.testing.assert_close(PROPERTIES.row(asked), torch.tensor([[NAN, 3.0]]), equal_nan=True)
    with pytest.raises(
        MoldiffError, match=r"condition: got 'gop', expected any of: gap \(1 to 5 eV\), mu \(10 to 50 D"
    ):
        PROPERTIES.checked({"gop": 1.0})
    with pytest.raises(MoldiffError, match=r"condition.mu: got 'high', expected a number, such as gap"):
        PROPERTIES.checked({"mu": "high"})
    with pytest.raises(MoldiffError, match=r"condition.mu: got nan, expected a number"):
        PROPERTIES.checked({"mu": NAN})
    with pytest.raises(MoldiffError, match=r"condition.mu: the model was trained without properties"):
        Properties().checked({"mu": 1.0})


def test_notes_show_the_range_and_warn_outside_of_it() -> None:
    assert PROPERTIES.notes({"gap": 2.5, "mu": 51}) == [
        "condition.gap=2.5; trained range 1 to 5 eV",
        "warning: outside of what the model was trained on: condition.mu=51; trained range 10 to 50 D",
    ]


def test_sizes_follow_the_target() -> None:
    counts = {4: 2, 5: 1, 6: 2}
    assert PROPERTIES.size_weights({"gap": 1.0}, counts) == {4: 1_000_000}
    assert PROPERTIES.size_weights({"gap": 3.1}, counts) == {5: 1_000_000}
    assert PROPERTIES.size_weights({"gap": -7.0}, counts) == {4: 1_000_000}  # the nearest that there is
    assert PROPERTIES.size_weights({"gap": 1.0, "mu": 50.0}, counts) == counts  # no size has both
    assert PROPERTIES.size_weights({}, counts) == {4: 1_000_000, 5: 500_000, 6: 1_000_000}


def test_dropout_tells_the_shares_it_is_asked_for() -> None:
    values = torch.arange(30_000.0).view(10_000, 3)
    dropout = PropertyDropout(unconditional=0.2, alone=0.5, present=0.5)
    left = dropout(values, torch.Generator().manual_seed(0))
    number = left.isfinite().sum(1)
    shares = torch.bincount(number, minlength=4) / len(number)
    # 0.3 of the molecules have each property with chance 1/2: 1, 3, 3, 1 in 8 have 0, 1, 2, 3 of them.
    expected = torch.tensor([0.2 + 0.3 / 8, 0.5 + 0.9 / 8, 0.9 / 8, 0.3 / 8])
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.015)
    assert torch.equal(left[left.isfinite()], values[left.isfinite()])
    each = left[number == 1].isfinite().float().mean(0)
    torch.testing.assert_close(each, torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    assert not PropertyDropout(unconditional=1, alone=0)(values, torch.Generator()).isfinite().any()


def test_dropout_refuses_what_is_no_share() -> None:
    with pytest.raises(MoldiffError, match=r"condition.alone: got 2, expected a share from 0 to 1"):
        PropertyDropout(alone=2)
    with pytest.raises(MoldiffError, match="unconditional and alone add up to"):
        PropertyDropout(unconditional=0.7, alone=0.5)
    with pytest.raises(MoldiffError, match="mine has no property 'gop' that varies, expected any of: gap, mu"):
        PropertyDropout(names=["gop"]).chosen({"gap": "eV", "mu": "D"}, "mine")
    with pytest.raises(MoldiffError, match="mine has no properties"):
        PropertyDropout().chosen({}, "mine")
    assert PropertyDropout().chosen({"gap": "eV", "mu": "D"}, "mine") == ["gap", "mu"]


def test_halves_part_the_molecules() -> None:
    indices = np.arange(100, 111)
    a, b = half_of(indices, "a"), half_of(indices, "b")
    assert (len(a), len(b)) == (6, 5)
    assert sorted([*a, *b]) == indices.tolist()
    assert half_of(np.arange(8), "a").tolist() == [1, 3, 5, 6]  # recorded: never to change
    assert half_of(indices, None) is indices
    with pytest.raises(MoldiffError, match="half: got 'c', expected a or b"):
        half_of(indices, "c")


def test_a_fresh_embedding_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS)
    told_one = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS, properties=PROPERTIES)
    assert not any(name.startswith("condition") for name in plain.denoiser.state_dict())
    told_one.denoiser.load_state_dict(plain.denoiser.state_dict(), strict=False)
    batch = random_batch([4, 5])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())
    level = random_level(batch)
    level = type(level)(*(field.float() for field in vars(level).values()))
    with torch.no_grad():
        expected = plain.denoise(batch, level)
        for condition in (None, told((1, NAN), (2, 3)).float()):
            found = told_one.denoise(batch.replace(condition=condition), level)
            for name, value in vars(expected).items():
                assert torch.equal(value, getattr(found, name)), name


def test_each_molecule_is_told_its_own_properties() -> None:
    model, batch = conditional_model(), random_batch([4, 5, 3])
    level, previous = random_level(batch), random_prediction(batch)
    both = model.denoise(batch.replace(condition=told((1, NAN), (NAN, NAN), (2, -1))), level, previous)
    without = model.denoise(batch, level, previous)
    other = model.denoise(batch.replace(condition=told((1.1, NAN), (NAN, NAN), (2, -1))), level, previous)
    for name in ("pos", "atom_type", "bond"):
        one, two, three = (getattr(value, name) for value in (both, without, other))
        torch.testing.assert_close(one[1], two[1], rtol=0, atol=1e-12)  # not given = no condition at all
        torch.testing.assert_close(one[2], three[2], rtol=0, atol=1e-12)
        assert (one[0] - two[0]).abs().max() > 1e-4
        assert (one[0] - three[0]).abs().max() > 1e-6


def test_guidance_goes_from_without_to_with_and_beyond() -> None:
    model, batch = conditional_model(), random_batch([4, 5]).replace(condition=told((1, NAN), (NAN, 2)))
    level = random_level(batch)
    calls: list[bool] = []
    hook = model.denoiser.register_forward_pre_hook(lambda _, args: calls.append(args[0].condition is not None))
    found: dict[float, Prediction] = {}
    for scale in (0, 1, 2.5):
        found[scale] = GuidedDiffusion(model, scale=scale).denoise(batch, level)
    assert calls == [False, True, False, True]
    hook.remove()
    without, with_them = model.denoise(batch.replace(condition=None), level), model.denoise(batch, level)
    for name in vars(without):
        low, high = getattr(without, name), getattr(with_them, name)
        assert torch.equal(getattr(found[0], name), low)
        assert torch.equal(getattr(found[1], name), high)
        torch.testing.assert_close(getattr(found[2.5], name), low + 2.5 * (high - low), rtol=0, atol=1e-12)


def test_training_is_told_what_the_choice_leaves() -> None:
    model = conditional_model().float()
    batch = random_batch([4, 5, 6, 4])
    batch = batch.replace(pos=batch.pos.float(), hydrogen=batch.hydrogen.float())
    values = torch.tensor([[1.0, NAN], [2.0, 20.0], [3.0, 30.0], [5.0, 50.0]])

    def noised(**options: object) -> torch.Tensor | None:
        given = batch.replace(condition=values)
        return model.noise(given, PowerTimes(), torch.Generator().manual_seed(0), **options).noisy.condition  # type: ignore[arg-type]

    torch.testing.assert_close(noised(), PROPERTIES.normalised(values), equal_nan=True)
    one = noised(visible=PropertyDropout(unconditional=0, alone=1))
    assert one is not None
    assert (one.isfinite().sum(1) <= 1).all()
    assert one.isfinite().any()
    plain = model.noise(batch, PowerTimes(), torch.Generator().manual_seed(0))
    given = model.noise(batch.replace(condition=values), PowerTimes(), torch.Generator().manual_seed(0))
    assert plain.noisy.condition is None
    assert torch.equal(plain.noisy.pos, given.noisy.pos)
    losses = model.losses(
        batch.replace(condition=values), PowerTimes(), torch.Generator(), self_condition=True, visible=PropertyDropout()
    )
    assert all(value.isfinite() for value in losses.values())


def test_a_model_without_properties_leaves_them_aside() -> None:
    batch = random_batch([4]).replace(condition=told((1.0, 2.0)))
    assert small_model().to_model_units(batch).condition is None


def test_a_conditional_model_survives_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS, properties=PROPERTIES)
    save_pretrained(tmp_path / "one", model, MODEL_CONFIG)
    loaded = load_pretrained(tmp_path / "one").model
    assert loaded.properties == PROPERTIES
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(value, loaded.denoiser.state_dict()[name])


def test_weights_without_properties_start_a_conditional_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "plain", build_model(MODEL_CONFIG, VOCABULARY, STATISTICS), MODEL_CONFIG)
    fresh = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS, properties=PROPERTIES)
    plain = load_pretrained(tmp_path / "plain")
    line = load_matching_weights(fresh, plain, MODEL_CONFIG["denoiser"])
    assert line.endswith("atom classes of the data; properties, with fresh weights: gap mu")
    for name, value in plain.model.denoiser.state_dict().items():
        assert torch.equal(fresh.denoiser.state_dict()[name], value)
    save_pretrained(tmp_path / "told", fresh, MODEL_CONFIG)
    back = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS)
    assert load_matching_weights(back, load_pretrained(tmp_path / "told"), MODEL_CONFIG["denoiser"]).endswith(
        "; properties dropped: gap mu"
    )
    again = build_model(MODEL_CONFIG, VOCABULARY, STATISTICS, properties=PROPERTIES)
    line = load_matching_weights(again, load_pretrained(tmp_path / "told"), MODEL_CONFIG["denoiser"])
    assert "fresh" not in line
    for name, value in fresh.denoiser.state_dict().items():
        assert torch.equal(again.denoiser.state_dict()[name], value)
