"""Prepared sets: molecules packed into flat arrays, kept in a folder of safetensors, JSON and text.

Needs neither RDKit nor Hydra, so that training runs where only torch and a prepared folder are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from moldiff.batch import Molecule
from moldiff.data.statistics import Statistics
from moldiff.errors import MoldiffError
from moldiff.vocabulary import MAX_HYDROGENS, Vocabulary

if TYPE_CHECKING:
    from moldiff.data.graphs import MoleculeGraphs

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
MOLECULES_FILE = "molecules.safetensors"
META_FILE = "meta.json"
SMILES_FILE = "smiles.txt"
REJECTED_FILE = "rejected.csv"
NOVELTY_FILE = "novelty.safetensors"

ATOM_FIELDS = {
    "atomic_number": np.uint8,
    "formal_charge": np.int8,
    "num_hydrogens": np.uint8,
    "pos": np.float32,
    "hydrogen_offset": np.float32,
}
BOND_FIELDS = {"edge_index": np.int16, "bond_order": np.uint8}


def pack(molecules: Sequence[Molecule], properties: Sequence[str]) -> dict[str, np.ndarray]:
    """Flat arrays of M molecules, in the small types they are stored in.

    Returns:
        `atomic_number`, `formal_charge`, `num_hydrogens` [sum n], `pos` [sum n, 3] (Å), `hydrogen_offset`
        [sum n, 4, 3] (Å), `edge_index` [2, sum m] (i < j, counted within the molecule), `bond_order` [sum m],
        `y` [M, P] (NaN = not known), `atom_slices` and `bond_slices` [M + 1].
    """
    values = [[m.properties.get(name, np.nan) for name in properties] for m in molecules]
    bonds = _concatenate([m.bonds for m in molecules], (0, 3), np.int64)
    tails = {"pos": (3,), "hydrogen_offset": (MAX_HYDROGENS, 3)}
    fields = {"atomic_number", "formal_charge", "num_hydrogens", "pos", "hydrogen_offset"}
    flat = {
        name: _concatenate([getattr(m, name) for m in molecules], (0, *tails.get(name, ())), ATOM_FIELDS[name])
        for name in sorted(fields)
    }
    return flat | {
        "edge_index": np.ascontiguousarray(bonds[:, :2].T, dtype=BOND_FIELDS["edge_index"]),
        "bond_order": bonds[:, 2].astype(BOND_FIELDS["bond_order"]),
        "y": np.array(values, dtype=np.float32).reshape(len(molecules), len(properties)),
        "atom_slices": np.cumsum([0, *(m.num_heavy_atoms for m in molecules)], dtype=np.int64),
        "bond_slices": np.cumsum([0, *(len(m.bonds) for m in molecules)], dtype=np.int64),
    }


def _concatenate(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(empty, dtype)


def concatenate(sets: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The packed form of the molecules of several packed sets, in order."""
    joined = {name: np.concatenate([flat[name] for flat in sets]) for name in (*ATOM_FIELDS, "bond_order", "y")}
    joined["edge_index"] = np.concatenate([flat["edge_index"] for flat in sets], axis=1)
    for slices in ("atom_slices", "bond_slices"):
        counts = np.concatenate([np.diff(flat[slices]) for flat in sets])
        joined[slices] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return joined


