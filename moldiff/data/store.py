"""Molecules packed into flat arrays, in memory or mapped from a file.

A packed set of M molecules is a dict of `atomic_number`, `formal_charge`, `num_hydrogens` [sum n], `pos` [sum n, 3]
(Å), `hydrogen_offset` [sum h, 3] (Å; those of an atom in the order of its slots), `edge_index` [2, sum m] (i < j,
counted within the molecule), `bond_order` [sum m], `y` [M, P] (NaN = not known), and of `atom_slices`,
`hydrogen_slices` and `bond_slices` [M + 1].

Also columns of a text file as sequences that are decoded when asked, and arrays and lines that grow on disk while a
source is read, so that a set may be larger than memory.
"""

import json
import math
import mmap
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from moldiff.molecules.molecule import Molecule
from moldiff.molecules.vocabulary import MAX_HYDROGENS, Vocabulary

ATOM_FIELDS = {"atomic_number": np.uint8, "formal_charge": np.int8, "num_hydrogens": np.uint8, "pos": np.float32}
BOND_FIELDS = {"edge_index": np.int16, "bond_order": np.uint8}
FIELDS_BY_SLICES: Mapping[str, Sequence[str]] = {
    "atom_slices": tuple(ATOM_FIELDS),
    "hydrogen_slices": ("hydrogen_offset",),
    "bond_slices": tuple(BOND_FIELDS),
}
STORED = (*ATOM_FIELDS, "hydrogen_offset", *BOND_FIELDS, "y", "atom_slices", "bond_slices")
"""Arrays that lie on disk; `hydrogen_slices` follow from `num_hydrogens`."""

Packed = dict[str, np.ndarray]
_BLOCK = 65_536
_PIECE = 2**24  # bytes
_LINES = "lines.txt"
_CLASS_FIELDS = ("atomic_number", "formal_charge", "num_hydrogens")
_DTYPES = {"F32": np.float32, "I64": np.int64, "I16": np.int16, "I8": np.int8, "U8": np.uint8}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def pack(molecules: Sequence[Molecule], properties: Sequence[str]) -> Packed:
    """The packed form of molecules, with the properties named as columns of `y`."""
    values = [[m.properties.get(name, np.nan) for name in properties] for m in molecules]
    bonds = _joined([m.bonds for m in molecules], (0, 3), np.int64)
    offsets = [m.hydrogen_offset[m.hydrogen_mask] for m in molecules]
    empty = {name: (0, 3) if name == "pos" else (0,) for name in ATOM_FIELDS}
    return {name: _joined([getattr(m, name) for m in molecules], empty[name], ATOM_FIELDS[name]) for name in empty} | {
        "hydrogen_offset": _joined(offsets, (0, 3), np.float32),
        "edge_index": np.ascontiguousarray(bonds[:, :2].T, dtype=BOND_FIELDS["edge_index"]),
        "bond_order": bonds[:, 2].astype(BOND_FIELDS["bond_order"]),
        "y": np.array(values, dtype=np.float32).reshape(len(molecules), len(properties)),
        "atom_slices": slices_of([m.num_heavy_atoms for m in molecules]),
        "hydrogen_slices": slices_of([len(offset) for offset in offsets]),
        "bond_slices": slices_of([len(m.bonds) for m in molecules]),
    }


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(empty, dtype)


def slices_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where as many rows of every molecule as `counts` [M] says begin and end [M + 1]."""
    slices = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, dtype=np.int64, out=slices[1:])
    return slices


def in_slots(num_hydrogens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Hydrogen offsets [h, 3] spread over the slots of their atoms [n, 4, 3]; unused ones are 0."""
    spread = np.zeros((len(num_hydrogens), MAX_HYDROGENS, 3), dtype=offsets.dtype)
    spread[np.arange(MAX_HYDROGENS) < num_hydrogens[:, None]] = offsets
    return spread


def unpack(
    flat: Mapping[str, np.ndarray], index: int, *, properties: Mapping[str, float] | None = None, name: str = ""
) -> Molecule:
    """Molecule `index` of a packed set, with what the arrays do not tell."""
    atoms, hydrogens, bonds = (slice(*flat[slices][index : index + 2]) for slices in FIELDS_BY_SLICES)
    fields: dict[str, Any] = {field: np.asarray(flat[field][atoms]) for field in ATOM_FIELDS}
    fields["hydrogen_offset"] = in_slots(fields["num_hydrogens"], flat["hydrogen_offset"][hydrogens])
    fields["bonds"] = np.concatenate([flat["edge_index"][:, bonds], flat["bond_order"][None, bonds]]).T
    for field, value in fields.items():
        fields[field] = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
    return Molecule(**fields, properties=properties or {}, name=name)


def take(flat: Mapping[str, np.ndarray], indices: np.ndarray) -> Packed:
    """The packed form of the molecules `indices`, in that order."""
    picked: Packed = {"y": np.asarray(flat["y"][indices])}
    for slices, fields in FIELDS_BY_SLICES.items():
        start = np.asarray(flat[slices][indices])
        counts = np.asarray(flat[slices][indices + 1]) - start
        picked[slices] = slices_of(counts)
        rows = np.repeat(start - picked[slices][:-1], counts) + np.arange(counts.sum())
        for name in fields:
            picked[name] = np.ascontiguousarray(flat[name][..., rows] if name == "edge_index" else flat[name][rows])
    return picked


def blocks(flat: Mapping[str, np.ndarray], indices: np.ndarray) -> Iterator[Packed]:
    """`take` in pieces that need little memory."""
    for start in range(0, len(indices), _BLOCK):
        yield take(flat, indices[start : start + _BLOCK])


