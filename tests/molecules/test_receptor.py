"""Proteins: what stays of a file, how its atoms are typed, and where a pocket is."""

from __future__ import annotations

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from moldiff.errors import MoldiffError
from moldiff.molecules.receptor import METAL_RADIUS, Receptor, find_site, read_receptor

gemmi = pytest.importorskip("gemmi")
DHFR = Path(str(files("moldiff.example_data") / "receptors" / "1s3v.pdb"))
CENTER = np.array([[-2.7, 27.8, 3.4]])
WATER = "HETATM 9001  O   HOH A 900      -3.000  20.000   3.400  1.00  0.00           O  "
ZINC = "HETATM 9002 ZN    ZN A 901      -3.000  20.000   3.400  1.00  0.00          ZN  "
GLYCEROL = "HETATM 9003  C1  GOL A 902      -3.000  20.000   3.400  1.00  0.00           C  "


def with_lines(folder: Path, *lines: str, drop: str = "@") -> Path:
    """The example with further lines, without those that hold `drop`."""
    kept = [line for line in DHFR.read_text().splitlines() if drop not in line and line != "END"]
    path = folder / "changed.pdb"
    path.write_text("\n".join([*kept, *lines, "END", ""]))
    return path


def flags(receptor: Receptor, atom: int) -> tuple[bool, bool, bool]:
    return bool(receptor.hydrophobic[atom]), bool(receptor.donor[atom]), bool(receptor.acceptor[atom])


def test_atoms_are_typed_by_their_residues_without_hydrogens() -> None:
    receptor = read_receptor(DHFR)
    assert receptor.notes == ()
    lines = [line for line in DHFR.read_text().splitlines() if line.startswith("ATOM")]
    rows = {(line[22:26].strip(), line[12:16].strip()): row for row, line in enumerate(lines)}
    assert len(rows) == len(receptor.pos) == 763
    assert flags(receptor, rows["30", "OE1"]) == (False, False, True)  # of a glutamate
    assert flags(receptor, rows["30", "CD"]) == (False, False, False)  # a carbon with oxygens
    assert flags(receptor, rows["34", "CZ"]) == (True, False, False)  # of a phenylalanine
    assert flags(receptor, rows["34", "N"]) == (False, True, False)
    assert receptor.residue[rows["30", "OE1"]] == "A:30"
    prolines = [rows[key] for key in rows if key[1] == "N" and lines[rows[key]][17:20] == "PRO"]
    assert prolines
    assert not receptor.donor[prolines].any()


def test_what_is_no_protein_is_left_out_and_said(tmp_path: Path) -> None:
    before = read_receptor(DHFR)
    receptor = read_receptor(with_lines(tmp_path, WATER, GLYCEROL, ZINC))
    assert receptor.notes == ("left out: HOH (1), GOL (1)",)
    assert len(receptor.pos) == len(before.pos) + 1
    assert (receptor.element[-1], receptor.radius[-1], receptor.donor[-1]) == ("Zn", METAL_RADIUS, True)
    assert len(read_receptor(with_lines(tmp_path, GLYCEROL), also=["GOL"]).pos) == len(before.pos) + 1
    with pytest.raises(MoldiffError, match=r"receptor: .*changed.pdb: has no residue HEM to stay"):
        read_receptor(with_lines(tmp_path), also=["HEM"])


def test_missing_atoms_and_alternate_places_are_said(tmp_path: Path) -> None:
    assert read_receptor(with_lines(tmp_path, drop=" OE1 GLU A  30")).notes == ("residues that lack atoms: A:30 GLU",)
    twice = next(line for line in DHFR.read_text().splitlines() if " OE1 GLU A  30" in line)
    other = f"{twice[:16]}B{twice[17:]}"
    receptor = read_receptor(with_lines(tmp_path, other))
    assert receptor.notes[0].startswith("1 atoms in further alternate locations left out")
    assert len(receptor.pos) == 763


def test_mmcif_and_compressed_files_say_the_same(tmp_path: Path) -> None:
    structure = gemmi.read_structure(str(DHFR))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "same.cif"))
    one, other = read_receptor(DHFR), read_receptor(tmp_path / "same.cif")
    for name in ("pos", "radius", "hydrophobic", "donor", "acceptor", "residue"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pdb", b"", "holds no atoms"),
        ("none.pdb.gz", gzip.compress(b"END\n"), "holds no atoms"),
        ("text.pdb", b"hello\n", "holds no atoms"),
        ("bytes.cif", bytes(range(256)), "cannot be read as PDB or mmCIF"),
        ("water.pdb", f"{WATER}\nEND\n".encode(), "no amino acid found, expected a protein"),
        ("ligand.sdf", b"x", "expected a file of .pdb"),
        ("broken.pdb.gz", b"\x1f\x8b\x08broken-----", "expected 500000000 at most"),
    ],
)
def test_what_is_no_protein_gives_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MoldiffError, match="receptor: ") as raised:
        read_receptor(tmp_path / name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pocket_turns_with_its_protein() -> None:
    receptor = read_receptor(DHFR)
    site = find_site(receptor, "center", CENTER)
    assert 150 < site.volume < 300
    turn = Rotation.random(random_state=3).as_matrix()
    moved = Receptor(**{**vars(receptor), "pos": receptor.pos @ turn.T + [5.0, -3.0, 40.0]})
    other = find_site(moved, "center", CENTER @ turn.T + [5.0, -3.0, 40.0])
    assert other.volume == pytest.approx(site.volume, abs=2)  # points on the border, to rounding
    assert np.allclose(other.axes, turn @ site.axes, atol=1e-6)
    assert np.linalg.det(site.axes) == pytest.approx(1)


@pytest.mark.parametrize(
    ("center", "message"),
    [
        ([60.0, 60.0, 60.0], "nothing of 1s3v.pdb within 8 Å of 60.0, 60.0, 60.0; it spans"),
        ([-20.0, 27.0, 3.0], "lies in the solvent, 23 atoms within 8 Å; expected a place in a pocket"),
        ([4.0, 36.0, 2.0], "lies inside the protein; expected a place in a pocket"),
    ],
)
def test_a_center_outside_of_a_pocket_gives_one_line(center: list[float], message: str) -> None:
    with pytest.raises(MoldiffError, match="center: ") as raised:
        find_site(read_receptor(DHFR), "center", np.array([center]))
    assert message in str(raised.value)


def test_residues_name_the_free_space_among_them() -> None:
    receptor = read_receptor(DHFR)
    atoms = receptor.pos[np.isin(receptor.residue, ["A:7", "A:30", "A:34", "A:115"])]
    site = find_site(receptor, "residues", atoms, 6.0, are_atoms=True)
    assert np.linalg.norm(site.center - CENTER) < 5
    assert np.linalg.norm(receptor.pos - site.center, axis=1).min() > 2
