"""The card of a model: its columns, the bound, the curve that goes on where it was ended, and its files."""

import json
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG, SIZES

from moldiff.card import __main__ as command
from moldiff.card import curve, drawn
from moldiff.card.bound import bounds
from moldiff.card.document import write_card
from moldiff.card.drawn import SEED, draw_all, label, sampler_of
from moldiff.checkpoint import NOVELTY_FILE, Checkpoint, load_checkpoint, save_model
from moldiff.data.dataset import PreparedSet
from moldiff.data.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.generate import load
from moldiff.model import MoleculeDiffusion
from moldiff.nn.denoiser import PairTransformer
from moldiff.process.joint import JointProcessConfig
from moldiff.sampler import PowerSampler

SAMPLE = Path(str(files("moldiff.example_data") / "sample"))


@pytest.fixture(scope="module")
def prepared() -> PreparedSet:
    return PreparedSet.load(SAMPLE)


@pytest.fixture
def folder(tmp_path: Path, prepared: PreparedSet) -> Path:
    """A model with random weights for the classes of the sample."""
    statistics = Statistics.from_flat(prepared.flat, prepared.split("train"), prepared.vocabulary)
    frequencies = torch.tensor(statistics.atom_marginal), torch.tensor(statistics.bond_marginal)
    torch.manual_seed(0)
    network = PairTransformer(num_atom_classes=prepared.vocabulary.num_atom_classes, **SIZES)
    model = MoleculeDiffusion(network, JointProcessConfig().build(*frequencies), prepared.vocabulary, statistics)
    save_model(tmp_path / "small", model.eval(), dict(MODEL_CONFIG))
    (tmp_path / "small" / NOVELTY_FILE).write_bytes((SAMPLE / NOVELTY_FILE).read_bytes())
    return tmp_path / "small"


