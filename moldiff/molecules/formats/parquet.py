"""Parquet: a row for each molecule with its SMILES, name and data fields, its atoms, bonds and coordinates as lists.

A column `atomic_numbers` has a list of numbers, `formal_charges` one of charges (e), `coordinates` one of x, y and z of
every atom (Å), `bonds` one of both atoms, from 0, and Kekulé order of every bond.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import BOND_TYPES, explicit_atom, set_positions, to_rdkit
from moldiff.molecules.formats.record import MAX_ATOMS, Columns, Fields, Part, Record, field_text, finished
from moldiff.molecules.formats.smiles import Layout, header_layout, no_column, row_part
from moldiff.molecules.formats.table import TableFile, blocks
from moldiff.molecules.molecule import Molecule

_ELEMENTS, _CHARGES, _PLACES, _BONDS = ATOM_COLUMNS = ("atomic_numbers", "formal_charges", "coordinates", "bonds")
_GROUP = 4096
"""Rows of a row group: some 20 MB of drug-like molecules while they are written."""


def atom_lists(molecule: Molecule) -> dict[str, list[Any]]:
    """The columns of a molecule's atoms, hydrogens included, and of its bonds."""
    mol = to_rdkit(molecule)
    return {
        _ELEMENTS: [atom.GetAtomicNum() for atom in mol.GetAtoms()],
        _CHARGES: [atom.GetFormalCharge() for atom in mol.GetAtoms()],
        _PLACES: mol.GetConformer().GetPositions().tolist(),
        _BONDS: [
            [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondTypeAsDouble())] for bond in mol.GetBonds()
        ],
    }


def parquet_blocks(table: TableFile) -> Iterator[bytes]:
    """The bytes of a Parquet file, which is made of one row group after the other."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    lists = (pa.int16(), pa.int8(), pa.list_(pa.float64()), pa.list_(pa.int32()))
    types = {name: pa.list_(kind) for name, kind in zip(ATOM_COLUMNS, lists, strict=True)}
    names = [*(name for name in table.columns if name not in types), *(name for name in types if name in table.columns)]
    schema = pa.schema([(name, types.get(name) or kinds[table.columns[name]]) for name in names])
    with tempfile.TemporaryFile() as file:
        with ParquetWriter(file, schema, compression="zstd") as writer:
            waiting = table.rows()
            while rows := list(islice(waiting, _GROUP)):
                columns = {name: [row.get(name) for row in rows] for name in names}
                for name in (one.name for one in schema if one.type == pa.string()):
                    columns[name] = [None if value is None else field_text(value) for value in columns[name]]
                writer.write_table(pa.table(columns, schema))
        yield from blocks(file)


def parquet_parts(path: Path, place: Path, columns: Columns) -> Iterator[Part]:
    """The records of the Parquet file at a place, read in batches: of its atoms where it has such columns, or SMILES.

    Raises MoldiffError when pyarrow is not installed, the file is no Parquet file, or it has neither.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        advice = 'pip install "moldiff[parquet]"'
        raise MoldiffError(f"{path}: reading Parquet needs pyarrow, which is not installed: {advice}") from None
    number = 0
    try:
        file = ParquetFile(place)
        header = [field.name for field in file.schema_arrow]
        layout = header_layout(header, columns)
        if layout is None and columns.smiles is None and {_ELEMENTS, _PLACES} <= set(header):
            layout = Layout(header, -1, header.index("name") if "name" in header else None)
        if layout is None:
            raise no_column(path, header, columns)
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(1024))
        for number, values in enumerate(rows, start=1):
            yield _part(number, values, layout)
    except (ArrowException, OSError) as error:
        reason = f"cannot be read as Parquet ({next(iter(str(error).splitlines()), type(error).__name__)})"
        if not number:
            raise MoldiffError(f"{path}: {reason}") from None
        yield Part.rejected(number + 1, "", f"{reason}; the rest of the file is not read")


def _part(number: int, values: Mapping[str, Any], layout: Layout) -> Part:
    """A row: of its atoms if it has them."""
    # Lists, nested tables and missing values are empty.
    cells = [field_text(value) if isinstance(value, str | int | float) else "" for value in values.values()]
    elements, places = values.get(_ELEMENTS), values.get(_PLACES)
    if not (isinstance(elements, list) and isinstance(places, list)):
        return row_part(number, cells, layout)
    name = "" if layout.name is None else cells[layout.name]
    others = zip(layout.header, cells, strict=True)
    fields = {key: cell for k, (key, cell) in enumerate(others) if k not in (layout.smiles, layout.name) and cell}
    if layout.smiles >= 0 and cells[layout.smiles]:
        fields["SMILES"] = cells[layout.smiles]
    return Part(number, _record, (name, fields, *map(values.get, ATOM_COLUMNS)), name)


def _record(
    number: int,
    name: str,
    fields: Mapping[str, str],
    elements: Sequence[int],
    charges: Sequence[int] | None,
    places: Sequence[Sequence[float]],
    bonds: Sequence[Sequence[int]] | None,
) -> Record:
    """A molecule of its lists; without bonds one of elements and coordinates alone, as of an XYZ file."""
    charges = [0] * len(elements) if charges is None else charges
    if len(elements) > MAX_ATOMS:
        return Record.rejected(number, name, f"{len(elements)} atoms, more than {MAX_ATOMS}")
    try:
        pos = np.array(places, dtype=np.float64).reshape(len(places), 3)
        mol = Chem.RWMol()
        if not len(pos) == len(elements) > 0 or not all(0 < element < 119 for element in elements):
            raise ValueError
        for element, charge in zip(elements, charges, strict=True):
            mol.AddAtom(explicit_atom(element, charge))
        for first, second, order in bonds or ():
            mol.AddBond(first, second, BOND_TYPES[order])
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError):
        expected = (
            f"{_ELEMENTS}, {_CHARGES}, {_PLACES} (x, y, z) and {_BONDS} (atom, atom, order 1 to 3) of one molecule"
        )
        return Record.rejected(number, name, f"the lists of its atoms do not fit together, expected {expected}")
    set_positions(mol, pos)
    if bonds is None:
        Fields(fields).set_on(mol)
        mol.SetProp("_Name", name)
        return Record(number, name, mol.GetMol())
    return finished(number, name, mol.GetMol(), Fields(fields))
