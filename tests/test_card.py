"""The card of a model: its columns, the bound, the curve that goes on where it was ended, and its files."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from metric_examples import embedded
from models import MODEL_CONFIG, SIZES

from moldiff.data.dataset import MoleculeDataset, measure_statistics
from moldiff.diffusion.model import MoleculeDiffusion
from moldiff.diffusion.nn.pair_transformer import PairTransformer
from moldiff.diffusion.pretrained import NOVELTY_FILE, PretrainedModel, load_pretrained, save_pretrained
from moldiff.diffusion.process.joint import JointProcessConfig
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.metric import MetricResult
from moldiff.molecules import validity
from moldiff.sampling.generator import load
from tests.benchmarks.card import __main__, curve, drawn, learning, memory
from tests.benchmarks.card.bound import bounds
from tests.benchmarks.card.confidence import of_confidence, section
from tests.benchmarks.card.document import _package, _stretch, write_card
from tests.benchmarks.card.drawn import SEED, Delivered, Drawn, draw, label, sampler_of
from tests.benchmarks.card.limits import limits

SAMPLE = Path(str(files("moldiff.example_data") / "sample"))


@pytest.fixture(scope="module")
def prepared() -> MoleculeDataset:
    return MoleculeDataset.load(SAMPLE)


@pytest.fixture
def folder(tmp_path: Path, prepared: MoleculeDataset) -> Path:
    """A model with random weights for the classes of the sample."""
    statistics = measure_statistics(prepared.flat, prepared.split("train"), prepared.vocabulary)
    frequencies = torch.tensor(statistics.atom_marginal), torch.tensor(statistics.bond_marginal)
    torch.manual_seed(0)
    network = PairTransformer(num_atom_classes=prepared.vocabulary.num_atom_classes, **SIZES)
    model = MoleculeDiffusion(network, JointProcessConfig().build(*frequencies), prepared.vocabulary, statistics)
    save_pretrained(tmp_path / "small", model.eval(), dict(MODEL_CONFIG))
    (tmp_path / "small" / NOVELTY_FILE).write_bytes((SAMPLE / NOVELTY_FILE).read_bytes())
    return tmp_path / "small"


def read(folder: Path) -> PretrainedModel:
    return load_pretrained(folder)


def test_molecules_come_in_the_order_of_their_indices(folder: Path) -> None:
    found = draw(folder, PowerSampler(num_steps=2), 7, num_workers=1)
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
    assert sampler_of("churn=2") == PowerSampler(churn=2)
    assert label(PowerSampler(churn=2)) == "churn=2"
    assert sampler_of("default") == PowerSampler()
    assert label(PowerSampler(num_steps=3)) == "default"
    for wrong in ("odrer=2", "order=two", "order"):
        with pytest.raises(MoldiffError, match="sampler"):
            sampler_of(wrong)


def test_curve_goes_on_where_it_was_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["curve", "--model", str(folder), "--samples", "5", "--workers", "1"]
    assert __main__.main([*words, "--steps", "3"]) == 0
    real, asked = drawn.draw, list[tuple[int, bool]]()

    def watched(where: Path, sampler: PowerSampler, number: int, **more: int | None) -> Drawn:
        asked.append((sampler.num_steps, sampler.corrector == 7))
        return real(where, sampler, number, num_workers=1)

    monkeypatch.setattr(curve, "draw", watched)
    assert __main__.main([*words, "--steps", "2,3", "--sampler", "default", "corrector=7"]) == 0
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


def test_bound_is_that_of_the_model(folder: Path, prepared: MoleculeDataset) -> None:
    found = bounds(read(folder).model, prepared, 20)
    assert list(found) == ["training molecules", "real test molecules"]
    for results in found.values():
        values = {result.name.removeprefix("bound_"): result for result in results}
        assert values["all"].denominator == 20
        parts = [result.numerator for name, result in values.items() if name not in ("all", "all_standard_error")]
        assert values["all"].numerator == pytest.approx(sum(parts), rel=1e-5)
        assert values["all"].value > 0
        assert values["all_standard_error"].value > 0


def test_card_holds_every_column(folder: Path, prepared: MoleculeDataset) -> None:
    checkpoint, sampler = read(folder), PowerSampler(num_steps=2)
    molecules = draw(folder, sampler, 6, num_workers=1)
    metrics = ("geometry", "diversity", "distribution")
    real = [prepared.molecule(k) for k in range(6)]
    delivered = Delivered(real, {"disconnected": 2})
    columns = __main__.evaluate_columns(
        checkpoint, prepared, molecules.raw, delivered, {"diversity": 3}, metrics, ["diversity"]
    )
    write_card(
        checkpoint,
        prepared,
        columns,
        bounds(checkpoint.model, prepared, 4),
        drawn=molecules,
        delivered=delivered,
        sampler=sampler,
        seconds=90,
    )
    document = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert list(document["results"]) == ["model, raw", "model, delivered", "real test molecules (6)"]
    delivered_rows = {result["name"]: result for result in document["results"]["model, delivered"]}
    assert delivered_rows["p2_drawn_valid"]["numerator"] == 6
    assert delivered_rows["p2_drawn_valid"]["denominator"] == 8
    assert delivered_rows["p2_drawn_status_disconnected"]["numerator"] == 2
    assert delivered_rows["p2_valid"]["value"] == 1
    assert "diversity_internal" in delivered_rows
    assert "diversity_internal" not in {result["name"] for result in document["results"]["model, raw"]}
    assert document["facts"]["delivered"] == "6 valid of 8 drawn; refused: 2 disconnected"
    assert document["rings"]["model, delivered"][0]["name"].startswith("distribution_ring_size[")
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
    for part in (
        "### Nearest known molecules",
        "### Variational bound",
        "would be valid, unique and novel at once",
        "| drawn valid | – | 75.00 % (6/8) | – |",
        "| drawn rejected: disconnected | – | 25.00 % (2/8) | – |",
        "## Rings",
        "## What it cannot do",
        "**Elements** are H, C, N, O, F, no metals and no others.",
    ):
        assert part in text
    assert "Quality against" not in text
    curve.measure_curve(checkpoint, [sampler], 2, num_workers=1)
    __main__.write_text(checkpoint)
    assert f"]({curve.PLOT_FILE})" in (folder / "card.md").read_text(encoding="utf-8")


def test_one_line_for_a_mistake(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_metric = ["write", "--data", str(SAMPLE), "--not-raw", "qed"]
    for words in (["curve", "--steps", "two"], ["write", "--data", str(SAMPLE), "--first", "qed=3"], no_metric):
        assert __main__.main([*words, "--model", str(folder)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_whole_card(folder: Path) -> None:
    pytest.importorskip("posebusters")
    few = ["--first", "posebusters=1", "xtb=1", "fcd=2", "druglike=2"]
    words = ["write", "--model", str(folder), "--data", str(SAMPLE), "--samples", "4", "--steps", "2", "--bound", "4"]
    words += ["--relax", "2", "--confidence", "3"]
    assert __main__.main([*words, "--workers", "1", *few]) == 0
    document = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    names = {result["name"].partition("_")[0] for result in document["results"]["real test molecules (4)"]}
    assert {"p1", "p2", "p3", "posebusters", "xtb", "fcd", "druglike", "neighbours", "distribution"} <= names
    relaxed = {result["name"]: result for result in document["relaxed"]}
    assert relaxed["relaxed_stereo_kept"]["numerator"] == relaxed["relaxed"]["denominator"] == 2
    assert relaxed["relaxed_time"]["value"] > 0
    assert document["confidence"]["all"][1]["denominator"] == 3
    text = (folder / "card.md").read_text(encoding="utf-8")
    assert "## Relaxed by MMFF94s" in text
    assert "## Which ones to trust" in text


def test_refused_molecules_are_drawn_anew_and_counted(folder: Path, prepared: MoleculeDataset) -> None:
    """Random weights make few valid molecules; every third of the others is in two pieces."""
    bad = draw(folder, PowerSampler(num_steps=2), 4, valid=True, num_workers=1)
    assert len(bad.raw) == 4
    assert len(bad.decoded) == len(bad.problems) == 8 or sum(problem is None for problem in bad.problems) == 4
    assert bad.seconds > 0
    whole = [prepared.molecule(k) for k in range(20)]
    torn = [replace(one, bonds=one.bonds[:0]) if k % 3 == 1 else one for k, one in enumerate(whole)]
    delivered = Delivered.of(Drawn(whole, torn, [validity.check(one) for one in torn], 1.0, 1), 10)
    assert len(delivered.molecules) == 10
    assert sum(delivered.refused.values()) == 5  # 15 were drawn for them, places 1, 4, 7, 10 and 13 torn
    assert [result.denominator for result in delivered.results()] == [15] * (1 + len(delivered.refused))


def test_confidence_is_calibrated_by_quarters(prepared: MoleculeDataset) -> None:
    """Molecules that are shaken more have less confidence; of the last two, one is torn and one is a peroxide."""
    whole = [prepared.molecule(k) for k in range(14)]
    random = np.random.default_rng(0)
    shaken = [replace(one, pos=one.pos + random.normal(0, 0.004 * k, one.pos.shape)) for k, one in enumerate(whole)]
    shaken.append(replace(whole[0], bonds=whole[0].bonds[:0]))
    shaken.append(embedded("CCOOC"))
    problems = [validity.check(one) for one in shaken]
    sure = [1 - 0.05 * k for k in range(16)]
    order = random.permutation(16)
    drawn = Drawn(*([some[k] for k in order] for some in (shaken, shaken, problems)), 1.0, 1, [sure[k] for k in order])
    found = of_confidence(drawn, 16)
    values = {title: {one.name: one for one in results} for title, results in found.items()}
    assert list(values) == ["surest quarter", "second", "third", "least sure quarter", "all"]
    first, *_, last, every = values.values()
    assert (first["confidence"].value, last["confidence"].value) == (pytest.approx(0.925), pytest.approx(0.325))
    assert (first["confidence_raw_valid"].value, last["confidence_raw_valid"].value) == (1, 0.75)
    assert (last["confidence_unstable_group"].numerator, last["confidence_unstable_group"].denominator) == (1, 3)
    assert first["confidence_unstable_group"].value == 0
    strains = [one["confidence_strain"].value for one in list(values.values())[:3]]
    assert strains == sorted(strains)
    assert every["confidence_rank_correlation"].counted == every["confidence_energy_lost"].counted == 15
    assert every["confidence_rank_correlation"].value < -0.5
    assert 0 < every["confidence_rank_correlation_error"].value < 0.3
    text = section({"confidence": {title: [one.to_dict() for one in results] for title, results in found.items()}})
    assert "| unstable group | 0.00 % (0/4) |" in "\n".join(text)
    assert section({}) == []


def test_packages_of_a_set(prepared: MoleculeDataset) -> None:
    several = {"biotite": "1.6.0", "molsets": "0.3.1"}
    found = replace(prepared, meta={**prepared.meta, "source": several, "geometry": "ETKDGv3, then MMFF94s"})
    assert _package(found) == "packages biotite 1.6.0, molsets 0.3.1; geometry ETKDGv3, then MMFF94s"
    found = replace(prepared, meta={"source": {"package": "qm9pack", "version": "1.0.3"}})
    assert _package(found) == "package qm9pack 1.0.3; geometry not said"
    assert _package(replace(prepared, meta={})) == "packages not said; geometry not said"


def test_limits_are_those_of_the_data(prepared: MoleculeDataset) -> None:
    text = " ".join(limits(prepared))
    assert "Stereochemistry" in text
    sizes = prepared.statistics.size_counts
    assert f"**Sizes** are {min(sizes)} to {max(sizes)} heavy atoms" in text
    charges = [prepared.molecule(int(k)).formal_charge for k in prepared.split("train")]
    inner = 100 * np.mean([np.any(charge != 0) for charge in charges])
    assert f"{inner:.1f} % of the training molecules have charged atoms" in text
    assert "every training molecule is neutral in all" in text
    train = len(prepared.split("train"))
    assert f"0 of {train:,} training molecules have a ring of 12 or more atoms" in text


def test_frechet_distance_of_training_molecules_to_others(prepared: MoleculeDataset) -> None:
    pytest.importorskip("fcd")
    (result,) = memory.frechet_of_training(prepared, 20)
    assert (result.name, result.counted) == ("data_fcd", 20)
    assert result.value is not None
    assert 1 < result.value < 100


def test_what_a_perfect_sampler_of_the_data_would_give(prepared: MoleculeDataset) -> None:
    values = {result.name: result.value for result in memory.of_the_data(prepared, 10_000)}
    total, train = len(prepared), len(prepared.split("train"))
    assert values["data_valid_unique_novel"] == (total - train) / total
    distinct = total * (1 - (1 - 1 / total) ** 10_000)
    assert values["data_unique_replaced"] == pytest.approx(distinct / 10_000)
    assert values["data_valid_unique_novel_replaced"] == pytest.approx(distinct * (total - train) / total / 10_000)


def test_memory_is_found_where_the_bound_is_lower_on_training_molecules() -> None:
    def side(value: float) -> list[MetricResult]:
        return [
            MetricResult("bound_all", value, 1.0, "."),
            MetricResult("bound_all_standard_error", 1.0, 1.0, "."),
        ]

    columns = {"model, delivered": [], "real": []}
    for held_out, words in ((110.0, "some of it is memory"), (101.0, "no sign of memory"), (90.0, "are easier")):
        bound = {"training molecules": side(100.0), "real test molecules": side(held_out)}
        assert words in "\n".join(memory.section(columns, bound, []))


def test_a_stretch_of_training_says_what_its_weights_were_averaged_with() -> None:
    stretch = {"steps": 4667, "batch_size": 128, "seconds": 4515}
    assert _stretch(stretch) == "4,667 steps of 128 molecules in 75 minutes"
    assert _stretch({**stretch, "averaged_with": "0123456789ab"}).endswith("minutes, then the mean with 0123456789ab")


def test_learning_curve_of_a_training_and_of_cards(folder: Path, tmp_path: Path) -> None:
    stretches = [
        {"steps": 100, "batch_size": 10, "seconds": 60},
        {"steps": 50, "batch_size": 20, "seconds": 30, "machine": "2 CPU cores"},
    ]
    training = tmp_path / "training"
    (training / "log").mkdir(parents=True)
    config = {"history": stretches, "training": {"trainer": {"num_quality_samples": 100}}}
    (training / "config.json").write_text(json.dumps(config), encoding="utf-8")
    log = "step,sample/p1_molecule_stable,sample/p2_valid,train/loss\n10,,,1.5\n25,0.5,0.75,1.0\n"
    (training / "log" / "metrics.csv").write_text(log, encoding="utf-8")
    names = {"p1_molecule_stable": 0.6, "p2_valid": 0.8, "p2_novel": 0.9}
    rows = [{"name": name, "value": value, "denominator": 1000} for name, value in names.items()]
    facts = {"weights": "0123456789ab (3 parameters)"}
    facts["training, in order"] = "1,000 steps of 8 molecules in 20 minutes; then 5 steps of 4 molecules in 1 minutes"
    card = tmp_path / "old.json"
    card.write_text(json.dumps({"facts": facts, "results": {"model, raw": rows}}), encoding="utf-8")
    words = ["learning", "--model", str(folder), "--trainings", str(training), "--cards", str(card)]
    assert __main__.main([*words, "--machine", "a laptop"]) == 0
    assert __main__.main(words) == 0  # once more changes nothing but the machine
    first, second = learning.load_points(folder)
    assert (first["molecules"], first["seconds"], first["samples"]) == (100 * 10 + 25 * 20, 75, 100)
    assert (first["p2_valid"], first["p1_molecule_stable"], first["p2_novel"]) == (0.75, 0.5, None)
    assert first["machine"] == "2 CPU cores"
    assert (second["molecules"], second["seconds"], second["weights"]) == (8020, 21 * 60, "0123456789ab")
    assert second["p2_novel"] == 0.9
    ElementTree.parse(folder / learning.PLOT_FILE)
    assert "| 8,020 | 0.3 | not recorded | 80.0 % | 60.0 % | 90.0 % | card 0123456789ab, 1,000 molecules |" in (
        learning.table([first, second])
    )


def test_learning_curve_refuses_what_is_no_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert __main__.main(["learning", "--model", str(folder), "--trainings", str(tmp_path)]) == 1
    assert "expected the folder of one" in capsys.readouterr().err
