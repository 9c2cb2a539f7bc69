"""Files of other people under `moldiff evaluate`: drawings, hydrogens, and atoms named as the file counts them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor
from test_io import WATER, WATER_BONDS, block, water

from moldiff.cli.main import main

CLOSE_HYDROGEN = ("H", 0, 0.08, 0.1173)
"""0.08 Å from the oxygen of water."""


def drawings(*smiles: str, says_3d: bool = False) -> str:
    """Records with RDKit's 2D coordinates and wedges."""
    text = ""
    for number, one in enumerate(smiles):
        mol = Chem.MolFromSmiles(one)
        rdDepictor.Compute2DCoords(mol)
        mol.SetProp("_Name", f"drawing {number}")
        header = mol.GetConformer()
        header.Set3D(False)
        written = Chem.MolToMolBlock(mol)
        text += (written.replace("          2D", "          3D", 1) if says_3d else written) + "$$$$\n"
    return text


def evaluated(folder: Path, content: str, *options: str, name: str = "a.sdf") -> tuple[dict[str, Any], list[Any]]:
    """Value of every result, and the rows of the table of molecules, of `moldiff evaluate`."""
    (folder / name).write_text(content)
    assert main(["evaluate", f"input={folder / name}", f"out={folder / 'report'}", *options]) == 0
    document = json.loads((folder / "report" / "report.json").read_text())
    with (folder / "report" / "molecules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {result["name"]: result for result in document["results"]}, rows


ISOMERS = ("C/C=C/C", "C/C=C\\C", "C[C@H](O)F", "C[C@@H](O)F")


@pytest.mark.parametrize("says_3d", [False, True])
def test_s12_drawings_count_by_their_graph_with_the_stereo_of_the_drawing(tmp_path, says_3d):
    found, rows = evaluated(tmp_path, drawings(*ISOMERS, says_3d=says_3d), f"reference={tmp_path / 'a.sdf'}")
    assert [Chem.CanonSmiles(row["smiles"]) for row in rows] == [Chem.CanonSmiles(text) for text in ISOMERS]
    assert found["p2_valid"]["value"] == 1
    assert (found["p2_unique"]["numerator"], found["p2_unique_strict"]["numerator"]) == (2, 4)
    assert (found["p2_novel"]["numerator"], found["p2_novel_strict"]["numerator"]) == (0, 0)
    assert found["p1_valid"]["value"] is None, "a drawing has no distances to look up"


def test_s12_drawings_and_smiles_are_known_to_each_other(tmp_path):
    (tmp_path / "known.smi").write_text("C/C=C/C\nC[C@@H](O)F\n")
    found, _ = evaluated(tmp_path, drawings(*ISOMERS), f"reference={tmp_path / 'known.smi'}")
    assert (found["p2_novel"]["numerator"], found["p2_novel_strict"]["numerator"]) == (0, 2)
    (tmp_path / "known.sdf").write_text(drawings(*ISOMERS))
    found, _ = evaluated(tmp_path, "C/C=C/C\nCC=CC\n", f"reference={tmp_path / 'known.sdf'}", name="b.smi")
    assert (found["p2_novel"]["numerator"], found["p2_novel_strict"]["numerator"]) == (0, 1)


def test_s12_a_drawing_among_structures_is_valid_and_has_no_geometry(tmp_path):
    found, rows = evaluated(tmp_path, water + drawings("CCO"), "metrics=[geometry,mmff]")
    assert found["p2_valid"]["numerator"] == 2
    assert [row["geometry_status"] for row in rows] == ["ok", "unreadable"]
    assert [row["geometry_reason"] for row in rows] == ["", "no coordinates"]
    assert [row["p1_stable"] for row in rows] == ["True", ""]


def test_s12_objects_of_rdkit_count_as_files_do():
    from moldiff.evaluation.evaluate import evaluate

    flat = Chem.MolFromSmiles("C/C=C/C")
    rdDepictor.Compute2DCoords(flat)
    report = evaluate([flat, Chem.MolFromSmiles("C/C=C\\C")], metrics=[])
    assert [row["smiles"] for row in report.rows] == ["C/C=C/C", "C/C=C\\C"]


def test_s15_atoms_have_the_numbers_of_the_file_from_0_in_all_reasons(tmp_path):
    hydrogens_first = [WATER[1], WATER[2], ("H", 0.94, 0, 0.3), WATER[0]]
    apart = [WATER[1], WATER[2], WATER[0], ("O", 0, 0.3, 0.1173)]
    text = block("many", hydrogens_first, [(1, 4, 1), (2, 4, 1), (3, 4, 1)]) + block("near", apart, WATER_BONDS)
    text = text.replace("  1  2  1  0\n  1  3  1  0\nM", "  1  3  1  0\n  2  3  1  0\nM")
    _, rows = evaluated(tmp_path, text)
    assert rows[0]["reason"] == "atom 3 (O): bond orders sum to 3, expected 2"
    assert rows[1]["reason"].startswith("atom 3 (O): bond orders sum to 0")
    assert rows[1]["geometry_reason"].startswith("atoms 2 (O) and 3 (O) at 0.30 Å, closer than")


def test_s15_a_hydrogen_on_an_atom_is_a_clash(tmp_path):
    loose = block("loose", [*WATER, CLOSE_HYDROGEN], WATER_BONDS)
    bonded = block("bonded", [*WATER, CLOSE_HYDROGEN], [*WATER_BONDS, (1, 4, 1)])
    _, rows = evaluated(tmp_path, water + loose + bonded)
    assert [row["geometry_status"] for row in rows] == ["ok", "clash", "clash"]
    assert all("atoms 0 (O) and 3 (H) at 0.08 Å" in row["geometry_reason"] for row in rows[1:])
