"""Inputs that broke other people's tools, and what `moldiff prepare` makes of them.

Each is a situation of a bug report, reduced to a small input, with the behaviour a user would call right.
"""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from own_files import own_files
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from scipy.spatial.distance import pdist
from test_io import METHYL, METHYL_BONDS, TMAO, TMAO_BONDS, V3000, WATER, WATER_BONDS, block, water

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches
from moldiff.data.prepare import prepare
from moldiff.data.sources import qm9
from moldiff.data.sources.files import Files
from moldiff.errors import MoldiffError
from moldiff.molecules import convert, identity, validity
from moldiff.molecules.formats.reader import read
from moldiff.molecules.formats.writer import write
from moldiff.molecules.molecule import Molecule, Status
from moldiff.molecules.vocabulary import AtomClass

ETHANOL = block("etoh", [("C", 0, 0, 0), ("C", 1.52, 0, 0), ("O", 2.0, 1.34, 0.1)], [(1, 2, 1), (2, 3, 1)])


def source(folder, content, name="a.sdf", **options):
    """A file with the given content as a source, worked on in this process."""
    path = Path(folder) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return own_files(path, **options)


def records(folder, content, name="a.sdf", **options):
    return list(source(folder, content, name, **options).records())


def prepared(folder, content, name="a.sdf", **options):
    return prepare(source(folder, content, name, **options), Path(folder) / "set", progress=False)


def from_smiles(folder, *smiles, **options):
    return records(folder, "".join(f"{text} {number}\n" for number, text in enumerate(smiles)), "a.smi", **options)


def reason(record):
    assert not isinstance(record.outcome, Molecule), "kept, although it should not be"
    return record.outcome.reason


def is_accounted_for(made):
    """Whether kept and rejected records add up to those seen, in the description and in the table of rejects."""
    counts = made.meta["counts"]
    rows = (made.path / "rejected.csv").read_text(encoding="utf-8").count("\n") - 1
    reasons = sum(counts["rejected_by_reason"].values())
    return counts["seen"] == counts["kept"] + counts["rejected"] and rows == counts["rejected"] == reasons


def all_positions(molecule):
    return convert.to_rdkit(molecule).GetConformer().GetPositions()


@pytest.mark.parametrize("workers", [0, 1])
def test_b01_v3000_block_with_an_s_group_that_its_counts_deny(tmp_path, workers):
    first, second = records(tmp_path, V3000 + water, num_workers=workers, time_limit=20.0)
    assert isinstance(first.outcome, Molecule) or "V3000" in reason(first)
    assert isinstance(second.outcome, Molecule)


def test_b02_all_atoms_at_the_origin(tmp_path):
    made = prepared(tmp_path, block("z", [("C", 0, 0, 0), ("O", 0, 0, 0)], [(1, 2, 1)]) + water)
    assert len(made) == 1
    assert is_accounted_for(made)
    assert (made.path / "rejected.csv").read_text().splitlines()[1].startswith('1,z,"no 3D coordinates')


def test_b04_hydrogens_are_not_put_on_top_of_each_other(tmp_path):
    (record,) = records(tmp_path, ETHANOL)
    assert record.outcome.num_atoms == 9
    assert pdist(all_positions(record.outcome)).min() > 0.7
    assert record.notes == ("hydrogens added",)


@pytest.mark.parametrize("hydrogens", ["keep", "none"])
def test_b04_a_set_without_hydrogens_says_so(tmp_path, capsys, hydrogens):
    made = prepare(source(tmp_path, ETHANOL, hydrogens=hydrogens), tmp_path / "set")
    assert "this set has no hydrogens" in capsys.readouterr().err
    assert made.meta["hydrogens"] == "hydrogens counted, not placed"
    molecule = made.molecule(0)
    assert molecule.num_hydrogens.tolist() == [3, 2, 1]
    assert not molecule.hydrogen_offset.any()


