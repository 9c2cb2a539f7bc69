import gzip
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from moldiff.data.dataset import MoleculeDataset
from moldiff.errors import MoldiffError
from moldiff.molecules import convert, identity
from moldiff.molecules.formats.reader import read, records
from moldiff.molecules.formats.writer import Writer, write
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
WATER = [("O", 0, 0, 0.1173), ("H", 0, 0.7572, -0.4692), ("H", 0, -0.7572, -0.4692)]
WATER_BONDS = [(1, 2, 1), (1, 3, 1)]
TMAO = [("N", 0, 0, 0), ("C", 1.4, 0, -0.5), ("C", -0.7, 1.21, -0.5), ("C", -0.7, -1.21, -0.5), ("O", 0, 0, 1.36)]
TMAO_BONDS = [(1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)]
METHYL = [("C", 0, 0, 0), ("H", 1.08, 0, 0), ("H", -0.54, 0.935, 0), ("H", -0.54, -0.935, 0)]
METHYL_BONDS = [(1, 2, 1), (1, 3, 1), (1, 4, 1)]


def block(title, atoms, bonds, properties="", header="3D", data=""):
    """One V2000 record; atoms = (symbol, x, y, z), bonds = (i, j, order) from 1."""
    text = f"{title}\n  moldiff test      {header}\n\n{len(atoms):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000\n"
    for symbol, x, y, z in atoms:
        text += f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3s} 0  0  0  0  0  0  0  0  0  0  0  0\n"
    for i, j, order in bonds:
        text += f"{i:3d}{j:3d}{order:3d}  0\n"
    return f"{text}{properties}M  END\n{data}$$$$\n"


water = block("water", WATER, WATER_BONDS)
V3000 = """

  demand          3D

  0  0  0     0  0            999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 3 2 0 0 0
M  V30 BEGIN ATOM
M  V30 1 O 0 0 0.1173 0
M  V30 2 H 0 0.7572 -0.4692 0
M  V30 3 H 0 -0.7572 -0.4692 0
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 1 1 2
M  V30 2 1 1 3
M  V30 END BOND
M  V30 BEGIN SGROUP
M  V30 1 SRU 0 ATOMS=(3 1 2 3) LABEL=n
M  V30 END SGROUP
M  V30 END CTAB
M  END
$$$$
"""[1:]


def read_text(folder, text, name="a.sdf"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path).records


@pytest.fixture(scope="module")
def molecules():
    sample = MoleculeDataset.load(SAMPLE)
    return [sample.molecule(i) for i in range(200)]


@pytest.mark.parametrize("name", ["a.sdf", "a.sdf.gz"])
def test_200_molecules_survive_sdf(tmp_path, molecules, name):
    assert write(tmp_path / name, molecules) == 200
    result = read(tmp_path / name)
    assert str(result) == f"{tmp_path / name}: 200 records, 200 read, 0 rejected"
    for before, record in zip(molecules, result.records, strict=True):
        after = record.molecule()
        for field in ("atomic_number", "formal_charge", "num_hydrogens", "bonds"):
            np.testing.assert_array_equal(getattr(before, field), getattr(after, field))
        np.testing.assert_allclose(before.pos, after.pos, atol=1e-4)
        np.testing.assert_allclose(before.hydrogen_offset, after.hydrogen_offset, atol=2e-4)
        assert after.name == before.name
        assert after.properties == pytest.approx(before.properties)
        assert identity.strict_key(after) == identity.strict_key(before)


def test_200_molecules_survive_smi(tmp_path, molecules):
    write(tmp_path / "a.smi", molecules)
    for before, record in zip(molecules, read(tmp_path / "a.smi").records, strict=True):
        assert record.name == before.name
        # Not the isomeric SMILES: RDKit's is not the same after a round trip when stereocentres depend on one another.
        assert identity.canonical_key(record.mol) == identity.canonical_key(before)
        assert record.molecule().reason == "no 3D coordinates"


