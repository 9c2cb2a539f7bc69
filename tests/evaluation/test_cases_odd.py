"""Records of other people that can be read but are odd, or that miss something: what is said of them, and counted."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from test_cases_evaluate import evaluated
from test_cases_prepare import prepared, reasons
from test_io import WATER, WATER_BONDS, block, water

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset
from moldiff.molecules.validity import odd_bonds
from moldiff.view import view

SAMPLE = Path(str(files("moldiff.example_data") / "sample"))


def structure(smiles: str, *, hydrogens: bool = True) -> Chem.Mol:
    """A molecule with coordinates of RDKit's, of which heavy atoms alone may be kept."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    return mol if hydrogens else Chem.RemoveHs(mol)


def record(mol: Chem.Mol, **fields: str) -> str:
    """A record of an SDF with data fields."""
    text = "".join(f">  <{name}>\n{value}\n\n" for name, value in fields.items())
    return f"{Chem.MolToMolBlock(mol)}{text}$$$$\n"


def stretched(smiles: str, length: float) -> Chem.Mol:
    """A molecule whose atoms 0 and 1, with all that is on the side of 0, are so far apart (Å)."""
    mol = structure(smiles)
    pos = mol.GetConformer().GetPositions()
    side = [0, *(atom.GetIdx() for atom in mol.GetAtomWithIdx(0).GetNeighbors() if atom.GetAtomicNum() == 1)]
    along = pos[0] - pos[1]
    pos[side] += along * (length / (along**2).sum() ** 0.5 - 1)
    mol.GetConformer().SetPositions(pos)
    return mol


ODD = (
    record(stretched("CC", 1.87))
    + record(structure("CC(=O)CC(C)=O"), SMILES="CC(O)=CC(C)=O")
    + record(structure("CCO"), SMILES="OCC", smi="[H]C([H])([H])CO")
    + record(structure("C[N+](=O)[O-]"), SMILES="CN(=O)=O")
    + record(structure("C/C=C/C"), SMILES="CC=CC")
    + record(structure("CCN"), SMILES="none")
)
ODDITIES = {
    "long bond C-C": 1,
    "SMILES field of another molecule": 1,
    "SMILES field that cannot be read": 1,
}


def test_s13_a_long_bond_and_a_smiles_of_another_tautomer_are_counted_by_prepare(tmp_path, capsys):
    made = prepared(tmp_path, ODD)
    assert made.meta["counts"]["kept"] == 6
    assert made.meta["counts"]["notes"] == ODDITIES
    shown = capsys.readouterr().err
    assert all(note in shown for note in ODDITIES)


def test_s13_a_long_bond_and_a_smiles_of_another_tautomer_are_counted_by_evaluate(tmp_path, capsys):
    found, rows = evaluated(tmp_path, ODD)
    assert found["p2_valid"]["numerator"] == 6
    assert [row["remarks"] for row in rows] == [
        "long bond C-C: 1.87 Å between atoms 0 and 1",
        "SMILES field of another molecule: CC(O)=CC(C)=O",
        "",
        "",
        "",
        "SMILES field that cannot be read: none",
    ]
    shown = capsys.readouterr().out
    assert all(f"{count} of 6 records: {remark}" in shown for remark, count in ODDITIES.items())
    assert "- 1 of 6 records: long bond C-C" in (tmp_path / "report" / "report.md").read_text()
    page = view(tmp_path / "a.sdf").read_text()
    assert "long bond C-C: 1.87" in page


def test_s13_molecules_from_python_have_remarks_too():
    from moldiff.evaluation.evaluate import evaluate

    report = evaluate([stretched("CC", 1.87), structure("CC")], metrics=[])
    assert report.remarks == {"long bond C-C": 1}
    assert [row["remarks"] for row in report.rows] == ["long bond C-C: 1.87 Å between atoms 0 and 1", None]


def test_s13_no_bond_of_real_molecules_is_odd():
    known = MoleculeDataset.load(SAMPLE)
    odd = [oddity for k in range(len(known)) for oddity in odd_bonds(known.molecule(k))]
    assert len(known) == 1000
    assert odd == []