def test_b05_of_salts_and_mixtures_the_largest_part_is_kept(tmp_path):
    found = from_smiles(tmp_path, "CC(=O)[O-].[Na+]", "N.N", "C[NH3+].[Cl-]", "CCO.CCC.CC", "CCC.CC.CCO")
    assert [identity.strict_key(record.outcome) for record in found] == ["CC(=O)[O-]", "N", "C[NH3+]", "CCO", "CCO"]
    assert all(pdist(all_positions(record.outcome)).min() > 0.7 for record in found)
    made = prepared(tmp_path, "N.N\nCCO\n", "a.smi")
    assert made.meta["counts"]["notes"]["largest fragment kept"] == 1
    assert [reason(record) for record in from_smiles(tmp_path, "N.N", fragments="reject")] == [
        "2 fragments, expected one"
    ]


def test_b05_the_tie_is_broken_the_same_way_whatever_the_order(tmp_path):
    found = from_smiles(tmp_path, "OCC.CC=O.CCO", "CC=O.CCO.OCC", "N.O", "O.N", "C/C=C\\C.C/C=C/C", "C/C=C/C.C/C=C\\C")
    keys = [identity.strict_key(record.outcome) for record in found]
    assert keys[0] == keys[1] == "CCO"
    assert keys[2] == keys[3] == "O"
    assert keys[4] == keys[5]


def test_b06_nitrogen_oxide_with_and_without_charges(tmp_path):
    charges = "M  CHG  2   1   1   5  -1\n"
    bare, charged = records(tmp_path, block("t", TMAO, TMAO_BONDS) + block("t", TMAO, TMAO_BONDS, charges))
    assert reason(bare) == "atom 0 (N): bond orders sum to 4, expected 3"
    assert charged.outcome.formal_charge.tolist() == [1, 0, 0, 0, -1]


def test_b07_nitro_drawings(tmp_path):
    atoms = [("C", 0, 0, 0), ("N", 1.49, 0, 0), ("O", 2.1, 1.06, 0.1), ("O", 2.1, -1.06, 0)]
    neutral, broken = (block("nitro", atoms, [(1, 2, 1), (2, 3, 2), (2, 4, order)]) for order in (2, 1))
    kept, rejected = records(tmp_path, neutral + broken)
    (smiles,) = from_smiles(tmp_path, "C[N+](=O)[O-]")
    assert reason(rejected) == "atom 1 (N): bond orders sum to 4, expected 3"
    for molecule in (kept.outcome, smiles.outcome):
        classes = zip(molecule.atomic_number, molecule.formal_charge, molecule.num_hydrogens, strict=True)
        assert {AtomClass(*row) for row in classes} >= {AtomClass(7, 1, 0), AtomClass(8, -1, 0)}
    assert kept.keys == smiles.keys


def test_b08_charges_survive_from_file_to_tensors_to_file(tmp_path):
    texts = ["[NH3+]CC(=O)[O-]", "C[N+](C)(C)C", "C[N+](C)(C)[O-]", "[N-]=[N+]=NC"]
    made = prepared(tmp_path, "\n".join(texts) + "\n", "a.smi")
    assert made.properties["net_charge"] == "e"
    batches = BucketedBatches(made, np.arange(4), batch_size=4, shuffle=False)
    assert batches[0].validate().num_molecules == 4
    molecules = [made.molecule(index) for index in range(4)]
    write(tmp_path / "b.sdf", molecules)
    assert (tmp_path / "b.sdf").read_text().count("M  CHG") == 4
    again = [record.molecule() for record in read(tmp_path / "b.sdf").records]
    for before, after, text in zip(molecules, again, texts, strict=True):
        assert before.formal_charge.tolist() == after.formal_charge.tolist()
        assert after.properties["net_charge"] == Chem.GetFormalCharge(Chem.MolFromSmiles(text))