def test_200_molecules_survive_xyz(tmp_path, molecules):
    write(tmp_path / "a.xyz", molecules)
    for before, record in zip(molecules, read(tmp_path / "a.xyz").records, strict=True):
        expected = convert.to_rdkit(before)
        assert [a.GetSymbol() for a in record.mol.GetAtoms()] == [a.GetSymbol() for a in expected.GetAtoms()]
        positions = record.mol.GetConformer().GetPositions()
        np.testing.assert_allclose(positions, expected.GetConformer().GetPositions(), atol=1e-7)
        assert record.name == before.name
        if before.num_hydrogens.any():
            assert record.molecule().reason == "no bonds, only elements and coordinates"


def test_csv_has_the_union_of_the_columns(tmp_path):
    (molecule,) = (record.molecule() for record in read_text(tmp_path, water))
    with Writer(tmp_path / "a.csv") as writer:
        writer.write(molecule, {"gap": 0.25, "kept": True})
        writer.write(molecule, {"gap": float("nan"), "note": "a,b", "empty": None})
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["smiles,name,gap,kept,note", "O,water,0.25,true,", 'O,water,,,"a,b"']


def test_charges_have_their_line(tmp_path):
    charged = block("tmao", TMAO, TMAO_BONDS, "M  CHG  2   1   1   5  -1\n")
    (record,) = read_text(tmp_path, charged)
    assert record.problem is None
    assert Chem.MolToSmiles(record.mol) == "C[N+](C)(C)[O-]"
    drawn = record.as_drawn()
    assert drawn.formal_charge.tolist() == [1, 0, 0, 0, -1]
    write(tmp_path / "b.sdf", [drawn])
    assert "M  CHG  2   1   1   5  -1" in (tmp_path / "b.sdf").read_text()
    assert read(tmp_path / "b.sdf").records[0].as_drawn().formal_charge.tolist() == [1, 0, 0, 0, -1]


def test_uncharged_oxide_is_rejected_by_name_and_its_neighbours_stay(tmp_path):
    first, bad, last = read_text(tmp_path, water + block("tmao", TMAO, TMAO_BONDS) + water)
    assert bad.problem == InvalidMolecule(Status.VALENCE, "atom 0 (N): bond orders sum to 4, expected 3", 0)
    assert bad.number == 2
    assert isinstance(first.molecule(), Molecule)
    assert isinstance(last.molecule(), Molecule)


def test_atoms_are_counted_as_in_the_file(tmp_path):
    atoms = [*[("H", *xyz) for _, *xyz in METHYL[1:]], METHYL[0]]
    (record,) = read_text(tmp_path, block("methyl", atoms, [(1, 4, 1), (2, 4, 1), (3, 4, 1)]))
    assert record.molecule() == InvalidMolecule(Status.RADICAL, "atom 3 (C): bond orders sum to 3, expected 4", 3)


def test_nitro_groups(tmp_path):
    atoms = [("C", 0, 0, 0), ("N", 1.49, 0, 0), ("O", 2.1, 1.06, 0.1), ("O", 2.1, -1.06, 0)]
    neutral, broken = (block("nitro", atoms, [(1, 2, 1), (2, 3, 2), (2, 4, order)]) for order in (2, 1))
    kept, rejected = read_text(tmp_path, neutral + broken)
    assert Chem.MolToSmiles(kept.mol) == "C[N+](=O)[O-]"
    assert rejected.problem.reason == "atom 1 (N): bond orders sum to 4, expected 3"


@pytest.mark.parametrize("radical_line", ["M  RAD  1   1   2\n", ""])
def test_methyl_is_a_radical_and_never_methane(tmp_path, radical_line):
    (record,) = read_text(tmp_path, block("methyl", METHYL, METHYL_BONDS, radical_line))
    problem = record.molecule()
    assert problem.status == Status.RADICAL
    assert problem.reason == "atom 0 (C): bond orders sum to 3, expected 4"
    drawn = record.as_drawn()
    assert drawn.num_hydrogens.tolist() == [3]
    write(tmp_path / "b.sdf", [drawn])
    assert read(tmp_path / "b.sdf").records[0].molecule().status == Status.RADICAL


def test_all_zero_coordinates(tmp_path):
    zero = block("z", [("C", 0, 0, 0), ("O", 0, 0, 0)], [(1, 2, 1)])
    bad, good = read_text(tmp_path, zero + water)
    assert bad.molecule().reason == "no 3D coordinates"
    assert isinstance(good.molecule(), Molecule)