def hydrogen_slices(flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where the hydrogens of every molecule begin and end [M + 1]."""
    return np.asarray(slices_of(flat["num_hydrogens"])[flat["atom_slices"]])


def encode_atoms(flat: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Class index of every atom of a packed set [sum n] int16.

    Raises MoldiffError naming a class that the vocabulary lacks.
    """
    encoded = np.empty(len(flat["atomic_number"]), dtype=np.int16)
    for start in range(0, len(encoded), 16 * _BLOCK):
        part = slice(start, start + 16 * _BLOCK)
        # Encoding is a loop over atoms, so it is done once for each distinct class.
        codes, inverse = np.unique(class_codes(flat, part), return_inverse=True)
        columns = np.array([decode_class(code) for code in codes.tolist()], dtype=np.int64).T
        encoded[part] = vocabulary.encode(*columns)[inverse]
    return encoded


def class_codes(flat: Mapping[str, np.ndarray], part: slice = slice(None)) -> np.ndarray:
    """One number for element, charge and hydrogens of every atom; `decode_class` is its inverse."""
    number, charge, hydrogens = (flat[name][part].astype(np.int64) for name in _CLASS_FIELDS)
    return np.asarray((number << 16) + ((charge + 128) << 8) + hydrogens)


def decode_class(code: int) -> tuple[int, int, int]:
    """Atomic number, formal charge and number of hydrogens."""
    return code >> 16, (code >> 8 & 0xFF) - 128, code & 0xFF


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file piece by piece; arrays that are mapped from a file are never in memory as a whole."""
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # keeps all of them aligned
    ends = slices_of([arrays[name].nbytes for name in order]).tolist()
    header = {
        name: {"dtype": _NAMES[arrays[name].dtype], "shape": list(arrays[name].shape), "data_offsets": ends[k : k + 2]}
        for k, name in enumerate(order)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = np.ascontiguousarray(arrays[name]).reshape(-1)
            for start in range(0, len(flat), 2**20):
                file.write(flat[start : start + 2**20].tobytes())


def load_arrays(path: Path, *, map_from: int) -> Packed:
    """Arrays of a safetensors file; a file of `map_from` bytes or more is mapped and read as it is needed.

    Raises SafetensorError when it is not such a file.
    """
    if path.stat().st_size < map_from:
        return dict(load_file(path))
    with safe_open(path, framework="numpy"):
        pass  # checks that all parts of the header fit the file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if strange := [name for name, entry in header.items() if entry["dtype"] not in _DTYPES]:
        raise SafetensorError(f"unexpected type {header[strange[0]]['dtype']} of {strange[0]}")
    return {
        name: _mapped(path, _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
    """An array on disk, copied on write, so that it can be a tensor; nothing is ever written."""
    return np.zeros(shape, dtype) if 0 in shape else np.memmap(path, dtype, "c", offset, shape)


class LineColumn(Sequence[str]):
    """Text before (column 0) or behind (1) the first tab of lines that end at `ends` [M] in the bytes `data`."""

    def __init__(self, data: bytes | mmap.mmap, ends: np.ndarray, column: int) -> None:
        self._data, self._ends, self._column = data, ends, column

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) + 1 if index else 0
        line = self._data[start : int(self._ends[index])].rstrip(b"\r")
        return line.partition(b"\t")[2 * self._column].decode("utf-8", errors="replace")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list


def read_columns(path: Path, *, map_from: int) -> tuple[LineColumn, LineColumn]:
    """The two columns of a file; one of `map_from` bytes or more is mapped and read as it is needed.

    Raises FileNotFoundError when it is not there.
    """
    size = path.stat().st_size
    if size < max(1, map_from):
        data: bytes | mmap.mmap = path.read_bytes()
    else:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = [
        np.flatnonzero(np.frombuffer(data[start : start + _PIECE], dtype=np.uint8) == ord("\n")) + start
        for start in range(0, size, _PIECE)
    ]
    ends = np.concatenate([np.zeros(0, dtype=np.int64), *found])
    if size and data[size - 1 :] != b"\n":
        ends = np.append(ends, size)
    return LineColumn(data, ends, 0), LineColumn(data, ends, 1)


class Spool:
    """Files that rows are appended to, in a temporary folder near `beside`, on the disk where the result will be.

    The folder is made when there is something to write.
    """

    def __init__(self, beside: Path) -> None:
        self._beside, self._folder = beside, Path()
        self._files: dict[str, BinaryIO] = {}
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows to the array of every name; type and shape of a row stay what they are at first."""
        for name, rows in arrays.items():
            self._forms.setdefault(name, (rows.dtype, rows.shape[1:]))
            self._file(name).write(np.ascontiguousarray(rows).tobytes())

    def append_lines(self, lines: Sequence[str]) -> None:
        """Add lines, of which none holds a line end."""
        self._file(_LINES).write("".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace"))

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, mapped from their files."""
        found = {}
        for name, (dtype, row) in self._forms.items():
            file = self._file(name)
            file.flush()
            count = file.tell() // (dtype.itemsize * max(1, math.prod(row)))
            found[name] = _mapped(Path(file.name), dtype, (count, *row))
        return found

    def columns(self) -> tuple[LineColumn, LineColumn]:
        """The two columns of all lines."""
        file = self._file(_LINES)
        file.flush()
        return read_columns(Path(file.name), map_from=1)

    def _file(self, name: str) -> BinaryIO:
        if not self._files:
            near = next(folder for folder in self._beside.parents if folder.is_dir())
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self._beside.name}-spool-", dir=near))
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        return self._files[name]

    def remove(self) -> None:
        """Delete the files; arrays mapped from them can still be used."""
        for file in self._files.values():
            file.close()
        if self._files:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._files = {}