def stored_form(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Packed arrays as they lie on disk: of `hydrogen_offset` only the slots in use [sum h, 3], half the size."""
    return dict(flat) | {"hydrogen_offset": flat["hydrogen_offset"][_used_slots(flat)]}


def _packed_form(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `stored_form`."""
    used = _used_slots(stored)
    offset = np.zeros((*used.shape, 3), dtype=np.float32)
    offset[used] = stored["hydrogen_offset"]
    return dict(stored) | {"hydrogen_offset": offset}


def _used_slots(flat: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.arange(MAX_HYDROGENS) < flat["num_hydrogens"][:, None]


def take(flat: Mapping[str, np.ndarray], indices: np.ndarray) -> dict[str, np.ndarray]:
    """The packed form of the molecules `indices`, in that order."""
    picked: dict[str, np.ndarray] = {"y": flat["y"][indices]}
    for fields, slices in ((ATOM_FIELDS, "atom_slices"), (BOND_FIELDS, "bond_slices")):
        start, counts = flat[slices][indices], np.diff(flat[slices])[indices]
        picked[slices] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(start - picked[slices][:-1], counts) + np.arange(counts.sum())
        for name in fields:
            picked[name] = np.ascontiguousarray(flat[name][..., rows] if name == "edge_index" else flat[name][rows])
    return picked


def encode_atoms(flat: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Class index of every atom of a packed set [sum n] int64.

    Raises:
        MoldiffError: naming a class that the vocabulary lacks.
    """
    columns = [flat[name].astype(np.int64) for name in ("atomic_number", "formal_charge", "num_hydrogens")]
    # Encoding is a loop over atoms, so it is done once for each distinct class.
    code = (columns[0] << 16) + ((columns[1] + 128) << 8) + columns[2]
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    classes: np.ndarray = vocabulary.encode(*(column[first] for column in columns))
    return classes[inverse]


@dataclass(frozen=True, eq=False)
class PreparedSet:
    """A data set as training and evaluation use it.

    Attributes:
        path: the folder it was read from.
        flat: packed arrays of all molecules, see `pack`.
        splits: molecule indices by name of the part ("train", "valid", "test").
        vocabulary: atom classes of the whole set.
        statistics: numbers of the training part.
        smiles: isomeric SMILES of every molecule.
        names: title of every molecule.
        properties: unit of every property, in the order of the columns of `y`.
        meta: everything else that `meta.json` says: name, source, counts, options, geometry, hydrogens.
    """

    path: Path
    flat: Mapping[str, np.ndarray]
    splits: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    statistics: Statistics
    smiles: Sequence[str]
    names: Sequence[str]
    properties: Mapping[str, str]
    meta: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @cached_property
    def graphs(self) -> MoleculeGraphs:
        """The molecules as a PyG data set."""
        # Imported here, for PyG takes seconds to import and dense training and sampling do without it.
        from moldiff.data.graphs import MoleculeGraphs

        return MoleculeGraphs(self.flat)

    @cached_property
    def atom_type(self) -> np.ndarray:
        """Class index of every atom [sum n]."""
        return encode_atoms(self.flat, self.vocabulary)

    def __len__(self) -> int:
        return len(self.flat["y"])

    def split(self, name: str) -> np.ndarray:
        """Indices of the molecules of one part.

        Raises:
            MoldiffError: for a part that does not exist.
        """
        if name not in self.splits:
            raise MoldiffError(f"split: got {name!r}, expected one of {', '.join(self.splits)}")
        return self.splits[name]

    def molecule(self, index: int) -> Molecule:
        """Molecule `index` with chemical values, its known properties and its name."""
        index = range(len(self))[index]
        atoms = slice(*self.flat["atom_slices"][index : index + 2])
        bonds = slice(*self.flat["bond_slices"][index : index + 2])
        fields = {name: self.flat[name][atoms] for name in ATOM_FIELDS}
        wide = {
            name: value.astype(np.float64 if value.dtype.kind == "f" else np.int64) for name, value in fields.items()
        }
        columns = np.concatenate([self.flat["edge_index"][:, bonds], self.flat["bond_order"][None, bonds]])
        values = zip(self.properties, self.flat["y"][index].tolist(), strict=True)
        known = {name: value for name, value in values if np.isfinite(value)}
        return Molecule(**wide, bonds=columns.T.astype(np.int64), properties=known, name=self.names[index])

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a prepared folder.

        Raises:
            MoldiffError: when the folder is missing, incomplete, damaged or of another format version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MoldiffError(f"{folder}: no prepared set there; run `moldiff prepare data=qm9` first")
        meta = _read_meta(folder / META_FILE)
        arrays = _read_arrays(folder / MOLECULES_FILE, meta.get("sha256"))
        lines = _read_lines(folder / SMILES_FILE)
        flat = {name: value for name, value in arrays.items() if not name.startswith("split_")}
        if len(lines) != len(flat["y"]):
            raise MoldiffError(f"{folder / SMILES_FILE}: got {len(lines)} lines, expected {len(flat['y'])}")
        try:
            return cls(
                path=folder,
                flat=flat,
                splits={name: arrays[f"split_{name}"] for name in SPLITS},
                vocabulary=Vocabulary.from_dict(meta["vocabulary"]),
                statistics=Statistics.from_dict(meta["statistics"]),
                smiles=[line.partition("\t")[0] for line in lines],
                names=[line.partition("\t")[2] for line in lines],
                properties={str(name): str(unit) for name, unit in meta["properties"]},
                meta=meta,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MoldiffError(f"{folder / META_FILE}: damaged ({error}); prepare the set again") from None


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MoldiffError(f"{path}: not found, so {path.parent} is not a prepared set") from None
    except ValueError as error:
        raise MoldiffError(f"{path}: damaged ({error}); prepare the set again") from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise MoldiffError(f"{path}: got format_version {version}, expected {FORMAT_VERSION}; prepare the set again")
    return dict(meta)


def _read_arrays(path: Path, digest: str | None) -> dict[str, np.ndarray]:
    try:
        if file_digest(path) != digest:
            raise MoldiffError(f"{path}: damaged ({path.stat().st_size} bytes, wrong checksum); prepare the set again")
        arrays = dict(load_file(path))
    except FileNotFoundError:
        raise MoldiffError(f"{path}: not found; prepare the set again") from None
    except SafetensorError as error:
        raise MoldiffError(f"{path}: damaged ({error}); prepare the set again") from None
    expected = {*ATOM_FIELDS, *BOND_FIELDS, "y", "atom_slices", "bond_slices", *(f"split_{name}" for name in SPLITS)}
    if missing := expected - arrays.keys():
        raise MoldiffError(f"{path}: lacks {', '.join(sorted(missing))}; prepare the set again")
    return _packed_form(arrays)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise MoldiffError(f"{path}: cannot be read ({error}); prepare the set again") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
