"""Tasks at the start and the end of a draw: what is known, what stays, and wrong requests in one clear line."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import STATISTICS, VOCABULARY, small_model
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.diffusion.decoding import SumConstraint
from moldiff.diffusion.sampler import PartialState, PowerSampler
from moldiff.errors import MoldiffError
from moldiff.molecules.convert import from_rdkit, to_rdkit
from moldiff.molecules.formats.writer import write
from moldiff.molecules.identity import canonical_key, smiles
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import AtomClass, Vocabulary
from moldiff.sampling.batch import SampleSpec, denoise_batch
from moldiff.tasks import Analogues, Bonds, Conformers, Formula, Grow, Link, Replace
from moldiff.tasks.formula import Composition
from moldiff.tasks.task import ConstrainedTask, NewMolecules, Task, TaskOutcome, TaskSpec, description, element_mask

FAST = PowerSampler(num_steps=3)
WIDE = Vocabulary(
    tuple(
        AtomClass(z, charge, h)
        for z, charge, top in ((6, 0, 4), (7, 0, 3), (7, 1, 4), (8, 0, 2), (8, -1, 1), (9, 0, 0), (16, 0, 2))
        for h in range(top + 1)
    ),
    {},
)
pytestmark = pytest.mark.usefixtures("one_thread")


def embedded(smiles: str, seed: int = 1) -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=seed)
    molecule = from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    return molecule


def turned(molecule: Molecule) -> Molecule:
    """The molecule in another frame, far from the origin."""
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = molecule.pos @ turn + np.array([120.0, -35.0, 8.0])
    return replace(molecule, pos=moved, hydrogen_offset=molecule.hydrogen_offset @ turn)


def prepared(request: TaskSpec) -> Task:
    return request.prepare(VOCABULARY, STATISTICS)


def draw(task: Task, count: int, rule: str = "valence") -> list[TaskOutcome]:
    specs = [SampleSpec.of(task, 0, index) for index in range(count)]
    found = denoise_batch(small_model().float(), FAST, specs).decode(rule)
    return [task.finish(one.index, one.start, end.molecule) for one, end in zip(specs, found, strict=True)]


BENZENE = turned(embedded("c1ccccc1"))


def phenyl() -> Molecule:
    """Benzene without the hydrogen of atom 0."""
    hydrogens, offset = BENZENE.num_hydrogens.copy(), BENZENE.hydrogen_offset.copy()
    hydrogens[0], offset[0] = 0, 0
    return Molecule(BENZENE.pos, BENZENE.atomic_number, BENZENE.formal_charge, hydrogens, offset, BENZENE.bonds)


@pytest.mark.parametrize("rule", ["valence", "raw"])
@pytest.mark.parametrize("core", [BENZENE, phenyl()], ids=["with six hydrogens", "with five"])
def test_what_is_kept_comes_first_and_does_not_move(core: Molecule, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moldiff.diffusion.decoding.REACH", 1e3)  # random weights put atoms anywhere
    task = prepared(Grow(core=core, attach=0, new_atoms=4))
    part: Molecule = task.part.molecule  # type: ignore[attr-defined]
    # The ring may come in its other Kekulé form, which is the same molecule.
    assert smiles(part) == smiles(core)
    assert part.bonds[:, :2].tolist() == core.bonds[:, :2].tolist()
    for found in draw(task, 16, rule):
        molecule = found.molecule
        assert molecule.num_heavy_atoms == 10
        assert molecule.atomic_number[:6].tolist() == [6] * 6
        assert molecule.num_hydrogens[:6].tolist() == [0, 1, 1, 1, 1, 1]
        np.testing.assert_allclose(molecule.pos[:6], core.pos, atol=1e-9)
        np.testing.assert_allclose(molecule.hydrogen_offset[1:6], core.hydrogen_offset[1:], atol=1e-9)
        assert not molecule.hydrogen_offset[0].any()
        inside = [row for row in molecule.bonds.tolist() if max(row[:2]) < 6]
        assert inside == part.bonds.tolist()
        assert (found.fields["kept"], found.fields["attach"]) == ("0 1 2 3 4 5", "0")
        attached = {i for i, j, _ in molecule.bonds.tolist() if i < 6 <= j}
        if rule == "valence":
            assert found.fields["attached"] is True
            assert attached == {0}
            assert canonical_key(molecule)


def test_loose_atoms_are_not_attached() -> None:
    task = prepared(Grow(core="CC", attach=0, new_atoms=2))
    one = SampleSpec.of(task, 0, 0)
    found = draw(task, 1)[0].molecule
    for bonds, attached in (
        ([[0, 1, 1], [0, 2, 1], [2, 3, 1]], True),
        ([[0, 1, 1], [1, 2, 1], [2, 3, 1]], False),  # on the wrong atom
        ([[0, 1, 1], [0, 2, 1]], False),  # an atom is left over
        ([[0, 1, 1], [2, 3, 1]], False),
    ):
        judged = task.finish(0, one.start, replace(found, bonds=np.array(bonds)))
        assert judged.fields["attached"] is attached


def test_without_a_choice_each_sample_attaches_to_an_atom_of_its_own() -> None:
    found = draw(prepared(Grow(core=embedded("CCO"), new_atoms=(1, 2))), 12)
    assert {one.fields["attach"] for one in found} == {"0", "1", "2"}
    assert {one.molecule.num_heavy_atoms for one in found} == {4, 5}


def test_marks_open_ends_and_cuts_say_where_to_attach() -> None:
    for core, keep, ends in (("*CC*", None, "0 1"), ("*c1cccn1*", None, "0 4"), ("CCCO", [1, 2], "0 1")):
        request = Grow(core=core, keep=keep, new_atoms=2)
        task = request.prepare(WIDE, STATISTICS)
        start = task.begin(0, torch.Generator().manual_seed(0))
        part = task.part  # type: ignore[attr-defined]
        assert " ".join(map(str, np.flatnonzero(part.open))) == ends
        assert (start.level.pos[0] == 0).sum() == part.size


def test_a_second_bond_that_is_cut_off_is_wanted_back() -> None:
    kept = Replace(core=embedded("CS(=O)(=O)CC"), remove=[2, 3]).prepare(WIDE, STATISTICS)
    assert kept.part.open.tolist() == [0, 4, 0, 0]
    assert kept.sizes() == (6, 6)


def test_records_of_pieces_mean_the_same_in_one_record_or_two(tmp_path: Path) -> None:
    ring, tail = embedded("c1ccccc1"), embedded("CN")
    tail = replace(tail, pos=tail.pos + np.array([0.0, 0.0, 5.0]))
    both = from_rdkit(Chem.CombineMols(to_rdkit(ring), to_rdkit(tail)))
    assert isinstance(both, Molecule)
    write(tmp_path / "two.sdf", [ring, tail])
    write(tmp_path / "one.sdf", [both])
    starts = []
    for name, attach in (("one.sdf", [0, 6]), ("two.sdf", [0, 12])):  # numbers count the hydrogens of a record
        task = Link(core=str(tmp_path / name), attach=attach, new_atoms=3).prepare(WIDE, STATISTICS)
        assert task.attach == (0, 6)
        starts.append(task.begin(0, torch.Generator().manual_seed(3)))
    for one, other in zip(vars(starts[0].clean).values(), vars(starts[1].clean).values(), strict=True):
        if one is not None:
            torch.testing.assert_close(one, other)


def test_with_everything_known_nothing_moves() -> None:
    molecule = embedded("CC(O)C")
    found = draw(prepared(Analogues(of=molecule, noise=0.0)), 2, "raw")
    for one in found:
        np.testing.assert_allclose(one.molecule.pos, molecule.pos, atol=1e-5)
        assert np.array_equal(one.molecule.bonds, molecule.bonds)
        assert one.fields["similarity"] == 1.0


def test_with_nothing_known_the_molecules_are_those_of_no_task() -> None:
    plain = NewMolecules(STATISTICS.size_counts)
    assert element_mask(VOCABULARY, ["C", "N", "O", "H"]) is None
    mask = np.ones(len(VOCABULARY.atom_classes), dtype=bool)
    for one, other in zip(draw(plain, 4), draw(ConstrainedTask(task=plain, mask=mask), 4), strict=True):
        assert np.array_equal(one.molecule.pos, other.molecule.pos)
        assert np.array_equal(one.molecule.bonds, other.molecule.bonds)


def test_noise_of_one_leaves_nothing_of_the_molecule() -> None:
    far = draw(prepared(Analogues(of=embedded("CCCO"), noise=1.0)), 3)
    whole = draw(NewMolecules({4: 1}), 1)
    assert all(one.molecule.num_heavy_atoms == whole[0].molecule.num_heavy_atoms for one in far)
    assert all(one.fields["similarity"] is None or 0 <= float(one.fields["similarity"]) <= 1 for one in far)


@pytest.mark.parametrize("rule", ["valence", "raw"])
def test_only_the_elements_asked_for_occur(rule: str) -> None:
    mask = element_mask(VOCABULARY, ["C", "H", "O"], ["O"])
    assert mask is not None
    limited = ConstrainedTask(task=NewMolecules({5: 1}), mask=mask)
    assert {6} == {z for one in draw(limited, 8, rule) for z in one.molecule.atomic_number}
    no_hydrogen = element_mask(VOCABULARY, forbid=["H"])
    assert no_hydrogen is not None
    assert not VOCABULARY.table[no_hydrogen, 2].any()
    with pytest.raises(MoldiffError, match="elements: got 'Br', expected elements that the model knows: C, H, N, O"):
        element_mask(VOCABULARY, ["C", "Br"])
    with pytest.raises(MoldiffError, match="none of the model's classes"):
        element_mask(VOCABULARY, ["C"], ["C"])


@pytest.mark.parametrize("rule", ["valence", "raw"])
def test_every_molecule_has_the_formula(rule: str) -> None:
    for one in draw(prepared(Formula(formula="C4H8O")), 12, rule):
        assert one.problem is None
        assert sorted(one.molecule.atomic_number.tolist()) == [6, 6, 6, 6, 8]
        assert one.molecule.num_hydrogens.sum() == 8


def test_compositions_are_drawn_in_proportion_to_their_weights() -> None:
    carbons = (AtomClass(6, 0, h) for h in range(4))
    vocabulary = Vocabulary((*carbons, AtomClass(7, 1, 3), AtomClass(8, -1, 0)), {})
    marginal = np.array([0.1, 0.2, 0.3, 0.2, 0.15, 0.05])
    elements = np.array([6, 6, 7, 8])
    composition = Composition.of(elements, 6, 0, vocabulary, marginal)
    assert composition is not None
    # N+H3 and O- are certain; three hydrogens are left for two carbons.
    weights = {(h, 3 - h): marginal[h] * marginal[3 - h] for h in range(4)}
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(composition.draw(generator).tolist()) for _ in range(4000)]
    assert {one[2:] for one in drawn} == {(4, 5)}
    for pair, weight in weights.items():
        share = sum(one[:2] == pair for one in drawn) / len(drawn)
        assert share == pytest.approx(weight / sum(weights.values()), abs=0.03)
    assert Composition.of(elements, 6, 1, vocabulary, marginal) is None
    assert Composition.of(elements, 13, 0, vocabulary, marginal) is None


def test_a_charged_formula() -> None:
    task = Formula(formula="C2H8N+").prepare(WIDE, replace(STATISTICS, atom_marginal=(1 / 21,) * 21))
    for k in range(20):
        start = task.begin(k, torch.Generator().manual_seed(k))
        table = WIDE.table[start.clean.atom_type[0].numpy()]
        assert (table[:, 1].sum(), table[:, 2].sum()) == (1, 8)


def test_bonds_leave_coordinates_and_order_traceable(tmp_path: Path) -> None:
    molecule = turned(embedded("CC(O)CC"))
    mol = to_rdkit(molecule)
    order = np.random.default_rng(0).permutation(mol.GetNumAtoms()).tolist()
    shuffled = Chem.RenumberAtoms(mol, order)
    path = tmp_path / "a.xyz"
    path.write_text(Chem.MolToXYZBlock(shuffled).replace("\n\n", "\ncharge=0\n", 1))
    task = prepared(Bonds(input=str(path)))
    assert task.count(100) == 1
    found = draw(task, 1)[0]
    written = to_rdkit(found.molecule).GetConformer().GetPositions()
    numbers = [int(word) for word in str(found.fields["input_atoms"]).split()]
    np.testing.assert_allclose(written, shuffled.GetConformer().GetPositions()[numbers], atol=1e-5)
    assert found.molecule.num_hydrogens.sum() == molecule.num_hydrogens.sum()
    assert canonical_key(found.molecule)


def test_tasks_travel_to_other_processes() -> None:
    for request in (Grow(core="CCO"), Conformers(smiles="C[C@H](O)N"), Formula(formula="C3H8"), Analogues(of="CCO")):
        task = request.prepare(WIDE, STATISTICS)
        again = pickle.loads(pickle.dumps(task))
        one, other = (t.begin(1, torch.Generator().manual_seed(1)) for t in (task, again))
        assert torch.equal(one.clean.pos, other.clean.pos)
        assert torch.equal(one.clean.atom_type, other.clean.atom_type)


def test_a_record_says_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "core.sdf"
    write(path, [BENZENE])
    found = description(Grow(core=str(path), attach=[0], new_atoms="2..3"))
    assert (found["name"], found["attach"], found["new_atoms"]) == ("grow", [0], "2..3")
    assert len(found["core_sha256"]) == 16


HYDROGEN = "attach: atom 7 is a hydrogen or *, expected the heavy atom it is bonded to"
WRONG: list[tuple[TaskSpec, str]] = [
    (Grow(), "core: nothing given, expected a file"),
    (Grow(core="CC(C"), "core: got 'CC(C', which is neither a file (.sdf, "),
    (Grow(core="nope.sdf"), "nope.sdf: no such file"),
    (Grow(core="C(C)(C)(C)(C)C"), "core: atom 0 (C): valence 5 is greater than permitted"),
    (Grow(core="CC.CC"), "core: several pieces without coordinates"),
    (Grow(core=["C", "CC"]), "core: got 2 molecules, expected one"),  # type: ignore[arg-type]
    (Grow(core="CBr"), "core: atom 1 (Br): the model does not know Br, only C H N O"),
    (Grow(core="C[Fe]C"), "core: atom 1 (Fe): the model does not know Fe, only C H N O"),
    (Conformers(smiles="[Fe+2]"), "smiles: atom 0 (Fe): the model does not know Fe+2, only C H N O"),
    (Grow(core="C[NH3+]"), "core: atom 1 (N): the model does not know NH3+1, of this element only NH"),
    (Grow(core="CCO", keep=[0, 9]), "keep: got atom 9, expected 0 to 2; atoms count from 0"),
    (Grow(core="CCO", keep=-1), "keep: got atom -1"),
    (Grow(core="CCO", keep=[0, 0]), "keep: got atom 0 (C) twice"),
    (Grow(core="CCO", keep=[]), "keep: got no atom"),
    (Grow(core="CCO", keep=["a"]), "keep: got 'a', expected numbers of atoms"),  # type: ignore[list-item]
    (Grow(core="CCO", keep="C(("), "keep: got 'C((', expected numbers of atoms, or a SMARTS"),
    (Grow(core="CCO", keep="N"), "keep: N matches no heavy atom of CCO"),
    (Grow(core="CCO", keep="C"), "keep: C matches 2 places, expected one; say which: [0] or [1]"),
    (Grow(core="CCO", keep=[0, 1], attach=2), "attach: atom 2 (O) is not among the atoms that are kept"),
    (Grow(core=BENZENE, attach=7), HYDROGEN),
    (Grow(core="CC(C)(C)C", attach=1), "attach: atom 1 (C) has no hydrogen to lose and no open end"),
    (Grow(core="CCO", new_atoms=0), "new_atoms: got 0, expected a number such as 6 or a range such as 6..10"),
    (Grow(core="CCO", new_atoms="5..2"), "new_atoms: got 5..2"),
    (Grow(core=BENZENE), "new_atoms: nothing given, but 6 atoms are kept and the model has seen 6 at most"),
    (Grow(core="C*C"), "core: atom 1 (*): an anchor mark * needs one single bond to a heavy atom"),
    (Replace(core="CCO"), "remove: nothing given"),
    (Replace(core="CCO", remove=[0, 1, 2]), "remove: takes all atoms, expected some to stay"),
    (Replace(core="CCO", remove=0, attach=0), "attach: atom 0 (C) is not among the atoms that are kept"),
    (Link(core="CCO"), "core: is in one piece, expected two or more to link"),
    (Conformers(), "conformers: got neither of smiles and input, expected one of them"),
    (Conformers(smiles="CC", input="a.sdf"), "conformers: got both of smiles and input"),
    (Conformers(smiles="CC", rmsd=0.0), "rmsd: got 0.0"),
    (Conformers(smiles="CC.C"), "smiles: CC.C is in several pieces, expected one molecule"),
    (Conformers(smiles="C[CH2]"), "smiles: atom 1 (C) of C[CH2] lacks bonds"),
    (Conformers(smiles="CCF"), "smiles: atom 2 (F): the model does not know F"),
    (Bonds(), "input: nothing given"),
    (Formula(), "formula: got None, expected elements and numbers such as C7H10N2O"),
    (Formula(formula="c7"), "formula: got 'c7'"),
    (Formula(formula="C3Br"), "formula: got Br in C3Br, expected elements of the model: C, H, N, O"),
    (Formula(formula="C2H5"), "formula: C2H5 has an odd number of electrons, expected a closed shell"),
    (Formula(formula="C2H8"), "formula: C2H8 has 8 hydrogens, expected 6 at most"),
    (Formula(formula="H2"), "expected 1 to 250 heavy atoms"),
    (Analogues(of="CCO", noise=1.5), "noise: got 1.5, expected a number from 0 to 1"),
]


@pytest.mark.parametrize(("request_", "said"), WRONG, ids=[f"{n}" for n in range(len(WRONG))])
def test_wrong_requests_are_one_clear_line(request_: TaskSpec, said: str) -> None:
    with pytest.raises(MoldiffError) as caught:
        prepared(request_)
    assert str(caught.value).startswith(said) or said in str(caught.value)
    assert "\n" not in str(caught.value)


def two_pieces(path: Path, gap: float) -> str:
    ring, tail = embedded("c1ccccc1"), embedded("CN")
    far = replace(tail, pos=tail.pos + np.array([0.0, 0.0, gap]))
    write(path, [ring, far])
    return str(path)


@pytest.mark.parametrize(
    ("attach", "gap", "said"),
    [
        ([0, 1], 5.0, "attach: got 0 (C) and 1 (C), none in the piece of atom 12 (C); expected one in each piece"),
        ([0, 99], 5.0, "attach: got atom 99, expected 0 to 18; atoms count from 0"),
        ([0, 12], 30.0, "a gap too long for 5 new atoms; expected new_atoms="),
    ],
)
def test_impossible_links_are_named(attach: list[int], gap: float, said: str, tmp_path: Path) -> None:
    core = two_pieces(tmp_path / "pieces.sdf", gap)
    with pytest.raises(MoldiffError) as caught:
        Link(core=core, attach=attach, new_atoms=(3, 5)).prepare(WIDE, STATISTICS)
    assert said in str(caught.value)


def test_drawings_are_refused_where_coordinates_are_needed(tmp_path: Path) -> None:
    mol = Chem.MolFromSmiles("CC(C)O")
    AllChem.Compute2DCoords(mol)
    (tmp_path / "flat.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    with pytest.raises(MoldiffError, match="core: 2D coordinates, expected 3D ones, or a SMILES"):
        prepared(Grow(core=str(tmp_path / "flat.sdf")))
    assert prepared(Conformers(input=str(tmp_path / "flat.sdf"))).count(3) == 3


def test_a_start_allows_what_is_known_whatever_the_elements() -> None:
    mask = element_mask(VOCABULARY, forbid=["O"])
    assert mask is not None
    task = ConstrainedTask(task=prepared(Grow(core="CCO", attach=0, new_atoms=2)), mask=mask)
    start: PartialState = task.begin(0, torch.Generator().manual_seed(0))
    assert start.allowed is not None
    assert bool(start.allowed[0, :3].all())
    assert start.allowed[0, 3:].sum(-1).tolist() == [int(mask.sum())] * 2


def test_total_charge_is_that_of_training_of_what_is_kept_or_as_asked() -> None:
    vocabulary = WIDE
    new = NewMolecules.like_training(STATISTICS, vocabulary)
    assert [total.value for total in new.totals(0)] == [0]
    assert NewMolecules.like_training(replace(STATISTICS, charge=None), vocabulary).totals(0) == ()
    asked = ConstrainedTask(task=new, charge=SumConstraint.of_charge(vocabulary, -1))
    assert [total.value for total in asked.totals(3)] == [-1]
    acetate = embedded("CC(=O)[O-]")
    task = Grow(core=acetate, attach=0, new_atoms=2).prepare(vocabulary, STATISTICS)
    assert [total.value for total in task.totals(0)] == [-1]
    assert [total.value for total in Analogues(of=acetate).prepare(vocabulary, STATISTICS).totals(0)] == [-1]
