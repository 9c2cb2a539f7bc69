"""SDF: its records parted, parsed and written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from moldiff.errors import MoldiffError
from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.formats.fields import sdf_fields
from moldiff.molecules.formats.record import (
    END_OF_BLOCK,
    END_OF_RECORD,
    Columns,
    Part,
    Record,
    Value,
    _Block,
    _line,
    _Lines,
    _rejected,
    _set_fields,
    atomic_number,
    finished,
    rejected,
    whole_number,
)
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status


def sdf_record(number: int, block: list[str]) -> Record:
    """The lines of an SDF record: a MOL block (V2000 or V3000) and data fields."""
    name = block[0].strip() if block else ""
    end = next((k + 1 for k, line in enumerate(block) if line.startswith(END_OF_BLOCK)), len(block))
    with rdBase.BlockLogs():
        mol = Chem.MolFromMolBlock("\n".join(block[:end]) + "\n", sanitize=False, removeHs=False)
    if mol is None:
        return Record(number, name, None, _why_unparsed(block[:end]))
    if mol.GetNumAtoms() == 0:
        return rejected(number, name, "no atom")
    # RDKit takes a flat molecule for a drawing even where the header says that it is 3D; see `_is_drawing`.
    if block[1][20:22] == "3D" and np.ptp(mol.GetConformer().GetPositions(), axis=0).max() > 0:
        mol.GetConformer().Set3D(True)
    fields = sdf_fields(block[end:])
    _set_fields(mol, fields.values)
    return replace(finished(number, name, mol), remarks=fields.remarks)


def _why_unparsed(block: list[str]) -> InvalidMolecule:
    """A reason for a MOL block that RDKit does not parse (RDKit only logs its own)."""
    counts = block[3] if len(block) > 3 else ""
    if "V3000" in counts:
        return InvalidMolecule(Status.UNREADABLE, "malformed V3000 block")
    if not counts[:6].replace(" ", "").isdecimal():
        return InvalidMolecule(Status.UNREADABLE, "no counts line, so not a MOL block")
    num_atoms, num_bonds = (whole_number(text.replace(" ", "")) or 0 for text in (counts[:3], counts[3:6]))
    if len(block) < 4 + num_atoms + num_bonds:
        reason = f"fewer lines than its {num_atoms} atoms and {num_bonds} bonds need"
        return InvalidMolecule(Status.UNREADABLE, reason)
    for atom, line in enumerate(block[4 : 4 + num_atoms]):
        symbol = line[31:34].strip()
        if re.search(r"nan|inf", line[:30], re.IGNORECASE):
            return InvalidMolecule(Status.NON_FINITE, f"atom {atom} ({symbol}): coordinate not finite", atom)
        if atomic_number(symbol) is None:
            return InvalidMolecule(Status.UNREADABLE, f"atom {atom}: unknown element {symbol!r}", atom)
    return InvalidMolecule(Status.UNREADABLE, "RDKit cannot read this MOL block")


def _sdf_parts(lines: _Lines, path: Path, columns: Columns) -> Iterator[Part]:
    block, number = _Block(), 1
    for line in lines:
        if line.startswith(END_OF_RECORD):
            yield Part(number, sdf_record, (block.lines,), _line(block.lines, 0))
            block, number = _Block(), number + 1
        else:
            block.add(line)
    if any(line.strip() for line in block.lines):
        # A lone MOL block needs no end mark; behind a finished record its absence means that the file was cut.
        whole = number == 1 and not lines.cut and any(line.startswith(END_OF_BLOCK) for line in block.lines)
        title = _line(block.lines, 0)
        cut = _rejected(number, title, f"truncated at record {number}")
        yield Part(number, sdf_record, (block.lines,), title) if whole else cut


def _field_text(key: str, value: Value | None) -> str:
    if not key or re.search(r"[<>\r\n]", key):
        raise MoldiffError(f"field name {key!r}: expected a name without <, > and line ends")
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return f"{float(value):.8g}"
    return " ".join(str(value).split())


def _sdf_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    mol = to_rdkit(replace(molecule, name=" ".join(molecule.name.split())))
    mol.UpdatePropertyCache(strict=False)
    # V2000 counts atoms and bonds with three digits.
    large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > 999
    # Readers take stereo off 3D coordinates; a double bond without a side in them is the one flagged as "either".
    block = Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False, forceV3000=large)
    data = "".join(f">  <{key}>\n{text}\n\n" for key, text in fields.items())
    return f"{block}{data}$$$$\n"