def test_flat_molecules_are_3d_if_the_header_says_so(tmp_path):
    flat = [(symbol, y, z, 0) for symbol, _, y, z in WATER]
    three, two = read_text(tmp_path, block("w", flat, WATER_BONDS) + block("w", flat, WATER_BONDS, header="2D"))
    assert isinstance(three.molecule(), Molecule)
    assert two.molecule().reason == "no 3D coordinates"


def test_heavy_atoms_alone(tmp_path):
    atoms = [("C", 0, 0, 0), ("C", 1.52, 0, 0), ("O", 2.0, 1.34, 0.1)]
    (record,) = read_text(tmp_path, block("ethanol", atoms, [(1, 2, 1), (2, 3, 1)]))
    assert record.molecule().reason == "hydrogens are missing, expected explicit ones with coordinates"
    assert Chem.MolToSmiles(record.mol) == "CCO"


@pytest.mark.parametrize(
    ("symbol", "reason"),
    [("Xx", "atom 1: unknown element 'Xx'"), ("R#", "atom 1 (*): dummy atom"), ("*", "atom 1 (*): dummy atom")],
)
def test_atoms_that_are_none(tmp_path, symbol, reason):
    bad, good = read_text(tmp_path, block("x", [("C", 0, 0, 0), (symbol, 1, 0, 1)], [(1, 2, 1)]) + water)
    assert bad.molecule().reason == reason
    assert isinstance(good.molecule(), Molecule)


def test_aromatic_bonds(tmp_path):
    ring = [("C", np.cos(k * np.pi / 3), np.sin(k * np.pi / 3), 0.1) for k in range(6)]
    five = [("N" if k == 0 else "C", np.cos(k * 1.2566), np.sin(k * 1.2566), 0.1) for k in range(5)]
    benzene, pyrrole = (
        block("ring", atoms, [(k + 1, (k + 1) % len(atoms) + 1, 4) for k in range(len(atoms))])
        for atoms in (ring, five)
    )
    kept, rejected = read_text(tmp_path, benzene + pyrrole)
    assert Chem.MolToSmiles(kept.mol) == "c1ccccc1"
    assert "kekulize" in rejected.problem.reason


def test_v3000(tmp_path):
    strict, good = read_text(tmp_path, V3000 + water)
    assert strict.problem is None or "V3000" in strict.problem.reason
    assert isinstance(good.molecule(), Molecule)


def test_latin1_title_and_field(tmp_path):
    raw = block("caf\xe9", WATER, WATER_BONDS, data=">  <who>\nJos\xe9\n\n").encode("latin-1")
    (record,) = read_text(tmp_path, raw)
    assert record.name == "caf\ufffd"
    molecule = record.molecule()
    assert record.mol.GetProp("who") == "Jos\ufffd"
    write(tmp_path / "b.sdf", [molecule])
    assert read(tmp_path / "b.sdf").records[0].name == "caf\ufffd"


def test_line_ends(tmp_path):
    for text in (water.replace("\n", "\r\n") * 2, water.replace("\n", "\r\n") + water, water.replace("\n", "\r") * 2):
        assert [type(r.molecule()) for r in read_text(tmp_path, text)] == [Molecule, Molecule]


def test_line_of_spaces_ends_a_field(tmp_path):
    text = block("w", WATER, WATER_BONDS, data=">  <gap>\n0.25\n \n>  <alpha> (1)\n7\n\n>  <note>\ntwo\nlines\n\n")
    first, second = read_text(tmp_path, text + water)
    assert first.molecule().properties == {"gap": 0.25, "alpha": 7.0}
    assert first.mol.GetProp("note") == "two\nlines"
    assert second.molecule().properties == {}


@pytest.mark.parametrize("cut", [water[:-5], water[:-20], water[:200], water[:130]])
def test_file_cut_off_in_its_last_record(tmp_path, cut):
    first, last = read_text(tmp_path, water + cut)
    assert isinstance(first.molecule(), Molecule)
    assert last.problem.reason == "truncated at record 2"


def test_a_lone_mol_block_needs_no_end_mark(tmp_path):
    (record,) = read_text(tmp_path, water.replace("$$$$\n", ""), "a.mol")
    assert isinstance(record.molecule(), Molecule)