def read(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


def test_molecules_come_in_the_order_of_their_indices(folder: Path) -> None:
    found = draw_all(folder, PowerSampler(num_steps=2), 7, num_workers=1)
    single = load(folder).sample(7, seed=SEED, steps=2, keep=(), decode="raw")
    assert len(found.raw) == len(found.decoded) == 7
    for mine, other in zip(found.raw, single, strict=True):
        assert mine.num_heavy_atoms == other.molecule.num_heavy_atoms
        np.testing.assert_allclose(mine.pos, other.molecule.pos, atol=1e-3)
        np.testing.assert_array_equal(mine.atomic_number, other.molecule.atomic_number)


def test_settings_of_a_sampler() -> None:
    sampler = sampler_of("sampler.grid_power=3.5,corrector=7", num_steps=7)
    assert (sampler.grid_power, sampler.corrector, sampler.num_steps) == (3.5, 7.0, 7)
    assert label(sampler) == "grid_power=3.5, corrector=7"
    assert sampler_of("default") == PowerSampler()
    assert label(PowerSampler(num_steps=3)) == "default"
    for wrong in ("odrer=2", "order=two", "order"):
        with pytest.raises(MoldiffError, match="sampler"):
            sampler_of(wrong)


def test_curve_goes_on_where_it_was_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["curve", "--model", str(folder), "--samples", "5", "--workers", "1"]
    assert command.main([*words, "--steps", "3"]) == 0
    real, asked = drawn.draw_all, list[tuple[int, bool]]()

    def watched(where: Path, sampler: PowerSampler, number: int, **more: int | None) -> drawn.Drawn:
        asked.append((sampler.num_steps, sampler.corrector == 7))
        return real(where, sampler, number, num_workers=1)

    monkeypatch.setattr(curve, "draw_all", watched)
    assert command.main([*words, "--steps", "2,3", "--sampler", "default", "corrector=7"]) == 0
    assert asked == [(2, False), (2, True), (3, True)]
    points = curve.load_points(folder)
    assert [(point["sampler"], point["steps"]) for point in points] == [
        ("default", 2),
        ("default", 3),
        ("corrector=7", 2),
        ("corrector=7", 3),
    ]
    assert {result["denominator"] for point in points for result in point["results"]["raw"]} >= {5}
    ElementTree.parse(folder / curve.PLOT_FILE)
    assert len(curve.table(points).splitlines()) == 2 + 4


def test_points_of_other_weights_are_dropped(folder: Path) -> None:
    point = {"weights": "0" * 12, "sampler": "default", "steps": 2, "settings": {}, "samples": 1, "seed": SEED}
    (folder / curve.DATA_FILE).write_text(json.dumps({"points": [point]}), encoding="utf-8")
    points = curve.measure_curve(read(folder), [PowerSampler(num_steps=1)], 2, num_workers=1)
    assert [other["weights"] for other in points] == [read(folder).weights_hash]


def test_bound_is_that_of_the_model(folder: Path, prepared: PreparedSet) -> None:
    found = bounds(read(folder).model, prepared, 20)
    assert list(found) == ["training molecules", "real test molecules"]
    for results in found.values():
        values = {result.name.removeprefix("bound_"): result for result in results}
        assert values["all"].denominator == 20
        parts = [result.numerator for name, result in values.items() if name not in ("all", "all_standard_error")]
        assert values["all"].numerator == pytest.approx(sum(parts), rel=1e-5)
        assert values["all"].value > 0
        assert values["all_standard_error"].value > 0


def test_card_holds_every_column(folder: Path, prepared: PreparedSet) -> None:
    checkpoint, sampler = read(folder), PowerSampler(num_steps=2)
    molecules = draw_all(folder, sampler, 6, num_workers=1)
    metrics = ("geometry", "diversity", "distribution")
    columns = command.evaluate_columns(checkpoint, prepared, molecules, {"diversity": 3}, metrics)
    write_card(
        checkpoint,
        prepared,
        columns,
        bounds(checkpoint.model, prepared, 4),
        drawn=molecules,
        sampler=sampler,
        seconds=90,
    )
    document = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert list(document["results"]) == ["model, raw", "model, decoded", "real test molecules (6)"]
    real = {result["name"]: result for result in document["results"]["real test molecules (6)"]}
    assert real["p2_valid"]["numerator"] == real["p2_valid"]["denominator"] == 6
    assert real["diversity_internal"]["denominator"] == 3
    assert real["diversity_internal"]["definition"].endswith("Of the first 3 molecules.")
    assert real["neighbours_similarity_mean"]["counted"] == 6
    assert 0.2 < real["neighbours_similarity_mean"]["value"] < 1
    assert real["distribution_elements"]["value"] < 0.2
    assert document["facts"]["evaluation"] == "1.5 minutes, bound included"
    assert document["of_the_data"][0]["denominator"] == len(prepared)
    text = (folder / "card.md").read_text(encoding="utf-8")
    for part in ("### Nearest known molecules", "### Variational bound", "would be valid, unique and novel at once"):
        assert part in text
    assert "Quality against" not in text
    curve.measure_curve(checkpoint, [sampler], 2, num_workers=1)
    command.write_text(checkpoint)
    assert f"]({curve.PLOT_FILE})" in (folder / "card.md").read_text(encoding="utf-8")


def test_one_line_for_a_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["curve", "--steps", "two"], ["write", "--data", str(SAMPLE), "--first", "qed=3"]):
        assert command.main([*words, "--model", str(folder)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_whole_card(folder: Path) -> None:
    pytest.importorskip("posebusters")
    few = ["--first", "posebusters=1", "xtb=1", "fcd=2", "druglike=2"]
    words = ["write", "--model", str(folder), "--data", str(SAMPLE), "--samples", "4", "--steps", "2", "--bound", "4"]
    assert command.main([*words, "--workers", "1", *few]) == 0
    document = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    names = {result["name"].partition("_")[0] for result in document["results"]["real test molecules (4)"]}
    assert {"p1", "p2", "p3", "posebusters", "xtb", "fcd", "druglike", "neighbours", "distribution"} <= names