def test_s13_limits_of_a_single_bond(tmp_path):
    text = "".join(record(stretched("CC", length)) for length in (1.15, 1.22, 1.806, 1.83))
    _, rows = evaluated(tmp_path, text, "metrics=geometry")
    assert [row["remarks"].partition(":")[0] for row in rows] == ["short bond C-C", "", "", "long bond C-C"]


FIELDS = ">  <gap>\n0.25\n\n>  <gap>\n0.31\n\n>  <>\n5\n\n>  <a>b>\n7\n\n>  <alpha>\nn/a\n\n"
FLOAT32 = ">  <gap>\n0.4\n\n> <gap>\n0.4\n\n> 25 <a>b> (MD-1)\n8\n\n>  <alpha>\n13.5\n\n>  <rare>\n1\n\n"
TWICE = "data field gap given twice, the last counts"
NAMELESS = "data field without a name, left out"


def test_s14_odd_data_fields_are_counted_by_prepare(tmp_path, capsys):
    text = water.replace("$$$$\n", "")
    made = prepared(tmp_path, text + FIELDS + "$$$$\n" + 2 * (text + FLOAT32.replace(" (MD-1)", "") + "$$$$\n"))
    assert list(made.properties) == ["net_charge", "gap", "a>b", "alpha", "rare"]
    assert made.meta["counts"]["notes"] == {TWICE: 1, NAMELESS: 1, "alpha: text, so that no number is known": 1}
    assert made.molecule(0).properties == pytest.approx({"net_charge": 0, "gap": 0.31, "a>b": 7})
    assert made.molecule(1).properties == pytest.approx(
        {"net_charge": 0, "gap": 0.4, "a>b": 8, "alpha": 13.5, "rare": 1}
    )
    assert "alpha: text, so that no number is known" in capsys.readouterr().err


def test_s14_numbers_of_fewer_than_half_are_counted(tmp_path):
    text = water.replace("$$$$\n", "")
    made = prepared(tmp_path, text + FIELDS + "$$$$\n" + text + FLOAT32 + "$$$$\n" + 2 * water)
    notes = made.meta["counts"]["notes"]
    assert notes["alpha: a number, but in fewer than half of the records"] == 1
    asked = prepared(tmp_path, (tmp_path / "a.sdf").read_text(), "data.properties=[alpha]")
    assert asked.meta["counts"]["notes"]["alpha: text, so that no number is known"] == 1


def test_s14_odd_data_fields_are_counted_by_evaluate(tmp_path):
    _, rows = evaluated(tmp_path, water.replace("$$$$\n", FIELDS + "$$$$\n") + water)
    assert [row["remarks"] for row in rows] == [f"{TWICE}; {NAMELESS}", ""]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "smiles,gap,gap,alpha\nCCO,0.25,0.31,n/a\nCCN,0.4,0.4,1\nCCC,0.4,0.4,2,9\n"),
        (
            "a.xyz",
            "".join(
                f'3\nProperties=species:S:1:pos:R:3 gap={first} gap={second} alpha="{alpha}"\n'
                + "".join(f"{symbol} {x} {y} {z}\n" for symbol, x, y, z in WATER)
                for first, second, alpha in (("0.25", "0.31", "n/a"), ("0.4", "0.4", "1"), ("0.4", "0.4", "2"))
            ),
        ),
    ],
)
def test_s14_tables_and_extended_xyz_follow_the_same_rules(tmp_path, name, text):
    made = prepared(tmp_path, text, name=name)
    notes = made.meta["counts"]["notes"]
    assert (notes[TWICE], notes["alpha: text, so that no number is known"]) == (1, 1)
    assert notes.get(NAMELESS, 0) == (name == "a.csv")
    assert [round(made.molecule(k).properties["gap"], 2) for k in range(3)] == [0.31, 0.4, 0.4]


PARENTS = [
    ("CC(=O)[O-]", "CC(=O)O"),
    ("CCC(=O)O", "CCC(=O)[O-].[Na+]"),
    ("CC[NH3+]", "CCN.Cl"),
    ("CC(O)=CC(C)=O", "CC(=O)CC(C)=O"),
    ("Oc1ccccn1", "O=c1cccc[nH]1"),
    ("Cc1c[nH]cn1", "Cc1cnc[nH]1"),
]


