import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.data.dataset import MoleculeDataset
from moldiff.diffusion.batch import collate, to_molecules
from moldiff.errors import MoldiffError
from moldiff.molecules import convert, identity, validity
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import AtomClass, Vocabulary

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


@pytest.fixture(scope="module")
def sample():
    return MoleculeDataset.load(SAMPLE)


def embed_conformer(smiles: str) -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    molecule = convert.from_rdkit(mol)
    assert isinstance(molecule, Molecule)
    return molecule


def atom(number, hydrogens, charge=0):
    """One heavy atom with hydrogens 1 Å away along the axes."""
    directions = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    offsets = directions * (np.arange(4) < hydrogens)[:, None]
    column = [np.array([value]) for value in (number, charge, hydrogens)]
    return Molecule(np.zeros((1, 3)), *column, offsets[None], np.zeros((0, 3), dtype=np.int64))


def assert_same(left, right, tolerance):
    for name in ("atomic_number", "formal_charge", "num_hydrogens", "bonds"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    np.testing.assert_allclose(left.pos, right.pos, atol=tolerance)
    np.testing.assert_allclose(left.hydrogen_offset, right.hydrogen_offset, atol=tolerance)


def test_200_molecules_survive_rdkit_and_batches(sample):
    molecules = [sample.molecule(i) for i in range(200)]
    back = [convert.from_rdkit(convert.to_rdkit(molecule)) for molecule in molecules]
    for before, after in zip(molecules, back, strict=True):
        assert_same(before, after, 1e-12)
        assert after.name == before.name
    for before, after in zip(
        molecules, to_molecules(collate(molecules, sample.vocabulary), sample.vocabulary), strict=True
    ):
        assert identity.canonical_key(before) == identity.canonical_key(after)
        assert identity.strict_key(before) == identity.strict_key(after)


def test_all_of_the_sample_is_valid_and_its_smiles_agree(sample):
    for i in range(len(sample)):
        molecule = sample.molecule(i)
        assert validity.check(molecule) is None
        assert identity.strict_key(molecule) == sample.smiles[i]
    for i in range(0, len(sample), 5):
        assert identity.canonical_key(sample.molecule(i)) == identity.canonical_key(sample.smiles[i])


def test_to_rdkit_is_explicit_and_ordered():
    mol = convert.to_rdkit(replace(embed_conformer("OC"), name="methanol"))
    assert [a.GetSymbol() for a in mol.GetAtoms()] == ["O", "C", "H", "H", "H", "H"]
    assert [b.GetOtherAtomIdx(b.GetEndAtomIdx()) for b in mol.GetBonds()] == [0, 0, 1, 1, 1]
    assert all(a.GetNoImplicit() for a in mol.GetAtoms())
    assert mol.GetConformer().Is3D()
    assert mol.GetProp("_Name") == "methanol"


@pytest.mark.parametrize(
    ("smiles", "charges"),
    [
        ("[NH3+]CC(=O)[O-]", [1, 0, 0, 0, -1]),
        ("C[N+](C)(C)C", [0, 1, 0, 0, 0]),
        ("C[N+](C)(C)[O-]", [0, 1, 0, 0, -1]),
        ("[N-]=[N+]=NC", [-1, 1, 0, 0]),
        ("C[N+](=O)[O-]", [0, 1, 0, -1]),
    ],
)
def test_charges_are_preserved(smiles, charges):
    molecule = embed_conformer(smiles)
    assert molecule.formal_charge.tolist() == charges
    assert validity.check(molecule) is None
    again = convert.from_rdkit(convert.to_rdkit(molecule))
    assert again.formal_charge.tolist() == charges
    assert identity.smiles(again) == Chem.CanonSmiles(smiles)


def test_aromatic_rings_are_kekulised():
    orders = sorted(embed_conformer("c1ccccc1").bonds[:, 2].tolist())
    assert orders == [1, 1, 1, 2, 2, 2]
    assert identity.smiles(embed_conformer("c1cc[nH]c1")) == "c1cc[nH]c1"


@pytest.mark.parametrize(
    ("molecule", "stable"),
    [
        (atom(6, 3), False),  # CH3 must never pass as methane
        (atom(7, 2), False),
        (atom(6, 4), True),
        (atom(8, 2), True),
        (atom(7, 4, 1), True),
        (atom(7, 4), False),
        (atom(8, 1, -1), True),
        (atom(8, 3), False),
    ],
)
def test_valence_table_on_explicit_graphs(molecule, stable):
    assert validity.is_stable(molecule) is stable
    assert (validity.check(molecule) is None) is stable


def test_missing_bonds_are_radicals_and_surplus_bonds_are_valence():
    methyl = validity.check(atom(6, 3))
    assert methyl == InvalidMolecule(Status.RADICAL, "atom 0 (C): bond orders sum to 3, expected 4", 0)
    assert validity.check(atom(8, 3)).status == Status.VALENCE
    assert validity.check(atom(7, 4)).reason == "atom 0 (N): bond orders sum to 4, expected 3"
    assert "[CH3]" in Chem.MolToSmiles(Chem.RemoveHs(convert.sanitized_copy(convert.to_rdkit(atom(6, 3)))))


def test_carbon_monoxide_and_hypervalent_atoms_are_valid():
    for smiles in ("[C-]#[O+]", "FS(F)(F)(F)(F)F", "F[P-](F)(F)(F)(F)F", "CS(C)(=O)=O", "COP(=O)(OC)OC"):
        number = [a.GetAtomicNum() for a in Chem.AddHs(Chem.MolFromSmiles(smiles)).GetAtoms()]
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        conformer = Chem.Conformer(len(number))
        conformer.SetPositions(np.random.default_rng(0).normal(size=(len(number), 3)))
        mol.AddConformer(conformer)
        molecule = convert.from_rdkit(mol)
        assert validity.check(molecule) is None, smiles
        assert identity.smiles(molecule) == Chem.CanonSmiles(smiles)


def test_valences_observed_in_the_data_are_accepted():
    selenol = atom(34, 2)
    assert validity.check(selenol).reason == "atom 0 (Se): no valence known for charge +0"
    assert validity.check(selenol, Vocabulary((AtomClass(34, 0, 2),), {(34, 0): (2,)})) is None


def test_loose_fragments_are_not_valid():
    one, two = atom(8, 2), atom(8, 2)
    joined = {
        name: np.concatenate([getattr(one, name), getattr(two, name)])
        for name in ("atomic_number", "formal_charge", "num_hydrogens", "hydrogen_offset", "bonds")
    }
    pair = Molecule(pos=np.array([[0.0, 0, 0], [6, 0, 0]]), **joined)
    assert validity.is_stable(pair)
    assert validity.check(pair) == InvalidMolecule(Status.DISCONNECTED, "2 fragments, expected one")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(bad):
    water = atom(8, 2)
    moved = replace(water, pos=np.array([[bad, 0, 0]]))
    assert validity.check(moved).status == Status.NON_FINITE
    assert convert.from_rdkit(convert.to_rdkit(moved)).status == Status.NON_FINITE
    offsets = water.hydrogen_offset.copy()
    offsets[0, 1, 2] = bad
    assert validity.check(replace(water, hydrogen_offset=offsets)).status == Status.NON_FINITE


def placed(smiles, pos=None, sanitize=True):
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if sanitize:
        Chem.SanitizeMol(mol)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.arange(3.0 * mol.GetNumAtoms()).reshape(-1, 3) if pos is None else pos)
    mol.AddConformer(conformer)
    return mol


