"""Requests that broke other people's tools, on tasks: each case by its number."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import MODEL_CONFIG, needs_weights, small_model, small_process
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.spatial.distance import pdist
from trainings import SAMPLE

from moldiff.cli.compose import compose_options
from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.conditioning import Properties
from moldiff.diffusion.pretrained import PretrainedModel, build_model, save_pretrained
from moldiff.diffusion.process.categorical import absorbing_prior
from moldiff.diffusion.property_predictor import load_predictor
from moldiff.errors import MoldiffError
from moldiff.molecules.convert import from_rdkit
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.writer import write
from moldiff.molecules.molecule import Molecule
from moldiff.sampling.generator import Generator, load
from moldiff.tasks import Analogues, Bonds, Conformers, Grow, Link

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    return mol


def molecule_of(mol: Chem.Mol) -> Molecule:
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    return molecule


def refusal(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says, in one line, when it refuses."""
    assert main(["sample", *shlex.split(words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moldiff: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("rule", ["valence", "raw"])
def test_b39_neither_the_mask_nor_a_forbidden_element_is_ever_drawn(rule: str) -> None:
    model = small_model().float()
    model.process = small_process(atom_prior=absorbing_prior)  # every free atom starts as the mask
    masked = Generator(PretrainedModel(model, Path("nowhere"), "small", "0123456789ab", {}), torch.device("cpu"))
    for steps in (1, 4):
        drawn = masked.sample(6, steps=steps, keep=(), decode=rule, elements=["C", "H", "O"])
        assert {int(z) for one in drawn for z in one.molecule.atomic_number} <= {6, 8}
        everything = masked.sample(6, steps=steps, keep=(), decode=rule)
        assert {int(z) for one in everything for z in one.molecule.atomic_number} <= {6, 7, 8}
    with pytest.raises(MoldiffError, match="elements: got 'Xx', expected elements that the model knows: C, H, N, O"):
        masked.sample(1, elements=["C", "Xx"])


@needs_weights
def test_b39_every_sample_of_the_shipped_model_respects_the_elements(folder: Path) -> None:
    words = "elements=[C,H,O] keep=[] steps=8 n=60 workers=0 out=a.sdf"
    assert main(["sample", *shlex.split(words)]) == 0
    drawn = read("a.sdf").mols
    assert len(drawn) == 60
    assert {atom.GetSymbol() for mol in drawn for atom in mol.GetAtoms()} == {"C", "H", "O"}


B56_SMILES = {
    "[CH3]": "a list",
    "[NH4+]": "a list",
    "C=C": None,
    "CC(=O)[O-]": None,
    "[Na+].[Cl-]": None,
    "C#N": None,
    "C[C@@H](N)C(=O)O": None,
    r"F/C=C\F": None,
    "C%10CC%10": None,
    "1": "a whole number",
}
"""What each is taken for without quotes, where that is no text."""


@pytest.mark.parametrize("smiles", B56_SMILES)
def test_b56_quoted_smiles_arrive_as_they_are(smiles: str) -> None:
    options = compose_options("sample", ["task=conformers", f'task.smiles="{smiles}"'])
    assert options["task"]["smiles"] == smiles


@pytest.mark.parametrize("smiles", B56_SMILES)
def test_b56_unquoted_smiles_are_never_turned_into_something_else(smiles: str) -> None:
    taken_for = B56_SMILES[smiles]
    try:
        value = compose_options("sample", ["task=conformers", f"task.smiles={smiles}"])["task"]["smiles"]
    except MoldiffError as error:
        said = str(error)
        shown = shlex.split(said.rpartition("quotes: ")[2])
        value = compose_options("sample", ["task=conformers", *shown])["task"]["smiles"]
    else:
        said = ""
    assert value == smiles
    assert taken_for is None or taken_for in said


def turned(molecule: Molecule) -> Molecule:
    """In another frame, far from the origin."""
    turn = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
    pos = molecule.pos @ turn + np.array([81.0, -7.0, 40.0])
    return replace(molecule, pos=pos, hydrogen_offset=molecule.hydrogen_offset @ turn)


@needs_weights
def test_b69_what_is_kept_does_not_move_and_what_is_new_says_whether_it_is_attached(folder: Path) -> None:
    core = turned(molecule_of(embedded("c1ccccc1")))
    write("core.sdf", [core])
    words = "task=grow core=core.sdf attach=0 new_atoms=4 n=16 steps=15 keep=[] workers=0 out=new.sdf"
    assert main(["sample", *shlex.split(words)]) == 0
    drawn = read("new.sdf").mols
    assert len(drawn) == 16
    attached = 0
    for mol in drawn:
        pos = mol.GetConformer().GetPositions()
        assert [atom.GetSymbol() for atom in mol.GetAtoms()][:6] == ["C"] * 6
        np.testing.assert_allclose(pdist(pos[:6]), pdist(core.pos), atol=1e-3)
        np.testing.assert_allclose(pos[:6], core.pos, atol=1e-3)
        ring = [bond for bond in mol.GetBonds() if max(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) < 6]
        assert len(ring) == 6
        assert sum(bond.GetBondTypeAsDouble() for bond in ring) == pytest.approx(9)
        heavy = Chem.RemoveHs(mol, sanitize=False)
        assert heavy.GetNumAtoms() == 10
        crossing = [
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
            for bond in heavy.GetBonds()
            if min(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) < 6
            and max(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) >= 6
        ]
        whole = len(Chem.GetMolFrags(heavy)) == 1 and any(min(ends) == 0 for ends in crossing)
        assert mol.GetProp("attached") == str(whole).lower()
        assert (mol.GetProp("kept"), mol.GetProp("attach")) == ("0 1 2 3 4 5", "0")
        attached += whole
    assert attached >= 14


def write_pieces(gap: float) -> None:
    """Benzene and methylamine as one record and as two, so far apart (Å)."""
    ring, tail = molecule_of(embedded("c1ccccc1")), molecule_of(embedded("CN"))
    far = replace(tail, pos=tail.pos + np.array([0.0, 0.0, gap]))
    write("two.sdf", [ring, far])
    bonds = np.concatenate([ring.bonds, far.bonds + np.array([6, 6, 0])])
    fields = ("pos", "atomic_number", "formal_charge", "num_hydrogens", "hydrogen_offset")
    write("one.sdf", [Molecule(*(np.concatenate([getattr(ring, f), getattr(far, f)]) for f in fields), bonds)])


@needs_weights
def test_b71_one_record_or_two_are_the_same_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pieces(4.0)
    # Numbers count the atoms of the input, hydrogens included; files put these behind all heavy atoms of a record.
    said = {}
    for name, tail in (("one", 6), ("two", 12)):
        words = f"task=link core={name}.sdf attach=[0,{tail}] new_atoms=3 n=3 steps=20 workers=0 out={name}.out.sdf"
        assert main(["sample", *shlex.split(words)]) == 0
        said[name] = capsys.readouterr().err
        assert f"attach: 0 (C); {tail} (C)" in said[name]
        assert "8 atoms stay in 2 pieces" in said[name]
    first, second = (read(f"{name}.out.sdf").mols for name in ("one", "two"))
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert Chem.MolToSmiles(one) == Chem.MolToSmiles(other)
        np.testing.assert_allclose(one.GetConformer().GetPositions(), other.GetConformer().GetPositions(), atol=2e-4)
        assert one.GetProp("kept") == other.GetProp("kept") == "0 1 2 3 4 5 6 7"


@needs_weights
def test_b71_wrong_ends_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pieces(5.0)
    basics = "task=link core=one.sdf new_atoms=2 "
    assert "attach: got atom 99, expected 0 to 18; atoms count from 0" in refusal(f"{basics} attach=[0,99]", capsys)
    assert "attach: got atom -1, expected 0 to 18" in refusal(f"{basics} attach=[0,-1]", capsys)
    both = refusal(f"{basics} attach=[0,1]", capsys)
    assert "attach: got 0 (C) and 1 (C), none in the piece of atom 6 (C); expected one in each piece" in both
    write_pieces(30.0)
    far = refusal(f"{basics} attach=[0,6]", capsys)
    assert "Å apart, a gap too long for 2 new atoms; expected new_atoms=" in far


@needs_weights
def test_b72_conformers_have_the_stereochemistry_of_the_smiles(folder: Path) -> None:
    asked = "C[C@H](O)[C@@H](F)CN"
    words = f"task=conformers 'smiles=\"{asked}\"' n=10 steps=15 workers=0 out=conformers.sdf"
    assert main(["sample", *shlex.split(words)]) == 0
    found = read("conformers.sdf").mols
    assert len(found) == 10
    for mol in found:
        Chem.RemoveStereochemistry(mol)
        Chem.AssignStereochemistryFrom3D(mol)  # by nothing but coordinates
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles(asked)
    hard = Conformers(smiles="OC[C@@H]1O[C@H]1C#N")  # of which few draws are right
    samples = load("qm9").sample(3, task=hard, steps=10, workers=0)
    counts = {result.name: result for result in samples.results}
    assert counts["task_met"].numerator == 3
    assert counts["task_status_stereo"].numerator == counts["task_met"].denominator - 3 > 0  # dropped and counted


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize(
    "smiles",
    [
        "CN1C[C@H](O)[C@@H](c2ccc(F)cc2)[C@@H]1C(=O)NC",
        "C[C@@H](NC(=O)[C@H](C)OC)[C@H](O)c1ccc(Cl)cc1",
        "CC[C@H]1CN(C(=O)c2ccco2)C[C@@H](N)[C@H]1O",
    ],
)
def test_conformers_with_three_centres_are_delivered(smiles: str, folder: Path) -> None:
    words = f"model=drugs task=conformers smiles='{smiles}' n=5 summary=run.json out=conformers.sdf"
    assert main(["sample", *words.split()]) == 0
    for mol in Chem.SDMolSupplier("conformers.sdf", removeHs=False):
        Chem.RemoveStereochemistry(mol)
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.CanonSmiles(smiles)
    found = json.loads(Path("run.json").read_text())
    assert found["kept"] / found["drawn"] >= 0.3


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that knows gap and mu, in the units of the shipped predictor."""
    prepared = MoleculeDataset.load(SAMPLE)
    columns = [list(prepared.properties).index(name) for name in ("gap", "mu")]
    units = {name: prepared.properties[name] for name in ("gap", "mu")}
    sizes = np.diff(prepared.flat["atom_slices"])
    properties = Properties.of(units, prepared.flat["y"][:, columns], sizes)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "told"
    save_pretrained(
        path, build_model(MODEL_CONFIG, prepared.vocabulary, prepared.statistics, properties=properties), MODEL_CONFIG
    )
    return path


@needs_weights
def test_b74_targets_that_cannot_be_met_are_refused_with_what_there_is(
    folder: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "condition.gap: the model was trained without properties, expected none" in refusal(
        "condition.gap=0.25", capsys
    )
    unknown = refusal(f"model={told} condition.gapp=0.25", capsys)
    assert "condition: got 'gapp', expected any of: gap (" in unknown
    assert "Hartree), mu (" in unknown
    assert not list(folder.iterdir())


@needs_weights
def test_b74_asked_and_predicted_values_stand_side_by_side(
    folder: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"model={told} condition.gap=99 condition.mu=2 n=3 steps=2 keep=[] workers=0 size=7 out=a.sdf"
    assert main(["sample", *shlex.split(words)]) == 0
    out, err = capsys.readouterr()
    assert "warning: outside of what the model was trained on: condition.gap=99; trained range " in err
    assert "moldiff: condition.mu=2; trained range " in err
    for name, unit in (("gap", "Hartree"), ("mu", "D")):
        own = f"{load_predictor('qm9_predictor').errors[name]:.3g} {unit}"
        assert f"predicted_{name} is off by {own} on average for molecules of the data" in err
        assert f"mean error {name}" in out
    for mol in read("a.sdf").mols:
        assert (float(mol.GetProp("asked_gap")), float(mol.GetProp("asked_mu"))) == (99, 2)
        assert np.isfinite([float(mol.GetProp("predicted_gap")), float(mol.GetProp("predicted_mu"))]).all()


def numbers(samples: Sequence[object]) -> list[object]:
    return [sample.task["input_record"] for sample in samples]  # type: ignore[attr-defined]


def test_records_count_those_that_are_left_out() -> None:
    checkpoint = PretrainedModel(small_model().float(), Path("nowhere"), "small", "0123456789ab", {})
    generator = Generator(checkpoint, torch.device("cpu"))
    given = ["CCO", "CCF", "C1CC(", "CCC"]
    conformers = generator.sample(1, task=Conformers(input=given[:2] + given[3:]), steps=2, keep=())
    assert numbers(conformers) == [1, 3]
    (note,) = conformers.notes
    assert note.startswith("record 2 left out: input: atom 2 (F): the model does not know F, only C H N O")
    analogues = generator.sample(2, task=Analogues(of=["CCF", "CCO", "CCC"]), steps=2, keep=())
    assert numbers(analogues) == [2, 3, 2, 3]
    coordinates = [molecule_of(embedded(smiles)) for smiles in ("CCF", "CCO")]
    bonds = generator.sample(task=Bonds(input=coordinates), steps=2, keep=())
    assert numbers(bonds) == [2]


def test_what_overlaps_or_is_unknown_is_one_clear_line() -> None:
    model = small_model()

    def said(task: Grow | Link) -> str:
        with pytest.raises(MoldiffError) as caught:
            task.prepare(model.vocabulary, model.statistics)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert said(Grow(core="C[Si](C)(C)C")).startswith("core: atom 1 (Si): the model does not know Si, only C H N O")
    ring, tail = molecule_of(embedded("CC")), molecule_of(embedded("CO"))
    near = replace(tail, pos=ring.pos + np.array([0.0, 0.0, 0.3]))
    assert said(Link(core=[ring, near], new_atoms=2)) == (
        "core: atoms 0 (C) and 8 (C) are 0.30 Å apart, expected atoms that do not overlap"
    )