@pytest.mark.parametrize("line", ["M  RAD  1   1   2\n", ""])
@pytest.mark.parametrize("hydrogens", ["add", "keep", "none"])
def test_b09_methyl_is_a_radical_and_never_methane(tmp_path, line, hydrogens):
    text = block("methyl", METHYL, METHYL_BONDS, line)
    (record,) = records(tmp_path, text, hydrogens=hydrogens)
    assert record.outcome.status is Status.RADICAL
    (allowed,) = records(tmp_path, text, hydrogens=hydrogens, radicals=True)
    assert allowed.keys == ("[CH3]", "[CH3]")
    assert "radical kept" in allowed.notes
    (smiles,) = from_smiles(tmp_path, "C[CH2]", hydrogens=hydrogens)
    assert smiles.outcome.status is Status.RADICAL


def test_b10_isotopes_do_not_make_a_molecule_new(tmp_path):
    heavy, light = from_smiles(tmp_path, "[2H]C([2H])([2H])O", "CO")
    assert heavy.keys == light.keys == ("CO", "CO")
    assert heavy.outcome.num_hydrogens.tolist() == [3, 1]


def test_b12_dummy_atoms(tmp_path):
    texts = [block("x", [("C", 0, 0, 0), (symbol, 1, 0, 1)], [(1, 2, 1)]) for symbol in ("R#", "Xx")]
    attachment, unknown, good = records(tmp_path, "".join(texts) + water)
    assert reason(attachment) == "atom 1 (*): dummy atom"
    assert reason(unknown) == "atom 1: unknown element 'Xx'"
    assert isinstance(good.outcome, Molecule)
    assert reason(from_smiles(tmp_path, "*c1ccccc1")[0]) == "atom 0 (*): dummy atom"


def test_b13_bonds_of_type_4(tmp_path):
    ring = [("C", 1.39 * np.cos(k * np.pi / 3), 1.39 * np.sin(k * np.pi / 3), 0) for k in range(6)]
    five = [("N" if k == 0 else "C", 1.2 * np.cos(k * 1.2566), 1.2 * np.sin(k * 1.2566), 0) for k in range(5)]
    benzene, pyrrole = (
        block("ring", atoms, [(k + 1, (k + 1) % len(atoms) + 1, 4) for k in range(len(atoms))])
        for atoms in (ring, five)
    )
    kept, rejected = records(tmp_path, benzene + pyrrole)
    assert identity.strict_key(kept.outcome) == "c1ccccc1"
    assert "kekulize" in reason(rejected)
    assert "draw single and double bonds" in reason(rejected)


def test_b15_latin_1(tmp_path):
    raw = block("caf\xe9", WATER, WATER_BONDS, data=">  <who>\nJos\xe9\n\n").encode("latin-1")
    made = prepared(tmp_path, raw + block("caf\xe9", [("C", 0, 0, 0)] * 2, [(1, 2, 1)]).encode("latin-1"))
    assert list(made.names) == ["caf\ufffd"]
    assert "caf\ufffd" in (made.path / "rejected.csv").read_text(encoding="utf-8")
    write(tmp_path / "b.sdf", [made.molecule(0)])
    assert read(tmp_path / "b.sdf").records[0].name == "caf\ufffd"


def test_b16_line_ends_and_blank_lines(tmp_path):
    for text in (water.replace("\n", "\r\n") * 2, water.replace("\n", "\r\n") + water):
        assert [type(record.outcome) for record in records(tmp_path, text)] == [Molecule, Molecule]
    fields = ">  <gap>\n0.25\n \n>  <alpha>\n7\n\n"
    made = prepared(tmp_path, block("w", WATER, WATER_BONDS, data=fields) + water)
    assert list(made.properties) == ["net_charge", "gap", "alpha"]
    assert made.molecule(0).properties == {"net_charge": 0.0, "gap": 0.25, "alpha": 7.0}
    assert made.molecule(1).properties == {"net_charge": 0.0}


