"""Proteins that molecules are drawn into: read from PDB or mmCIF, heavy atoms typed as AutoDock Vina types them.

Also where in them molecules are to lie: the free space of a pocket, and a frame that turns with the protein.

Vina counts hydrogens with their heavy atoms (Trott and Olson 2010, doi:10.1002/jcc.21334), so a file needs none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import label
from scipy.spatial import cKDTree

from moldiff.errors import MoldiffError, first_line
from moldiff.molecules.formats.storage import shown

if TYPE_CHECKING:
    import gemmi

RADII = {"C": 1.9, "N": 1.8, "O": 1.7, "F": 1.5, "P": 2.1, "S": 2.0, "Cl": 1.8, "Br": 2.0, "I": 2.2}
"""Radii of Vina by element (Å)."""

HALOGENS = ("F", "Cl", "Br", "I")
OTHER_RADIUS, METAL_RADIUS = 2.0, 1.2
METALS = ("Li", "Na", "K", "Mg", "Ca", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Cd")

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
_LARGEST = 500_000_000  # bytes of a file at most
_FEWEST = 5  # amino acids of a receptor at the least
_BONDED, _BONDED_TO_HYDROGEN = 1.95, 1.3  # Å that a bond between heavy atoms, and one to a hydrogen, spans at most
_HETERO = ("N", "O", "S", "P", *HALOGENS)

_DONORS = (
    *("ARG:NE", "ARG:NH1", "ARG:NH2", "ASN:ND2", "GLN:NE2", "HIS:ND1", "HIS:NE2", "LYS:NZ"),
    *("SER:OG", "THR:OG1", "TRP:NE1", "TYR:OH"),
)
"""Atoms of side chains that carry a hydrogen for a bond; of histidine without hydrogens either nitrogen may."""

_ACCEPTING_NITROGENS = ("HIS:ND1", "HIS:NE2")
_NUM_HEAVY = {
    **{"GLY": 4, "ALA": 5, "SER": 6, "CYS": 6, "THR": 7, "PRO": 7, "VAL": 7, "ASP": 8, "ASN": 8, "ILE": 8, "LEU": 8},
    **{"GLU": 9, "GLN": 9, "LYS": 9, "MET": 8, "HIS": 10, "PHE": 11, "ARG": 11, "TYR": 12, "TRP": 14},
}
"""Heavy atoms of a residue within a chain."""

_PROTONATED = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **{"CYX": "CYS", "CYM": "CYS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS"},
}
"""Names of residues by their state of protonation, and those of the residues."""


@dataclass(frozen=True, eq=False)
class Receptor:
    """Heavy atoms of a protein, with the metals and other residues that stay in it."""

    name: str
    pos: np.ndarray  # [M, 3] (Å)
    element: np.ndarray  # symbols [M]
    radius: np.ndarray  # of Vina [M] (Å)
    hydrophobic: np.ndarray  # [M]
    donor: np.ndarray  # [M]
    acceptor: np.ndarray  # [M]
    residue: np.ndarray  # chain and number [M], such as A:85
    notes: tuple[str, ...] = ()  # what was set aside, chosen or missing, for the user

    def rows(self, chosen: np.ndarray) -> Receptor:
        """The atoms at `chosen`."""
        values = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Receptor(self.name, **values, notes=self.notes)

    def within(self, points: np.ndarray, distance: float) -> np.ndarray:
        """Indices of the atoms within a distance (Å) of any of the points [P, 3]."""
        near = cKDTree(self.pos).query_ball_point(points, distance)
        return np.unique(np.concatenate([np.asarray(one, dtype=np.int64) for one in near]))


def read_receptor(path: str | Path, *, also: Sequence[str] = ()) -> Receptor:
    """A protein from a PDB or mmCIF file (also .gz), without waters, ligands and what else is no part of it.

    `also` are names of residues that stay although they are no amino acids or metals, such as HEM.

    Raises:
        MoldiffError: where gemmi is missing, or the file is, is no structure, or has no protein.
    """
    structure = _read(str(path))
    notes: list[str] = []
    alternate = sum(atom.altloc not in ("\0", "A") for one in _residues(structure) for atom in one[1])
    if alternate:
        notes.append(f"{alternate} atoms in further alternate locations left out; the first of each is taken")
        structure.remove_alternative_conformations()
    atoms, polymer, away, short = _Atoms(), 0, Counter[str](), list[str]()
    for chain, residue in _residues(structure):
        name, label = _PROTONATED.get(residue.name, residue.name), f"{chain}:{residue.seqid}"
        kind = _kind(residue, name)
        if kind == "amino acid":
            polymer += 1
            heavy = sum(not atom.is_hydrogen() for atom in residue)
            if heavy < _NUM_HEAVY.get(name, 0):
                short.append(f"{label} {residue.name}")
        elif kind != "metal" and residue.name not in also:
            away[residue.name] += 1
            continue
        atoms.add(residue, name, label)
    if polymer < _FEWEST:
        found = f"{polymer} amino acids" if polymer else "no amino acid"
        raise MoldiffError(f"receptor: {shown(str(path))}: {found} found, expected a protein")
    if away:
        notes.append("left out: " + ", ".join(f"{name} ({count})" for name, count in away.most_common(8)))
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        notes.append(f"residues that lack atoms: {', '.join(short[:5])}{more}")
    if unknown := sorted(set(also) - atoms.names):
        raise MoldiffError(f"receptor: {shown(str(path))}: has no residue {unknown[0]} to stay")
    return atoms.receptor(Path(path).name, tuple(notes))


def _read(path: str) -> gemmi.Structure:
    try:
        import gemmi
    except ImportError:
        raise MoldiffError('gemmi is not installed; to install it: pip install "moldiff[pocket]"') from None
    if not path.lower().removesuffix(".gz").endswith(SUFFIXES):
        raise MoldiffError(f"receptor: got {shown(path)}, expected a file of {', '.join(SUFFIXES)}, also .gz")
    if not os.path.isfile(path):
        raise MoldiffError(f"receptor: {shown(path)}: no such file")
    if (size := _unpacked_size(path)) > _LARGEST:
        raise MoldiffError(f"receptor: {shown(path)}: {size} bytes, expected {_LARGEST} at most")
    try:
        structure = gemmi.read_structure(path)
        structure.setup_entities()
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        reason = first_line(error)
        raise MoldiffError(f"receptor: {shown(path)}: cannot be read as PDB or mmCIF ({reason})") from None
    if not len(structure) or not any(True for _ in _residues(structure)):
        raise MoldiffError(f"receptor: {shown(path)}: holds no atoms, expected a protein")
    return structure


def _unpacked_size(path: str) -> int:
    """Bytes of a file, of a compressed one those that it says it has."""
    size = os.path.getsize(path)
    if not path.lower().endswith(".gz") or size < 4:
        return size
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return max(size, int.from_bytes(file.read(), "little"))


def _residues(structure: gemmi.Structure) -> Iterator[tuple[str, Any]]:
    """Chain and residue of every residue of the first model."""
    for chain in structure[0]:
        for residue in chain:
            yield chain.name.strip() or "_", residue


def _kind(residue: gemmi.Residue, name: str) -> str:
    """What a residue is: "amino acid", "metal" or "other"."""
    import gemmi

    info = gemmi.find_tabulated_residue(name)
    backbone = {"N", "CA", "C"} <= {atom.name for atom in residue}
    if name in _NUM_HEAVY or name in ("ACE", "NME", "NMA", "NH2") or (info.is_amino_acid() and backbone):
        return "amino acid"
    is_metal = len(residue) == 1 and residue[0].element.name in METALS
    return "metal" if is_metal else "other"


class _Atoms:
    """Collects the heavy atoms of residues and the hydrogens between them."""

    def __init__(self) -> None:
        self.names = set[str]()
        self._heavy: list[tuple[Any, ...]] = []
        self._hydrogens: list[list[float]] = []

    def add(self, residue: gemmi.Residue, name: str, label: str) -> None:
        self.names.add(residue.name)
        for atom in residue:
            pos = atom.pos.tolist()
            if atom.is_hydrogen():
                self._hydrogens.append(pos)
            elif atom.element.name != "X":
                self._heavy.append((pos, atom.element.name, f"{name}:{atom.name}", label))

    def receptor(self, name: str, notes: tuple[str, ...]) -> Receptor:
        columns = [np.array(column) for column in zip(*self._heavy, strict=True)]
        pos, element, label, residue = columns
        if not np.isfinite(pos).all():
            raise MoldiffError(f"receptor: {name}: a coordinate is not finite")
        metal = np.isin(element, METALS)
        radius = np.where(metal, METAL_RADIUS, [RADII.get(one, OTHER_RADIUS) for one in element])
        polar = np.zeros(len(pos), dtype=bool)
        hetero = np.flatnonzero(np.isin(element, _HETERO))
        near = cKDTree(pos[hetero]).query_ball_point(pos, _BONDED) if len(hetero) else [[] for _ in pos]
        polar[[row for row, others in enumerate(near) if set(hetero[others]) - {row}]] = True
        donor, acceptor = self._hydrogen_bonding(pos, element, label)
        hydrophobic = (element == "C") & ~polar | np.isin(element, HALOGENS)
        return Receptor(name, pos, element, radius, hydrophobic, donor | metal, acceptor, residue, notes)

    def _hydrogen_bonding(self, pos: np.ndarray, element: np.ndarray, label: np.ndarray) -> tuple[Any, Any]:
        """Donors and acceptors [M] by the residues' templates and the hydrogens that there are."""
        nitrogen, oxygen = element == "N", element == "O"
        amide = np.array([one.endswith(":N") and one != "PRO:N" for one in label])
        donor = amide | np.isin(label, _DONORS)
        accepting = np.isin(label, _ACCEPTING_NITROGENS)
        if self._hydrogens:
            carries = np.isfinite(cKDTree(self._hydrogens).query(pos, distance_upper_bound=_BONDED_TO_HYDROGEN)[0])
            donor = donor & ~accepting | carries & (nitrogen | oxygen)
            accepting = accepting & ~donor
        return donor, oxygen | accepting


