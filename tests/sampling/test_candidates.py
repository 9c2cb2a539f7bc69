"""Several candidates for every molecule, of which the nearest to the values asked for is delivered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG
from trainings import QUIET, SAMPLE

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import molecule_generator
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.pretrained import build_model, save_pretrained
from moldiff.diffusion.property_predictor import PropertyNetwork, load_predictor, predictor_for
from moldiff.errors import MoldiffError
from moldiff.sampling.generator import Generator, load
from moldiff.sampling.molecule_sampler import BestOfN
from moldiff.tasks.task import predicted
from moldiff.training.module import learnt_properties

pytestmark = QUIET

FAST = {"n": 5, "steps": 3, "keep": (), "decode": "raw", "workers": 0, "size": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that knows gap, mu and the number of atoms."""
    prepared = MoleculeDataset.load(SAMPLE)
    torch.manual_seed(0)
    properties = learnt_properties(prepared, ["gap", "mu", "atoms"], prepared.split("train"))
    model = build_model(MODEL_CONFIG, prepared.vocabulary, prepared.statistics, properties=properties)
    path = tmp_path_factory.mktemp("models") / "told"
    save_pretrained(path, model, {**MODEL_CONFIG, "training": {"half": "b"}})
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return load(folder, device="cpu")


def test_candidates_have_numbers_of_their_own() -> None:
    first = [torch.rand(3, generator=molecule_generator(7, 5, candidate)).tolist() for candidate in range(4)]
    assert len({tuple(values) for values in first}) == 4
    assert first[0] == torch.rand(3, generator=molecule_generator(7, 5)).tolist()
    assert first[2] == torch.rand(3, generator=molecule_generator(7, 5, 2)).tolist()
    assert first[1] != torch.rand(3, generator=molecule_generator(7, 6, 1)).tolist()


def test_the_nearest_candidate_is_delivered(generator: Generator) -> None:
    condition = {"gap": 0.25, "atoms": 14.0}
    run = generator.stream(condition=condition, candidates=4, **FAST)
    choice = run.molecules.choice
    assert isinstance(choice, BestOfN)
    chosen = list(run)
    every = []  # each candidate by itself
    for candidate in range(4):
        specs = [run.molecules.spec(index, candidate) for index in range(5)]
        every.append(run.molecules.draw_each(specs, lambda _: None))
    for index, sample in enumerate(chosen):
        candidates = [drawn[index] for drawn in every]
        specs = [run.molecules.spec(index) for _ in candidates]
        distances = choice.distances(specs, candidates)
        valid = [one.verdict.canonical is not None for one in candidates]
        best = min(range(4), key=lambda k: (not valid[k], distances[k], k))
        np.testing.assert_allclose(sample.molecule.pos, candidates[best].molecule.pos, atol=1e-4)


def test_distances_are_in_standard_deviations(generator: Generator) -> None:
    run = generator.stream(condition={"gap": 0.25, "atoms": 14.0}, candidates=2, **FAST)
    assert isinstance(run.molecules.choice, BestOfN)
    gap, _, atoms = generator.checkpoint.model.properties.entries
    molecule = MoleculeDataset.load(SAMPLE).molecule(0)
    drawn = replace(run.molecules.draw(range(1))[0], molecule=molecule)
    (values,) = predicted(run.molecules.choice.predictor, [molecule])
    assert values["atoms"] == molecule.num_atoms
    expected = (abs(values["gap"] - 0.25) / gap.std + abs(values["atoms"] - 14) / atoms.std) / 2
    assert run.molecules.choice.distances([run.molecules.spec(0)], [drawn]) == [pytest.approx(expected, rel=1e-4)]


def test_a_molecule_does_not_depend_on_its_company(generator: Generator) -> None:
    options = FAST | {"condition": {"mu": 2.0}, "candidates": 3}
    many, alone = generator.sample(**options), generator.sample(**(options | {"n": 1, "first": 3}))
    np.testing.assert_allclose(alone[0].molecule.pos, many[3].molecule.pos, atol=1e-4)
    assert "each molecule is the nearest of 3 that were drawn for it" in many.notes
    assert '"candidates": 3' in str(many[0].record()["task"])


def test_who_chooses_does_not_judge(generator: Generator) -> None:
    properties = generator.checkpoint.model.properties
    judge, predictor = predictor_for(properties, "b"), predictor_for(properties, "b", same=True)
    assert judge is not None
    assert predictor is not None
    assert (judge.training["half"], predictor.training["half"]) == ("a", "b")
    assert generator.predictor().name == predictor.name == "qm9_predictor_b"
    assert generator.predictor("qm9_predictor").name == "qm9_predictor"
    for name in ("gap", "mu", "alpha", "homo", "lumo", "cv"):  # one has learnt as much as the other
        one, other = (load_predictor(each).errors[name] for each in ("qm9_predictor", "qm9_predictor_b"))
        assert 0.8 < one / other < 1.25


def test_refusals(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(MoldiffError, match="predictor: got 'qm9_predictor' without values to choose by"):
        generator.stream(candidates=4, predictor="qm9_predictor")
    with pytest.raises(MoldiffError, match="candidates: got 0, expected a whole number from 1 to 1000"):
        generator.stream(candidates=0, condition={"gap": 0.25})
    with pytest.raises(MoldiffError, match=r"predictor: got '.*nowhere', expected the folder of one or"):
        generator.stream(candidates=2, condition={"gap": 0.25}, predictor=tmp_path / "nowhere")


def test_a_chooser_has_to_know_what_is_asked_for(generator: Generator, tmp_path: Path) -> None:
    known = load_predictor("qm9_predictor_b")
    properties = Properties(tuple(entry for entry in known.properties.entries if entry.name == "mu"))
    network = PropertyNetwork(num_atom_classes=known.vocabulary.num_atom_classes, num_properties=1, **known.sizes)
    replace(known, network=network, properties=properties).save(tmp_path / "mine")
    generator.stream(candidates=2, condition={"mu": 2.0, "atoms": 14}, predictor=tmp_path / "mine")
    with pytest.raises(MoldiffError, match="predictor: mine does not know gap, expected any of: mu"):
        generator.stream(candidates=2, condition={"mu": 2.0, "gap": 0.25}, predictor=tmp_path / "mine")
    with pytest.raises(MoldiffError, match="predictor: got 'qm9_predictor_b' with one candidate, expected"):
        generator.stream(condition={"mu": 2.0}, predictor="qm9_predictor_b")


def test_the_command_line_goes_on_behind_a_break(folder: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "a.sdf", tmp_path / "b.sdf"
    basics = [f"model={folder}", "steps=2", "keep=[]", "workers=0", "size=5", "device=cpu", "condition.gap=0.25"]
    assert main(["sample", *basics, "candidates=3", "n=4", f"out={whole}"]) == 0
    assert main(["sample", *basics, "candidates=3", "n=2", f"out={out}"]) == 0
    assert main(["sample", *basics, "candidates=3", "n=4", f"out={out}", "resume=true"]) == 0
    assert out.read_text() == whole.read_text()
    assert main(["sample", *basics, "candidates=2", "n=6", f"out={out}", "resume=true"]) == 2
