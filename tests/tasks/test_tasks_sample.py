"""Tasks through the generator and the command line: records, counts, and what is dropped."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG, needs_weights, small_model, small_process
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolAlign

from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.diffusion.pretrained import PretrainedModel, save_pretrained
from moldiff.diffusion.process.categorical import absorbing_prior
from moldiff.diffusion.sampler import PowerSampler
from moldiff.errors import MoldiffError
from moldiff.molecules.conformers import Match, compare, marks
from moldiff.molecules.convert import from_rdkit, to_rdkit
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.writer import write
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import Generator, load
from moldiff.tasks import Analogues, Bonds, Conformers, Formula, Grow

FAST = PowerSampler(num_steps=3)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator() -> Generator:
    checkpoint = PretrainedModel(small_model().float(), Path("nowhere"), "small", "0123456789ab", {})
    return Generator(checkpoint, torch.device("cpu"))


def embedded(smiles: str, seed: int = 1) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=seed)
    return mol


def stereo_smiles(mol: Chem.Mol) -> str:
    """Isomeric SMILES by nothing but bonds and coordinates."""
    mol = Chem.Mol(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


@pytest.mark.parametrize("smiles", ["C[C@H](O)[C@@H](F)CN", r"F/C=C\C", "C[C@@H]1C[C@H]1CO", "N[C@@H](C)C=O"])
def test_handedness_is_read_off_coordinates(smiles: str) -> None:
    mol = embedded(smiles)
    wanted, pos = marks(mol), mol.GetConformer().GetPositions()
    assert compare(wanted, mol, pos) is Match.RIGHT
    mirrored = Match.MIRRORED if wanted[0] else Match.RIGHT
    assert compare(wanted, mol, pos * [1, 1, -1]) is mirrored
    flat = pos * [1, 1, 0]
    assert not wanted[0] or compare(wanted, mol, flat) is Match.WRONG


def test_a_diastereomer_and_the_other_side_of_a_double_bond_are_wrong() -> None:
    pairs = [("C[C@H](O)[C@@H](F)CN", "C[C@H](O)[C@H](F)CN"), (r"F/C=C\C", "F/C=C/C")]
    for asked, made in pairs:
        right, other = embedded(asked), embedded(made)
        assert compare(marks(right), right, other.GetConformer().GetPositions()) is Match.WRONG


@needs_weights
def test_every_conformer_has_the_stereochemistry_that_was_asked_for() -> None:
    asked = "C[C@H](O)[C@@H](F)CN"
    samples = load("qm9").sample(10, task=Conformers(smiles=asked), steps=15, workers=0)
    assert len(samples) == 10
    wanted = Chem.CanonSmiles(asked)
    assert {stereo_smiles(to_rdkit(sample.molecule)) for sample in samples} == {wanted}
    assert {sample.smiles for sample in samples} == {wanted}
    assert samples.drawn < 20  # of which one in four would be right without guidance, and as many mirror images


@needs_weights
def test_conformers_near_another_are_left_out() -> None:
    samples = load("qm9").sample(3, task=Conformers(smiles="NCCC=O", rmsd=0.3), steps=15, workers=0, max_draws=60)
    bare = [Chem.RemoveHs(sample.mol) for sample in samples]
    distances = [rdMolAlign.GetBestRMS(Chem.Mol(a), Chem.Mol(b)) for k, a in enumerate(bare) for b in bare[:k]]
    assert len(distances) >= 1
    assert min(distances) >= 0.3


def test_n_of_each_molecule_in_turn(generator: Generator, tmp_path: Path) -> None:
    (tmp_path / "three.smi").write_text("CCO ethanol\nCC(C)O\nC1CC(\nCCOC\n")
    samples = generator.sample(2, sampler=FAST, keep=(), task=Conformers(input=str(tmp_path / "three.smi")))
    assert (samples.asked, len(samples)) == (6, 6)
    assert [sample.task["input_record"] for sample in samples] == [1, 2, 4, 1, 2, 4]
    assert [sample.task["input"] for sample in samples[:2]] == ["ethanol", "three.smi:2"]
    assert samples.notes == ["record 3 left out: cannot read 'C1CC(' as SMILES"]


def test_smiles_come_from_standard_input(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("CCO ethanol\nCCC\n\n"))
    samples = generator.sample(1, sampler=FAST, keep=(), task=Conformers(smiles="-"))
    assert [sample.task["input"] for sample in samples] == ["ethanol", "CCC"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(MoldiffError, match="smiles: got nothing on standard input"):
        generator.sample(1, task=Conformers(smiles="-"))


def test_one_answer_for_each_set_of_coordinates(generator: Generator, tmp_path: Path) -> None:
    blocks = [Chem.MolToXYZBlock(embedded(smiles)) for smiles in ("CCO", "CC=O", "CN")]
    (tmp_path / "a.xyz").write_text("".join(blocks))
    samples = generator.sample(50, sampler=FAST, keep=(), task=Bonds(input=str(tmp_path / "a.xyz")))
    assert [sample.task["input_record"] for sample in samples] == [1, 2]
    assert samples.asked == 2
    (note,) = samples.notes
    assert note.startswith("record 3 left out: atom 1 (N) with 2 hydrogens: the model does not know it")


def test_a_sample_of_a_task_is_the_same_in_any_run(generator: Generator) -> None:
    task = Grow(core="CCO", new_atoms=(1, 3))
    together = generator.sample(4, sampler=FAST, keep=(), task=task)
    for k, one in enumerate(together):
        alone = generator.sample(1, sampler=FAST, keep=(), task=task, first=k)[0]
        assert (alone.smiles, dict(alone.task)) == (one.smiles, dict(one.task))
        np.testing.assert_allclose(alone.molecule.pos, one.molecule.pos, atol=1e-4)


def test_films_end_where_the_molecule_is(generator: Generator) -> None:
    core = from_rdkit(embedded("CCO"))
    assert isinstance(core, Molecule)
    core = replace(core, pos=core.pos + np.array([40.0, 0.0, 0.0]))
    task = Grow(core=core, new_atoms=2)
    sample = generator.sample(1, sampler=FAST, keep=(), task=task, trajectory=True)[0]
    assert sample.trajectory is not None
    for frame in sample.trajectory:
        np.testing.assert_allclose(frame.pos[:3], core.pos, atol=1e-4)


@needs_weights
def test_films_of_mirrored_conformers_are_mirrored() -> None:
    task = Conformers(smiles="C[C@H](O)N")
    for sample in load("qm9").sample(4, task=task, steps=10, workers=0, trajectory=True):
        assert sample.trajectory is not None
        np.testing.assert_allclose(sample.trajectory[-1].pos, sample.molecule.pos, atol=0.2)


@pytest.mark.parametrize("decode", ["valence", "raw"])
def test_the_mask_is_never_an_element(decode: str) -> None:
    model = small_model().float()
    model.process = small_process(atom_prior=absorbing_prior)
    checkpoint = PretrainedModel(model, Path("nowhere"), "small", "0123456789ab", {})
    masked = Generator(checkpoint, torch.device("cpu"))
    samples = masked.sample(8, sampler=FAST, keep=(), decode=decode, elements=["C", "O"])
    assert {int(z) for sample in samples for z in sample.molecule.atomic_number} <= {6, 8}


def test_the_record_says_what_was_known(generator: Generator) -> None:
    sample = generator.sample(1, sampler=FAST, keep=(), task=Grow(core="CCO", attach=0, new_atoms=1), forbid=["N"])[0]
    record = sample.record()
    assert (record["kept"], record["kept_from"], record["attach"]) == ("0 1 2", "0 1 2", "0")
    assert json.loads(str(record["task"])) == {
        "name": "grow",
        "core": "CCO",
        "attach": 0,
        "new_atoms": 1,
        "forbid": ["N"],
    }


def test_only_elements_asked_for_in_every_sample(generator: Generator) -> None:
    for decode in ("valence", "raw"):
        samples = generator.sample(12, sampler=FAST, keep=(), decode=decode, elements=["C", "H", "O"])
        assert {int(z) for sample in samples for z in sample.molecule.atomic_number} <= {6, 8}
    plain, limited = (
        generator.sample(4, sampler=FAST, keep=(), elements=elements) for elements in (None, ["C", "N", "O"])
    )
    assert [one.smiles for one in plain] == [one.smiles for one in limited]
    with pytest.raises(MoldiffError, match="forbid: got 'Xx', expected elements that the model knows: C, H, N, O"):
        generator.sample(1, forbid=["Xx"])
    with pytest.raises(MoldiffError, match="elements and forbid have nothing to limit, the task says what every"):
        generator.sample(1, task=Formula(formula="C2H6O"), forbid=["O"])


def test_classes_run_ahead_where_elements_are_limited(generator: Generator) -> None:
    for elements, lead in ((None, 1.0), (["C", "N", "O"], 1.0), (["C", "O"], 6.0)):
        sample = generator.sample(1, sampler=FAST, keep=(), elements=elements)[0]
        assert json.loads(str(sample.record()["sampler"]))["class_lead"] == lead
    own = PowerSampler(num_steps=3, class_lead=2.0)
    sample = generator.sample(1, sampler=own, keep=(), elements=["C"])[0]
    assert json.loads(str(sample.record()["sampler"]))["class_lead"] == 2.0
    with pytest.raises(MoldiffError, match=r"sampler.class_lead: got 0.5"):
        PowerSampler(class_lead=0.5)


def test_a_size_and_a_task_contradict_one_another(generator: Generator) -> None:
    with pytest.raises(MoldiffError, match="size: got 5 together with a task"):
        generator.sample(1, size=5, task=Formula(formula="C2H6O"))


def test_similarity_is_in_record_and_results(generator: Generator) -> None:
    samples = generator.sample(4, sampler=FAST, task=Analogues(of="CCCO", noise=0.2), keep=("valid",))
    found = {result.name: result for result in samples.results}["task_mean_similarity"]
    values = [float(sample.task["similarity"]) for sample in samples]  # type: ignore[arg-type]
    assert found.value == pytest.approx(np.mean(values))
    assert found.counted == 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    save_pretrained(tmp_path / "tiny", small_model(), MODEL_CONFIG, dtype=torch.float32)
    return tmp_path


def command(text: str) -> int:
    return main(["sample", "model=tiny", "steps=2", *shlex.split(text)])


def test_grow_from_a_file_in_its_frame(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = from_rdkit(embedded("c1ccccc1"))
    assert isinstance(core, Molecule)
    far = np.array([50.0, -20.0, 3.0])
    moved = replace(core, pos=core.pos + far)
    write("core.sdf", [moved])
    assert command("task=grow core=core.sdf attach=0 new_atoms=2..3 n=3 keep=[] out=new.sdf") == 0
    out, err = capsys.readouterr()
    assert "attached" in out
    assert "grow: 6 atoms stay; attach: 0 (C)" in err
    for record in read("new.sdf").records:
        assert record.mol is not None
        pos = record.mol.GetConformer().GetPositions()
        np.testing.assert_allclose(pos[:6], moved.pos, atol=1e-3)
        assert record.mol.GetProp("kept") == "0 1 2 3 4 5"
        assert record.mol.GetProp("attached") in ("true", "false")
        assert json.loads(record.mol.GetProp("task"))["core_sha256"]


def test_both_kinds_of_keep(folder: Path) -> None:
    text = "task=grow core=CCCO 'keep=[0,1]' 'keep=[]' new_atoms=1 n=2 out=a.sdf"
    assert command(text) == 0
    assert [mol.GetProp("kept_from") for mol in read("a.sdf").mols] == ["0 1", "0 1"]


def test_help_of_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "task=grow", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    groups = [path.stem for path in (Path(__file__).parents[2] / "conf/task").glob("*.yaml")]
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in groups)
    for name in groups:
        for option in compose_options("sample", [f"task={name}"])["task"]:
            assert option == "_target_" or any(option in line for line in lines), option


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("task=growth", "task: got 'growth', expected one of: analogues, bonds, conformers"),
        ("task=grow", "core: nothing given, expected a file"),
        (
            "task=grow core=1",
            "task.core: got 1 (a whole number), expected a list or text or null; text that looks like",
        ),
        ("task=grow core=nope.sdf", "nope.sdf: no such file"),
        ("task=grow core=", "task.core: got nothing"),
        ("task=grow core=CC new_atoms=x", "new_atoms: got x, expected a number such as 6"),
        ("task=grow core=CC attach=true", "task.attach: got true (true or false), expected a list"),
        ("task=grow core=CC size=4", "size: got (4, 4) together with a task"),
        ("task=conformers smiles=CC rmsd=x", "task.rmsd: got x (text), expected a number or null"),
        ("task=bonds input=nope.xyz", "nope.xyz: no such file"),
        ("core=CC", "unknown option 'core'"),
        ("elements=[C,Xx]", "elements: got 'Xx', expected elements that the model knows: C, H, N, O"),
        ("forbid=Qq", "forbid: got 'Qq'"),
    ],
)
def test_wrong_options_are_one_clear_line(
    typed: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(typed) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moldiff: error: ")
    assert err.count("\n") == 1
    assert said in err


SMILES = (
    "[CH3]",
    "[NH4+]",
    "C=C",
    "CC(=O)[O-]",
    "[Na+].[Cl-]",
    "C#N",
    "C[C@@H](N)C(=O)O",
    r"F/C=C\F",
    "C%10CC%10",
    "1",
)


@pytest.mark.parametrize("smiles", SMILES)
@pytest.mark.parametrize("option", ["smiles", "task.smiles"])
def test_quoted_smiles_arrive_exactly(smiles: str, option: str) -> None:
    options = compose_options("sample", ["task=conformers", f'{option}="{smiles}"'])
    assert options["task"]["smiles"] == smiles


@pytest.mark.parametrize("smiles", SMILES)
def test_unquoted_smiles_arrive_exactly_or_are_refused_with_the_quoted_form(smiles: str) -> None:
    try:
        value = compose_options("sample", ["task=conformers", f"smiles={smiles}"])["task"]["smiles"]
    except MoldiffError as error:
        shown = shlex.split(str(error).rpartition("quotes: ")[2])
        value = compose_options("sample", ["task=conformers", *shown])["task"]["smiles"]
    assert value == smiles
    assert isinstance(value, str)


def test_every_task_builds() -> None:
    from moldiff.diffusion.instantiate import instantiate

    for path in (Path(__file__).parents[2] / "conf/task").glob("*.yaml"):
        request = instantiate(compose_options("sample", [f"task={path.stem}"])["task"], None)
        assert type(request).__name__.lower() == path.stem
        assert request == type(request)()
