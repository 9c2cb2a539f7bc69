"""Stereo from every way in to every way out, judged by RDKit and by dihedrals of what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import needs_weights
from rdkit import Chem
from rdkit.Chem import AllChem
from read_back import dihedral, findings

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.molecules import convert, identity
from moldiff.molecules.conformers import marks
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.smiles import smiles_record
from moldiff.molecules.formats.writer import write
from moldiff.molecules.molecule import Molecule
from moldiff.tasks.inputs import given
from moldiff.view.depict import draw

pytestmark = pytest.mark.usefixtures("one_thread")

OWN_E = Path(__file__).parents[1] / "data" / "own_e.sdf"
BUTENE, BUTENOL = r"C/C=C\C", r"C/C=C\CO"


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    return mol


def molecule_of(mol: Chem.Mol) -> Molecule:
    molecule = convert.from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    return molecule


def drawn(smiles: str) -> Chem.Mol:
    mol = Chem.MolFromSmiles(smiles)
    AllChem.Compute2DCoords(mol)
    return mol


def mol2(mol: Chem.Mol) -> str:
    """A MOL2 record with the types of Corina."""
    mol = Chem.Mol(mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    pos = mol.GetConformer().GetPositions()
    atoms = []
    for atom, (x, y, z) in zip(mol.GetAtoms(), pos, strict=True):
        flat = atom.GetHybridization() == Chem.HybridizationType.SP2 and atom.GetSymbol() == "C"
        kind = "H" if atom.GetSymbol() == "H" else f"{atom.GetSymbol()}.{2 if flat else 3}"
        index = atom.GetIdx() + 1
        atoms.append(f"{index} {atom.GetSymbol()}{index} {x:.4f} {y:.4f} {z:.4f} {kind} 1 UNL 0.0\n")
    bonds = []
    for bond in mol.GetBonds():
        ends = f"{bond.GetBeginAtomIdx() + 1} {bond.GetEndAtomIdx() + 1}"
        bonds.append(f"{bond.GetIdx() + 1} {ends} {int(bond.GetBondTypeAsDouble())}\n")
    counts = f"{len(atoms)} {len(bonds)} 0 0 0"
    head = f"@<TRIPOS>MOLECULE\nmol\n{counts}\nSMALL\nNO_CHARGES\n\n"
    return f"{head}@<TRIPOS>ATOM\n{''.join(atoms)}@<TRIPOS>BOND\n{''.join(bonds)}"


def flagged_as_either(block: str) -> str:
    return block.replace("  2  3  2  0", "  2  3  2  3")


def parquet(path: Path, smiles: str) -> None:
    table = pytest.importorskip("pyarrow").table({"smiles": [smiles]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)


FILES: dict[str, Callable[[Path, str], object]] = {
    "a.smi": lambda path, smiles: path.write_text(f"{smiles} name\n"),
    "a.csv": lambda path, smiles: path.write_text(f"id,smiles\n1,{smiles}\n"),
    "a.parquet": parquet,
    "2d.sdf": lambda path, smiles: path.write_text(Chem.MolToMolBlock(drawn(smiles)) + "$$$$\n"),
    "2d_v3000.sdf": lambda path, smiles: path.write_text(Chem.MolToV3KMolBlock(drawn(smiles)) + "$$$$\n"),
    "3d.sdf": lambda path, smiles: path.write_text(Chem.MolToMolBlock(embedded(smiles)) + "$$$$\n"),
    "3d_either.sdf": lambda path, smiles: path.write_text(flagged_as_either(Chem.MolToMolBlock(embedded(smiles)))),
    "3d.mol2": lambda path, smiles: path.write_text(mol2(embedded(smiles))),
}
"""By name, what writes a molecule to a file of that kind."""

ISOMERS = [BUTENOL, "C/C=C/CO", "C[C@H](O)CN", r"C/C(CO)=N\O", r"C[C@@H](O)/C=C\C"]


@pytest.mark.parametrize("smiles", ISOMERS)
@pytest.mark.parametrize("name", FILES)
def test_every_reader_has_the_stereo_of_the_file(tmp_path: Path, name: str, smiles: str) -> None:
    FILES[name](tmp_path / name, smiles)
    (record,) = read(tmp_path / name).records
    assert record.problem is None
    found = identity.strict_key(record.mol)
    assert found == Chem.CanonSmiles(smiles) or (name == "3d_either.sdf" and "=N" in smiles)
    # A task that draws coordinates is told the same by marks, one that starts from some by these.
    for source in (str(tmp_path / name), record.mol):
        (free,), _ = given("input", source, coordinates=False)
        assert Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(free.mol))) == found
        if not name.startswith("2d"):
            (placed,), _ = given("core", source)
            assert identity.strict_key(placed.molecule) == found


def test_objects_of_python_keep_their_stereo() -> None:
    bare = Chem.AddHs(Chem.MolFromSmiles(BUTENOL))
    for bond in bare.GetBonds():  # marked as from Python, without directions of the single bonds
        bond.SetBondDir(Chem.BondDir.NONE)
    solid = embedded(BUTENOL)
    contrary = Chem.Mol(solid)
    next(b for b in contrary.GetBonds() if b.GetBondTypeAsDouble() == 2).SetStereo(Chem.BondStereo.STEREOTRANS)
    unsanitized = Chem.MolFromSmiles(BUTENOL, sanitize=False)
    for source in (bare, solid, contrary, unsanitized, molecule_of(solid), drawn(BUTENOL)):
        (found,), _ = given("input", source, coordinates=False)
        assert Chem.MolToSmiles(Chem.RemoveHs(found.mol)) == Chem.CanonSmiles(BUTENOL)
    (free,), _ = given("input", drawn("CC=CCO"), coordinates=False)
    assert marks(free.mol) == ({}, [])  # what is not stated is not made up from how it is drawn


def sampled(folder: Path, *words: str) -> list[Chem.Mol]:
    """The molecules of the command as RDKit reads them; all they say is what their coordinates say."""
    out = folder / "out.sdf"
    assert main(["sample", *words, "steps=12", "workers=0", f"out={out}"]) == 0
    assert [one for one in findings(out) if one.kind in ("graph", "charge", "stereo", "field")] == []
    return list(Chem.SDMolSupplier(str(out), removeHs=False))


def side(mol: Chem.Mol, pattern: str) -> float:
    """The dihedral of four atoms in degrees."""
    (match,) = mol.GetSubstructMatches(Chem.MolFromSmarts(pattern))
    return dihedral(mol.GetConformer().GetPositions()[list(match)])


@needs_weights
@pytest.mark.parametrize("name", FILES)
def test_s2_conformers_have_the_stereo_of_any_file(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name, BUTENOL)
    for mol in sampled(tmp_path, "task=conformers", f"input={tmp_path / name}", "n=3"):
        assert side(mol, "[CH3]C=C[CH2]") < 60


@needs_weights
def test_s2_conformers_of_smiles_are_those_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("C/C=C\\C z\nC/C=C\\C(=O)O z3\nC/C=C/C(=O)O e3\n")
    found = sampled(tmp_path, "task=conformers", f"input={tmp_path / 'a.smi'}", "n=3")
    assert len(found) == 9
    for mol in found:
        assert (side(mol, "[CH3]C=CC") < 60) == mol.GetProp("input").startswith("z")
    for mol in sampled(tmp_path, "task=conformers", f'smiles="{BUTENE}"', "n=3"):
        assert side(mol, "[CH3]C=C[CH3]") < 60


@needs_weights
def test_s3_marks_without_a_meaning_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("C[C@H](C)O iproh\nCCO e\nC[N@](CC)O n\n")
    found = sampled(tmp_path, "task=conformers", f"input={tmp_path / 'a.smi'}", "n=2", "max_draws=40")
    assert sorted(mol.GetProp("SMILES") for mol in found) == 2 * ["CC(C)O"] + 2 * ["CCN(C)O"] + 2 * ["CCO"]


@needs_weights
def test_s4_a_double_bond_flagged_as_either_is_what_its_coordinates_are(tmp_path: Path) -> None:
    for mol in sampled(tmp_path, "task=conformers", f"input={OWN_E}", "n=4"):
        assert side(mol, "[CH3]C=CC") > 120


@needs_weights
@pytest.mark.parametrize(
    ("task", "core"), [("grow", r"*/C=C\C"), ("grow", r"C/C=C\*"), ("replace", r"C/C=C\CCO"), ("link", None)]
)
def test_what_is_kept_of_a_smiles_keeps_its_stereo(tmp_path: Path, task: str, core: str | None) -> None:
    source = tmp_path / "core.sdf"
    if core is None:
        far = embedded("CO")
        for atom, (x, y, z) in enumerate(far.GetConformer().GetPositions()):
            far.GetConformer().SetAtomPosition(atom, (x, y, z + 5.0))
        blocks = [flagged_as_either(Chem.MolToMolBlock(mol)) for mol in (embedded(BUTENE), far)]
        source.write_text("".join(f"{block}$$$$\n" for block in blocks))
    more = ["remove=[4,5]"] if task == "replace" else []
    given_as = f"core={source}" if core is None else f'core="{core}"'
    for mol in sampled(tmp_path, f"task={task}", given_as, "new_atoms=3", "n=2", *more):
        pos = mol.GetConformer().GetPositions()
        chains = [
            match for match in mol.GetSubstructMatches(Chem.MolFromSmarts("[!#1]C=C[!#1]")) if min(match[1:3]) < 4
        ]
        assert chains
        assert all(dihedral(pos[list(chain)]) < 60 for chain in chains)


@pytest.mark.parametrize("name", ["a.smi", "a.csv", "2d.sdf", "3d_either.sdf", "3d.mol2"])
def test_prepared_molecules_have_the_stereo_of_the_file(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name, BUTENOL)
    assert main(["prepare", f"data.path={tmp_path / name}", f"out={tmp_path / 'set'}", "num_workers=1"]) == 0
    write(tmp_path / "out.sdf", [MoleculeDataset.load(tmp_path / "set").molecule(0)])
    (mol,) = Chem.SDMolSupplier(str(tmp_path / "out.sdf"), removeHs=False)
    assert side(mol, "[CH3]C=C[CH2]") < 60
    assert findings(tmp_path / "out.sdf") == []


@pytest.mark.parametrize(
    "smiles", [*ISOMERS, r"F/C=C\C=C/F", "C[C@H]1C[C@@H]1/C=C/C", "CC[S@](C)=O", r"C/C=C\C=[N+]=[N-]"]
)
def test_every_way_out_has_the_stereo_of_the_coordinates(tmp_path: Path, smiles: str) -> None:
    wanted, molecule = Chem.CanonSmiles(smiles), molecule_of(embedded(smiles))
    for suffix in ("sdf", "smi", "csv"):
        write(tmp_path / f"out.{suffix}", [molecule])
        assert findings(tmp_path / f"out.{suffix}") == []
    (mol,) = Chem.SDMolSupplier(str(tmp_path / "out.sdf"))
    assert Chem.MolToSmiles(mol) == wanted
    assert (tmp_path / "out.smi").read_text().split() == [wanted]
    exported = convert.to_rdkit(molecule)
    assert Chem.MolToSmiles(Chem.RemoveHs(Chem.MolFromMolBlock(Chem.MolToMolBlock(exported)))) == wanted
    Chem.SanitizeMol(exported)
    assert Chem.MolToSmiles(Chem.RemoveHs(exported)) == wanted
    assert identity.smiles(molecule, stereo=True) == identity.strict_key(molecule) == wanted


def test_one_kekule_form_makes_no_centres() -> None:
    mol = convert.to_rdkit(molecule_of(embedded("CC=C1c2ccccc2-c2ccccc12")))
    assert marks(mol) == ({}, [])


def test_a_broken_graph_has_its_stereo_too() -> None:
    mol = embedded(BUTENOL)
    mol.GetAtomWithIdx(4).SetFormalCharge(-1)  # an oxygen with one bond too many for its charge
    block = Chem.MolToMolBlock(convert.to_rdkit(molecule_of(mol)), includeStereo=False, kekulize=False)
    assert not [line for line in block.splitlines() if line.endswith("  2  3")]


@pytest.mark.parametrize("smiles", ["C[P@TB1](F)(Cl)(Br)O", "F[S@OH1](Cl)(Br)(C)(N)O"])
def test_only_tetrahedral_centres_are_named(tmp_path: Path, smiles: str) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1, useRandomCoords=True) == 0
    plain = Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)
    molecule = molecule_of(mol)
    assert identity.strict_key(molecule) == identity.strict_key(mol) == identity.strict_key(smiles) == plain
    assert identity.strict_key(smiles_record(1, smiles, "", {}).mol) == plain
    write(tmp_path / "a.smi", [molecule])
    assert findings(tmp_path / "a.smi") == []


def test_s4_the_page_draws_no_crossed_bond() -> None:
    (record,) = read(OWN_E).records
    plain = Chem.MolFromMolBlock(flagged_as_either(OWN_E.read_text()).replace("  2  3  2  3", "  2  3  2  0"))
    crossed = Chem.MolFromSmiles("CC=CC(=O)O")
    crossed.GetBondWithIdx(1).SetStereo(Chem.BondStereo.STEREOANY)
    assert draw(record.mol, "a") == draw(plain, "a")
    assert draw(record.mol, "a") != draw(crossed, "a")


def evaluated(folder: Path, source: Path, reference: Path) -> dict[str, tuple[float, float]]:
    """Numerator and denominator of each result of the command."""
    words = [f"input={source}", f"reference={reference}", f"out={folder / 'report.json'}"]
    assert main(["evaluate", *words]) == 0
    results = json.loads((folder / "report.json").read_text())["results"]
    return {one["name"]: (one["numerator"], one["denominator"]) for one in results}


def test_s4_an_own_file_against_itself_is_not_novel(tmp_path: Path) -> None:
    assert evaluated(tmp_path, OWN_E, OWN_E)["p2_novel_strict"] == (0, 1)
    write(tmp_path / "again.sdf", [read(OWN_E).records[0].as_drawn()])
    assert evaluated(tmp_path, tmp_path / "again.sdf", OWN_E)["p2_novel_strict"] == (0, 1)
    (tmp_path / "a.smi").write_text("C/C=C/C(=O)O\n")
    assert evaluated(tmp_path, OWN_E, tmp_path / "a.smi")["p2_novel_strict"] == (0, 1)
    (tmp_path / "a.smi").write_text("C/C=C\\C(=O)O\n")
    assert evaluated(tmp_path, OWN_E, tmp_path / "a.smi")["p2_novel_strict"] == (1, 1)


def test_s5_isomers_of_a_file_of_smiles_are_told_apart_and_known(tmp_path: Path) -> None:
    source = tmp_path / "stereo.smi"
    source.write_text("C[C@H](O)F\nC[C@@H](O)F\nC/C=C/F\nC/C=C\\F\n")
    found = evaluated(tmp_path, source, source)
    assert found["p2_unique_strict"] == (4, 4)
    assert found["p2_novel_strict"] == (0, 4)
    assert found["p2_unique"] == (2, 4)


FIXED = [
    "C1C2CC3CC1CC(C2)C3",
    "OC1C2CC3CC1CC(C2)C3",
    "OCC",
    "[H]C([H])([H])O",
    r"[H]/N=C(/C)CC",
    "c1ccccc1C(C)O",
    "O[C@H]1CC[C@@H](O)CC1",
]


@pytest.mark.parametrize("smiles", FIXED)
def test_s5_strict_keys_have_a_fixed_point(tmp_path: Path, smiles: str) -> None:
    (tmp_path / "a.smi").write_text(f"{smiles}\n")
    (tmp_path / "b.smi").write_text(f"{Chem.CanonSmiles(smiles)}\n")
    key = identity.strict_key(smiles)
    assert identity.strict_key(key) == key == identity.strict_key(Chem.CanonSmiles(smiles))
    for source in ("a.smi", "b.smi"):
        for reference in ("a.smi", "b.smi"):
            assert evaluated(tmp_path, tmp_path / source, tmp_path / reference)["p2_novel_strict"] == (0, 1)


def test_s5_strict_keys_of_coordinates_are_those_of_their_smiles() -> None:
    sample = MoleculeDataset.load(Path(__file__).parents[2] / "data" / "sample")
    keys = [identity.strict_key(sample.molecule(index)) for index in range(400)]
    assert [identity.strict_key(key) for key in keys] == keys
    assert sum("/" in key or "@" in key for key in keys) > 100


def test_a_mirror_image_keeps_its_double_bonds() -> None:
    mol = embedded(r"C[C@@H](O)/C=C\C")
    pos = mol.GetConformer().GetPositions() * [1, 1, -1]
    for atom, place in enumerate(pos):
        mol.GetConformer().SetAtomPosition(atom, place)
    assert identity.strict_key(mol) == Chem.CanonSmiles(r"C[C@H](O)/C=C\C")
    assert np.isclose(side(mol, "[CH3]C=C[CH1]"), 0, atol=30)


CAGE = 239
"""Of the example data: a strained cage in which all four arms of two carbons lie in one half of space."""


def test_a_cage_is_written_with_the_hands_that_its_coordinates_have(tmp_path: Path) -> None:
    """RDKit reads a hand off three neighbours in 3D, which of such a carbon say the opposite of all four."""
    molecule = MoleculeDataset.load("data/sample").molecule(CAGE)
    write(tmp_path / "cage.sdf", [molecule])
    assert findings(tmp_path / "cage.sdf") == []
    mol = next(iter(Chem.SDMolSupplier(str(tmp_path / "cage.sdf"))))
    assert Chem.MolToSmiles(mol) == identity.strict_key(molecule)


def test_the_order_of_bonds_in_a_file_does_not_turn_a_hand_round(tmp_path: Path) -> None:
    mol = convert.to_rdkit(MoleculeDataset.load("data/sample").molecule(CAGE))
    ours, of_rdkit = set(), set()
    for seed in range(20):
        shuffled = Chem.RWMol(mol)
        bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType()) for bond in mol.GetBonds()]
        for i, j, _ in bonds:
            shuffled.RemoveBond(i, j)
        for place in np.random.default_rng(seed).permutation(len(bonds)).tolist():
            shuffled.AddBond(*bonds[place])
        path = tmp_path / f"{seed}.sdf"
        path.write_text(Chem.MolToMolBlock(shuffled, includeStereo=False, kekulize=False))
        of_rdkit.add(Chem.MolToSmiles(Chem.MolFromMolFile(str(path))))
        ours.add(identity.strict_key(molecule_of(read(path).records[0].mol)))
        ours.add(identity.strict_key(read(path).records[0].mol))
    assert len(of_rdkit) > 1
    assert len(ours) == 1