@pytest.mark.parametrize(
    ("mol", "reason"),
    [
        (
            placed("[H][O][H].[H]"),
            "atom 3 (H): 0 bonds, charge +0, expected one single bond to a heavy atom and charge 0",
        ),
        (placed("[H][H].O"), "atom 0 (H): 1 bonds, charge +0, expected one single bond to a heavy atom and charge 0"),
        (placed("*C"), "atom 0 (*): dummy atom"),
        (placed("[H][H]"), "no heavy atom"),
        (placed("CO", np.zeros((2, 3))), "no 3D coordinates"),
        (Chem.MolFromSmiles("CO"), "no 3D coordinates"),
        (placed("[H][P]([H])([H])([H])[H]"), "atom 1 (P): more than 4 hydrogens"),
        (placed("c1cccc1", sanitize=False), "cannot kekulise: Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4"),
        (placed("N->[Pt]"), "atom 0 (N): bond to Pt of type DATIVE, expected single, double, triple or aromatic"),
    ],
)
def test_from_rdkit_says_why_not(mol, reason):
    outcome = convert.from_rdkit(mol)
    assert isinstance(outcome, InvalidMolecule)
    assert outcome.reason == reason


def test_drawings_are_not_3d():
    mol = Chem.MolFromSmiles("CO")
    AllChem.Compute2DCoords(mol)
    assert convert.from_rdkit(mol).reason == "no 3D coordinates"


