"""Prepared sets: molecules packed into flat arrays, kept in a folder of safetensors, JSON and text.

Needs neither RDKit nor Hydra, so that training runs where only torch and a prepared folder are.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError

from moldiff.data.store import (
    ATOM_FIELDS,
    BOND_FIELDS,
    STORED,
    encode_atoms,
    hydrogen_slices,
    in_slots,
    load_arrays,
    read_columns,
    unpack,
)
from moldiff.diffusion.statistics import COUNTED, Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch_geometric.data import InMemoryDataset


FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
MOLECULES_FILE = "molecules.safetensors"
META_FILE = "meta.json"
SMILES_FILE = "smiles.txt"
REJECTED_FILE = "rejected.csv"
NOVELTY_FILE = "novelty.safetensors"

MAP_FROM = 2**30
"""Bytes from which on a file is not read but mapped: a set may then be larger than memory."""


@dataclass(frozen=True, eq=False)
class MoleculeDataset:
    """A data set as training and evaluation use it.

    Attributes:
        path: the folder it was read from.
        flat: packed arrays of all molecules, see `moldiff.data.store`.
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
    def atom_type(self) -> np.ndarray:
        """Class index of every atom [sum n]."""
        return encode_atoms(self.flat, self.vocabulary)

    @cached_property
    def learnable(self) -> Mapping[str, str]:
        """Unit of everything that a model can be told of the molecules: stored properties, and `COUNTED` ones.

        A stored property that is the same in all that there is to train on is none of them.
        """
        y = self.flat["y"][self.splits["train"]]
        varying = {name: unit for k, (name, unit) in enumerate(self.properties.items()) if _varies(y[:, k])}
        return varying | {name: unit for name, unit in COUNTED.items() if name not in self.properties}

    def values(self, names: Sequence[str]) -> np.ndarray:
        """Values [M, C] of learnable properties, NaN = not known.

        Raises:
            MoldiffError: for a property that the set lacks.
        """
        if unknown := [name for name in names if name not in self.learnable]:
            raise MoldiffError(f"{self.name}: no property {unknown[0]!r}; it has: {', '.join(self.learnable)}")
        places = {name: place for place, name in enumerate(self.properties)}
        columns = [self.flat["y"][:, places[name]] if name in places else self.num_atoms for name in names]
        return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(self), 0), np.float32)

    @property
    def num_atoms(self) -> np.ndarray:
        """Atoms of every molecule, hydrogens included [M]."""
        number: np.ndarray = np.diff(self.flat["atom_slices"]) + np.diff(self.flat["hydrogen_slices"])
        return number

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
        values = zip(self.properties, self.flat["y"][index].tolist(), strict=True)
        known = {name: value for name, value in values if np.isfinite(value)}
        return unpack(self.flat, index, properties=known, name=self.names[index])

    def to_pyg(self) -> InMemoryDataset:
        """The molecules as a data set of PyTorch Geometric, for networks and loaders written for it.

        Item i is a `Data` with `atomic_number`, `formal_charge`, `num_hydrogens` [n], `pos` [n, 3] (Å),
        `hydrogen_offset` [n, 4, 3] (Å), `edge_index` [2, m] with i < j, `bond_order` [m] and `y` [1, P]. Bonds are
        listed once; a message-passing network wants both directions, `torch_geometric.utils.to_undirected`.
        """
        # Imported here, for PyG takes seconds to import, and dense training and sampling do without it.
        from torch import from_numpy

        with warnings.catch_warnings():
            # PyG scripts a class while it is imported, which newer versions of torch deprecate.
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch_geometric.data import Data, InMemoryDataset

        offset = in_slots(self.flat["num_hydrogens"], self.flat["hydrogen_offset"])
        arrays = {name: self.flat[name] for name in (*ATOM_FIELDS, *BOND_FIELDS, "y")} | {"hydrogen_offset": offset}
        tensors = {name: from_numpy(array) for name, array in arrays.items()}
        atoms, bonds = from_numpy(self.flat["atom_slices"]), from_numpy(self.flat["bond_slices"])
        slices = dict.fromkeys((*ATOM_FIELDS, "hydrogen_offset"), atoms) | dict.fromkeys(BOND_FIELDS, bonds)
        graphs = InMemoryDataset()
        graphs.data = Data(**{name: t if t.is_floating_point() else t.long() for name, t in tensors.items()})
        graphs.slices = slices | {"y": from_numpy(np.arange(len(self) + 1))}
        return graphs

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
        try:
            smiles, names = read_columns(folder / SMILES_FILE, map_from=MAP_FROM)
        except FileNotFoundError as error:
            raise MoldiffError(f"{folder / SMILES_FILE}: cannot be read ({error}); prepare the set again") from None
        flat = {name: value for name, value in arrays.items() if not name.startswith("split_")}
        if len(smiles) != len(flat["y"]):
            raise MoldiffError(f"{folder / SMILES_FILE}: got {len(smiles)} lines, expected {len(flat['y'])}")
        try:
            return cls(
                path=folder,
                flat=flat,
                splits={name: arrays[f"split_{name}"] for name in SPLITS},
                vocabulary=Vocabulary.from_dict(meta["vocabulary"]),
                statistics=Statistics.from_dict(meta["statistics"]),
                smiles=smiles,
                names=names,
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
        arrays = load_arrays(path, map_from=MAP_FROM)
    except FileNotFoundError:
        raise MoldiffError(f"{path}: not found; prepare the set again") from None
    except SafetensorError as error:
        raise MoldiffError(f"{path}: damaged ({error}); prepare the set again") from None
    expected = {*STORED, *(f"split_{name}" for name in SPLITS)}
    if missing := expected - arrays.keys():
        raise MoldiffError(f"{path}: lacks {', '.join(sorted(missing))}; prepare the set again")
    return arrays | {"hydrogen_slices": hydrogen_slices(arrays)}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _varies(values: np.ndarray) -> bool:
    """Whether there are two different ones among the known of some values [m], NaN = not known."""
    known = values[np.isfinite(values)]
    return len(known) > 0 and bool(known.min() < known.max())
