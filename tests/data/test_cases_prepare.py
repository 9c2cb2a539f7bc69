"""Files of other people under `moldiff prepare`, with what RDKit alone finds in them, and what becomes of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from test_cases_evaluate import CLOSE_HYDROGEN, drawings
from test_io import WATER, WATER_BONDS, block, water

from moldiff.cli.main import main
from moldiff.data.dataset import MoleculeDataset


def prepared(folder: Path, content: str | bytes, *options: str, name: str = "a.sdf") -> MoleculeDataset:
    """The set that `moldiff prepare` makes of a file."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["prepare", f"data.path={folder / name}", f"out={folder / 'set'}", "num_workers=1", *options]) == 0
    return MoleculeDataset.load(folder / "set")


def reasons(made: MoleculeDataset) -> list[str]:
    with (made.path / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return [row["reason"] for row in csv.DictReader(file)]


def test_s11_drawings_that_say_they_are_3d_get_coordinates_of_their_own(tmp_path):
    smiles = ("C1CCCCC1", "C1CCOC1", "CCCCO", "CC(C)O", "c1ccccc1", "CC#N")
    made = prepared(tmp_path, drawings(*smiles, says_3d=True))
    assert made.meta["counts"]["notes"] == {"3D by ETKDGv3 and MMFF94s": len(smiles)}
    assert np.ptp(made.molecule(0).pos, axis=0).min() > 0.3, "a chair of cyclohexane"


def test_s11_flat_molecules_keep_their_coordinates(tmp_path):
    ring = [(np.cos(k * np.pi / 3), np.sin(k * np.pi / 3)) for k in range(6)]
    carbons = [("C", 1.39 * x, 1.39 * y, 0) for x, y in ring]
    hydrogens = [("H", 2.48 * x, 2.48 * y, 0) for x, y in ring]
    cycle = [(k + 1, (k + 1) % 6 + 1, 1 + k % 2) for k in range(6)]
    whole = block("benzene", carbons + hydrogens, [*cycle, *((k + 1, k + 7, 1) for k in range(6))])
    made = prepared(tmp_path, whole + block("bare", carbons, cycle) + water)
    assert made.meta["counts"]["notes"] == {"hydrogens added": 1}
    assert made.molecule(0).pos[0, 0] == np.float32(1.39)


def test_s15_an_atom_on_another_is_a_clash_and_not_dropped_as_a_fragment(tmp_path):
    loose = block("loose", [*WATER, CLOSE_HYDROGEN], WATER_BONDS)
    bonded = block("bonded", [*WATER, CLOSE_HYDROGEN], [*WATER_BONDS, (1, 4, 1)])
    made = prepared(tmp_path, water + loose + bonded)
    assert reasons(made) == ["atoms 0 (O) and 3 (H) are 0.08 Å apart, expected at least 0.6"] * 2


QM9_XYZ = """\
5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\
\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 9.0639729*^-01\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def test_s17_xyz_of_qm9_itself(tmp_path):
    plain = "3\nwater\n" + "".join(f"{symbol} {x} {y} {z}\n" for symbol, x, y, z in WATER)
    made = prepared(
        tmp_path, QM9_XYZ + QM9_XYZ.replace("gdb 1", "gdb 2") + plain, "data.properties=[gap,U0]", name="a.xyz"
    )
    assert made.meta["counts"]["seen"] == made.meta["counts"]["kept"] == 3
    assert list(made.names) == ["gdb 1", "gdb 2", "water"]
    methane = made.molecule(0)
    assert methane.properties["gap"] == np.float32(0.5048)
    assert methane.properties["U0"] == np.float32(-40.47893)
    assert (methane.pos + methane.hydrogen_offset[0])[:, 2].max() == pytest.approx(0.90639729, abs=1e-6)


TABLES = {
    "semicolons and decimal commas": 'id;smiles;gap\n1;"CCO";0,25\n2;CCN;0,31\n3;CCC;0,4\n',
    "a line of Excel": "sep=;\nsmiles;gap\nCCO;0,25\nCCN;0,31\nCCC;0,4\n",
    "a line of Excel and an odd separator": "sep=!\nsmiles!gap\nCCO!0.25\nCCN!0.31\nCCC!0.4\n",
    "tabs": "smiles\tgap\nCCO\t0,25\nCCN\t0,31\nCCC\t0,4\n",
    "InChI": 'inchi;gap\n"InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3";0,25\nInChI=1S/C2H7N/c1-2-3/h2-3H2,1H3;0,31\n'
    "InChI=1S/C3H8/c1-3-2/h3H2,1-2H3;0,4\n",
    "InChI between commas": "name,inchi,gap\nethanol,InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3,0.25\n"
    "x,InChI=1S/C2H7N/c1-2-3/h2-3H2,1H3,0.31\ny,InChI=1S/C3H8/c1-3-2/h3H2,1-2H3,0.4\n",
}


@pytest.mark.parametrize("table", TABLES)
def test_s18_tables_of_other_programs(tmp_path, table):
    made = prepared(tmp_path, TABLES[table], name="a.csv")
    assert [text.split()[0] for text in made.smiles] == ["CCO", "CCN", "CCC"]
    gaps = [made.molecule(k).properties["gap"] for k in range(3)]
    assert gaps == [np.float32(value) for value in (0.25, 0.31, 0.4)]


def test_s18_a_comma_stays_where_points_are_decimal(tmp_path):
    made = prepared(tmp_path, "smiles;gap;note\nCCO;0.25;1,5\nCCN;0.31;2,5\n", name="a.csv")
    assert list(made.properties) == ["net_charge", "gap"]


def conformers(smiles: str, number: int) -> str:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    places = rdDistGeom.EmbedMultipleConfs(mol, number, randomSeed=1)
    return "".join(Chem.MolToMolBlock(mol, confId=place) + "$$$$\n" for place in places)


def test_s20_conformers_of_a_molecule_are_in_one_part(tmp_path, capsys):
    smiles = ["C" * k + end for k in range(1, 6) for end in ("O", "N", "F", "C(=O)O")]
    made = prepared(tmp_path, "".join(conformers(one, 3) for one in smiles))
    assert (made.meta["counts"]["molecules"], made.meta["counts"]["kept"]) == (20, 60)
    graphs = {part: {made.smiles[k].split()[0] for k in made.split(part)} for part in ("train", "valid", "test")}
    assert {part: len(found) for part, found in graphs.items()} == {"train": 16, "valid": 2, "test": 2}
    assert not graphs["train"] & (graphs["valid"] | graphs["test"])
    assert "60 records are of 20 molecules; each of these is in one part only" in " ".join(
        capsys.readouterr().err.split()
    )


def test_s7_a_property_that_is_the_same_in_all_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = "smiles,alpha\n" + "".join(f"{'C' * k}O,{k}\n" for k in range(1, 9))
    made = prepared(tmp_path, table, name="a.csv")
    assert dict(made.properties) == {"net_charge": "e", "alpha": ""}
    assert "net_charge: the same in all that there is to train on" in " ".join(capsys.readouterr().err.split())
    options = [
        "condition=properties",
        "trainer.max_steps=2",
        "batch_size=4",
        "denoiser=small",
        "trainer.validate_every=2",
    ]
    assert (
        main(
            ["train", f"data.folder={tmp_path / 'set'}", f"out={tmp_path / 'run'}", "trainer.accelerator=cpu", *options]
        )
        == 0
    )
    from moldiff.sampling.generator import load

    assert load(tmp_path / "run").checkpoint.model.properties.names == ("alpha", "atoms")


@pytest.mark.parametrize(
    ("salt", "kept"),
    [
        ("[NH4+].[Cl-]", "[NH4+]"),
        ("C[NH3+].F[P-](F)(F)(F)(F)F", "C[NH3+]"),
        ("CC(=O)[O-].[Na+]", "CC(=O)[O-]"),
        ("Cl.O=[N+]([O-])[O-]", "O=[N+]([O-])[O-]"),
    ],
)
def test_s21_of_a_salt_the_organic_part_is_kept_and_said_so(tmp_path, salt, kept):
    made = prepared(tmp_path, f"{salt}\n", name="a.smi")
    assert [text.split()[0] for text in made.smiles] == [kept]
    assert made.meta["counts"]["notes"]["largest fragment kept"] == 1