def test_s16_acids_salts_and_tautomers_are_novel_but_not_by_parent(tmp_path):
    (tmp_path / "known.smi").write_text("\n".join(known for _, known in PARENTS))
    text = "\n".join([*(smiles for smiles, _ in PARENTS), "CCO", "CC(C)=O"])
    found, rows = evaluated(tmp_path, text, f"reference={tmp_path / 'known.smi'}", name="b.smi")
    assert (found["p2_novel"]["numerator"], found["p2_novel"]["denominator"]) == (8, 8)
    assert (found["p2_novel_parent"]["numerator"], found["p2_novel_parent"]["denominator"]) == (2, 8)
    assert [row["novel_parent"] for row in rows] == ["False"] * 6 + ["True"] * 2
    assert [row["novel"] for row in rows] == ["True"] * 8


def test_s16_a_prepared_set_tells_parents_and_a_model_does_not(tmp_path, capsys):
    made = prepared(tmp_path, "CC(=O)O\nCCCC\nCCCCC\n", "data.valid_share=0", "data.test_share=0", name="a.smi")
    found, _ = evaluated(tmp_path, "CC(=O)[O-]\nCCO\n", f"reference={made.path}", name="b.smi")
    assert (found["p2_novel_parent"]["numerator"], found["p2_novel_parent"]["denominator"]) == (1, 2)
    found, _ = evaluated(tmp_path, "CC(=O)[O-]\nCCO\n", f"reference={made.path / 'novelty.safetensors'}", name="b.smi")
    assert found["p2_novel_parent"]["value"] is None
    assert found["p2_novel_parent"]["note"].startswith("parents need the molecules of the reference")
    assert "novel parent" in capsys.readouterr().out


def gaff(types: str) -> str:
    """A MOL2 record of an acetate ion with seven atom types."""
    places = ("0 0 0", "1.52 0 0", "2.15 1.09 0", "2.15 -1.09 0", "-.36 1.03 0", "-.36 -.51 .89", "-.36 -.51 -.89")
    atoms = enumerate(zip(places, types.split(), strict=True), start=1)
    lines = [f"{k} A{k} {place} {kind} 1 ACT 0.0" for k, (place, kind) in atoms]
    bonds = ["1 1 2 1", "2 2 3 2", "3 2 4 1", "4 1 5 1", "5 1 6 1", "6 1 7 1"]
    head = ["@<TRIPOS>MOLECULE", "acetate", " 7 6 0 0 0", "SMALL", "NO_CHARGES", ""]
    return "\n".join([*head, "@<TRIPOS>ATOM", *lines, "@<TRIPOS>BOND", *bonds, ""])


def test_s19_atom_types_of_gaff_are_read_by_their_elements(tmp_path):
    _, rows = evaluated(tmp_path, gaff("c3 c o o hc hc hc"), name="a.mol2")
    assert (rows[0]["status"], rows[0]["smiles"]) == ("ok", "CC(=O)[O-]")
    made = prepared(tmp_path, gaff("c3 c o o hc hc hc") + gaff("C.3 C.2 O.2 O.3 H H H"), name="a.mol2")
    assert list(made.smiles) == ["CC(=O)[O-]"] * 2


@pytest.mark.parametrize(
    ("types", "named"), [("CT C O O HC HC HC", "0: type 'CT'"), ("c3 C.2 o o hc hc hc", "0: type 'c3'")]
)
def test_s19_other_atom_types_are_named(tmp_path, types, named):
    _, rows = evaluated(tmp_path, gaff(types), name="a.mol2")
    assert rows[0]["reason"] == f"atom {named} is none of Tripos (SYBYL); of others GAFF's are read"
    made = prepared(tmp_path, gaff("c3 c o o hc hc hc") + gaff(types), name="a.mol2")
    assert reasons(made) == [rows[0]["reason"]]


BARE = "".join(record(structure(smiles, hydrogens=False)) for smiles in ("CCO", "c1ccccc1C(=O)N", "CC#N"))