def test_gzip_file_cut_off(tmp_path, molecules):
    write(tmp_path / "a.sdf.gz", molecules)
    whole = (tmp_path / "a.sdf.gz").read_bytes()
    found = read_text(tmp_path, whole[: len(whole) // 2], "b.sdf.gz")
    assert found[-1].problem.reason.startswith("truncated at record")
    assert all(record.problem is None for record in found[:-1])
    assert len(found) > 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.sdf", b"", "the file is empty"),
        ("a.sdf", b"\n\n", "no record found"),
        ("a.smi", b"\n", "no record found"),
        ("a.pdbx", b"x", r"unknown type of file, expected one of .sdf, .sd, .mol, .mol2, .xyz, .extxyz, .smi"),
        ("noend", b"x", "unknown type of file"),
        ("a.sdf.gz", b"plain text", "is not a gzip file"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MoldiffError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MoldiffError, match=r"none\.sdf: no such file"):
        read(tmp_path / "none.sdf")
    with pytest.raises(MoldiffError, match="is a folder"):
        read(tmp_path)


def test_records_without_atoms_and_without_sense(tmp_path):
    empty, web, good = read_text(tmp_path, block("e", [], []) + "<html>\n404\n</html>\n\n$$$$\n" + water)
    assert empty.problem.reason == "no atom"
    assert web.problem.reason == "no counts line, so not a MOL block"
    assert good.problem is None


def test_b35_coordinates_that_are_not_finite_are_named_and_never_written(tmp_path):
    text = water.replace("    0.7572", "       nan", 1)
    bad, good = read_text(tmp_path, text + water)
    assert bad.problem == InvalidMolecule(Status.NON_FINITE, "atom 1 (H): coordinate not finite", 1)
    molecule = good.molecule()
    with Writer(tmp_path / "b.sdf") as writer:
        writer.write(molecule)
        with pytest.raises(MoldiffError, match="not finite"):
            writer.write(replace(molecule, pos=molecule.pos * np.nan))
        writer.write(molecule)
    assert [r.problem for r in read(tmp_path / "b.sdf").records] == [None, None]


def test_xyz_oddities(tmp_path):
    good = "3\nwater\nO 0 0 0.1\n1 0 0.76 -0.47 extra\nh 0 -0.76 -0.47\n"
    found = read_text(tmp_path, good + "\n1\nbad\nQq 0 0 0\n1\nnan\nO nan 0 0\n3\ncut\nO 0 0 0\n", "a.xyz")
    assert [record.problem and record.problem.reason for record in found] == [
        None,
        "atom 0: got 'Qq 0 0 0', expected an element and three coordinates",
        "atom 0 (O): coordinate not finite",
        "truncated at record 4",
    ]
    assert [a.GetAtomicNum() for a in found[0].mol.GetAtoms()] == [8, 1, 1]
    (garbage,) = read_text(tmp_path, "hello\nO 0 0 0\n", "b.xyz")
    assert "expected a number of atoms" in garbage.problem.reason


def test_smiles_file_oddities(tmp_path):
    text = "\ufeffsmiles name\nCCO NA\n\nCC(=O)O  acetic acid\nCCN\r\nC1CC broken\nC(C)(C)(C)(C)C neopentane+\n"
    found = read_text(tmp_path, text, "a.smi")
    assert [(r.name, r.problem is None) for r in found] == [
        ("NA", True), ("acetic acid", True), ("", True), ("broken", False), ("neopentane+", False),
    ]  # fmt: skip
    assert found[3].problem.reason == "cannot read 'C1CC' as SMILES"
    assert "valence" in found[4].problem.reason
    assert len(read_text(tmp_path, "CCO\nCCN\n", "b.smi")) == 2


def test_fields_of_every_kind(tmp_path, molecules):
    fields = {"seed": 7, "novel": True, "strain": 1.23456789, "note": "a\nb", "unknown": None, "bad": float("inf")}
    with Writer(tmp_path / "a.sdf") as writer:
        writer.write(molecules[0], fields)
        with pytest.raises(MoldiffError, match="field name 'a>b'"):
            writer.write(molecules[0], {"a>b": 1})
    mol = read(tmp_path / "a.sdf").records[0].mol
    assert {key: mol.GetProp(key) for key in fields if mol.HasProp(key)} == {
        "seed": "7", "novel": "true", "strain": "1.2345679", "note": "a b",
    }  # fmt: skip


def test_more_than_999_atoms(tmp_path):
    chain = 400
    number, zero = np.full(chain, 6), np.zeros(chain, dtype=np.int64)
    hydrogens = np.where(np.isin(np.arange(chain), [0, chain - 1]), 3, 2)
    offset = np.array([[0, 0.9, 0.6], [0, -0.9, 0.6], [-1, 0, 0], [0, 0, 0]])[None].repeat(chain, 0)
    offset *= (np.arange(4) < hydrogens[:, None])[..., None]
    pos = np.stack([1.3 * np.arange(chain), zero, 0.8 * (np.arange(chain) % 2)], axis=1)
    bonds = np.stack([np.arange(chain - 1), np.arange(1, chain), np.ones(chain - 1, dtype=np.int64)], axis=1)
    write(tmp_path / "a.sdf", [Molecule(pos, number, zero, hydrogens, offset, bonds)])
    assert "V3000" in (tmp_path / "a.sdf").read_text()
    after = read(tmp_path / "a.sdf").records[0].molecule()
    assert after.num_atoms == 1202
    np.testing.assert_array_equal(after.bonds, bonds)


def test_interrupted_writing_keeps_what_is_finished(tmp_path, molecules):
    path = tmp_path / "a.sdf"

    def cut_short():
        yield from molecules[:3]
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, cut_short())
    assert [record.name for record in read(path).records] == [m.name for m in molecules[:3]]
    with pytest.raises(KeyboardInterrupt), Writer(path):
        raise KeyboardInterrupt
    assert len(read(path).records) == 3
    assert os.listdir(tmp_path) == ["a.sdf"]


def interrupted(function):
    """The function, in whose midst Ctrl-C comes."""

    def call(*arguments):
        signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    return call


@pytest.mark.parametrize("step", ["_end_member", "_publish", "_add"])
def test_a_record_is_in_the_file_and_counted_or_neither(step, tmp_path, molecules, monkeypatch):
    path = tmp_path / "a.sdf"
    writer = Writer(path, streamed=True)
    monkeypatch.setattr(writer, step, interrupted(getattr(writer, step)))
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(molecules[0])
    assert writer.count == 1
    assert [record.name for record in read(path).records] == [molecules[0].name]
    assert os.listdir(tmp_path) == ["a.sdf"]


def test_an_interruption_waits_until_the_file_is_closed(tmp_path, molecules, monkeypatch):
    path = tmp_path / "a.csv"
    writer = Writer(path)
    monkeypatch.setattr(writer, "close", interrupted(writer.close))
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(molecules[0])
    assert len(path.read_text().splitlines()) == 2
    assert os.listdir(tmp_path) == ["a.csv"]


def test_equal_molecules_make_equal_files(tmp_path, molecules):
    write(tmp_path / "a.sdf.gz", molecules[:5])
    write(tmp_path / "b.sdf.gz", molecules[:5])
    assert (tmp_path / "a.sdf.gz").read_bytes() == (tmp_path / "b.sdf.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.sdf.gz").read_bytes()).count(b"$$$$") == 5


def test_writing_where_one_cannot(tmp_path):
    with pytest.raises(MoldiffError, match=r"unknown type of file, expected one of \.sdf, \.xyz, \.smi, \.csv"):
        Writer(tmp_path / "a.mol2")
    with pytest.raises(MoldiffError, match="does not exist"):
        Writer(tmp_path / "no" / "a.sdf")
    (tmp_path / "b.sdf").mkdir()
    with pytest.raises(MoldiffError, match="is a folder"):
        Writer(tmp_path / "b.sdf")


def test_records_are_a_stream(tmp_path):
    (tmp_path / "a.sdf").write_text(water * 3)
    stream = records(tmp_path / "a.sdf")
    assert next(stream).number == 1
    assert [record.number for record in stream] == [2, 3]


def test_a_compressed_file_without_records_is_a_gzip_file(tmp_path: Path) -> None:
    with Writer(tmp_path / "none.sdf.gz"):
        pass
    assert gzip.decompress((tmp_path / "none.sdf.gz").read_bytes()) == b""
    assert (tmp_path / "none.sdf.gz").stat().st_size > 0