def test_number_fields_become_properties():
    mol = placed("CO")
    for key, value in {"gap": "0.25", "note": "fine", "bad": "nan"}.items():
        mol.SetProp(key, value)
    mol.SetIntProp("rings", 2)
    assert convert.from_rdkit(mol).properties == {"gap": 0.25, "rings": 2.0}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("C[S+](C)[O-]", "CS(C)=O"),
        ("[2H]C([2H])([2H])O", "CO"),
        ("[CH3:1][OH:2]", "OC"),
        ("[H]O[H]", "O"),
        ("CN(=O)=O", "C[N+](=O)[O-]"),
        ("C[C@H](O)F", "C[C@@H](O)F"),
        ("C[P+](C)(C)[O-]", "CP(C)(C)=O"),
    ],
)
def test_one_key_for_one_molecule(left, right):
    assert identity.canonical_key(left) == identity.canonical_key(right)


def test_keys_keep_what_differs():
    assert identity.canonical_key("C[C@H](O)F", stereo=True) != identity.canonical_key("C[C@@H](O)F", stereo=True)
    assert identity.canonical_key("CC(N)=O") != identity.canonical_key("CC(O)=N")  # tautomers are different molecules
    assert identity.canonical_key("CC(=O)O") != identity.canonical_key("CC(=O)[O-]")
    assert identity.strict_key("C[S+](C)[O-]") != identity.strict_key("CS(C)=O")


def test_handedness_is_read_off_the_coordinates():
    left = embed_conformer("C[C@H](O)F")
    right = replace(left, pos=left.pos * [-1, 1, 1], hydrogen_offset=left.hydrogen_offset * [-1, 1, 1])
    assert identity.smiles(left) == identity.smiles(right) == "CC(O)F"
    assert identity.smiles(left, stereo=True) == Chem.CanonSmiles("C[C@H](O)F")
    assert identity.smiles(right, stereo=True) == Chem.CanonSmiles("C[C@@H](O)F")
    assert identity.canonical_key(left) == identity.canonical_key(right)
    assert identity.canonical_key(left, stereo=True) != identity.canonical_key(right, stereo=True)


@pytest.mark.parametrize("text", ["C1CC", "", "C(C)(C)(C)(C)C"])
def test_unreadable_smiles(text):
    with pytest.raises(MoldiffError, match="SMILES"):
        identity.canonical_key(text)


def test_broken_graph_has_no_smiles():
    with pytest.raises(MoldiffError, match="cannot write a SMILES"):
        identity.smiles(atom(8, 4))


def test_hash_is_stable_between_processes():
    code = "from moldiff.molecules.identity import key_hash; print(key_hash('CCO'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == identity.key_hash("CCO") == -4371986520294612883
    assert -(2**63) <= identity.key_hash("C") < 2**63


def test_rdkit_stays_silent_and_speaks_again():
    """In a process of its own, since other packages lead RDKit's log elsewhere when they are imported."""
    script = """
import sys
from rdkit import Chem
from test_chem import atom
from moldiff.molecules.identity import canonical_key; from moldiff.molecules.validity import check
check(atom(8, 4))
canonical_key("C[S+](C)[O-]")
print("now it speaks", file=sys.stderr, flush=True)
Chem.MolFromSmiles("C(C)(C)(C)(C)C")
"""
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}{script}",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    before, _, after = said.partition("now it speaks\n")
    assert before == ""
    assert "valence" in after