def test_s22_hydrogens_that_a_file_lacks_are_named_and_added_when_asked(tmp_path, capsys):
    found, rows = evaluated(tmp_path, BARE + water)
    assert found["p2_valid"]["numerator"] == 1
    assert "3 of 4 records: hydrogens are missing (hydrogens=add adds them)" in capsys.readouterr().out
    found, rows = evaluated(tmp_path, BARE + water, "hydrogens=add")
    assert found["p2_valid"]["numerator"] == 4
    assert found["p1_molecule_stable"]["denominator"] == 4
    assert [row["smiles"] for row in rows] == ["CCO", "NC(=O)c1ccccc1", "CC#N", "O"]
    assert [row["remarks"] for row in rows] == ["hydrogens added"] * 3 + [""]
    assert "3 of 4 records: hydrogens added" in capsys.readouterr().out


def test_s22_hydrogens_are_added_to_mol2_too(tmp_path):
    def bare(name: str, types: str, *bonds: str) -> str:
        lines = [
            f"{k} A{k} {1.4 * k} {k % 2} {0.1 * (k % 3)} {kind} 1 X 0" for k, kind in enumerate(types.split(), start=1)
        ]
        numbered = [f"{k} {bond}" for k, bond in enumerate(bonds, start=1)]
        head = ["@<TRIPOS>MOLECULE", name, f"{len(lines)} {len(bonds)} 0 0 0", "SMALL", "NO_CHARGES"]
        return "\n".join([*head, "@<TRIPOS>ATOM", *lines, "@<TRIPOS>BOND", *numbered, ""])

    text = (
        bare("amide", "C.3 N.am C.2 O.2", "1 2 1", "2 3 am", "3 4 2")
        + bare("acetate", "C.3 C.2 O.co2 O.co2", "1 2 1", "2 3 ar", "2 4 ar")
        + bare("nitro", "C.3 N.pl3 O.2 O.2", "1 2 1", "2 3 2", "2 4 2")
        + bare("ethanol", "c3 c3 oh", "1 2 1", "2 3 1")
    )
    _, rows = evaluated(tmp_path, text, "hydrogens=add", name="a.mol2")
    assert [row["smiles"] for row in rows] == ["CNC=O", "CC(=O)[O-]", "C[N+](=O)[O-]", "CCO"]
    assert all(row["remarks"].startswith("hydrogens added") for row in rows)


def test_s22_radicals_stay_radicals(tmp_path):
    methyl = structure("CC")
    text = record(Chem.RWMol(methyl))
    edited = Chem.RWMol(methyl)
    edited.RemoveAtom(7)
    edited.GetAtomWithIdx(1).SetNoImplicit(True)
    _, rows = evaluated(tmp_path, text + record(edited), "hydrogens=add")
    assert [row["status"] for row in rows] == ["ok", "radical"]
    assert [row["remarks"] for row in rows] == ["", ""]


def test_s22_hydrogens_are_added_to_the_reference_in_the_page_and_from_python(tmp_path, capsys):
    from moldiff.evaluation.evaluate import evaluate

    (tmp_path / "known.sdf").write_text(BARE * 2)
    report = evaluate(tmp_path / "known.sdf", reference=tmp_path / "known.sdf", hydrogens="add", metrics=[])
    assert {result.name: result.numerator for result in report.reference_results}["p2_valid"] == 6
    assert report["p2_novel"].numerator == 0
    assert evaluate([structure("CCO", hydrogens=False)], hydrogens="add", metrics=[])["p2_valid"].value == 1
    assert main(["view", f"input={tmp_path / 'known.sdf'}", "hydrogens=add"]) == 0
    assert "hydrogens added" in (tmp_path / "known.html").read_text()


@pytest.mark.parametrize("command", ["evaluate", "view"])
def test_s22_another_choice_is_refused(tmp_path, command, capsys):
    (tmp_path / "a.sdf").write_text(block("water", WATER, WATER_BONDS))
    assert main([command, f"input={tmp_path / 'a.sdf'}", "hydrogens=none"]) == 2
    assert "hydrogens: got 'none', expected keep or add" in capsys.readouterr().err