REACH = 9.0
"""Å from a named point to which a pocket's free space is followed."""

_NEAR = 8.0  # Å within which atoms count as around a point
_BURIED = 55  # so many around a point of a pocket at the least: a flat surface has about as many, the inside 110
_GAP = 1.3  # Å between the surface of an atom of the protein and the middle of one that touches it
_CROP = 22.0  # Å from the middle of a pocket within which atoms matter to what lies in it
_SMALLEST = 40.0  # Å³ of a pocket at the least
_STARTS, _STARTS_AT_ATOM = 3.0, 5.0  # Å from a named point, and from an atom, within which free space begins
_VOLUME_OF_ATOM = 6.5  # Å³ of a pocket to each heavy atom of a ligand; the median over the eight of docs/pocket.md


@dataclass(frozen=True, eq=False)
class Site:
    """A pocket."""

    receptor: Receptor  # the atoms around it
    center: np.ndarray  # [3] (Å), where molecules begin
    axes: np.ndarray  # rotation [3, 3] whose columns turn with the protein
    volume: float  # of the free space (Å³)

    @property
    def num_atoms(self) -> int:
        """Heavy atoms of a molecule that the pocket holds, roughly."""
        return round(self.volume / _VOLUME_OF_ATOM)


def find_site(
    receptor: Receptor, name: str, points: np.ndarray, reach: float = REACH, *, are_atoms: bool = False
) -> Site:
    """The pocket whose free space begins near named points [P, 3] (Å) and goes no farther than `reach` from them.

    `name` is the option that named them. The middle is theirs, or, where they are atoms of the protein itself, that of
    the free space. MoldiffError where the protein is far away, or leaves no such space.
    """
    center, where = points.mean(0), ", ".join(f"{value:.1f}" for value in points.mean(0))
    if not len(near := receptor.within(center[None], _NEAR)):
        low, high = receptor.pos.min(0), receptor.pos.max(0)
        spans = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
        raise MoldiffError(f"{name}: nothing of {receptor.name} within {_NEAR:g} Å of {where}; it spans {spans} Å")
    axes = _axes(receptor.pos[receptor.within(center[None], 1.5 * _NEAR)] - center)
    extent = float(np.linalg.norm(points - center, axis=1).max()) + reach
    steps = np.arange(-np.floor(extent), np.floor(extent) + 1)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    places = center + grid.reshape(-1, 3) @ axes.T
    tree = cKDTree(receptor.pos)
    inside = cKDTree(points).query(places, distance_upper_bound=reach)[0] < np.inf
    inside[inside] = tree.query_ball_point(places[inside], _NEAR, return_length=True) >= _BURIED
    inside[inside] = [
        bool((np.linalg.norm(receptor.pos[rows] - place, axis=1) - receptor.radius[rows] >= _GAP).all())
        for place, rows in zip(places[inside], tree.query_ball_point(places[inside], 4.0), strict=True)
    ]
    regions = label(inside.reshape(grid.shape[:3]))[0].ravel()
    starts = regions[inside & (cKDTree(points).query(places)[0] <= (_STARTS_AT_ATOM if are_atoms else _STARTS))]
    region = places[regions == np.bincount(starts).argmax()] if len(starts) else places[:0]
    if len(region) < _SMALLEST:
        why = f"in the solvent, {len(near)} atoms within {_NEAR:g} Å" if len(near) < _BURIED else "inside the protein"
        raise MoldiffError(f"{name}: {where} of {receptor.name} lies {why}; expected a place in a pocket")
    middle = region.mean(0) if are_atoms else center
    return Site(receptor.rows(receptor.within(middle[None], _CROP)), middle, axes, float(len(region)))


def _axes(pos: np.ndarray) -> np.ndarray:
    """A rotation whose columns are the principal axes of points [M, 3], each towards where they reach farthest."""
    axes = np.linalg.eigh(np.cov(pos.T))[1]
    skew = ((pos @ axes) ** 3).sum(0)
    axes = axes * np.where(skew < 0, -1.0, 1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return axes
