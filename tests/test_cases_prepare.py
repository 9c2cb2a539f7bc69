"""Files of other people under `moldiff prepare`, with what RDKit alone finds in them, and what becomes of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from test_cases_evaluate import CLOSE_HYDROGEN, drawings
from test_io import WATER, WATER_BONDS, block, water

from moldiff.cli import main
from moldiff.data.dataset import PreparedSet


def prepared(folder: Path, content: str | bytes, *options: str, name: str = "a.sdf") -> PreparedSet:
    """The set that `moldiff prepare` makes of a file."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["prepare", f"data.path={folder / name}", f"out={folder / 'set'}", "num_workers=1", *options]) == 0
    return PreparedSet.load(folder / "set")


def reasons(made: PreparedSet) -> list[str]:
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
