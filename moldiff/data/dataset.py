"""Prepared sets: molecules packed into flat arrays, kept in a folder of safetensors, JSON and text.

Also which atom classes occur in a packed set, and what a model knows of its data. Needs neither RDKit nor Hydra, so
that training runs where only torch and a prepared folder are.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError

from moldiff.data import store
from moldiff.data.store import ATOM_FIELDS, BOND_FIELDS, STORED, blocks, class_codes, decode_class, encode_atoms
from moldiff.diffusion.statistics import COUNTED, Statistics
from moldiff.errors import MoldiffError
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status
from moldiff.molecules.vocabulary import NUM_BOND_CLASSES, VALENCES, AtomClass, Vocabulary

if TYPE_CHECKING:
    from torch_geometric.data import InMemoryDataset


FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
MOLECULES_FILE = "molecules.safetensors"
META_FILE = "meta.json"
SMILES_FILE = "smiles.txt"
REJECTED_FILE = "rejected.csv"
NOVELTY_FILE = "novelty.safetensors"

MAP_FROM = 2**30  # bytes from which on a file is not read but mapped: a set may then be larger than memory


@dataclass(frozen=True, eq=False)
class MoleculeDataset:
    """A data set as training and evaluation use it."""

    path: Path  # the folder it was read from
    flat: Mapping[str, np.ndarray]  # packed arrays of all molecules, see `moldiff.data.store`
    splits: Mapping[str, np.ndarray]  # molecule indices of the parts "train", "valid", "test"
    vocabulary: Vocabulary  # of the whole set
    statistics: Statistics  # of the training part
    smiles: Sequence[str]  # isomeric, of every molecule
    names: Sequence[str]  # title of every molecule
    properties: Mapping[str, str]  # unit of every property, in the order of the columns of `y`
    meta: Mapping[str, Any]  # what else `meta.json` says: name, source, counts, options, geometry, hydrogens

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @cached_property
    def atom_type(self) -> np.ndarray:
        """Class index of every atom [sum n]."""
        return encode_atoms(self.flat, self.vocabulary)

    @cached_property
    def learnable(self) -> Mapping[str, str]:
        """Unit of everything that a model can be conditioned on: stored properties, and `COUNTED` ones.

        A stored property that is the same in all that there is to train on is none of them.
        """
        known = (column[np.isfinite(column)] for column in self.flat["y"][self.splits["train"]].T)
        units = zip(self.properties.items(), known, strict=True)
        stored = {name: unit for (name, unit), column in units if len(column) and column.min() < column.max()}
        return stored | {name: unit for name, unit in COUNTED.items() if name not in self.properties}

    def values(self, names: Sequence[str]) -> np.ndarray:
        """Values [M, C] of learnable properties, NaN = not known.

        Raises MoldiffError for a property that the set lacks.
        """
        if unknown := [name for name in names if name not in self.learnable]:
            raise MoldiffError(f"{self.name}: no property {unknown[0]!r}; it has: {', '.join(self.learnable)}")
        places = {name: place for place, name in enumerate(self.properties)}
        columns = [self.flat["y"][:, places[name]] if name in places else self.num_atoms for name in names]
        return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(self), 0), np.float32)

    @property
    def num_atoms(self) -> np.ndarray:
        """Atoms of every molecule, hydrogens included [M]."""
        return np.asarray(np.diff(self.flat["atom_slices"]) + np.diff(self.flat["hydrogen_slices"]))

    def __len__(self) -> int:
        return len(self.flat["y"])

    def split(self, name: str) -> np.ndarray:
        """Indices of the molecules of one part. Raises MoldiffError for a part that does not exist."""
        if name not in self.splits:
            raise MoldiffError(f"split: got {name!r}, expected one of {', '.join(self.splits)}")
        return self.splits[name]

    def molecule(self, index: int) -> Molecule:
        """Molecule `index` with chemical values, its known properties and its name."""
        index = range(len(self))[index]
        values = zip(self.properties, self.flat["y"][index].tolist(), strict=True)
        known = {name: value for name, value in values if np.isfinite(value)}
        return store.unpack(self.flat, index, properties=known, name=self.names[index])

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

        offset = store.in_slots(self.flat["num_hydrogens"], self.flat["hydrogen_offset"])
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

        Raises MoldiffError when the folder is missing, incomplete, damaged or of another format version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MoldiffError(f"{folder}: no prepared set there; run `moldiff prepare data=qm9` first")
        meta = _read_meta(folder / META_FILE)
        arrays = _read_arrays(folder / MOLECULES_FILE, meta.get("sha256"))
        try:
            smiles, names = store.read_columns(folder / SMILES_FILE, map_from=MAP_FROM)
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
        arrays = store.load_arrays(path, map_from=MAP_FROM)
    except (FileNotFoundError, SafetensorError) as error:
        what = "not found" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise MoldiffError(f"{path}: {what}; prepare the set again") from None
    expected = {*STORED, *(f"split_{name}" for name in SPLITS)}
    if missing := expected - arrays.keys():
        raise MoldiffError(f"{path}: lacks {', '.join(sorted(missing))}; prepare the set again")
    return arrays | {"hydrogen_slices": store.hydrogen_slices(arrays)}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def observed_vocabulary(flat: Mapping[str, np.ndarray]) -> Vocabulary:
    """Every atom class of a packed set; valences that the table lacks are those seen in the data."""
    seen: set[tuple[int, int]] = set()
    for block in blocks(flat, np.arange(len(flat["y"]))):
        sums = block["num_hydrogens"].astype(np.int64)
        start = np.repeat(block["atom_slices"][:-1], np.diff(block["bond_slices"]))
        for end in block["edge_index"]:
            np.add.at(sums, start + end, block["bond_order"])
        # One number for each atom, for distinct numbers are found much faster than distinct rows.
        seen.update((code >> 8, code & 0xFF) for code in np.unique((class_codes(block) << 8) + sums).tolist())
    extra: dict[tuple[int, int], set[int]] = defaultdict(set)
    for code, total in seen:
        if (key := decode_class(code)[:2]) not in VALENCES:
            extra[key].add(total)
    classes = sorted({AtomClass(*decode_class(code)) for code, _ in seen})
    return Vocabulary(tuple(classes), {key: tuple(sorted(sums)) for key, sums in extra.items()})


def rare_classes(flat: Mapping[str, np.ndarray], min_count: int) -> dict[int, InvalidMolecule]:
    """Molecules with an atom class that fewer than `min_count` molecules have.

    The rarest class goes first, and with it all its molecules, which may make other classes rarer; so on until every
    class left is in at least `min_count` molecules.
    """
    if min_count <= 1:
        return {}
    classes, pairs = _classes_of_molecules(flat)
    problems: dict[int, InvalidMolecule] = {}
    while len(pairs):
        counts = np.bincount(pairs[:, 0])
        rarest = int(np.where(counts, counts, len(pairs) + 1).argmin())  # of those that are left
        if counts[rarest] >= min_count:
            break
        reason = f"class {classes[rarest]} is in {counts[rarest]} molecules, fewer than min_count={min_count}"
        dropped = pairs[pairs[:, 0] == rarest, 1]
        problems |= dict.fromkeys(dropped.tolist(), InvalidMolecule(Status.VALENCE, reason))
        pairs = pairs[~np.isin(pairs[:, 1], dropped)]
    return problems


def _classes_of_molecules(flat: Mapping[str, np.ndarray]) -> tuple[list[AtomClass], np.ndarray]:
    """The atom classes of a set, and a row (class, molecule) for each class that a molecule has."""
    known: dict[int, int] = {}
    found, first = [np.zeros((0, 2), dtype=np.int32)], 0
    for block in blocks(flat, np.arange(len(flat["y"]))):
        counts = np.diff(block["atom_slices"])
        codes, index = np.unique(class_codes(block), return_inverse=True)
        numbers = np.array([known.setdefault(code, len(known)) for code in codes.tolist()], dtype=np.int64)
        owner = np.repeat(np.arange(len(counts)), counts)
        pairs = np.unique((numbers[index] << 32) + owner)
        found.append(np.stack([pairs >> 32, first + (pairs & 0xFFFFFFFF)], axis=1).astype(np.int32))
        first += len(counts)
    return [AtomClass(*decode_class(code)) for code in known], np.concatenate(found)


def measure_statistics(flat: Mapping[str, np.ndarray], indices: np.ndarray, vocabulary: Vocabulary) -> Statistics:
    """Statistics of the molecules `indices` of a packed set, whose atom classes are all in the vocabulary."""
    if not len(indices):
        raise MoldiffError("statistics: got no molecule, expected at least one in the training part")
    size_counts, charges = Counter[int](), set[int]()
    types = np.zeros(vocabulary.num_atom_classes, dtype=np.int64)
    pairs = np.zeros(NUM_BOND_CLASSES)
    pos_squares, hydrogen_squares, hydrogens = 0.0, 0.0, 0
    for block in blocks(flat, np.asarray(indices)):
        sizes = np.diff(block["atom_slices"])
        owner = np.repeat(np.arange(len(sizes)), sizes)
        size_counts.update(sizes.tolist())
        charge = np.bincount(owner, block["formal_charge"].astype(np.float64))
        charges |= set(charge.round().astype(np.int64).tolist())
        types += np.bincount(encode_atoms(block, vocabulary), minlength=len(types))
        pairs += np.bincount(block["bond_order"], minlength=len(pairs))
        pairs[0] += (sizes * (sizes - 1) // 2).sum() - len(block["bond_order"])
        pos = block["pos"].astype(np.float64)
        mean = np.stack([np.bincount(owner, pos[:, axis]) for axis in range(3)], axis=1) / sizes[:, None]
        pos_squares += float(np.square(pos - mean[owner]).sum())
        hydrogen_squares += float(np.square(block["hydrogen_offset"].astype(np.float64)).sum())
        hydrogens += len(block["hydrogen_offset"])
    return Statistics(
        size_counts=dict(sorted(size_counts.items())),
        atom_marginal=tuple((types / types.sum()).tolist()),
        # A set of single atoms has no pair: then "no bond" is the only class that can occur.
        bond_marginal=tuple((pairs / pairs.sum()).tolist()) if pairs.sum() else (1.0, 0.0, 0.0, 0.0),
        pos_scale=_rms(pos_squares, 3 * int(types.sum())),
        hydrogen_scale=_rms(hydrogen_squares, 3 * hydrogens),
        hydrogens_placed=not hydrogens or hydrogen_squares > 0,
        charge=charges.pop() if len(charges) == 1 else None,
    )


def _rms(squares: float, count: int) -> float:
    """Root mean square; 1 where there is nothing to scale, so that it can always be divided by."""
    return float(np.sqrt(squares / count)) or 1.0 if count else 1.0
