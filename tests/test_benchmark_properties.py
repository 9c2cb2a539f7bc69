"""The protocol for property targets: which pairs, which halves, what is compared with what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG, SIZES
from trainings import SAMPLE

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.conditioning import Properties, half_of
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.pretrained import build_model, save_pretrained
from moldiff.diffusion.property_predictor import PropertyNetwork, PropertyPredictor
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.sampling.generator import load
from tests.benchmarks.tasks.__main__ import main
from tests.benchmarks.tasks.properties import Pairs, Protocol, Targets

NAMES = ("gap", "alpha")


@pytest.fixture(scope="module")
def prepared() -> MoleculeDataset:
    return MoleculeDataset.load(SAMPLE)


@pytest.fixture(scope="module")
def properties(prepared: MoleculeDataset) -> Properties:
    columns = [list(prepared.properties).index(name) for name in NAMES]
    train = prepared.split("train")
    units = {name: prepared.properties[name] for name in NAMES}
    return Properties.of(units, prepared.flat["y"][train][:, columns], np.diff(prepared.flat["atom_slices"])[train])


def save_generator(folder: Path, prepared: MoleculeDataset, properties: Properties, half: str | None) -> None:
    torch.manual_seed(0)
    model: MoleculeDiffusion = build_model(
        MODEL_CONFIG, prepared.vocabulary, prepared.statistics, properties=properties
    )
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.denoiser.bond[-1].bias.copy_(torch.tensor([0.0, 6.0, -6.0, -6.0]))  # so that decoding has little to weigh
    save_pretrained(folder, model, MODEL_CONFIG | {"training": {"half": half}})


def make_predictor(prepared: MoleculeDataset, properties: Properties, half: str | None) -> PropertyPredictor:
    torch.manual_seed(1)
    network = PropertyNetwork(num_atom_classes=prepared.vocabulary.num_atom_classes, num_properties=2, **SIZES)
    network.counts.normal_(std=0.1)
    args = prepared.vocabulary, prepared.statistics, properties, SIZES, {"half": half}, {}, "judge"
    return PropertyPredictor(network.eval().requires_grad_(False), *args)


def test_measured_by_hand(
    tmp_path: Path, prepared: MoleculeDataset, properties: Properties, capsys: pytest.CaptureFixture[str]
) -> None:
    save_generator(tmp_path / "told", prepared, properties, "b")
    judge = make_predictor(prepared, properties, "a")
    protocol = Protocol(
        generator=load(tmp_path / "told", device="cpu"),
        predictor=judge,
        prepared=prepared,
        samples=12,
        sampler=PowerSampler(num_steps=2),
    )
    targets = Targets(protocol)
    columns = targets.columns([row for rows in targets.rows() for row in rows])
    found = {column: {result.name: result for result in results} for column, results in columns.items()}
    assert list(found) == ["moldiff", "predictor on test", "number of atoms", "random"]
    assert list(found["moldiff"])[:3] == ["gap_mae", "gap_judged", "gap_valid"]
    assert (found["moldiff"]["gap_judged"].numerator, found["moldiff"]["gap_valid"].denominator) == (12, 12)

    test = [prepared.molecule(int(place)) for place in prepared.split("test")]
    wrong = [abs(p["gap"] - m.properties["gap"]) for p, m in zip(judge.predict(test), test, strict=True)]
    own = found["predictor on test"]["gap_mae"]
    assert (own.unit, own.counted) == ("meV", len(test))
    assert own.value == pytest.approx(27_211.386 * np.mean(wrong), rel=1e-5)
    assert found["moldiff"]["alpha_mae"].unit == "Bohr^3"

    # The pairs are those of the half that the predictor has not seen; the first property draws first.
    random = np.random.default_rng(0)
    others = half_of(prepared.split("train"), "b")
    random.permutation(others)
    pairs = [prepared.molecule(int(place)) for place in random.choice(others, 12)]
    seen = [prepared.molecule(int(place)) for place in half_of(prepared.split("train"), "a")]
    errors = []
    for pair in pairs:
        same = [m.properties["gap"] for m in seen if m.num_atoms == pair.num_atoms]
        errors.append(abs(np.median(same or [m.properties["gap"] for m in seen]) - pair.properties["gap"]))
    assert found["number of atoms"]["gap_mae"].value == pytest.approx(27_211.386 * np.mean(errors), rel=1e-5)

    judge.save(tmp_path / "judge")
    options = ["--data", SAMPLE, "--predictor", str(tmp_path / "judge"), "--samples", "4", "--steps", "2"]
    options += ["--device", "cpu", "--guidance", "1.5", "--properties", "alpha", "--out", str(tmp_path / "out.json")]
    assert main(["properties", "--model", str(tmp_path / "told"), *options]) == 0
    assert "alpha" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert [entry["name"] for entry in report["results"]["moldiff"]] == ["alpha_mae", "alpha_judged", "alpha_valid"]


def test_molecules_are_judged_some_at_a_time(
    tmp_path: Path, prepared: MoleculeDataset, properties: Properties, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_generator(tmp_path / "told", prepared, properties, "b")
    monkeypatch.setattr("tests.benchmarks.tasks.properties._AT_ONCE", 3)
    protocol = Protocol(
        generator=load(tmp_path / "told", device="cpu"),
        predictor=make_predictor(prepared, properties, "a"),
        prepared=prepared,
        samples=5,
        sampler=PowerSampler(num_steps=1),
    )
    assert Targets(protocol).total == 10
    batches = list(Targets(protocol).rows())
    assert [len(batch) for batch in batches] == [3, 2, 3, 2]


@pytest.mark.parametrize(("guidance", "calls"), [(0.0, 1), (1.0, 1), (2.0, 2)])
def test_guidance_takes_two_network_calls_at_most(
    tmp_path: Path, prepared: MoleculeDataset, properties: Properties, guidance: float, calls: int
) -> None:
    save_generator(tmp_path / "told", prepared, properties, "b")
    generator, made = load(tmp_path / "told", device="cpu"), []
    generator.checkpoint.model.denoiser.register_forward_hook(lambda *_: made.append(1))
    generator.sample(2, condition={"gap": 0.2}, guidance=guidance, size=5, steps=4, keep=(), workers=0)
    assert len(made) == 4 * calls


def test_each_molecule_has_its_own_size_and_value(properties: Properties) -> None:
    task = Pairs(heavy_atoms=[4, 7], asked=[{"gap": 0.2}, {"gap": 0.3}], properties=properties)
    for index, (size, value) in enumerate([(4, 0.2), (7, 0.3), (4, 0.2)]):
        clean = task.begin(index, torch.Generator()).clean
        assert clean.max_atoms == size
        torch.testing.assert_close(clean.condition, torch.tensor([[value, torch.nan]]), equal_nan=True)


def test_halves_that_do_not_fit_are_refused(tmp_path: Path, prepared: MoleculeDataset, properties: Properties) -> None:
    save_generator(tmp_path / "told", prepared, properties, "a")
    generator = load(tmp_path / "told", device="cpu")

    def protocol(half: str | None, **options: object) -> Protocol:
        judge = make_predictor(prepared, properties, half)
        return Protocol(generator=generator, predictor=judge, prepared=prepared, samples=1, **options)  # type: ignore[arg-type]

    with pytest.raises(MoldiffError, match="model: it has learnt from half 'a', on which the predictor was trained"):
        protocol("a")
    with pytest.raises(MoldiffError, match="predictor: judge has learnt from all molecules, expected one half"):
        protocol(None)
    with pytest.raises(MoldiffError, match="condition: got 'mu', expected any of: gap"):
        protocol("b", properties=["mu"])
    assert sorted([*protocol("b").others(), *half_of(prepared.split("train"), "b")]) == sorted(prepared.split("train"))


def test_a_model_without_properties_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["properties", "--data", SAMPLE, "--predictor", str(tmp_path)]
    assert main(arguments) == 2
    assert "predictor: got" in capsys.readouterr().err
