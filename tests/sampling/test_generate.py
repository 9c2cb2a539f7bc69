"""Sampling from Python: counts, keeping, and molecules that can be drawn again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import small_model
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from moldiff.diffusion.batch import MolBatch, NoiseLevel, PerMoleculeNoise, Prediction, molecule_generator
from moldiff.diffusion.pretrained import PretrainedModel
from moldiff.diffusion.process.schedule import MIN_LEVEL
from moldiff.diffusion.sampler import PartialState, PowerSampler, run_sampler
from moldiff.errors import MoldiffError
from moldiff.evaluation.metrics.novelty import NoveltyIndex
from moldiff.molecules import convert
from moldiff.molecules.molecule import Molecule, Status
from moldiff.sampling.generator import Generator
from moldiff.training.quality import geometry, sample_quality

FAST = PowerSampler(num_steps=4)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator() -> Generator:
    checkpoint = PretrainedModel(small_model().float(), Path("nowhere"), "small", "0123456789ab", {})
    return Generator(checkpoint, torch.device("cpu"))


def same(one: Molecule, other: Molecule) -> bool:
    return (
        np.array_equal(one.atomic_number, other.atomic_number)
        and np.array_equal(one.bonds, other.bonds)
        and np.allclose(one.pos, other.pos, atol=1e-3)
    )


def test_keeping_nothing_in_particular_gives_all_as_they_came(generator: Generator) -> None:
    samples = generator.sample(12, sampler=FAST, keep=(), decode="raw")
    assert (len(samples), samples.drawn, samples.complete) == (12, 12, True)
    assert [s.index for s in samples] == list(range(12))
    found = {r.name: r for r in samples.results}
    valid = sum(s.status is Status.OK for s in samples)
    assert (found["p2_valid"].numerator, found["p2_valid"].denominator) == (valid, 12)


def test_molecule_k_does_not_depend_on_the_run_it_is_drawn_in(generator: Generator) -> None:
    together = generator.sample(10, sampler=FAST, keep=(), seed=3)
    apart = [generator.sample(1, sampler=FAST, keep=(), seed=3, first=k)[0] for k in range(10)]
    assert all(same(one.molecule, other.molecule) for one, other in zip(together, apart, strict=True))
    assert not any(
        same(one.molecule, other.molecule)
        for one, other in zip(together, generator.sample(10, sampler=FAST, keep=(), seed=4), strict=True)
    )


def test_any_molecule_can_be_drawn_again_from_its_record(generator: Generator) -> None:
    for sample in generator.sample(6, sampler=FAST, seed=5):
        record = sample.record()
        again = generator.sample(
            1,
            seed=int(record["seed"]),  # type: ignore[arg-type]
            first=int(record["index"]),  # type: ignore[arg-type]
            size=int(record["size"]),  # type: ignore[arg-type]
            steps=int(record["steps"]),  # type: ignore[arg-type]
            decode=str(record["decode"]),
            sampler=FAST,
        )[0]
        assert again.smiles == record["SMILES"]
        np.testing.assert_allclose(again.molecule.pos, sample.molecule.pos, atol=1e-3)


def test_n_asked_is_n_delivered_and_all_of_them_valid(generator: Generator) -> None:
    samples = generator.sample(15, sampler=FAST, keep=("valid", "unique"))
    assert len(samples) == 15
    assert samples.complete
    assert all(s.verdict.status is Status.OK and s.unique and s.smiles for s in samples)
    assert len({s.verdict.canonical for s in samples}) == 15
    assert samples.drawn >= 15
    assert all(mol.GetNumConformers() == 1 for mol in samples.mols)


def test_counts_do_not_depend_on_how_many_draws_went_together(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = generator.sample(8, sampler=FAST, keep=("valid", "unique"))
    monkeypatch.setattr("moldiff.sampling.batch.CPU_PAIRS", 40)
    narrow = generator.sample(8, sampler=FAST, keep=("valid", "unique"))
    assert (wide.drawn, [s.smiles for s in wide]) == (narrow.drawn, [s.smiles for s in narrow])


def test_the_limit_of_draws_ends_a_hopeless_search(generator: Generator) -> None:
    known = NoveltyIndex.of([s.verdict.strict or "C" for s in generator.sample(10, sampler=FAST, keep=("valid",))])
    informed = Generator(generator.checkpoint, generator.device, known)
    samples = informed.sample(10, sampler=FAST, keep=("valid", "novel"), max_draws=10)
    assert samples.drawn == 10
    assert len(samples) < 10
    assert not samples.complete
    assert all(s.novel for s in samples)


def test_size_is_what_was_asked_for(generator: Generator) -> None:
    assert {s.molecule.num_heavy_atoms for s in generator.sample(4, sampler=FAST, decode="raw", size=6, keep=())} == {6}
    sizes = {s.molecule.num_heavy_atoms for s in generator.sample(30, sampler=FAST, decode="raw", size=(4, 5), keep=())}
    assert sizes == {4, 5}
    beyond = {
        s.molecule.num_heavy_atoms for s in generator.sample(12, sampler=FAST, decode="raw", size=(8, 9), keep=())
    }
    assert beyond == {8, 9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: got 0, expected a whole number from 1"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": True}, "seed: got True"),
        ({"first": -2}, "first: got -2"),
        ({"steps": 0}, "steps: got 0"),
        ({"size": 0}, "size: got 0"),
        ({"size": (5, 4)}, r"size: got \(5, 4\)"),
        ({"keep": ("pretty",)}, "keep: got 'pretty', expected any of valid, sound, unique, novel"),
        ({"keep": ("novel",)}, "no list of its training molecules"),
        ({"decode": "argmax"}, "decode: got 'argmax', expected valence or raw"),
        ({"max_draws": 0}, "max_draws: got 0"),
    ],
)
def test_impossible_values_are_named(generator: Generator, options: dict[str, object], message: str) -> None:
    with pytest.raises(MoldiffError, match=message):
        generator.sample(**({"n": 1} | options))  # type: ignore[arg-type]


def test_interruption_returns_what_is_finished(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldiff.sampling.molecule_sampler._MAX_BLOCK", 3)

    def interrupt(done: float) -> None:
        if done > 7:
            raise KeyboardInterrupt

    samples = generator.sample(20, sampler=FAST, keep=(), on_progress=interrupt)
    assert [s.index for s in samples] == list(range(6))
    assert (samples.drawn, samples.complete) == (6, False)


def test_progress_grows_to_what_was_asked_for(generator: Generator) -> None:
    seen: list[float] = []
    generator.sample(5, sampler=FAST, keep=(), on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(5)


def test_sampler_options_are_checked() -> None:
    for options, message in [
        ({"num_steps": 0}, "steps: got 0"),
        ({"corrector": -1.0}, "sampler.corrector: got -1.0"),
        ({"churn": -0.5}, "sampler.churn: got -0.5, expected a number >= 0"),
        ({"refresh": 1.5}, "sampler.refresh: got 1.5, expected a number from 0 to 1"),
        ({"settle_level": 0.0}, "sampler.settle_level: got 0.0, expected a number between 0 and 1"),
        ({"grid_power": 0.0}, "sampler.grid_power"),
    ]:
        with pytest.raises(MoldiffError, match=message):
            PowerSampler(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [42, 8]),
        ({"num_steps": 20}, [14, 6]),
        ({"settle": 0.4, "num_steps": 20}, [12, 8]),
        ({"settle": 0.0}, [50]),
        ({"num_steps": 1}, [1]),
    ],
)
def test_the_last_calls_settle_the_molecule_on_its_graph(options: dict[str, float], expected: list[int]) -> None:
    stages = PowerSampler(**options).stages()  # type: ignore[arg-type]
    assert [len(stage.grid) for stage in stages] == expected
    assert [stage.graph_known for stage in stages] == [False, True][: len(stages)]
    if len(stages) == 2:
        assert [float(stages[1].grid[0]), float(stages[1].hydrogen[0])] == pytest.approx([0.2, 1.0])
        assert [float(stage.grid[-1]) for stage in stages] == pytest.approx([0.01, MIN_LEVEL])


@torch.no_grad()
def test_hydrogens_are_hidden_until_the_graph_is_known_and_as_many_as_it_has() -> None:
    model = small_model().float()
    mask = torch.ones(2, 4, dtype=torch.bool)
    draws = PerMoleculeNoise([molecule_generator(0, k) for k in range(2)])
    seen: list[tuple[MolBatch, NoiseLevel]] = []
    network = model.denoiser
    network.register_forward_hook(lambda _, inputs, __: seen.append((inputs[0], inputs[1])))
    prediction = run_sampler(model, PowerSampler(num_steps=8, settle=0.5), PartialState.unknown(mask), draws)
    assert all(not noisy.hydrogen.any() for noisy, _ in seen[:5])  # the fifth starts from noise alone
    counts = model.num_hydrogens[prediction.atom_type.argmax(-1)]
    for noisy, level in seen[5:]:
        assert bool(level.graph_known(mask).all())
        assert torch.equal(model.num_hydrogens[noisy.atom_type], counts)
        assert torch.equal(noisy.hydrogen.any(-1).sum(-1), counts)
    assert torch.equal(prediction.hydrogen.any(-1).sum(-1), counts)


@torch.no_grad()
def test_the_network_is_told_its_estimate_below_a_level_alone() -> None:
    model = small_model().float()
    mask = torch.ones(1, 4, dtype=torch.bool)
    told: list[tuple[float, bool]] = []

    def denoise(noisy: MolBatch, level: NoiseLevel, previous: Prediction | None) -> Prediction:
        told.append((float(level.pos[0, 0]), previous is not None))
        return model.denoise(noisy, level, previous)

    start, draws = PartialState.unknown(mask), PerMoleculeNoise([molecule_generator(0, 0)])
    noisy = model.process.start(start.clean, start.level, draws)
    sampler = PowerSampler(num_steps=12, self_condition=0.3)
    list(sampler(denoise, model.process, noisy, start.level, draws))
    assert all(was == (level <= 0.3) for level, was in told)
    assert {was for _, was in told} == {True, False}


def test_quality_of_a_model_in_training() -> None:
    scores = sample_quality(small_model().float(), num_samples=6, sampler=FAST)
    assert {"p2_molecule_stable", "p1_molecule_stable", "p2_valid", "decoded_p2_valid"} <= scores.keys()
    assert all(0 <= scores[name] <= 1 for name in scores if name.startswith(("p1", "p2", "decoded")))


def test_quality_sees_size_hydrogens_and_strain() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol, mmffVariant="MMFF94s", maxIters=2000)
    relaxed = convert.from_rdkit(mol)
    assert isinstance(relaxed, Molecule)
    radius = float(np.sqrt(((relaxed.pos - relaxed.pos.mean(0)) ** 2).sum() / 3))
    found = geometry([relaxed])
    assert found == pytest.approx({"radius_of_gyration": radius, "hydrogens": 2.0, "mmff94s_drop": 0.0}, abs=0.01)
    strained = replace(relaxed, pos=relaxed.pos * 1.1)
    assert geometry([strained])["radius_of_gyration"] == pytest.approx(1.1 * radius)
    assert geometry([strained])["mmff94s_drop"] > 3
    assert geometry([]) == {}
