"""SDF: its records parted, parsed and written."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from rdkit import Chem, rdBase

from moldiff.molecules.convert import to_rdkit
from moldiff.molecules.formats.record import Block, Fields, Lines, Part, Record, atomic_number, finished, whole_number
from moldiff.molecules.molecule import InvalidMolecule, Molecule, Status

END_OF_BLOCK = "M  END"
END_OF_RECORD = "$$$$"
_HEADER = re.compile(r">[^<]*<(.*)>")


def sdf_record(number: int, block: list[str]) -> Record:
    """The lines of an SDF record: a MOL block (V2000 or V3000) and data fields."""
    name = block[0].strip() if block else ""
    end = next((k + 1 for k, line in enumerate(block) if line.startswith(END_OF_BLOCK)), len(block))
    with rdBase.BlockLogs():
        mol = Chem.MolFromMolBlock("\n".join(block[:end]) + "\n", sanitize=False, removeHs=False)
    if mol is None:
        return Record(number, name, None, _why_unparsed(block[:end]))
    if mol.GetNumAtoms() == 0:
        return Record.rejected(number, name, "no atom")
    # RDKit takes a flat molecule for a drawing even where the header says that it is 3D; see `_is_drawing`.
    if block[1][20:22] == "3D" and np.ptp(mol.GetConformer().GetPositions(), axis=0).max() > 0:
        mol.GetConformer().Set3D(True)
    return finished(number, name, mol, sdf_fields(block[end:]))


def sdf_fields(lines: Sequence[str]) -> Fields:
    """The data fields of an SDF record; a line of spaces ends a value like an empty one does.

    The name is what stands between the first `<` of the header and its last `>`, so that it may hold a `>` itself.

    >>> sdf_fields(["> <a>b>", "7", "", "> 25 <gap> (MD-1)", "0.3"]).values
    {'a>b': '7', 'gap': '0.3'}
    """
    pairs: list[tuple[str, list[str]]] = []
    value: list[str] | None = None
    for line in lines:
        header = _HEADER.match(line)
        if header or (value is None and line.startswith(">")):
            value = []
            pairs.append((header[1] if header else "", value))
        elif not line.strip():
            value = None
        elif value is not None:
            value.append(line)
    return Fields.gathered((name, "\n".join(text)) for name, text in pairs)


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
            return InvalidMolecule.at(atom, symbol, Status.NON_FINITE, "coordinate not finite")
        if atomic_number(symbol) is None:
            return InvalidMolecule(Status.UNREADABLE, f"atom {atom}: unknown element {symbol!r}", atom)
    return InvalidMolecule(Status.UNREADABLE, "RDKit cannot read this MOL block")


def sdf_parts(lines: Lines) -> Iterator[Part]:
    """The records of an SDF or MOL file."""
    block, number = Block(), 1
    for line in lines:
        if line.startswith(END_OF_RECORD):
            yield Part(number, sdf_record, (block.lines,), block.line(0))
            block, number = Block(), number + 1
        else:
            block.add(line)
    if any(line.strip() for line in block.lines):
        # A lone MOL block needs no end mark; behind a finished record its absence means that the file was cut.
        if number == 1 and not lines.cut and any(line.startswith(END_OF_BLOCK) for line in block.lines):
            yield Part(number, sdf_record, (block.lines,), block.line(0))
        else:
            yield Part.rejected(number, block.line(0), f"truncated at record {number}")


def sdf_text(molecule: Molecule, fields: Mapping[str, str]) -> str:
    """A record of an SDF: V2000 where that can hold it."""
    mol = to_rdkit(replace(molecule, name=" ".join(molecule.name.split())))
    mol.UpdatePropertyCache(strict=False)
    large = max(mol.GetNumAtoms(), mol.GetNumBonds()) > 999  # V2000 counts them with three digits
    # Readers take stereo off 3D coordinates; a double bond without a side in them is the one flagged as "either".
    block = Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False, forceV3000=large)
    data = "".join(f">  <{key}>\n{text}\n\n" for key, text in fields.items())
    return f"{block}{data}{END_OF_RECORD}\n"