@pytest.mark.parametrize("cut", [water[:-5], water[:-20], water[:130]])
def test_b18_file_cut_off(tmp_path, cut):
    made = prepared(tmp_path, water + cut)
    assert len(made) == 1
    assert is_accounted_for(made)
    assert "truncated at record 2" in (made.path / "rejected.csv").read_text()
    for again in range(2):  # a set that is up to date is judged like a new one
        where = tmp_path / ("set" if again else "other")
        with pytest.raises(MoldiffError, match="strict=true"):
            prepare(source(tmp_path, water + cut), where, strict=True, progress=False)
    assert not (tmp_path / "other").exists()


def test_b19_nothing_to_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.sdf").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "none.sdf").write_text(block("e", [], []))
    for path, message in {
        "a.sdf": "a.sdf: the file is empty",
        "missing.sdf": "missing.sdf: no such file or folder",
        "folder": "folder: no file of molecules in this folder, expected any of .sdf",
        "none*.mol": "none*.mol: no file matches this pattern",
        "none.sdf": "none: no molecule kept of 1 records; first reason: no atom",
    }.items():
        assert main(["prepare", f"data.path={path}", "num_workers=1"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
    assert not (tmp_path / "prepared").exists()


def test_b19_an_empty_file_does_not_spoil_its_folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.sdf").touch()
    (folder / "deep" / "b.sdf").write_text(water + water[:130])
    (folder / "c.smi").write_text("CCO ethanol\n")
    (folder / "d.csv").write_text("id,what\n1,hello\n")
    (folder / "notes.txt").write_text("not a molecule\n")
    made = prepare(Files(folder, num_workers=0), tmp_path / "set", progress=False)
    assert is_accounted_for(made)
    assert made.meta["counts"]["seen"] == 5
    assert sorted(made.names) == ["ethanol", "water"]
    assert (made.path / "rejected.csv").read_text().splitlines() == [
        "record,name,reason,file",
        "0,,the file is empty,a.sdf",
        "0,,\"no column of SMILES found; columns found: 'id', 'what'; smiles_column=NAME says which one it is\",d.csv",
        "2,water,truncated at record 2,deep/b.sdf",
    ]


def test_b21_handedness_comes_from_the_coordinates(tmp_path):
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)F"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    Chem.RemoveStereochemistry(mol)
    left = Chem.MolToMolBlock(mol) + "$$$$\n"
    pos = mol.GetConformer().GetPositions() * [-1, 1, 1]
    mol.GetConformer().SetPositions(pos)
    one, other = records(tmp_path, left + Chem.MolToMolBlock(mol) + "$$$$\n")
    assert one.keys[0] == other.keys[0] == "CC(O)F"
    assert {one.keys[1], other.keys[1]} == {"C[C@H](O)F", "C[C@@H](O)F"}
    flat = Chem.MolFromSmiles("C[C@H](O)F")
    rdDepictor.Compute2DCoords(flat)
    (drawn,) = records(tmp_path, Chem.MolToMolBlock(flat) + "$$$$\n")
    assert drawn.keys[1] == "C[C@H](O)F"


def ferrocene():
    atoms, bonds = [("Fe", 0, 0, 0)], []
    for z in (1.65, -1.65):
        first = len(atoms) + 1
        atoms += [("C", 1.2 * np.cos(k * 1.2566), 1.2 * np.sin(k * 1.2566), z) for k in range(5)]
        bonds += [(1, first + k, 1) for k in range(5)]
        bonds += [(first + k, first + (k + 1) % 5, 2 if k in (0, 2) else 1) for k in range(5)]
    return block("ferrocene", atoms, bonds)


def test_b23_metals_are_named_and_the_rest_goes_on(tmp_path):
    zero = block("cp", [("N", 0, 0, 0), ("Pt", 2, 0, 0)], [(1, 2, 8)])
    found = records(tmp_path, zero + ferrocene() + water)
    assert [reason(record) for record in found[:2]] == [
        "atom 1 (Pt): element not in the valence table",
        "atom 0 (Fe): element not in the valence table",
    ]
    assert isinstance(found[2].outcome, Molecule)
    (cisplatin,) = from_smiles(tmp_path, "N[Pt](N)(Cl)Cl")
    assert reason(cisplatin) == "atom 1 (Pt): element not in the valence table"


def test_b23_metals_can_be_allowed(tmp_path):
    made = prepared(tmp_path, "N[Pt](N)(Cl)Cl\nCCO\n", "a.smi", elements=["Pt"])
    assert len(made) == 2
    assert AtomClass(78, 0, 0) in made.vocabulary.atom_classes
    assert made.vocabulary.allowed_valences(78, 0) == (4,)


def test_b25_hypervalent_sulfur_and_phosphorus(tmp_path):
    texts = ["FS(F)(F)(F)(F)F", "FP(F)(F)(F)F", "F[P-](F)(F)(F)(F)F", "CS(C)(=O)=O", "COP(=O)(OC)OC"]
    found = from_smiles(tmp_path, *texts)
    assert [validity.check(record.outcome) for record in found] == [None] * 5
    write(tmp_path / "b.sdf", [record.outcome for record in found])
    again = list(Files(tmp_path / "b.sdf", num_workers=0).records())
    assert [record.keys for record in again] == [record.keys for record in found]


B27 = {
    "no header": (b"CCO\nCCN\n", [("CCO", ""), ("CCN", "")]),
    "byte order mark and a name NA": (b"\xef\xbb\xbfsmiles,name\nCCO,NA\n", [("CCO", "NA")]),
    "semicolons": (b"id;smiles\n1;CCO\n", [("CCO", "1")]),
    "blank lines and CR": (b"CCO\r\n\r\nCCN\r\n", [("CCO", ""), ("CCN", "")]),
    "no header, two columns": (b"first,CCO,3.5\nsecond,CCN,4.5\n", [("CCO", "first"), ("CCN", "second")]),
    "quoted": (b'name,SMILES\n"a, b",CCO\n', [("CCO", "a, b")]),
    "tabs": (b"Name\tCanonical SMILES\nx\tCCO\n", [("CCO", "x")]),
    "comment": (b"# from a database\nCCO,34.1\n", [("CCO", "")]),
    "UTF-16": ("smiles,name\nCCO,\xe9\n".encode("utf-16"), [("CCO", "\xe9")]),
}


@pytest.mark.parametrize("case", B27)
@pytest.mark.parametrize("suffix", [".csv", ".smi"])
def test_b27_tables_of_smiles(tmp_path, case, suffix):
    content, expected = B27[case]
    if suffix == ".smi" and case in ("no header, two columns", "comment"):
        pytest.skip("a list of SMILES has white space between SMILES and name")
    found = records(tmp_path, content, f"a{suffix}")
    assert [(identity.strict_key(record.outcome), record.name) for record in found] == expected


def test_b27_lists_of_smiles(tmp_path):
    found = records(tmp_path, "CC(=O)O  acetic acid\n\nCCO\r\n", "a.smi")
    assert [(record.keys[1], record.name) for record in found] == [("CC(=O)O", "acetic acid"), ("CCO", "")]


def test_b27_no_column_of_smiles(tmp_path):
    with pytest.raises(MoldiffError, match="columns found: 'id', 'structure'; smiles_column=NAME"):
        records(tmp_path, "id,structure\n1,hello\n", "a.csv")
    with pytest.raises(MoldiffError, match="no column 'smile'; columns found: 'id', 'smiles'"):
        records(tmp_path, "id,smiles\n1,CCO\n", "a.csv", smiles_column="smile")
    named = records(tmp_path, "smiles,other\nCCO,CCN\n,\nCCC,\n", "a.csv", smiles_column="other")
    assert named[0].keys[1] == "CCN"
    assert [reason(record) for record in named[1:]] == ["no SMILES", "no SMILES"]


def test_b28_embedding_that_fails(tmp_path):
    made = prepared(tmp_path, "C1#CC1\n[C@H]12CC[C@@H](C1)C2\nCCO\n", "a.smi")
    assert len(made) == 1
    assert made.meta["counts"]["rejected_by_reason"] == {"embedding failed, so no 3D coordinates": 2}


# The cache


def test_b66_what_has_not_changed_is_not_read_again(tmp_path, capsys):
    def stamp(content=water, **options):
        made = prepare(source(tmp_path, content, **options), tmp_path / "set")
        return made.meta["fingerprint"], (made.path / "meta.json").stat().st_mtime_ns, capsys.readouterr().err

    first, time, _ = stamp()
    again = stamp()
    assert again[:2] == (first, time)
    assert "up to date" in again[2]
    edited = stamp(water.replace("0.1173", "0.1174"))
    assert edited[0] != first
    assert "other content or with other options" in edited[2]
    assert MoleculeDataset.load(tmp_path / "set").molecule(0).pos[0, 2] == pytest.approx(0.1174)
    switched = stamp(water, hydrogens="none")
    assert len({first, edited[0], switched[0]}) == 3
    assert not MoleculeDataset.load(tmp_path / "set").molecule(0).hydrogen_offset.any()
    assert stamp()[0] == first


@pytest.mark.parametrize("name", ["molecules.safetensors", "meta.json", "smiles.txt"])
def test_b66_a_damaged_set_is_made_again(tmp_path, capsys, name):
    made = prepared(tmp_path, water)
    raw = (made.path / name).read_bytes()
    (made.path / name).write_bytes(raw[: 0 if name == "smiles.txt" else 20])
    again = prepare(source(tmp_path, water), tmp_path / "set")
    assert len(again) == 1
    assert "set: damaged, so it is made again" in " ".join(capsys.readouterr().err.split())


def test_b67_own_files_need_no_qm9(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(MoldiffError, match=r'pip install "moldiff\[qm9\]"'):
        qm9.QM9()
    assert len(prepared(tmp_path, water)) == 1


def test_b67_tables_of_qm9_cut_off(tmp_path, monkeypatch):
    table = tmp_path / "qm9pack" / "data"
    table.mkdir(parents=True)
    header = "Index,SMILES,Elements,XYZ_Ang,Dipole_debye,Polarizability_bohr3,HOMO_au,LUMO_au,HOMO_LUMO_gap_au"
    for part in (1, 2, 3):
        (table / f"qm9_part{part}.csv").write_text(f"{header},Heatcapacity_Cv_cal_mol_K\n1,C,\"['C'\n")
    monkeypatch.setattr(qm9, "_tables", lambda: [table / "qm9_part1.csv"])
    with pytest.raises(MoldiffError, match="no molecule kept of 1 records; first reason: unreadable row"):
        prepare(qm9.QM9(num_workers=1), tmp_path / "set", progress=False)


def test_everything_at_once_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.sdf").write_text(water + ETHANOL + block("bad", TMAO, TMAO_BONDS) + ferrocene() + water[:130])
    assert main(["prepare", "data.path=mine.sdf", "num_workers=1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "prepared set in prepared/mine\n"
    words = printed.err.split()
    assert words[words.index("seen") + 2] == "5"
    made = MoleculeDataset.load("prepared/mine")
    assert is_accounted_for(made)
    assert Counter(made.meta["counts"]["rejected_by_reason"]) == {
        "N: bond orders sum to 4, expected 3": 1,
        "Fe: element not in the valence table": 1,
        "truncated at record #": 1,
    }
    assert json.loads(Path("prepared/mine/meta.json").read_text())["options"]["hydrogens"] == "add"


def test_prepared_files_are_trained_on_without_rdkit(tmp_path):
    made = prepared(tmp_path, "CCO\nCCN\nCC(=O)O\nc1ccccc1Br\n", "a.smi")
    code = """
import sys
sys.modules["rdkit"] = None
from moldiff.data.dataset import MoleculeDataset
from moldiff.data.loader import BucketedBatches
made = MoleculeDataset.load(sys.argv[1])
print(sum(batch.validate().num_molecules for batch in BucketedBatches(made, made.split("train"), batch_size=4)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(made.path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 4
